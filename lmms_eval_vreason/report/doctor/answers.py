"""Checks on what came out: steering, failed, cut and unread answers, and what the model was shown."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lmms_eval_vreason.journal.summary import format_facts, steering_warning
from lmms_eval_vreason.prompts.split import split
from lmms_eval_vreason.protocol.answers import parse_choice, parse_number, parse_yes_no
from lmms_eval_vreason.report.doctor.evidence import SPOILS_FROM, Evidence, Finding, counted, shortened

_OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\s*(\S.*?)\s*$", re.MULTILINE)
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_ENDS = 40  # characters at each end of a task's text, by which its place in the prompt is known
_FEWEST_FRAMES = 4  # what qwen-vl-utils gives of any clip that has so many


def steering(e: Evidence) -> Iterator[Finding]:
    """A run that should have been steered and measures the base model."""
    facts = e.run.journal.facts if e.run.journal is not None else None
    if facts is None or not (warning := steering_warning(facts)):
        return
    mend = "Set a strength that vreason calibrate has found on this model and task, or call the run a base run."
    if not facts.steered:
        mend = "Mend what the notes say and run again, or call the run a base run (policy=off)."
    yield Finding("steering", f"{warning}.", mend, evidence=[format_facts(facts)])


def failed(e: Evidence) -> Iterator[Finding]:
    """Samples without an answer because of an error: they count as wrong."""
    if e.failed:
        share = len(e.failed) / len(e.records)
        types = counted(f"{record['error']['type']}: {shortened(record['error']['message'])}" for record in e.failed)
        what = f"{_of(len(e.failed), len(e.records))} failed and count as wrong."
        mend = "Mend the cause and run the same command again: only these are tried again."
        yield Finding("failed", what, mend, share, [types], spoils=share >= SPOILS_FROM)


def missing(e: Evidence) -> Iterator[Finding]:
    """Documents that lmms-eval counts and that have no sample."""
    counts = e.samples.groupby("task")["doc_id"].nunique()
    lacks = {task: asked - int(counts[task]) for task, (_, asked) in e.documents.items() if asked > counts[task]}
    if lacks:
        lacking = [f"{task}: {lack} of {e.documents[task][1]}" for task, lack in lacks.items()]
        share = sum(lacks.values()) / sum(asked for _, asked in e.documents.values())
        what = "The samples files lack documents that the run was asked for."
        mend = "Run the same command again into a new folder."
        yield Finding("missing", what, mend, share, lacking, spoils=share >= SPOILS_FROM)


def cut(e: Evidence) -> Iterator[Finding]:
    """Thinking or answers that a budget ended."""
    cut = e.answered[e.answered["cut"].astype(bool)]
    if cut.empty:
        return
    thinking, answers = (sum(bool(record.get(name)) for record in e.records) for name in ("thinking_cut", "answer_cut"))
    lengths = cut["output_tokens"].dropna()
    evidence = [f"thinking {thinking}, answer {answers}"] if e.records else []
    evidence += [f"output tokens of the cut ones: {lengths.min():g} to {lengths.max():g}"] if len(lengths) else []
    names = "max_thinking_tokens and max_answer_tokens" if e.ours else "max_new_tokens (--gen_kwargs)"
    yield _lost("cut", e, len(cut), "were cut by their budget", f"Raise {names} until none is cut.", evidence)


def unread(e: Evidence) -> Iterator[Finding]:
    """Finished texts in which the protocol finds no answer."""
    finished = e.answered[~e.answered["cut"].astype(bool)]
    rows = [row for row in finished.to_dict("records") if not is_read(row)]
    if rows:
        mend = "Ask for the answer in tags (thinking=on, or the task group vreason), and look at these texts first."
        yield _lost("unread", e, len(rows), "hold no readable answer", mend, _examples(rows))


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
        mend = "Score the task group vreason, which reads answers in tags, or return bare answers."
        yield _lost("tags", e, len(rows), "were scored with their <answer> tags around them", mend, _examples(rows))


def truncated(e: Evidence) -> Iterator[Finding]:
    """Prompts that begin as the task's text does and lack its end."""
    if not e.records:
        return
    rows = e.samples[e.samples["input"].str.len() > 2 * _ENDS].to_dict("records")
    found = [
        row for row in rows if row["input"][:_ENDS] in row["prompt"] and row["input"][-_ENDS:] not in row["prompt"]
    ]
    if found:
        shown = [f"{row['task']}/{row['doc_id']} ends in “{shortened(row['prompt'], _ENDS)}”" for row in found[:3]]
        mend = "Give the prompt its whole text: fewer or smaller frames, or a model with a longer context."
        yield _lost("truncated", e, len(found), "had a prompt whose end was missing", mend, shown)


def unseen(e: Evidence) -> Iterator[Finding]:
    """Samples that were shown no video, hardly any of it, or frames outside the bounds of pixels."""
    answered = [record for record in e.records if record.get("error") is None]
    if blind := [record for record in answered if not record.get("media")]:
        mend = "Check the task's video paths, or leave these tasks out: without a video there is nothing to steer."
        yield _lost("no video", e, len(blind), "had no image or video in their prompt", mend, [_names(blind)])
    seen = [(record, item) for record in answered for item in record.get("shown", []) if record["media"]]
    least = min(_FEWEST_FRAMES, int(e.facts.get("max_num_frames") or _FEWEST_FRAMES))
    if few := [record for record, item in seen if item["frames"] < least and not _is_image(record)]:
        clips = counted(f"{item['frames']} of {item['clip_frames']} frames" for record, item in seen if record in few)
        mend = "Look at these files: a broken download or a clip of no length gives so few."
        yield _lost("few frames", e, len(few), f"were shown fewer than {least} frames", mend, [clips, _names(few)])
    low, high = (e.wanted.get(name) for name in ("min_pixels", "max_pixels"))
    sizes = [(record, item["height"] * item["width"]) for record, item in seen]
    if out := [record for record, size in sizes if (low and size < int(low)) or (high and size > int(high))]:
        range_ = f"{min(size for _, size in sizes)} to {max(size for _, size in sizes)} pixels a frame were shown"
        mend = "Lower the number of frames, which bounds their size, or compare with runs that show the same."
        what = f"were shown frames outside {low} to {high} pixels"
        yield _lost("size of frames", e, len(out), what, mend, [range_])


def lite(e: Evidence) -> Iterator[Finding]:
    """Samples that were answered with other settings than the run's."""
    if remarked := [record["remark"] for record in e.records if record.get("remark")]:
        mend = "Run again with oom=error on a larger GPU, or with fewer frames for all."
        yield _lost("lite", e, len(remarked), "were answered with other settings", mend, [counted(remarked)])


def _lost(name: str, e: Evidence, count: int, what: str, mend: str, evidence: list[str]) -> Finding:
    share = e.share(count)
    sentence = f"{_of(count, len(e.samples))} {what}."
    return Finding(name, sentence, mend, share, evidence, spoils=share >= SPOILS_FROM)


def _of(count: int, total: int) -> str:
    return f"{count} of {total} samples ({100 * count / max(total, 1):.1f}%)"


def _examples(rows: list[dict[Any, Any]]) -> list[str]:
    return [f"{r['task']}/{r['doc_id']}, gold {r['target']}: “{shortened(r['response'])}”" for r in rows[:3]]


def _names(records: list[dict[str, Any]]) -> str:
    return ", ".join(f"{record['task']}/{record['doc_id']}" for record in records[:3])


def _is_image(record: Mapping[str, Any]) -> bool:
    return all(item["clip_frames"] == 1 for item in record["shown"])


CHECKS = (steering, failed, cut, unread, tagged, truncated, missing, unseen, lite)
