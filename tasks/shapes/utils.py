"""The shapes task for lmms-eval: multiple choice on synthetic clips, scored by the exact letter."""

from typing import Any

from datasets import Dataset

from lmms_eval_vreason.paths import cache_dir
from lmms_eval_vreason.prompts.split import split
from lmms_eval_vreason.shapes.dataset import documents
from lmms_eval_vreason.shapes.questions import prompt_text


def make_documents(splits: Dataset) -> Dataset:
    """The questions that ``splits.json`` asks for; makes their clips on first use."""
    return Dataset.from_list([doc for row in splits for doc in documents(row["split"], row["questions"])])


def doc_to_visual(doc: dict[str, Any]) -> list[str]:
    """The clip's path."""
    return [str(cache_dir() / doc["video"])]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any]) -> str:
    """Question, options and instruction."""
    return prompt_text(doc["question"], doc["options"], direct=lmms_eval_specific_kwargs["direct"])


def doc_to_messages(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any]) -> list[dict[str, Any]]:
    """One user turn: the clip, then the text."""
    content: list[dict[str, Any]] = [{"type": "video", "url": path} for path in doc_to_visual(doc)]
    content.append({"type": "text", "text": doc_to_text(doc, lmms_eval_specific_kwargs)})
    return [{"role": "user", "content": content}]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 for the right letter and nothing else, with or without answer tags (lmms-eval has taken the thinking off)."""
    return {"accuracy": float(split(results[0]).answer == doc["answer"])}
