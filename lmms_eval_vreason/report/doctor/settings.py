"""Checks on how a run was made: its subset, positions, frames, prompt, generation, precision and versions."""

import re
from collections.abc import Iterator

from packaging.version import InvalidVersion, Version

from lmms_eval_vreason.protocol.prompt_templates import packaged_digests
from lmms_eval_vreason.report.catalogue import SIZES
from lmms_eval_vreason.report.doctor.evidence import UNKNOWN, Evidence, Finding, same, shortened
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


def subset(e: Evidence) -> Iterator[Finding]:
    """A run of some of the documents: ``--limit``, ``--offset``."""
    total, asked = (sum(column) for column in zip(*e.documents.values(), strict=True)) if e.documents else (0, 0)
    given = {name: value for name in ("limit", "offset") if (value := e.config.get(name))}
    if given and (asked < total or not total or "offset" in given):
        shown = ", ".join(f"--{name} {value:g}" for name, value in given.items())
        what = f"Only some of the documents were asked: {asked} of {total}."
        mend = "Leave --limit and --offset out."
        yield Finding("limit", what, mend, 1 - asked / total if asked < total else 1.0, [shown])


def sizes(e: Evidence) -> Iterator[Finding]:
    """A dataset of another size than its benchmark's, or a benchmark without some of its parts."""
    bare = {re.sub(r"^vreason_(direct_)?", "", task): there for task, (there, _) in e.documents.items()}
    found = {}
    for name, published in SIZES.items():
        own = sum(there for part, there in bare.items() if re.match(rf"{name}(_|$)", part))
        if own and own != published:
            found[f"{name}: {own} of {published}"] = abs(published - own) / published
    if found:
        what = "The run's documents are not the benchmark's."
        mend = "Run all parts of the benchmark, on the whole dataset, or say that the figure is of a part."
        yield Finding("size", what, mend, min(max(found.values()), 1.0), list(found))


def positions(e: Evidence) -> Iterator[Finding]:
    """Text after a video stands in the middle of the video's time."""
    if e.ours and not same(e.facts.get("positions"), "transformers"):
        return
    if _OTHER_ENGINES.search(e.model) or not _QWEN_VL.search(f"{e.model} {e.given.get('pretrained', '')}"):
        return
    try:
        if Version(e.transformers) < _TIME_LEFT_OUT:
            return
    except InvalidVersion as error:
        raise ValueError(f"transformers {e.transformers!r} is no version: give one such as 4.57.1") from error
    who = "positions=transformers" if e.ours else f"the class {e.model}"
    source = "" if e.told else ", the version installed here: the run does not record its own"
    mend = "Run qwen2_5_vl_vreason with its own positions (policy=off for the base model)"
    mend += "." if e.told else ", or give --transformers if the run was made with one before 5.3."
    what = "Text after a video has positions that the weights were not trained on (docs/positions.md)."
    yield Finding("positions", what, mend, 1.0, [f"{who} on transformers {e.transformers}{source}"])


def departures(e: Evidence) -> Iterator[Finding]:
    """Settings that are not those to compare with."""
    source = f"preset={e.preset}" if e.preset else "lmms-eval's default"
    other = tuple(name for name in e.wanted if not any(name in names for names in _GROUPS.values()))
    for group, names in {**_GROUPS, "settings": other}.items():
        differing = [
            f"{name}={e.facts[name]}, {source} is {e.wanted[name]}"
            for name in names
            if name in e.wanted and e.facts.get(name, UNKNOWN) != UNKNOWN and not same(e.facts[name], e.wanted[name])
        ]
        if differing:
            what = f"The {group} {'is' if group in ('prompt', 'precision', 'sampling') else 'are'} not as in {source}."
            changed = ", ".join(line.partition("=")[0] for line in differing)
            yield Finding(group, what, f"Leave {changed} out, or compare with runs that have the same.", 1.0, differing)


def prompt(e: Evidence) -> Iterator[Finding]:
    """Words of the user's own in the prompt, or words that never reached it."""
    ignored = [name for part, names in _IGNORED.items() if f"models.{part}" in e.backend for name in names]
    own = [name for name in ("reasoning_prompt", "system_prompt") if e.given.get(name) and name not in e.wanted]
    if lost := [name for name in own if name in ignored]:
        what = f"{', '.join(lost)} was given, and this class does not use it."
        yield Finding("prompt", what, "Put the words into the task, or use a class that sends them.", 1.0, [e.backend])
    if sent := [name for name in own if name not in ignored]:
        shown = [f"{name}={e.given[name]}" for name in sent]
        mend = f"Leave {', '.join(sent)} out, or compare with runs that have the same."
        yield Finding("prompt", "The prompt has words that no other run has.", mend, 1.0, shown)
    if (system := e.run.results.get("system_instruction")) and "(chat)" in e.backend:
        what = "--system_instruction is in the results file, and chat classes are not given it."
        yield Finding("system turn", what, "Use the class's own system_prompt.", 1.0, [shortened(str(system))])
    digests = {str(own) for own in (_template_digest(e, task) for task in e.tasks) if own}
    if unusual := digests - packaged_digests():
        what = "The task group's prompt is not this package's template."
        mend = "Unset LMMS_EVAL_VREASON_TEMPLATE, or compare with runs whose template has the same digest."
        yield Finding("template", what, mend, 1.0, [f"template digest {', '.join(sorted(unusual))}"])


def generation(e: Evidence) -> Iterator[Finding]:
    """``--gen_kwargs`` that replace what a task says."""
    named, replaced = as_given(e.config.get("gen_kwargs")), set()
    for config in e.tasks.values():
        own = config.get("generation_kwargs") or {}
        replaced |= {
            f"{name}={value} for the task's {own.get(name, 'none')}"
            for name, value in named.items()
            if name not in e.wanted and not same(value, own.get(name))
        }
    if replaced:
        mend = "Leave --gen_kwargs out, or compare with runs that have the same."
        yield Finding("generation", "--gen_kwargs replaces the task's own settings.", mend, 1.0, sorted(replaced))


def penalty(e: Evidence) -> Iterator[Finding]:
    """A repetition penalty in the checkpoint's ``generation_config.json`` that published checkpoints don't have."""
    own = e.models[-1].get("repetition_penalty") if e.models else None
    if own is not None and "repetition_penalty" not in e.wanted and float(own) not in _PENALTIES:
        what = f"The checkpoint's repetition penalty of {own:g} acts on greedy decoding too."
        usual = "published ones have 1.05 or none"
        mend = "Set repetition_penalty in its generation_config.json to the published checkpoint's."
        yield Finding("repetition penalty", what, mend, 1.0, [f"repetition_penalty {own:g}, {usual}"])


def model_prompts(e: Evidence) -> Iterator[Finding]:
    """Tasks that have a prompt, or generation settings, for one model's name alone."""
    names, found = {e.model, e.model.removesuffix("_vreason")} - {""}, []
    for task, config in e.tasks.items():
        for kind in ("lmms_eval_specific_kwargs", "model_specific_generation_kwargs"):
            found += [f"{task} has {kind} for {name}" for name in sorted(names & set(config.get(kind) or {}))]
    if found:
        what = "A task's prompt hangs on the model's name, so runs under other names were asked another one."
        mend = "Run a task without such entries: the groups vreason and vreason_direct have none (docs/tasks.md)."
        yield Finding("prompt by name", what, mend, len(found) / len(e.tasks), found[:3])


def stock_class(e: Evidence) -> Iterator[Finding]:
    """What lmms-eval's own Qwen classes do to answers."""
    if "models.simple.qwen2_5_vl." in e.backend:
        what = "The simple class takes all frames to be 0.083 s apart and leaves some video files out."
        yield Finding("simple class", what, "Leave --force_simple out.", 1.0, [e.backend])
    size = str(e.config.get("batch_size") or "1")
    if "models.chat.qwen2_5_vl." in e.backend and size != "1":
        what = "Batches of this class take the number of frames from their first video."
        yield Finding("batch", what, "Use --batch_size 1.", 1.0, [f"batch_size {size}"])


def precision(e: Evidence) -> Iterator[Finding]:
    """A dtype that the published checkpoints are not run in."""
    dtype, device = str(e.facts.get("dtype", UNKNOWN)), str(e.starts[-1].get("device")) if e.starts else ""
    if "dtype" not in e.wanted and (dtype == "float16" or (dtype == "float32" and device.startswith("cuda"))):
        what = f"The model ran in {dtype}; published figures are of bfloat16."
        yield Finding("precision", what, "Leave dtype out.", 1.0, [f"dtype {dtype} on {device or 'a device not told'}"])


def mixed(e: Evidence) -> Iterator[Finding]:
    """A run whose starts or processes had other versions, devices or models in memory."""
    found = []
    for lines, names in ((e.starts, ("versions", "device")), (e.models, _LOADED)):
        for name in names:
            values = {_text(line.get(name)) for line in lines}
            found += [f"{name}: {'; '.join(sorted(values))}"] if len(values) > 1 else []
    if found:
        what = "Its samples were not all made in one environment."
        mend = "Run again from the start in one environment (resume=off, or another folder)."
        yield Finding("mixed", what, mend, 1.0, found)


def cached(e: Evidence) -> Iterator[Finding]:
    """Answers from lmms-eval's own cache."""
    if cache := e.config.get("use_cache"):
        what = "Answers may come from lmms-eval's response cache, whose key knows no version of the model class."
        yield Finding("cache", what, "Leave --use_cache out.", 1.0, [str(cache)], spoils=False)


def _text(value: object) -> str:
    # cuda:0 and cuda:1 are two processes of one run.
    text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    return text.partition(":")[0]


def _template_digest(e: Evidence, task: str) -> object:
    metadata = e.tasks[task].get("metadata")
    return metadata.get("template_digest") if isinstance(metadata, dict) else None


_LOADED = ("model_type", "attention", "dtype", "repetition_penalty")
CHECKS = (
    subset,
    sizes,
    positions,
    departures,
    prompt,
    model_prompts,
    generation,
    penalty,
    stock_class,
    precision,
    mixed,
    cached,
)
