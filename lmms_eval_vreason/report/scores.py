"""A sample's score as lmms-eval wrote it: each benchmark keeps it in another shape under its metric's name."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval_vreason.prompts.split import split
from lmms_eval_vreason.report.catalogue import VSI_ACCURACY, VSI_MRA

# Fields that lmms-eval itself puts into a logged sample; everything else is a metric.
_FIELDS = {
    "doc_id",
    "doc",
    "target",
    "arguments",
    "input",
    "input_media",
    "resps",
    "filtered_resps",
    "token_counts",
    "doc_hash",
}
# VSI-Bench's key → its row, and the metric's name.
_VSI = (("accuracy", VSI_ACCURACY, "accuracy"), ("MRA:.5:.95:.05", VSI_MRA, "MRA"))
RIGHT = 0.5  # scores from here on count as right: mean relative accuracy is a share


def _from_mmmu(value: Mapping[str, Any]) -> float | None:
    """VideoMMMU keeps the parsed prediction, and scores it only in its aggregation.

    The rule is lmms-eval's (``eval_multi_choice``, ``eval_open`` in ``tasks/videommmu/utils.py``), whose module cannot
    be imported without torch and ``HF_HOME``.
    """
    if "parsed_pred" not in value or "answer" not in value:
        return None
    answers = value["answer"] if isinstance(value["answer"], list) else [value["answer"]]
    predicted = value["parsed_pred"]
    if value.get("question_type") in ("multiple-choice", "perception"):
        return float(predicted in answers)
    if isinstance(predicted, str):  # "API Error": an empty response
        return 0.0
    gold = [form for answer in answers for form in _open_forms(str(answer))]
    return float(any(_open_match(form, gold) for form in predicted))


def _open_forms(answer: str) -> list[str | float]:
    """An open answer as lmms-eval normalises it: a number rounded to 2 digits, or lower-case text."""
    try:
        return [round(float(answer.strip().replace(",", "")), 2)]
    except ValueError:
        text = answer.strip().lower()
        # A single letter would be found in any text, so lmms-eval looks for it as a word.
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _open_match(form: str | float, gold: Sequence[str | float]) -> bool:
    if isinstance(form, str):
        return any(isinstance(answer, str) and answer in form for answer in gold)
    return form in gold


def _from_mapping(value: Mapping[str, Any]) -> float | None:
    for key in ("score", "correct"):
        if key in value:
            return _score(value[key])
    if "rating" in value:  # TempCompass: 1 is right, 0 wrong, -1 a judge that did not answer
        return float(value["rating"] == 1)
    return _from_mmmu(value)


def _score(value: Any) -> float | None:
    if isinstance(value, Mapping):
        return _from_mapping(value)
    # nan is no score.
    return float(value) if isinstance(value, int | float) and value == value else None


def score_of(
    sample: Mapping[str, Any], task: str, benchmark: str, metrics: Sequence[str]
) -> tuple[str, str, float] | None:
    """The sample's leading score.

    Args:
        sample: one line of a ``samples`` file.
        task: lmms-eval's task name.
        benchmark: the task's benchmark.
        metrics: the task's metric names, leading first, from the results file; may be empty.

    Returns:
        The table row it counts in (VSI-Bench has two), the metric's name, the score; None where nothing numeric is.
    """
    # A leading metric may be None in a sample that another metric scores, as for VSI-Bench's two kinds of question.
    for metric in [*metrics, *(key for key in sample if key not in _FIELDS and key not in metrics)]:
        value = sample.get(metric)
        if isinstance(value, Mapping) and "question_type" in value:
            for key, row, name in _VSI:
                if key in value:
                    return row, name, float(value[key])
        if (score := _score(value)) is not None:
            return _row(benchmark, task), metric, score
    return None


def _row(benchmark: str, task: str) -> str:
    if benchmark != "VSI-Bench":
        return benchmark
    return VSI_MRA if "mra" in task.lower() else VSI_ACCURACY


def video_of(sample: Mapping[str, Any]) -> str | None:
    """The video that the question is about, from ``input_media`` or from the metric's own record; None if unknown."""
    media = [item for item in sample.get("input_media") or [] if isinstance(item, str)]
    if media:
        return media[0]
    for value in (sample[key] for key in sample if key not in _FIELDS and isinstance(sample[key], Mapping)):
        video = value.get("videoID") or value.get("video_id") or value.get("video")
        if not video and value.get("scene_name"):
            video = f"{value.get('dataset', '')}/{value['scene_name']}"
        if video:
            return str(video)
    return None


def _first(value: Any) -> str:
    while isinstance(value, list):
        value = value[0] if value else ""
    return "" if value is None else str(value)


def answer_of(sample: Mapping[str, Any]) -> str:
    """The bare answer that was scored; empty when there is none (an unclosed ``<think>`` has no answer)."""
    if _brings_answer(sample):
        return _first(sample["score"].get("answer")).strip()
    return split(_first(sample.get("filtered_resps"))).answer


def scored_with_tags(sample: Mapping[str, Any]) -> bool:
    """Whether the task scored the answer with its ``<answer>`` tags around it."""
    return not _brings_answer(sample) and split(_first(sample.get("filtered_resps"))).tagged


def response_of(sample: Mapping[str, Any]) -> str:
    """The whole text that the model returned, thinking included."""
    return _first(sample.get("resps", sample.get("filtered_resps")))


def unfinished(sample: Mapping[str, Any]) -> bool:
    """Whether the text ends before its answer does, or the task itself says that it was cut."""
    if isinstance(sample.get("cut"), Mapping):
        return bool(sample["cut"].get("score"))
    return split(response_of(sample)).cut


def _brings_answer(sample: Mapping[str, Any]) -> bool:
    """This package's tasks extract the answer themselves."""
    return isinstance(sample.get("answer_found"), Mapping)
