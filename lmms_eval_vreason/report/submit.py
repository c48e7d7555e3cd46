"""Leaderboard files, checked for completeness before they are written.

Which forms exist: Video-MME has an official JSON template (github.com/MME-Benchmarks/Video-MME, ``evaluation/
output_test_template.json``); MVBench's leaderboard takes ``upload_leaderboard.json`` (github.com/OpenGVLab/
Ask-Anything, ``video_chat2/mvbench.ipynb``); TempCompass scores one prediction file a question type (github.com/llyx97/
TempCompass). MMVU runs submissions itself from code, VideoMMMU and VSI-Bench publish no form.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lmms_eval_vreason.report.files import listed, parse_run, write_files
from lmms_eval_vreason.report.runs import read_samples

NO_FORM = {
    "mmvu": "MMVU's hidden test set is run by its authors from your code; no answer file is taken",
    "videommmu": "VideoMMMU has no submission form: report the results file of lmms-eval",
    "vsibench": "VSI-Bench has no submission form: report the results file of lmms-eval",
}
_MVBENCH_QUESTIONS = 200
_TEMPCOMPASS = ("multi-choice", "yes_no", "caption_matching", "captioning")
Documents = Callable[[Mapping[str, Any]], Any]
Answered = tuple[str, Any, str]  # the task's part, a document, and the text to submit


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
    forms = {"videomme": _videomme, "tempcompass": _tempcompass}
    if name not in (*forms, "mvbench"):
        raise ValueError(f"{benchmark!r} is none of {', '.join([*forms, 'mvbench', *NO_FORM])}")
    notices: list[str] = []
    _, path, pattern = parse_run(argument)
    samples, results = read_samples(path, pattern, notices, [])
    samples = samples[samples["part"].str.startswith(name)]
    if samples.empty:
        raise ValueError(f"{path} holds no samples of {benchmark}")
    if name == "mvbench":
        if chain:
            notices.append("MVBench's form holds accuracies alone: there is no place for the chain of thought")
        return {"upload_leaderboard.json": _mvbench(samples)}, notices
    samples = samples.assign(text=samples["response" if chain else "answer"])
    if empty := samples["text"].eq("").sum():
        notices.append(f"{empty} answers are empty and are submitted as they are")
    return forms[name](list(_answered(samples, results["configs"], documents)), notices), notices


def write_submission(contents: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes the files into a folder and returns their paths."""
    texts = {name: json.dumps(content, ensure_ascii=False, indent=2) + "\n" for name, content in contents.items()}
    return [path for name, text in texts.items() for path in write_files(folder / name, {"": text})]


def _answered(samples: pd.DataFrame, configs: Mapping[str, Any], documents: Documents) -> Iterator[Answered]:
    """Every document of the tasks, in the dataset's order."""
    for task in samples["task"].unique():
        own = samples[samples["task"] == task]
        if task not in configs:
            raise ValueError(f"the samples of {task} have no results file beside them, which names the dataset")
        docs, texts = documents(configs[task]), own.set_index("doc_id")["text"]
        _refuse_incomplete(task, texts.index, len(docs))
        yield from ((own["part"].iat[0], doc, texts[doc_id]) for doc_id, doc in enumerate(docs))


def _refuse_incomplete(task: str, answered: Iterable[int], expected: int) -> None:
    if missing := sorted(set(range(expected)).difference(answered)):
        raise ValueError(
            f"{task}: {len(missing)} of {expected} questions have no answer (doc_id {listed(missing)}); "
            "run the whole task before submitting"
        )


def _videomme(answered: list[Answered], notices: list[str]) -> dict[str, Any]:
    videos: dict[str, dict[str, Any]] = {}
    for _, doc, response in answered:
        head = {name: doc[name] for name in ("video_id", "duration", "domain", "sub_category")}
        question = {name: doc[name] for name in ("question_id", "task_type", "question", "options", "answer")}
        video = videos.setdefault(doc["video_id"], head | {"questions": []})
        video["questions"].append(question | {"response": response})
    return {"videomme.json": list(videos.values())}


def _mvbench(samples: pd.DataFrame) -> dict[str, float]:
    """Accuracies in percent, by the subtasks' names as the leaderboard writes them."""
    for task, own in samples.groupby("task"):
        _refuse_incomplete(str(task), own["doc_id"], _MVBENCH_QUESTIONS)
    words = samples["part"].str.removeprefix("mvbench_").str.replace("_", " ").str.title()
    names = words.str.replace("Fine Grained", "Fine-grained")
    shares = 100 * samples["score"].groupby(names).mean()
    if len(shares) != 20:
        raise ValueError(f"MVBench has 20 subtasks, the run {len(shares)}: {', '.join(shares.index)}")
    return {**shares, "Avg": 100 * samples["score"].mean()}


def _tempcompass(answered: list[Answered], notices: list[str]) -> dict[str, Any]:
    contents: dict[str, Any] = {}
    for part, doc, response in answered:
        kind = part.removeprefix("tempcompass_").replace("multi_choice", "multi-choice")
        dims = contents.setdefault(f"{kind}.json", {}).setdefault(doc["video_id"], {})
        gold = doc.get("answer", doc.get("mc_answer"))
        entry = {"question": doc["question"], "answer": gold, "prediction": response}
        dims.setdefault(doc["dim"], []).append(entry)
    if missing := [name for name in _TEMPCOMPASS if f"{name}.json" not in contents]:
        notices.append(f"TempCompass has four question types; the run lacks {', '.join(missing)}")
    return contents
