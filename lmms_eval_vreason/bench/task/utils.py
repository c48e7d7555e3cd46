"""The end-to-end benchmark's task for lmms-eval: multiple choice on synthetic clips, several questions on each."""

from typing import Any

from lmms_eval_vreason.prompts.split import split


def doc_to_visual(doc: dict[str, Any]) -> list[str]:
    """The clip's path."""
    return [doc["video"]]


def doc_to_text(doc: dict[str, Any]) -> str:
    """Instruction, question and options."""
    return str(doc["prompt"])


def doc_to_messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """One user turn: the clip, then the text."""
    content = [{"type": "video", "url": doc["video"]}, {"type": "text", "text": doc["prompt"]}]
    return [{"role": "user", "content": content}]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 for the right letter, 0 for anything else."""
    return {"accuracy": float(split(results[0]).answer == doc["answer"])}
