"""Whether a run was steered, and what it cost: the run's last line, and the warning where nothing was steered."""

from collections import Counter
from collections.abc import Iterable

_NO_VIDEO = "no video tokens"


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _mean_change(steps: list[dict]) -> float | None:
    """The mean ΔH of updates, from each sample's count and mean."""
    known = [(own["updates"], own["entropy_change"]) for own in steps if own["updates"]]
    count = sum(updates for updates, _ in known)
    return sum(updates * change for updates, change in known) / count if count else None


def overhead(steps: dict[str, int], seconds: dict[str, float]) -> float | None:
    """Seconds that due steps cost beyond ordinary steps, as a share of a run of ordinary steps alone.

    Args:
        steps, seconds: of ``ordinary`` and of ``due`` steps, in total.

    Returns:
        None where one of the kinds was not taken, or not timed.
    """
    if not steps["due"] or not steps["ordinary"] or not seconds["ordinary"]:
        return None
    ordinary = seconds["ordinary"] / steps["ordinary"]
    return (seconds["due"] / ordinary - steps["due"]) / (steps["ordinary"] + steps["due"])


def _overhead(records: list[dict]) -> float | None:
    seconds = {"ordinary": 0.0, "due": 0.0}
    steps = {"ordinary": 0, "due": 0}
    for record in records:
        times, trace = record.get("seconds") or {}, record.get("trace")
        if trace is None or times.get("ordinary") is None or times.get("due") is None:
            continue
        # The first token comes with the prefill, which is neither kind of step.
        steps["ordinary"] += max(record["tokens"]["output"] - 1 - trace["updates"], 0)
        steps["due"] += trace["updates"]
        seconds["ordinary"] += times["ordinary"]
        seconds["due"] += times["due"]
    return overhead(steps, seconds)


def steering_facts(records: Iterable[dict]) -> dict:
    """Counts over a run's journal samples.

    Args:
        records: journal lines of kind ``sample``.

    Returns:
        ``samples``, ``failed`` (with an error), ``steered`` (at least one update), ``updates``,
        ``entropy_change`` (mean over due steps, nats, or None), ``entropy_change_lowering`` and ``…_raising`` (the
        same where α is -1 and +1), ``shift`` (mean ‖ΔV‖/‖V‖ at the last token of steered samples, or None),
        ``without_video`` (share of the traced samples, or None), ``overhead`` (share, or
        None) and ``notes`` (why samples were not steered → how many).
    """
    records = list(records)
    finished = [record for record in records if record.get("error") is None]
    traces = [record["trace"] for record in finished if record.get("trace") is not None]
    lowering, raising = ([trace[sign] for trace in traces] for sign in ("lowering", "raising"))
    shifts = [trace["last_shift"] for trace in traces if trace["updates"] > 0]
    notes = Counter(trace["note"] for trace in traces if trace["note"])
    untraced = len(finished) - len(traces)
    if untraced:
        notes["no trace was kept"] += untraced
    return {
        "samples": len(records),
        "failed": len(records) - len(finished),
        "steered": sum(1 for trace in traces if trace["updates"] > 0),
        "updates": sum(trace["updates"] for trace in traces),
        "entropy_change": _mean_change([*lowering, *raising]),
        "entropy_change_lowering": _mean_change(lowering),
        "entropy_change_raising": _mean_change(raising),
        "shift": _mean(shifts),
        "without_video": sum(1 for trace in traces if not trace["video_tokens"]) / len(traces) if traces else None,
        "overhead": _overhead(finished),
        "notes": dict(notes.most_common()),
    }


def format_facts(facts: dict) -> str:
    """Facts of :func:`steering_facts` as one phrase; figures that are unknown are left out."""
    parts = [f"{facts['steered']} of {facts['samples']} samples steered", f"{facts['updates']} updates"]
    if facts["entropy_change"] is not None:
        parts.append(f"mean ΔH {facts['entropy_change']:+.4f} nats a due step{_by_sign(facts)}")
    if facts["shift"] is not None:
        parts.append(f"values turned by {100 * facts['shift']:.1f}% at a sample's end")
    if facts["without_video"] is not None:
        parts.append(f"{100 * facts['without_video']:.0f}% without video tokens")
    if facts["overhead"] is not None:
        parts.append(f"due steps cost {100 * facts['overhead']:+.1f}% of the decoding time")
    if facts["failed"]:
        parts.append(f"{facts['failed']} failed")
    return ", ".join(parts)


def _by_sign(facts: dict) -> str:
    """ΔH by what a step was to do: over both signs together it says little."""
    named = (("lowering", "α = −1"), ("raising", "α = +1"))
    known = [(facts[f"entropy_change_{name}"], sign) for name, sign in named]
    return " (" + ", ".join(f"{change:+.4f} where {sign}" for change, sign in known if change is not None) + ")"


def steering_line(records: Iterable[dict]) -> str:
    """One line for a run's end: samples steered, updates, mean ΔH of due steps, samples without video, overhead.

    Args:
        records: journal lines of kind ``sample``.

    Returns:
        The line; figures that the journal does not hold are left out.
    """
    return "V-Reason: " + format_facts(steering_facts(records))


def steering_warning(records: Iterable[dict]) -> str:
    """Why nothing was steered, as a sentence; empty when at least one sample was steered or none was run.

    Args:
        records: journal lines of kind ``sample``.
    """
    return facts_warning(steering_facts(records))


def facts_warning(facts: dict) -> str:
    """The same from the facts of :func:`steering_facts`."""
    if facts["steered"] or not facts["samples"]:
        return ""
    reasons = [f"{note} ({count} samples)" for note, count in facts["notes"].items()]
    if facts["failed"]:
        reasons.append(f"failed ({facts['failed']} samples)")
    if not reasons and facts["without_video"] == 1.0:
        reasons.append(f"{_NO_VIDEO} in any prompt")
    if not reasons:
        reasons.append("no update fell due: answers end before the first due step, or the learning rate is 0")
    return "V-Reason steered nothing, so this run measures the base model: " + "; ".join(reasons)
