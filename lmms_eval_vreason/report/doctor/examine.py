"""All checks of one run, ranked, with what it says of itself: as a page of text or as JSON."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lmms_eval_vreason.journal.summary import format_facts
from lmms_eval_vreason.report.doctor import answers, settings
from lmms_eval_vreason.report.doctor.evidence import UNKNOWN, Evidence, Finding, read_evidence
from lmms_eval_vreason.report.render import render

_SHOWN = {
    "frames": ("max_num_frames", "fps"),
    "pixels a frame": ("min_pixels", "max_pixels"),
    "generation": ("do_sample", "temperature", "max_new_tokens", "repetition_penalty"),
    "thinking": ("thinking", "max_thinking_tokens", "max_answer_tokens"),
    "precision": ("dtype", "attn_implementation"),
}


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor says of one run.

    Attributes:
        run: as the user gave it.
        findings: those that spoil a comparison first, then by the share of samples that they touch.
        facts: what the run says of how it was made.
        unknown: what it does not say.
        notices: what is worth knowing of its files.
    """

    run: str
    findings: list[Finding]
    facts: dict[str, str]
    unknown: list[str]
    notices: list[str]

    @property
    def spoiled(self) -> bool:
        return any(finding.spoils for finding in self.findings)


def examine(argument: str, transformers: str | None = None) -> Diagnosis:
    """Reads a run and runs every check on it.

    Args:
        argument: as ``[label=]path[#tasks]``.
        transformers: the version that a run was made with which does not record it.

    Raises:
        ValueError: the run cannot be read; the message says what to name instead.
    """
    evidence = read_evidence(argument, transformers)
    found = [finding for check in (*answers.CHECKS, *settings.CHECKS) for finding in check(evidence)]
    # Sorting keeps the checks' own order where two touch the same share.
    ranked = sorted(found, key=lambda finding: (not finding.spoils, -finding.touched))
    facts = {name: value for name, value in _facts(evidence).items() if value}
    unknown = [name for name, value in facts.items() if value == UNKNOWN]
    facts = {name: value for name, value in facts.items() if value != UNKNOWN}
    return Diagnosis(argument, ranked, facts, unknown, evidence.run.notices)


def as_text(diagnosis: Diagnosis, width: int) -> str:
    """One page in lines of at most ``width`` characters."""
    return render("doctor.txt", diagnosis=diagnosis, width=width)


def as_json(diagnosis: Diagnosis) -> str:
    """The same as JSON."""
    return json.dumps({**asdict(diagnosis), "spoiled": diagnosis.spoiled}, ensure_ascii=False, indent=1, default=float)


def _facts(e: Evidence) -> dict[str, str]:
    start = e.starts[-1] if e.starts else {}
    versions = {"lmms-eval-vreason": start.get("package"), **start.get("versions", {})}
    prompts = sorted(map(repr, zip(e.samples["task"], e.samples["doc_id"], e.samples["prompt"], strict=True)))
    shown = {name: _values(e.facts, names) for name, names in _SHOWN.items()}
    if len(e.tasks) > 1 and shown["generation"] == UNKNOWN:
        shown["generation"] = "differs between tasks"
    return {
        "compared with": e.source,
        "model": " ".join(filter(None, (e.model, str(e.given.get("pretrained", ""))))) or UNKNOWN,
        "samples": f"{len(e.samples)} of {', '.join(sorted(e.samples['task'].unique())[:6])}",
        **shown,
        "frames shown": _frames(e),
        "positions": str(e.facts.get("positions", UNKNOWN if not e.ours else "trained")),
        "prompts": hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:12] + " (digest of all)",
        "method": format_facts(e.run.journal.facts) if e.run.journal and e.run.journal.facts else _method(e),
        "failed samples": str(len(e.failed)) if e.records else UNKNOWN,
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items() if v) if start else UNKNOWN,
        "transformers": "" if start else e.transformers if e.told else UNKNOWN,
        "device": str(start.get("device", UNKNOWN)),
    }


def _values(facts: Mapping[str, Any], names: tuple[str, ...]) -> str:
    known = [f"{name} {facts[name]}" for name in names if facts.get(name, UNKNOWN) != UNKNOWN]
    return ", ".join(known) or UNKNOWN


def _frames(e: Evidence) -> str:
    sizes = Counter(
        f"{item['frames']} of {item['height']} x {item['width']}"
        for record in e.records
        for item in record.get("shown", [])
    )
    more = f", and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
    return ", ".join(f"{size} ({count} times)" for size, count in sizes.most_common(3)) + more if sizes else UNKNOWN


def _method(e: Evidence) -> str:
    return UNKNOWN if e.ours else "a stock class: none"
