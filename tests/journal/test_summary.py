"""How strongly a run was steered, in its last line; and the warning where that is too weak to be seen."""

import numpy as np
import pytest

from lmms_eval_vreason.journal.summary import steering_facts, steering_line, steering_warning
from lmms_eval_vreason.method.trace import COLUMNS, Trace
from lmms_eval_vreason.run.records import trace_summary

NAN = float("nan")


def traced(entropy, change, changed):
    """A trace of so many tokens; updates are where ``change`` is known, of alternating signs."""
    alpha = [0.0 if np.isnan(c) else np.sign(c) or 1.0 for c in change]
    arrays = dict.fromkeys(COLUMNS, np.ones(len(entropy), "float32"))
    arrays |= {"entropy": entropy, "entropy_change": change, "changed": changed, "alpha": alpha}
    arrays = {name: np.asarray(values, "float32") for name, values in arrays.items()}
    updates = int(np.count_nonzero(arrays["alpha"]))
    facts = {"peak_index": 0, "video_tokens": 4, "seconds_prefill": 0, "seconds_ordinary": 0, "seconds_due": 0}
    facts |= {"ordinary_steps": 0, "due_steps": updates}
    return Trace(**arrays, updates=updates, **facts, note="")


def record(trace):
    return {"error": None, "seconds": {}, "tokens": {"output": 9}, "trace": trace}


def facts_of(*traces, policy="switch"):
    records = [record(trace_summary(trace) if isinstance(trace, Trace) else trace) for trace in traces]
    return steering_facts(records, policy=policy)


def weak(changed=0.0):
    """|ΔH| is 0.5% of H over two hundred updates, of which one may change the likeliest token."""
    return traced([2.0] * 200, [0.01, -0.01] * 100, [changed] + [0.0] * 199)


def test_both_signs_count_and_only_tokens_with_an_update():
    """H is 2 at the updates and 100 beside them; +0.3 and -0.1 are 10% of it, though their mean is 5%."""
    facts = facts_of(traced([2, 100, 2, 100], [0.3, NAN, -0.1, NAN], [1, NAN, 0, NAN]))
    assert facts.relative_change == pytest.approx(0.1)
    assert facts.choices_changed == pytest.approx(0.5)
    assert "mean |ΔH| 10.0% of H, 50.0% of updates changed the likeliest token" in steering_line(facts)
    assert steering_warning(facts) == ""


def test_each_update_counts_alike_whatever_its_sample():
    long = traced([1.0] * 30, [0.2] * 30, [0.0] * 30)
    short = traced([3.0] * 10, [-0.3] * 10, [1.0] * 10)
    facts = facts_of(long, short)
    assert facts.relative_change == pytest.approx((30 * 0.2 + 10 * 0.3) / (30 * 1 + 10 * 3))
    assert facts.choices_changed == pytest.approx(0.25)


@pytest.mark.parametrize("policy", ["switch", "minimize", "random"])
def test_a_run_that_does_nothing_says_so(policy):
    warning = steering_warning(facts_of(weak(), policy=policy))
    assert "mean |ΔH| 0.5% of H, 0.0% of updates changed" in warning
    assert "`vreason calibrate`" in warning
    assert "\n" not in warning


def test_either_bound_is_enough_to_be_seen():
    assert steering_warning(facts_of(weak(changed=1.0))) == ""  # One of 200 is the bound.
    assert steering_warning(facts_of(weak(), weak(changed=1.0))) != ""
    assert steering_warning(facts_of(traced([2.0] * 4, [0.02, -0.02] * 2, [0.0] * 4))) == ""  # 1% is the bound.


def test_no_word_of_it_with_the_method_off_or_an_older_journal():
    assert steering_warning(facts_of(weak(), policy="off")) == ""
    old = trace_summary(weak())
    del old["refreshed"]
    facts = facts_of(old)
    assert facts.relative_change is facts.choices_changed is None
    assert steering_warning(facts) == ""
    assert "of H" not in steering_line(facts)


def test_updates_without_a_refresh_say_nothing_of_their_strength():
    facts = facts_of(traced([1, 1], [NAN, NAN], [NAN, NAN]))
    assert facts.relative_change is facts.choices_changed is None
    assert steering_warning(facts_of(trace_summary(weak()) | {"refreshed": {"updates": 0, "entropy": None,
                                     "absolute_change": None, "changed": 0}})) == ""  # fmt: skip


def test_a_small_share_keeps_its_digits():
    line = steering_line(facts_of(traced([2.0] * 4, [4e-5, -4e-5] * 2, [0.0] * 4)))
    assert "mean |ΔH| 0.002% of H" in line
