"""Checks on what came out: steering, failed, cut and unread answers, and what the model was shown."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lmms_eval_vreason.journal.summary import format_facts, steering_warning
from lmms_eval_vreason.prompts.split import split
from lmms_eval_vreason.protocol.answers import parse_choice, parse_number, parse_yes_no
from lmms_eval_vreason.report.doctor.evidence import Evidence, Finding, counted, finding, shortened

_OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\s*(\S.*?)\s*$", re.MULTILINE)
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_ENDS = 40  # characters at each end of a task's text, by which its place in the prompt is known
_FEWEST_FRAMES = 4  # what qwen-vl-utils gives of any clip that has so many


def steering(e: Evidence) -> Iterator[Finding]:
    """A run that should have been steered and measures the base model."""
    facts = e.run.journal.facts if e.run.journal is not None else None
    if facts is not None and (warning := steering_warning(facts)):
        yield finding("steering", evidence=[format_facts(facts)], warning=warning)


def failed(e: Evidence) -> Iterator[Finding]:
    """Samples without an answer because of an error."""
    if e.failed:
        errors = (f"{record['error']['type']}: {record['error']['message'][:120]}" for record in e.failed)
        yield e.lost("failed", len(e.failed), [counted(errors)])


def missing(e: Evidence) -> Iterator[Finding]:
    """Documents that lmms-eval counts and that have no sample."""
    there = e.samples.groupby("task")["doc_id"].nunique()
    lacks = {task: asked - int(there[task]) for task, (_, asked) in e.documents.items() if asked > there[task]}
    if lacks:
        share = sum(lacks.values()) / sum(asked for _, asked in e.documents.values())
        yield finding("missing", share, [f"{task}: {lack} of {e.documents[task][1]}" for task, lack in lacks.items()])


def cut(e: Evidence) -> Iterator[Finding]:
    """Thinking or answers that a budget ended."""
    rows = e.answered[e.answered["cut"].eq(True)]
    if not rows.empty:
        evidence = [f"{rows['output_tokens'].min():g} to {rows['output_tokens'].max():g} output tokens"]
        if e.records:
            parts = {part: sum(bool(record[f"{part}_cut"]) for record in e.records) for part in ("thinking", "answer")}
            evidence.append(", ".join(f"{part} cut: {count}" for part, count in parts.items()))
        names = "max_thinking_tokens and max_answer_tokens" if e.facts.get("thinking") else "max_new_tokens"
        yield e.lost("cut", len(rows), evidence, names=names)


def unread(e: Evidence) -> Iterator[Finding]:
    """Finished texts in which the protocol finds no answer."""
    rows = [row for row in e.answered[e.answered["cut"].ne(True)].to_dict("records") if not is_read(row)]
    if rows:
        yield e.lost("unread", len(rows), _examples(rows))


def is_read(row: Mapping[Any, Any]) -> bool:
    """Whether the protocol finds the kind of answer that a sample's question asks for.

    Args:
        row: of a run's samples. Options are known from its prompt; other kinds from the gold answer.
    """
    if not row["answered"] or row["task"].startswith("vreason_"):
        return bool(row["answered"])
    response, options = split(row["response"]), dict(_OPTION.findall(row["input"] or row["prompt"]))
    if {"A", "B"} <= options.keys():
        return parse_choice(response, options) is not None
    if row["target"].lower() in ("yes", "no"):
        return parse_yes_no(response) is not None
    return not _NUMBER.fullmatch(row["target"]) or parse_number(response) is not None


def tagged(e: Evidence) -> Iterator[Finding]:
    """Answers that a task for bare letters scored with their tags."""
    if rows := e.samples[e.samples["tagged"].eq(True)].to_dict("records"):
        yield e.lost("tags", len(rows), _examples(rows))


def truncated(e: Evidence) -> Iterator[Finding]:
    """Prompts that hold the head of the task's text and not its end. Only a journal has prompts as they were sent."""
    texts = [(row["input"], row) for row in e.samples.to_dict("records") if len(row["input"]) > 2 * _ENDS]
    rows = [row for text, row in texts if text[:_ENDS] in row["prompt"] and text[-_ENDS:] not in row["prompt"]]
    if rows:
        ends = [f"{row['task']}/{row['doc_id']} ends in “{shortened(row['prompt'], _ENDS)}”" for row in rows[:3]]
        yield e.lost("truncated", len(rows), ends)


def unseen(e: Evidence) -> Iterator[Finding]:
    """Samples that were shown no video, hardly any of it, or frames outside the bounds of pixels."""
    answered = [record for record in e.records if record.get("error") is None]
    if blind := [record for record in answered if not record["media"]]:
        yield e.lost("no video", len(blind), [_names(blind)])
    # Journals of earlier versions lack the field.
    seen = [(record, item) for record in answered for item in record.get("shown", ())]
    least = min(_FEWEST_FRAMES, int(e.facts.get("max_num_frames") or _FEWEST_FRAMES))
    if few := [(record, item) for record, item in seen if item["frames"] < least and item["clip_frames"] > 1]:
        clips = counted(f"{item['frames']} of {item['clip_frames']} frames" for _, item in few)
        yield e.lost("few frames", len(few), [clips, _names([record for record, _ in few])], least=least)
    low, high = (e.wanted.get(name) for name in ("min_pixels", "max_pixels"))
    sizes = [item["height"] * item["width"] for _, item in seen]
    if out := [size for size in sizes if (low and size < int(low)) or (high and size > int(high))]:
        given = [f"{min(sizes)} to {max(sizes)} pixels a frame were shown"]
        yield e.lost("size of frames", len(out), given, low=low or 0, high=high)


def lite(e: Evidence) -> Iterator[Finding]:
    """Samples that were answered with other settings than the run's."""
    if remarks := [record["remark"] for record in e.records if record.get("remark")]:
        yield e.lost("lite", len(remarks), [counted(remarks)])


def _examples(rows: list[dict[Any, Any]]) -> list[str]:
    return [f"{r['task']}/{r['doc_id']}, gold {r['target']}: “{shortened(r['response'])}”" for r in rows[:3]]


def _names(records: list[dict[str, Any]]) -> str:
    return ", ".join(f"{record['task']}/{record['doc_id']}" for record in records[:3])


CHECKS = (steering, failed, cut, unread, tagged, truncated, missing, unseen, lite)
