"""The table's numbers from lines that can be reckoned by hand, and the rule of the recommendation."""

import pandas as pd
import pytest

from lmms_eval_vreason.calibrate.tables import as_text, entropy_figure, recommended, table


def line(setting="strong", *, tokens=(30, 60), before=2.0, after=1.5, seconds=1.0, **more):
    """Two samples of so many tokens, each token's entropy ``before`` and ``after``."""
    numbers = {
        "entropy": [[after] * n for n in tokens],
        "base_entropy": [[before] * n for n in tokens],
        "kl": [[0.05] * n for n in tokens],
        "changed": [[False] * n for n in tokens],
        "exploiting": [[True] * n for n in tokens],
        "shift": [0.1, 0.3],
    }
    return {"setting": setting, **numbers, "seconds": seconds, "base_seconds": 1.0, **more}


def test_parts_begin_and_end_where_they_say():
    early = [[1.0] * 20 + [2.0] * 10, [1.0] * 20 + [2.0] * 29 + [8.0] + [4.0] * 10]
    row = table([line(entropy=early)]).loc["strong"]
    assert row[["1-20", "21-50", "51-"]].tolist() == pytest.approx([-50.0, 100 * 6 / 80, 100.0])
    assert row["all"] == pytest.approx(100 * (166 - 180) / 180)
    assert row["H"] == pytest.approx(166 / 90)


def test_a_change_is_in_percent_of_the_mean_entropy_and_not_a_mean_of_percents():
    row = table([line(tokens=(2,), base_entropy=[[3.0, 1.0]], entropy=[[3.0, 0.5]], shift=[0.1])]).loc["strong"]
    assert row["all"] == pytest.approx(-12.5)


def test_exploiting_tokens_choices_divergence_and_shift():
    flags = [[token >= 20 for token in range(30)], [token >= 40 for token in range(60)]]
    entropy = [[1.0 if flag else 2.0 for flag in row] for row in flags]
    changed = [[token == 0 for token in range(n)] for n in (30, 60)]
    row = table([line(exploiting=flags, entropy=entropy, changed=changed)]).loc["strong"]
    assert row["exploit"] == -50.0
    assert row["all"] == pytest.approx(-50.0 * 30 / 90)
    assert row["choices"] == pytest.approx(100 * 2 / 90)
    assert row["KL"] == pytest.approx(0.05)
    assert row["shift"] == pytest.approx(20.0)


def test_batches_of_a_setting_are_put_together_and_settings_kept_apart():
    rows = table([line(seconds=1.2), line("gentle", after=1.9), line(seconds=1.0, tokens=(90, 90), after=1.0)])
    assert list(rows.index) == ["strong", "gentle"]
    assert rows.loc["strong", "cost"] == pytest.approx(1.1)
    assert rows.loc["strong", "H"] == pytest.approx((90 * 1.5 + 180 * 1.0) / 270)
    assert rows.loc["gentle", ["base H", "all"]].tolist() == pytest.approx([2.0, -5.0])


def test_a_part_that_no_answer_reaches_is_unknown():
    rows = table([line(tokens=(8, 20))])
    assert rows[["21-50", "51-"]].isna().all(axis=None)
    assert "-" in as_text(rows).splitlines()[-1].split()
    assert table([line(exploiting=[[False] * 30, [False] * 60])])["exploit"].isna().all()
    assert table([line(before=0.0, after=0.0)])["all"].isna().all()


FITTING = {"exploit": -10.0, "KL": 0.09, "cost": 1.09}


@pytest.mark.parametrize(
    ("change", "fits"),
    [({}, True), ({"exploit": -9.9}, False), ({"exploit": float("nan")}, False), ({"KL": 0.1}, False),
     ({"cost": 1.10}, False)],
)  # fmt: skip
def test_each_bound_of_the_rule_holds(change, fits):
    rows = pd.DataFrame([{**FITTING, **change}], index=["strong"])
    assert recommended(rows, {"strong": "switch"}) == ("strong" if fits else None)


def test_the_weakest_is_recommended_and_switch_before_minimize():
    names = ["strong", "default", "least", "random"]
    rows = pd.DataFrame([{**FITTING, "KL": kl} for kl in (0.08, 0.05, 0.01, 0.001)], index=names)
    policies = {"strong": "switch", "default": "switch", "least": "minimize", "random": "random"}
    assert recommended(rows, policies) == "default"
    assert recommended(rows.drop(["strong", "default"]), policies) == "least"
    assert recommended(rows.loc[["random"]], policies) is None


def test_the_picture_has_the_base_model_and_each_setting():
    lines = [line(after=1.0), line("gentle", after=1.8), line("gentle", after=1.6)]
    (axes,) = entropy_figure(lines).axes
    levels = {curve.get_label(): set(curve.get_ydata().round(6)) for curve in axes.lines}
    assert levels == {"base": {2.0}, "strong": {1.0}, "gentle": {1.7}}
    assert axes.lines[0].get_xdata().tolist()[:2] == [1, 2]
    assert max(axes.lines[0].get_xdata()) == 60
    colours = [
        (curve.get_color(), curve.get_linestyle()) for curve in entropy_figure(map(line, "abcdefgh")).axes[0].lines
    ]
    assert len(set(colours)) == 9
    (axes,) = entropy_figure([line(tokens=(9, 9, 9, 9, 60))]).axes
    assert max(axes.lines[0].get_xdata()) == 9  # What one of five samples says is not drawn.
