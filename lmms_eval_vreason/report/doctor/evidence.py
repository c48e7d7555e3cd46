"""Everything that the checks ask about one run, read once: results, samples, and the journal's lines."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lmms_eval_vreason.journal.files import Record, latest_samples
from lmms_eval_vreason.report.doctor.expected import defaults, expected
from lmms_eval_vreason.report.files import read_json_lines
from lmms_eval_vreason.report.runs import RunResults, as_given, plain, read_run

UNKNOWN = "not recorded"
SPOILS_FROM = 0.01  # Ours: a share of lost samples from here on is as large as the differences that papers report.
_LOADED = {"dtype": "dtype", "attn_implementation": "attention"}  # a setting → its field in a line of kind `model`
_WORDS = {"off": "false", "on": "true"}


@dataclass(frozen=True)
class Finding:
    """Something that makes a run's numbers differ.

    Attributes:
        name: one word or two.
        what: what it is, in one sentence.
        mend: what to do about it, in one sentence.
        touched: share of the samples whose answer or score it may change, 0 to 1.
        evidence: the figures and examples that show it.
        spoils: whether a comparison with another run or a published figure would be spoiled.
    """

    name: str
    what: str
    mend: str
    touched: float = 1.0
    evidence: list[str] = field(default_factory=list)
    spoils: bool = True


@cache
def finding_texts() -> dict[str, dict[str, Any]]:
    """Name → ``what`` and ``mend`` of each finding, and ``minor`` where it never spoils a comparison."""
    texts: dict[str, dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "findings.yaml").read_text("utf-8"))
    return texts


def finding(name: str, touched: float = 1.0, evidence: Iterable[str] = (), **figures: Any) -> Finding:
    """A finding by its name; ``figures`` fill its text in. One that touches next to nothing spoils nothing."""
    own = finding_texts()[name]
    what, mend = (own[part].format(**figures) for part in ("what", "mend"))
    return Finding(name, what, mend, touched, list(evidence), touched >= SPOILS_FROM and "minor" not in own)


@dataclass(frozen=True)
class Evidence:
    """One run as the checks see it.

    Attributes:
        run: its samples, settings and files.
        starts, models: the journal's lines of kinds ``run`` and ``model``, one a start and process; empty without one.
        records: the journal's newest line of each sample.
        transformers: its version.
        told: whether the run or the user says that version; else it is the one installed here.
    """

    run: RunResults
    starts: list[Record]
    models: list[Record]
    records: list[Record]
    transformers: str
    told: bool

    @property
    def samples(self) -> pd.DataFrame:
        return self.run.samples

    @property
    def config(self) -> Mapping[str, Any]:
        """What the results file says of the command."""
        config: Mapping[str, Any] = self.run.results.get("config", {})
        return config

    @cached_property
    def model(self) -> str:
        return str(self.config.get("model", ""))

    @cached_property
    def backend(self) -> str:
        """The class and its kind, as ``lmms_eval.models.chat.qwen2_5_vl.Qwen2_5_VL (chat)``; empty if unknown."""
        return str(self.config.get("model_backend", ""))

    @cached_property
    def ours(self) -> bool:
        return bool(self.starts) or self.model.endswith("_vreason")

    @cached_property
    def given(self) -> dict[str, Any]:
        """The model arguments that the user gave."""
        return as_given(self.config.get("model_args")) or (self.starts[-1]["model_args"] if self.starts else {})

    @cached_property
    def tasks(self) -> dict[str, Mapping[str, Any]]:
        """The configurations of the tasks whose samples are here."""
        configs = self.run.results.get("configs", {})
        return {task: configs[task] for task in self.samples["task"].unique() if task in configs}

    @cached_property
    def documents(self) -> dict[str, tuple[int, int]]:
        """Task → its dataset's documents, and how many of them were asked. A limit under 1 is a share of them."""
        numbers, found = self.run.results.get("n-samples", {}), {}
        for task in set(self.tasks) & set(numbers):
            total, asked = numbers[task]["original"], numbers[task]["effective"]
            found[task] = int(total), int(math.ceil(asked * total) if 0 < asked < 1 else asked if asked > 0 else total)
        return dict(sorted(found.items()))

    @cached_property
    def generation(self) -> dict[str, Any]:
        """Generation settings that all tasks share; ``--gen_kwargs`` are in them."""
        own = [config.get("generation_kwargs") or {} for config in self.tasks.values()] or [{}]
        return {name: value for name, value in own[0].items() if all(other.get(name) == value for other in own)}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The settings in force, as far as anything tells them. What loaded tells more than what was asked for."""
        settings = self.starts[-1].get("settings", {}) if self.starts else {}
        loaded = self.models[-1] if self.models else {}
        found = {**self.generation, **defaults(self.model, self.ours), **self.given, **settings}
        if settings.get("thinking"):
            found.pop("max_new_tokens", None)  # The two budgets rule.
        found.setdefault("repetition_penalty", loaded.get("repetition_penalty", UNKNOWN))
        return found | {own: loaded[name] for own, name in _LOADED.items() if loaded.get(name) is not None}

    @cached_property
    def preset(self) -> str:
        """The preset that the run is compared with; empty for lmms-eval's defaults."""
        preset = str(self.given.get("preset", ""))
        return preset if expected(preset) else ""

    @property
    def source(self) -> str:
        """What ``wanted`` is from."""
        return f"preset={self.preset}" if self.preset else "lmms-eval's defaults"

    @cached_property
    def wanted(self) -> Mapping[str, Any]:
        """Name → the value to compare the run's with. Without a preset, of what the user gave alone: a checkpoint may
        bring frames of its own."""
        usual = defaults(self.model, self.ours)
        return expected(self.preset) or {name: usual[name] for name in usual if name in self.given}

    @cached_property
    def failed(self) -> list[Record]:
        return [record for record in self.records if record.get("error") is not None]

    @cached_property
    def answered(self) -> pd.DataFrame:
        """The samples that did not fail."""
        lost = {(record["task"], record["doc_id"]) for record in self.failed}
        keys = zip(self.samples["task"], self.samples["doc_id"], strict=True)
        return self.samples[[key not in lost for key in keys]]

    def lost(self, name: str, count: int, evidence: Iterable[str], **figures: Any) -> Finding:
        """A finding that touches some of the samples."""
        share = min(count / len(self.samples), 1.0)
        lost = f"{count} of {len(self.samples)} samples ({100 * share:.1f}%)"
        return finding(name, share, evidence, lost=lost, **figures)


def read_evidence(argument: str, transformers: str | None = None) -> Evidence:
    """Reads a run.

    Args:
        argument: as of :func:`~lmms_eval_vreason.report.runs.read_run`.
        transformers: the version that a run was made with which does not record it.

    Raises:
        ValueError: as of :func:`~lmms_eval_vreason.report.runs.read_run`.
    """
    run = read_run(argument)
    lines = [line for file in run.journal_files for line in read_json_lines(file, [])]
    starts, models = ([line for line in lines if line.get("kind") == kind] for kind in ("run", "model"))
    starts.sort(key=lambda line: str(line.get("started", "")))
    tasks = set(run.samples["task"])
    records = [record for record in latest_samples(lines).values() if record["task"] in tasks]
    recorded = starts[-1].get("versions", {}).get("transformers") if starts else None
    told = recorded or transformers
    return Evidence(run, starts, models, records, told or version("transformers"), bool(told))


def same(one: Any, other: Any) -> bool:
    """Whether two settings are the same, whatever their types: 0.010 and ``0.01``, off and False."""
    first, second = (_WORDS.get(text, text) for text in (plain(one), plain(other)))
    return first == second


def counted(values: Iterable[Any], most: int = 3) -> str:
    """The commonest values, each with how many."""
    return ", ".join(f"{value} ({count} samples)" for value, count in Counter(values).most_common(most))


def shortened(text: str, length: int = 80) -> str:
    """A text in one line of at most ``length`` characters, its end kept: that is where answers stand."""
    line = re.sub(r"\s+", " ", text).strip()
    return line if len(line) <= length else "…" + line[1 - length :]
