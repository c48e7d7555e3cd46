"""Leaderboard files, checked for completeness before they are written.

Which forms exist: Video-MME has an official JSON template (github.com/MME-Benchmarks/Video-MME, ``evaluation/
output_test_template.json``); MVBench's leaderboard takes ``upload_leaderboard.json`` (github.com/OpenGVLab/
Ask-Anything, ``video_chat2/mvbench.ipynb``); TempCompass scores one prediction file a question type (github.com/llyx97/
TempCompass). MMVU runs submissions itself from code, VideoMMMU and VSI-Bench publish no form.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lmms_eval_vreason.report.catalogue import part_of
from lmms_eval_vreason.report.files import (
    SamplesFile,
    find_samples,
    listed,
    parse_run,
    read_json,
    read_json_lines,
    write_files,
)
from lmms_eval_vreason.report.scores import answer_of, response_of, score_of

NO_FORM = {
    "mmvu": "MMVU's hidden test set is run by its authors from your code; no answer file is taken",
    "videommmu": "VideoMMMU has no submission form: report the results file of lmms-eval",
    "vsibench": "VSI-Bench has no submission form: report the results file of lmms-eval",
}
_MVBENCH_QUESTIONS = 200
_TEMPCOMPASS = ("multi-choice", "yes_no", "caption_matching", "captioning")
Documents = Callable[[Mapping[str, Any]], Any]


def load_documents(config: Mapping[str, Any]) -> Any:
    """The task's documents in order, from the cache that the run has filled.

    Args:
        config: the task's entry in the results file's ``configs``.
    """
    from datasets import load_dataset  # seconds to import, and wanted for two benchmarks only

    split = config.get("test_split") or config.get("validation_split")
    return load_dataset(config["dataset_path"], config.get("dataset_name"), split=split)


def submission(
    benchmark: str, argument: str, *, chain: bool = False, documents: Documents = load_documents
) -> tuple[dict[str, Any], list[str]]:
    """The files of a submission.

    Args:
        benchmark: ``videomme``, ``mvbench`` or ``tempcompass``.
        argument: the run, as ``[label=]path[#tasks]``.
        chain: put the whole text in, chain of thought included, instead of the bare answer.
        documents: a task's config → its documents in order (for Video-MME and TempCompass).

    Returns:
        File name → content, and sentences about what is worth knowing.

    Raises:
        ValueError: the benchmark has no form, or the run is incomplete; the message says what is missing.
    """
    name = benchmark.lower().replace("-", "").replace("_", "")
    if name in NO_FORM:
        raise ValueError(NO_FORM[name])
    forms = {"videomme": _videomme, "mvbench": _mvbench, "tempcompass": _tempcompass}
    if name not in forms:
        raise ValueError(f"{benchmark!r} is none of {', '.join([*forms, *NO_FORM])}")
    notices: list[str] = []
    _, path, pattern = parse_run(argument)
    files = [file for file in find_samples(path, notices, pattern) if part_of(file.task).startswith(name)]
    if not files:
        raise ValueError(f"{path} holds no samples of {benchmark}")
    parts = [part_of(file.task) for file in files]
    twice = {part for part in parts if parts.count(part) > 1}
    if twice:
        raise ValueError(f"{path} holds {', '.join(sorted(twice))} under two prompts: choose with {path}#<task names>")
    return forms[name](files, chain, documents, notices), notices


def write_submission(contents: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the files into a folder and returns their paths."""
    texts = {name: json.dumps(content, ensure_ascii=False, indent=2) + "\n" for name, content in contents.items()}
    return [path for name, text in texts.items() for path in write_files(folder / name, {"": text})]


def _answered(file: SamplesFile, chain: bool, documents: Documents, notices: list[str]) -> list[tuple[Any, str]]:
    """Each document of the task with the run's response."""
    text = response_of if chain else answer_of
    responses = {line["doc_id"]: text(line) for line in read_json_lines(file.path, notices) if "doc_id" in line}
    if file.results is None:
        raise ValueError(f"{file.path.name} has no results file beside it, which names the dataset")
    docs = documents(read_json(file.results)["configs"][file.task])
    _refuse_incomplete(file, responses, len(docs))
    if empty := sum(not response for response in responses.values()):
        notices.append(f"{file.task}: {empty} answers are empty and are submitted as they are")
    return [(doc, responses[doc_id]) for doc_id, doc in enumerate(docs)]


def _refuse_incomplete(file: SamplesFile, answered: Iterable[int], expected: int) -> None:
    if missing := sorted(set(range(expected)).difference(answered)):
        raise ValueError(
            f"{file.task}: {len(missing)} of {expected} questions have no answer (doc_id {listed(missing)}); "
            "run the whole task before submitting"
        )


def _videomme(files: list[SamplesFile], chain: bool, documents: Documents, notices: list[str]) -> dict[str, Any]:
    (file,) = files
    videos: dict[str, dict[str, Any]] = {}
    for doc, response in _answered(file, chain, documents, notices):
        head = {name: doc[name] for name in ("video_id", "duration", "domain", "sub_category")}
        question = {name: doc[name] for name in ("question_id", "task_type", "question", "options", "answer")}
        video = videos.setdefault(doc["video_id"], head | {"questions": []})
        video["questions"].append(question | {"response": response})
    return {"videomme.json": list(videos.values())}


def _mvbench(files: list[SamplesFile], chain: bool, documents: Documents, notices: list[str]) -> dict[str, Any]:
    if chain:
        notices.append("MVBench's form holds accuracies alone: there is no place for the chain of thought")
    scores: dict[str, list[float]] = {}
    for file in sorted(files, key=lambda file: file.task):
        samples = {sample["doc_id"]: sample for sample in read_json_lines(file.path, notices)}
        _refuse_incomplete(file, samples, _MVBENCH_QUESTIONS)
        scored = [score_of(sample, file.task, "MVBench", ["score"]) for sample in samples.values()]
        if unscored := scored.count(None):
            raise ValueError(f"{file.task}: {unscored} samples have no numeric score")
        scores[_mvbench_name(file.task)] = [score for _, _, score in filter(None, scored)]
    if len(scores) != 20:
        raise ValueError(f"MVBench has 20 subtasks, the run {len(scores)}: {', '.join(scores)}")
    shares = {name: 100 * float(np.mean(own)) for name, own in scores.items()}
    return {"upload_leaderboard.json": shares | {"Avg": 100 * float(np.concatenate(list(scores.values())).mean())}}


def _mvbench_name(task: str) -> str:
    words = part_of(task).removeprefix("mvbench_").split("_")
    return " ".join(word.capitalize() for word in words).replace("Fine Grained", "Fine-grained")


def _tempcompass(files: list[SamplesFile], chain: bool, documents: Documents, notices: list[str]) -> dict[str, Any]:
    contents: dict[str, Any] = {}
    for file in files:
        videos: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for doc, response in _answered(file, chain, documents, notices):
            gold = doc.get("answer", doc.get("mc_answer"))
            entry = {"question": doc["question"], "answer": gold, "prediction": response}
            videos.setdefault(doc["video_id"], {}).setdefault(doc["dim"], []).append(entry)
        kind = part_of(file.task).removeprefix("tempcompass_").replace("multi_choice", "multi-choice")
        contents[f"{kind}.json"] = videos
    missing = [name for name in _TEMPCOMPASS if f"{name}.json" not in contents]
    if missing:
        notices.append(f"TempCompass has four question types; the run lacks {', '.join(missing)}")
    return contents
