"""Checks on how a run was made: its subset, positions, frames, prompt, generation, precision and versions."""

import re
from collections.abc import Iterator

from packaging.version import InvalidVersion, Version

from lmms_eval_vreason.protocol.prompt_templates import packaged_digests
from lmms_eval_vreason.report.catalogue import SIZES
from lmms_eval_vreason.report.doctor.evidence import UNKNOWN, Evidence, Finding, finding, same, shortened
from lmms_eval_vreason.report.runs import as_given

_GROUPS = {
    "frames": ("max_num_frames", "fps"),
    "pixels": ("max_pixels", "min_pixels"),
    "prompt": ("reasoning_prompt", "system_prompt", "thinking"),
    "budgets": ("max_thinking_tokens", "max_answer_tokens", "max_new_tokens"),
    "sampling": ("do_sample", "temperature", "top_p", "top_k", "min_p", "top_h", "repetition_penalty"),
    "precision": ("dtype", "attn_implementation"),
}
_QWEN_VL = re.compile(r"qwen2(?:[._]5)?[-_]?vl", re.IGNORECASE)
_OTHER_ENGINES = re.compile("vllm|sglang|openai|api")  # they compute positions themselves
_TIME_LEFT_OUT = Version("5.3")  # of transformers: docs/positions.md
# Chat classes of lmms-eval 0.7.3 → arguments that they take and do not use.
_IGNORED = {"chat.qwen2_5_vl.": ("reasoning_prompt", "system_prompt"), "chat.qwen3_vl.": ("reasoning_prompt",)}
_PENALTIES = (1.0, 1.05)  # none, and that of the published Qwen2.5-VL checkpoints
_LOADED = ("model_type", "attention", "dtype", "repetition_penalty")


def subset(e: Evidence) -> Iterator[Finding]:
    """A run of some of the documents: ``--limit``, ``--offset``."""
    total, asked = (sum(counts[index] for counts in e.documents.values()) for index in (0, 1))
    given = {name: value for name in ("limit", "offset") if (value := e.config.get(name))}
    if given and (asked < total or not total or "offset" in given):
        share = 1 - asked / total if asked < total else 1.0
        yield finding("limit", share, [f"--{name} {given[name]:g}" for name in given], asked=asked, total=total)


def sizes(e: Evidence) -> Iterator[Finding]:
    """A dataset of another size than its benchmark's, or a benchmark without some of its parts."""
    there = {re.sub(r"^vreason_(direct_)?", "", task): total for task, (total, _) in e.documents.items()}
    found = {}
    for name, published in SIZES.items():
        own = sum(total for part, total in there.items() if re.match(rf"{name}(_|$)", part))
        if own and own != published:
            found[f"{name}: {own} of {published}"] = abs(published - own) / published
    if found:
        yield finding("size", min(max(found.values()), 1.0), found)


def positions(e: Evidence) -> Iterator[Finding]:
    """Text after a video stands in the middle of the video's time."""
    if e.ours and not str(e.facts.get("positions")).startswith("transformers"):  # A journal adds the version.
        return
    if _OTHER_ENGINES.search(e.model) or not _QWEN_VL.search(f"{e.model} {e.given.get('pretrained', '')}"):
        return
    try:
        affected = Version(e.transformers) >= _TIME_LEFT_OUT
    except InvalidVersion as error:
        raise ValueError(f"transformers {e.transformers!r} is no version: give one such as 4.57.1") from error
    if affected:
        who = "positions=transformers" if e.ours else f"the class {e.model}"
        source = "" if e.told else ", the version installed here: the run does not record its own"
        otherwise = "" if e.told else ", or give --transformers if the run was made with one before 5.3"
        yield finding("positions", 1.0, [f"{who} on transformers {e.transformers}{source}"], otherwise=otherwise)


def departures(e: Evidence) -> Iterator[Finding]:
    """Settings that are not those to compare with."""
    other = tuple(name for name in e.wanted if not any(name in names for names in _GROUPS.values()))
    known = {name: e.facts[name] for name in e.wanted if e.facts.get(name, UNKNOWN) != UNKNOWN}
    for group, names in {**_GROUPS, "settings": other}.items():
        if changed := [name for name in names if name in known and not same(known[name], e.wanted[name])]:
            shown = [f"{name}={known[name]}, {e.source} is {e.wanted[name]}" for name in changed]
            yield finding(group, 1.0, shown, source=e.source, changed=", ".join(changed))


def prompt(e: Evidence) -> Iterator[Finding]:
    """Words of the user's own in the prompt, or words that never reached it."""
    ignored = [name for part, names in _IGNORED.items() if f"models.{part}" in e.backend for name in names]
    own = [name for name in ("reasoning_prompt", "system_prompt") if e.given.get(name) and name not in e.wanted]
    for title, names in (
        ("unused prompt", [name for name in own if name in ignored]),
        ("prompt", [name for name in own if name not in ignored]),
    ):
        if names:
            words = [f"{name}={shortened(str(e.given[name]))}" for name in names]
            yield finding(title, 1.0, words, source=e.source, changed=", ".join(names))
    if (system := e.run.results.get("system_instruction")) and "(chat)" in e.backend:
        yield finding("system turn", 1.0, [shortened(str(system))])
    metadata = [about for config in e.tasks.values() if isinstance(about := config.get("metadata"), dict)]
    if unusual := {about["template_digest"] for about in metadata if "template_digest" in about} - packaged_digests():
        yield finding("template", 1.0, [f"template digest {', '.join(sorted(unusual))}"])


def generation(e: Evidence) -> Iterator[Finding]:
    """``--gen_kwargs``. They stand in the results' task configurations too, so what they replaced is not known."""
    given = as_given(e.config.get("gen_kwargs"))
    if named := [f"{name}={value}" for name, value in given.items() if name not in e.wanted]:
        yield finding("generation", 1.0, named)


def penalty(e: Evidence) -> Iterator[Finding]:
    """A repetition penalty in the checkpoint's ``generation_config.json`` that published checkpoints don't have."""
    own = e.models[-1].get("repetition_penalty") if e.models else None
    if own is not None and "repetition_penalty" not in e.wanted and float(own) not in _PENALTIES:
        yield finding("repetition penalty", 1.0, [str(e.given.get("pretrained"))], own=own)


def model_prompts(e: Evidence) -> Iterator[Finding]:
    """Tasks that have a prompt, or generation settings, for one model's name alone."""
    names, found = {e.model, e.model.removesuffix("_vreason")}, []
    for task, config in e.tasks.items():
        for kind in ("lmms_eval_specific_kwargs", "model_specific_generation_kwargs"):
            found += [f"{task} has {kind} for {name}" for name in sorted(names & set(config.get(kind) or {}))]
    if found:
        yield finding("prompt by name", min(len(found) / len(e.tasks), 1.0), found[:3])


def stock_class(e: Evidence) -> Iterator[Finding]:
    """What lmms-eval's own Qwen classes do to answers."""
    size = str(e.config.get("batch_size") or "1")
    if "models.simple.qwen2_5_vl." in e.backend:
        yield finding("simple class", 1.0, [e.backend])
    if "models.chat.qwen2_5_vl." in e.backend and size != "1":
        yield finding("batch", 1.0, [f"batch_size {size}"])


def precision(e: Evidence) -> Iterator[Finding]:
    """A dtype that the published checkpoints are not run in."""
    dtype, device = str(e.facts.get("dtype")), str(e.starts[-1].get("device")) if e.starts else ""
    if "dtype" not in e.wanted and (dtype == "float16" or (dtype == "float32" and device.startswith("cuda"))):
        yield finding(
            "precision", 1.0, [f"dtype {dtype} on {device}"], source="published runs (bfloat16)", changed="dtype"
        )


def mixed(e: Evidence) -> Iterator[Finding]:
    """A run whose starts or processes had other versions, devices or models in memory."""
    starts = [{**line.get("versions", {}), "device": line.get("device")} for line in e.starts]
    models = [{name: line.get(name) for name in _LOADED} for line in e.models]
    found = []
    for lines in filter(None, (starts, models)):
        for name in lines[0]:
            # cuda:0 and cuda:1, or cpu:0, are processes of one run.
            values = {re.sub(r"^(cuda|cpu):\d+$", r"\1", str(line.get(name))) for line in lines}
            found += [f"{name}: {', '.join(sorted(values))}"] if len(values) > 1 else []
    if found:
        yield finding("mixed", 1.0, found)


def cached(e: Evidence) -> Iterator[Finding]:
    """Answers from lmms-eval's own cache."""
    if cache := e.config.get("use_cache"):
        yield finding("cache", 1.0, [str(cache)])


CHECKS = (
    *(subset, sizes, positions, departures, prompt, model_prompts),
    *(generation, penalty, stock_class, precision, mixed, cached),
)
