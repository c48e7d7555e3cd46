"""Whether a run was steered, and what it cost: the run's last line, and the warning where nothing was steered."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]

# Ours. Where both stay below, the steered model's answers can hardly be told from the base model's.
WEAK_CHANGE = 0.01  # Mean |ΔH| of an update, as a share of H.
WEAK_CHOICES = 0.005  # Share of the updates that made another token the likeliest.


@dataclass(frozen=True)
class SteeringFacts:
    """What a run's journal says of the steering. None: the journal does not hold it.

    Attributes:
        policy: the run's policy.
        samples, failed: samples, and those with an error.
        steered, updates: samples with at least one update, and updates in all.
        entropy_change: mean ΔH of the updates, nats.
        entropy_change_lowering, entropy_change_raising: the same where α is −1 and +1.
        relative_change: mean |ΔH| of the updates over the mean H that they found; both signs count.
        choices_changed: share of the updates that made another token the likeliest.
        shift: mean ‖ΔV‖/‖V‖ at the last update of steered samples.
        without_video: share of the traced samples.
        due_step_ratio: seconds of a due step over those of an ordinary one.
        overhead: what due steps add, as a share of the decoding time of ordinary steps alone.
        notes: why samples were not steered → how many.
    """

    policy: str
    samples: int
    failed: int
    steered: int
    updates: int
    entropy_change: float | None
    entropy_change_lowering: float | None
    entropy_change_raising: float | None
    relative_change: float | None
    choices_changed: float | None
    shift: float | None
    without_video: float | None
    due_step_ratio: float | None
    overhead: float | None
    notes: dict[str, int]


def steering_facts(records: Iterable[Record], *, policy: str) -> SteeringFacts:
    """Counts over a run's journal samples.

    Args:
        records: journal lines of kind ``sample``. Where a trace has None for its arrays, the sample counts in
            everything but ΔH and the shift.
        policy: the run's, as in the journal's first line under ``method``.
    """
    records = list(records)
    finished = [record for record in records if record.get("error") is None]
    traces = [record["trace"] for record in finished if record.get("trace") is not None]
    steered = [trace for trace in traces if trace["updates"]]
    lowering, raising = ([trace[sign] for trace in traces] for sign in ("lowering", "raising"))
    relative_change, choices_changed = _strength(traces)
    ratio, overhead = _due_step_cost(finished)
    notes = Counter(trace["note"] for trace in traces if trace["note"])
    notes.update({"no trace was kept": len(finished) - len(traces)})
    return SteeringFacts(
        policy=policy,
        samples=len(records),
        failed=len(records) - len(finished),
        steered=len(steered),
        updates=sum(trace["updates"] for trace in traces),
        entropy_change=_mean_change([*lowering, *raising]),
        entropy_change_lowering=_mean_change(lowering),
        entropy_change_raising=_mean_change(raising),
        relative_change=relative_change,
        choices_changed=choices_changed,
        shift=_mean([trace["last_shift"] for trace in steered if trace["last_shift"] is not None]),
        without_video=_mean([not trace["video_tokens"] for trace in traces]),
        due_step_ratio=ratio,
        overhead=overhead,
        notes={note: count for note, count in notes.most_common() if count},
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _mean_change(updates: Iterable[Record]) -> float | None:
    """The mean ΔH over all updates, from each sample's number of updates and mean; nats."""
    known = [(own["updates"], own["entropy_change"]) for own in updates if own["entropy_change"] is not None]
    count = sum(number for number, _ in known)
    return sum(number * change for number, change in known) / count if count else None


def _strength(traces: Iterable[Record]) -> tuple[float | None, float | None]:
    """Mean |ΔH| over mean H, and the share of choices changed, over all updates whose ΔH is known.

    Returns:
        (share, share); None without such updates, as in a journal of an earlier version.
    """
    known = [own for trace in traces if (own := trace.get("refreshed")) and None not in own.values()]
    count, changed = (sum(own[name] for own in known) for name in ("updates", "changed"))
    entropy, change = (sum(own["updates"] * own[name] for own in known) for name in ("entropy", "absolute_change"))
    return change / entropy if entropy else None, changed / count if count else None


def _due_step_cost(records: Iterable[Record]) -> tuple[float | None, float | None]:
    """Seconds of a step with an update over those of an ordinary one, and what they add to a run of ordinary ones.

    The first token comes with the prefill and is neither.

    Returns:
        (ratio, share); None where one of the kinds was not taken or not timed.
    """
    due, ordinary, seconds_due, seconds_ordinary = 0, 0, 0.0, 0.0
    for record in records:
        times, trace = record.get("seconds") or {}, record.get("trace") or {}
        if trace.get("due_steps") is None or times.get("ordinary") is None or times.get("due") is None:
            continue
        # Seconds are a sample's share of its batch's, steps all of them: that goes out in the ratio.
        due, ordinary = due + trace["due_steps"], ordinary + trace["ordinary_steps"]
        seconds_due, seconds_ordinary = seconds_due + times["due"], seconds_ordinary + times["ordinary"]
    if not (due and ordinary and seconds_ordinary):
        return None, None
    ratio = (seconds_due / due) / (seconds_ordinary / ordinary)
    return ratio, (ratio - 1) * due / (due + ordinary)


def format_facts(facts: SteeringFacts) -> str:
    """Facts as one phrase; what is unknown is left out."""
    failed = [f"{facts.failed} failed"] if facts.failed else []
    if facts.policy == "off":
        answered = f"the base model answered {facts.samples - facts.failed} samples"
        return ", ".join([f"the method is off (policy=off): {answered}", *failed])
    parts = [f"{facts.steered} of {facts.samples} samples steered", f"{facts.updates} updates"]
    if facts.entropy_change is not None:
        # Over both signs together ΔH says little.
        named = ((facts.entropy_change_lowering, "α = −1"), (facts.entropy_change_raising, "α = +1"))
        by_sign = ", ".join(f"{_nats(change)} where {sign}" for change, sign in named if change is not None)
        parts.append(f"mean ΔH {_nats(facts.entropy_change)} nats an update ({by_sign})")
    if (strength := format_strength(facts)) is not None:
        parts.append(strength)
    if facts.shift is not None:
        parts.append(f"relative shift ‖ΔV‖/‖V‖ at the last update {100 * facts.shift:.1f}%")
    if facts.without_video is not None:
        parts.append(f"{100 * facts.without_video:.0f}% without video tokens")
    if facts.due_step_ratio is not None and facts.overhead is not None:
        ratio = f"a due step takes {facts.due_step_ratio:.2f} times an ordinary one"
        parts.append(f"{ratio}, which adds {100 * facts.overhead:.1f}% to the decoding time")
    return ", ".join(parts + failed)


def format_strength(facts: SteeringFacts) -> str | None:
    """How strong the updates are, in percent; None where the journal does not hold it."""
    if facts.relative_change is None or facts.choices_changed is None:
        return None
    changed = f"{_percent(facts.choices_changed)} of updates changed the likeliest token"
    return f"mean |ΔH| {_percent(facts.relative_change)} of H, {changed}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 1e-3 or share == 0 else f"{100 * share:.1g}%"


def _nats(change: float) -> str:
    return f"{change:+.4f}" if abs(change) >= 1e-3 or change == 0 else f"{change:+.1e}"


def steering_line(facts: SteeringFacts) -> str:
    """A run's last line: samples steered, updates, ΔH and its strength, shift, samples without video, their cost."""
    return "V-Reason: " + format_facts(facts)


def steering_warning(facts: SteeringFacts) -> str:
    """Why nothing was steered, or that it was too weakly, in one line; empty if all is well, and with policy=off."""
    if not facts.samples or facts.policy == "off":
        return ""
    if facts.steered:
        return _weakness(facts)
    reasons = [f"{note} ({count} samples)" for note, count in facts.notes.items()]
    if facts.failed:
        reasons.append(f"failed ({facts.failed} samples)")
    return "V-Reason steered nothing, so this run measures the base model: " + "; ".join(reasons)


def _weakness(facts: SteeringFacts) -> str:
    """A run whose updates change next to nothing measures the base model. Empty where that is unknown."""
    change, choices = facts.relative_change, facts.choices_changed
    if change is None or choices is None or change >= WEAK_CHANGE or choices >= WEAK_CHOICES:
        return ""
    mend = "find a strength for this model and task with `vreason calibrate`"
    return f"V-Reason acts too weakly to be seen ({format_strength(facts)}): {mend}"
