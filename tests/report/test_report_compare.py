"""Comparisons: pairing, seeds, warnings, published rows, every output format, and the console command."""

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_runs import record, trace, write_journal, write_run
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lmms_eval_vreason.cli import main
from lmms_eval_vreason.report.catalogue import VSI_ACCURACY, VSI_MRA
from lmms_eval_vreason.report.compare import MEAN, MEAN_WITH_MRA, compare
from lmms_eval_vreason.report.figures import report_figures, save
from lmms_eval_vreason.report.journals import entropy_figures, peaks, read_journal
from lmms_eval_vreason.report.runs import read_run
from lmms_eval_vreason.report.tables import as_json, latex, markdown, report_page, score_table, terminal

RNG = np.random.default_rng(11)
N = 60
BASE = {
    "videomme": (RNG.random(N) < 0.5).astype(float),
    "mmvu_val": (RNG.random(N) < 0.6).astype(float),
    "vsibench": np.round(RNG.random(N), 1),
}
BETTER = {
    "videomme": np.where(RNG.random(N) < 0.3, 1.0, BASE["videomme"]),
    "mmvu_val": np.where(RNG.random(N) < 0.1, 1 - BASE["mmvu_val"], BASE["mmvu_val"]),
    "vsibench": np.clip(BASE["vsibench"] + 0.1 * (RNG.random(N) < 0.5), 0, 1),
}


@pytest.fixture
def two(tmp_path):
    write_run(tmp_path / "off", BASE)
    write_run(tmp_path / "switch", BETTER)
    return [read_run(f"off={tmp_path / 'off'}"), read_run(f"switch={tmp_path / 'switch'}")]


def cell(comparison, benchmark, label):
    rows = comparison.table[comparison.table["benchmark"].eq(benchmark) & comparison.table["label"].eq(label)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_scores_differences_and_tests(two):
    comparison = compare(two, resamples=500)
    row = cell(comparison, "Video-MME", "switch")
    assert row["score"] == pytest.approx(100 * BETTER["videomme"].mean())
    assert row["difference"] == pytest.approx(100 * (BETTER["videomme"] - BASE["videomme"]).mean())
    gained = int((BETTER["videomme"] > BASE["videomme"]).sum())
    assert (row["gained"], row["lost"], row["test"]) == (gained, 0, "paired permutation")
    assert row["p_mcnemar"] == pytest.approx(stats.binomtest(0, gained).pvalue)
    assert row["clusters"] == N / 3  # three questions a video
    videos = len({i // 3 for i in np.flatnonzero(BETTER["videomme"] != BASE["videomme"])})
    assert row["p"] == pytest.approx(2 * 0.5**videos, rel=0.5)  # every video that changes is a gain
    single = cell(comparison, "MMVU", "switch")  # its videos are unknown
    assert (single["clusters"], single["test"]) == (N, "McNemar exact")
    assert single["p"] == pytest.approx(stats.binomtest(int(single["gained"]), int(single["changed"])).pvalue)
    assert cell(comparison, VSI_MRA, "switch")["test"] == "paired permutation"
    assert np.isnan(cell(comparison, "Video-MME", "off")["difference"])


def test_holm_is_over_the_benchmarks_of_a_run_without_the_means(two):
    comparison = compare(two, resamples=500)
    rows = [cell(comparison, name, "switch") for name in ("MMVU", "Video-MME", VSI_ACCURACY, VSI_MRA)]
    expected = multipletests([row["p"] for row in rows], method="holm")[1]
    assert [row["p_holm"] for row in rows] == pytest.approx(expected)
    assert np.isnan(cell(comparison, MEAN, "switch")["p_holm"])


def test_mean_row_weighs_benchmarks_the_same_and_leaves_mra_out(two):
    comparison = compare(two, resamples=500)
    names = ("MMVU", "Video-MME", VSI_ACCURACY)
    rows = [cell(comparison, name, "switch") for name in names]
    mean = cell(comparison, MEAN, "switch")
    assert mean["score"] == pytest.approx(np.mean([row["score"] for row in rows]))
    assert mean["difference"] == pytest.approx(np.mean([row["difference"] for row in rows]))
    assert mean["se"] == pytest.approx(np.sqrt(sum(row["se"] ** 2 for row in rows)) / 3)
    with_mra = cell(comparison, MEAN_WITH_MRA, "switch")
    assert with_mra["score"] == pytest.approx(
        np.mean([*(r["score"] for r in rows), cell(comparison, VSI_MRA, "switch")["score"]])
    )


def test_mean_is_tested_over_the_videos_of_all_benchmarks(tmp_path):
    write_run(tmp_path / "a", {"mmvu_val": [0.0] * 10, "mvbench_action_count": [0.0] * 10})
    write_run(tmp_path / "b", {"mmvu_val": [1.0] * 3 + [0.0] * 7, "mvbench_action_count": [1.0] * 3 + [0.0] * 7})
    comparison = compare([read_run(str(tmp_path / name)) for name in "ab"], resamples=200)
    assert cell(comparison, "MMVU", "b")["p"] == pytest.approx(2 * 0.5**3)
    assert cell(comparison, MEAN, "b")["p"] == pytest.approx(2 * 0.5**6)


def test_only_common_samples_are_compared_and_the_rest_is_said(tmp_path):
    write_run(tmp_path / "a", {"videomme": [1.0, 0.0, 1.0, 1.0]})
    write_run(tmp_path / "b", {"videomme": [1.0, 1.0]})
    comparison = compare([read_run(str(tmp_path / "a")), read_run(str(tmp_path / "b"))], resamples=200)
    row = cell(comparison, "Video-MME", "b")
    assert (row["compared"], row["left_out"], row["difference"]) == (2, 2, 50)
    assert any("compares the 2 samples that both have; 2 were left out" in warning for warning in comparison.warnings)


def test_missing_benchmark_is_said_and_leaves_the_mean(tmp_path):
    write_run(tmp_path / "a", {name: BASE[name] for name in ("videomme", "mmvu_val", "vsibench")})
    write_run(tmp_path / "b", {name: BETTER[name] for name in ("videomme", "mmvu_val")})
    comparison = compare([read_run(str(tmp_path / "a")), read_run(str(tmp_path / "b"))], resamples=200)
    assert any(f"b has no {VSI_ACCURACY}, {VSI_MRA}" in warning for warning in comparison.warnings)
    mean = cell(comparison, MEAN, "a")["score"]
    assert mean == pytest.approx(50 * (BASE["videomme"].mean() + BASE["mmvu_val"].mean()))


def test_runs_without_common_samples_are_said(tmp_path):
    write_run(tmp_path / "a", {"videomme": [1.0]})
    write_run(tmp_path / "b", {"mmvu_val": [1.0]})
    comparison = compare([read_run(str(tmp_path / "a")), read_run(str(tmp_path / "b"))], resamples=200)
    assert "difference" not in comparison.table or comparison.table["difference"].isna().all()
    assert score_table(comparison)["Δ to first [95% CI]"].eq("–").all()


def test_prompts_that_differ_are_a_warning(tmp_path):
    write_run(tmp_path / "a", {"videomme": [1.0, 0.0]})
    write_run(tmp_path / "b", {"videomme": [1.0, 0.0]}, prompt="Look closely.")
    comparison = compare([read_run(str(tmp_path / "a")), read_run(str(tmp_path / "b"))], resamples=200)
    (warning,) = [warning for warning in comparison.warnings if "different prompts" in warning]
    assert "Video-MME (2 of 2)" in warning
    assert warning in markdown(comparison)


def test_prompt_as_sent_counts_where_a_journal_has_it(tmp_path):
    """Both runs log the same task prompt, but one journal shows that a reasoning instruction was added."""
    write_run(tmp_path / "stock", {"videomme": [1.0, 0.0]})
    write_run(tmp_path / "own", {"videomme": [1.0, 0.0]})
    write_journal(tmp_path / "own", [record("videomme", i) for i in range(2)], model_args={"pretrained": "tiny"})
    comparison = compare([read_run(str(tmp_path / "stock")), read_run(str(tmp_path / "own"))], resamples=200)
    assert any("different prompts" in warning for warning in comparison.warnings)


def test_same_prompt_in_half_a_journal_is_no_difference(tmp_path):
    write_run(tmp_path / "stock", {"videomme": [1.0] * 9})
    write_run(tmp_path / "own", {"videomme": [1.0] * 9})
    same = [record("videomme", i, prompt=f"Which shape moves? {i}\n") for i in range(5)]
    write_journal(tmp_path / "own", same, model_args={"pretrained": "tiny"})
    runs = [read_run(str(tmp_path / "stock")), read_run(str(tmp_path / "own"))]
    (warning,) = compare(runs, resamples=200).warnings
    assert "differs on none of 9 samples" in warning


@pytest.mark.parametrize("questions", [3, 60])
def test_no_differing_answer_is_a_warning_and_no_interval(questions, tmp_path):
    """Three questions are on one video, sixty on twenty."""
    for name in "ab":
        write_run(tmp_path / name, {"videomme": BASE["videomme"][:questions], "mmvu_val": BASE["mmvu_val"]})
    write_run(tmp_path / "b", {"mmvu_val": BETTER["mmvu_val"]})
    comparison = compare([read_run(str(tmp_path / name)) for name in "ab"], resamples=200)
    row, mean = cell(comparison, "Video-MME", "b"), cell(comparison, MEAN, "b")
    assert np.isnan([row["low"], row["high"]]).all()
    assert row["p"] == 1
    assert mean["p"] > 0.05  # a benchmark on one video once made this 0.001
    assert np.isnan(mean["low"]) == (questions == 3)
    assert f"b against a differs on none of {questions} samples" in comparison.warnings[0] + comparison.warnings[-1]
    shown = "\n".join(score_table(comparison)["Δ to first [95% CI]"])
    assert "+0.0 [–]" in shown
    assert "nan" not in shown + markdown(comparison) + latex(comparison)


def test_figures_of_equal_runs_say_that_they_are_equal(tmp_path):
    for name in "ab":
        journalled(tmp_path / name)
    figures = report_figures(compare([read_run(str(tmp_path / name)) for name in "ab"], resamples=200))
    notes = {name: [text.get_text() for text in figure.axes[0].texts] for name, figure in figures.items()}
    assert notes["differences"] == ["no sample's score differs: no interval"]
    assert notes["efficiency"] == ["a, b: equal"]


def traced_run(folder, traces):
    """A run of Video-MME, one right answer a trace, with a journal that holds the traces."""
    write_run(folder, {"videomme": [1.0] * len(traces)})
    records = [record("videomme", i, trace=own) for i, own in enumerate(traces)]
    write_journal(folder, records, model_args={"pretrained": "tiny"})
    return read_run(str(folder))


def by_hand(**columns):
    """A trace with these columns."""
    return trace(np.ones(len(columns["entropy"]))) | columns


def test_entropy_is_that_of_the_distributions_that_tokens_were_chosen_from(tmp_path):
    """Two updates of three tokens each; the third one was not refreshed, so the entropy before it is all there is."""
    first = by_hand(entropy=[1.0, 2.0, 4.0], entropy_change=[None, -0.5, None], alpha=[0, -1, -1])
    second = by_hand(entropy=[3.0, 6.0], entropy_change=[None, 1.5], alpha=[0, 1])
    comparison = compare([traced_run(tmp_path, [first, second])])
    figures = comparison.entropy[tmp_path.name]
    assert figures["chosen_from"] == pytest.approx((1 + 1.5 + 4 + 3 + 7.5) / 5)
    assert figures["entropy_change_percent"] == pytest.approx(100 * (0.5 + 1.5) / (2 + 6))
    entropy = report_figures(comparison)["entropy"].axes[0]
    assert entropy.get_ylabel() == "Entropy that tokens\nwere chosen from (nats)"
    assert entropy.lines[0].get_ydata() == pytest.approx([2.0, 4.5])  # one sample alone goes further
    assert "| Entropy that tokens were chosen from (nats) |" in markdown(comparison)
    assert json.loads(as_json(comparison))["entropy"][0]["chosen_from"] == pytest.approx(3.4)


def test_share_of_likeliest_tokens_that_updates_changed(tmp_path):
    """Journals of older versions have no such column."""
    columns = {"entropy": [1.0] * 4, "entropy_change": [None, 0.1, 0.1, 0.1]}
    with_column = traced_run(tmp_path / "new", [by_hand(**columns, changed=[None, 1, 0, 0]), by_hand(**columns)])
    comparison = compare([with_column, traced_run(tmp_path / "old", [by_hand(**columns)])])
    assert comparison.entropy["new"]["changed_percent"] == pytest.approx(100 / 3)
    shown = terminal(comparison, 100)
    assert re.search(r"Updates that changed the likeliest token +33\.33% +–\n", shown)
    assert json.loads(as_json(comparison))["entropy"][1]["changed_percent"] is None


def test_entropy_of_seeds_is_over_all_their_traces(tmp_path):
    runs = [
        traced_run(tmp_path / str(i) / "x", [by_hand(entropy=[h] * 3, ema=[h] * 3)]) for i, h in enumerate((1.0, 2.0))
    ]
    (figures,) = compare(runs).entropy.values()  # one of three tokens has an update
    assert (figures["chosen_from"], figures["peak"]) == pytest.approx((1.5 + 0.02 / 3, 1.5))


def test_report_says_that_the_method_is_off(tmp_path):
    folder = write_run(tmp_path, {"videomme": [1.0]}, model_args="pretrained=tiny,policy=off")
    off = [record("videomme", 0, trace=trace(np.ones(9), steered=False))]
    write_journal(folder, off, model_args={"pretrained": "tiny", "policy": "off"})
    assert "the method is off (policy=off)" in markdown(compare([read_run(str(folder))]))


def test_seeds_of_one_label(tmp_path):
    seeds = [np.where(RNG.random(N) < 0.2, 1 - BASE["videomme"], BASE["videomme"]) for _ in range(3)]
    write_run(tmp_path / "off", {"videomme": BASE["videomme"]})
    for index, scores in enumerate(seeds):
        write_run(tmp_path / f"seed{index}", {"videomme": scores})
    runs = [read_run(f"off={tmp_path / 'off'}")] + [read_run(f"switch={tmp_path / f'seed{i}'}") for i in range(3)]
    comparison = compare(runs, resamples=500)
    row = cell(comparison, "Video-MME", "switch")
    means = [100 * scores.mean() for scores in seeds]
    assert row["runs"] == 3
    assert row["score"] == pytest.approx(np.mean(means))
    assert row["seed_std"] == pytest.approx(np.std(means, ddof=1))
    assert row["test"] == "paired permutation"
    assert row["difference"] == pytest.approx(np.mean(means) - 100 * BASE["videomme"].mean())
    shown = score_table(comparison)
    assert f"{row['score']:.1f} ± {row['seed_std']:.1f}" in shown["Score ± SE"].tolist()
    assert "score is the mean over runs ± std between runs" in markdown(comparison)


def test_seeds_without_common_samples_are_an_error(tmp_path):
    write_run(tmp_path / "a", {"videomme": [1.0]})
    write_run(tmp_path / "b", {"mmvu_val": [1.0]})
    with pytest.raises(ValueError, match="no sample in common: they cannot be seeds"):
        compare([read_run(f"x={tmp_path / 'a'}"), read_run(f"x={tmp_path / 'b'}")])


def test_scores_beyond_one_are_not_percent(tmp_path):
    write_run(tmp_path / "a", {"some_task": [1.0, 3.5, 2.0]})
    comparison = compare([read_run(str(tmp_path / "a"))])
    assert (cell(comparison, "some_task", "a")["unit"], cell(comparison, "some_task", "a")["score"]) == ("", 6.5 / 3)


def test_published_rows_are_marked(two):
    comparison = compare(two, resamples=200, published=True)
    row = cell(comparison, "Video-MME", "V-Reason-7B")
    assert (row["published"], row["score"]) == (True, 54.9)
    assert not comparison.table["label"].eq("V-Reason-7B")[comparison.table["benchmark"].eq("MVBench")].any()
    text = markdown(comparison)
    assert "| V-Reason-7B † |" in text
    assert "published, not re-run" in text


def test_published_means_are_the_papers(tmp_path):
    """The headline is +1.4 for Lite over the six accuracies; the listing's mean of seven columns is 51.4."""
    tasks = ("videomme", "mmvu_val", "vsibench", "mvbench_action_count", "tempcompass_yes_no", "video_mmmu_perception")
    write_run(tmp_path / "a", {task: [1.0, 0.0] for task in tasks})
    comparison = compare([read_run(str(tmp_path / "a"))], published=True)
    lite, base = (cell(comparison, MEAN, name)["score"] for name in ("V-Reason-7B Lite", "Qwen2.5-VL-7B, CoT prompt"))
    assert lite - base == pytest.approx(1.4, abs=0.05)
    assert cell(comparison, MEAN_WITH_MRA, "V-Reason-7B Lite")["score"] == pytest.approx(51.4, abs=0.05)


def test_terminal_of_eighty_columns_breaks_no_word_and_shows_every_figure(two):
    shown = terminal(compare(two, resamples=200), 80)
    assert max(map(len, shown.splitlines())) <= 80
    assert all(word in shown for word in ("Video-MME", "(accuracy)", "p", "(Holm)", "Thinking", "memory"))
    assert all(figure in shown for figure in score_table(compare(two, resamples=200))["Score ± SE"])


class Reader(HTMLParser):
    """Collects the tags and the addresses of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.sources = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]


def test_page_stands_alone_and_escapes_what_others_wrote(tmp_path):
    write_run(tmp_path / "a", BASE, model_args="pretrained=<script>alert(1)</script>")
    write_run(tmp_path / "b", BETTER)
    runs = [read_run(f"<b>a={tmp_path / 'a'}"), read_run(f"b={tmp_path / 'b'}")]
    comparison = compare(runs, resamples=200)
    reader = Reader()
    images = {name: save(own, tmp_path / name)[0] for name, own in report_figures(comparison).items()}
    page = report_page(comparison, images)
    reader.feed(page)
    assert "script" not in reader.tags
    assert "&lt;b&gt;a" in page
    assert reader.sources
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)


def test_latex_is_escaped_and_balanced(two):
    text = latex(compare(two, resamples=200, published=True))
    body = text[text.index(r"\begin{tabular}") :]
    assert body.count(r"\begin") == body.count(r"\end") == 1
    widths = {line.count("&") for line in body.splitlines() if line.rstrip().endswith(r"\\")}
    assert widths == {6}
    assert r"95\% CI" in body
    assert body.count("Video-MME") == 1  # a block's name stands in its first row
    assert "Several runs of one label" not in text
    assert not re.search(r"[±Δ–†]|[^$]<", body)
    assert not re.search(r"[\s\[]-\d", body)
    assert "$-$" in body


def journalled(folder, steered=True):
    write_run(folder, {"videomme": [1.0] * 12})
    rng = np.random.default_rng(0)
    records = [
        record("videomme", i, trace=trace(0.2 + rng.random(10 + i) * np.linspace(1, 0.1, 10 + i), steered=steered))
        for i in range(12)
    ]
    write_journal(folder, records, model_args={"pretrained": "tiny"})
    return folder


def test_command_writes_every_format(tmp_path, capsys):
    journalled(tmp_path / "switch")
    write_run(tmp_path / "stock", {"videomme": [0.0] * 6 + [1.0] * 6})
    arguments = [f"stock={tmp_path / 'stock'}", f"switch={tmp_path / 'switch'}", "--resamples", "200"]
    assert main(["report", *arguments, "--output", str(tmp_path / "out" / "table"), "--published"]) == 0
    shown = capsys.readouterr().out
    assert "Video-MME" in shown
    assert "12 of 12 samples steered" in shown
    written = {path.name for path in (tmp_path / "out").iterdir()}
    names = ("differences", "efficiency", "entropy", "shift", "steps")
    assert written == {f"table{suffix}" for suffix in (".md", ".csv", ".json", ".tex", ".html")} | {
        f"table-{name}.{kind}" for name in names for kind in ("png", "svg")
    }
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    assert content["steering"][0]["steered"] == 12
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert float(next(row["difference"] for row in rows if row["label"] == "switch")) == 50
    assert (tmp_path / "out" / "table-entropy.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "out" / "table-entropy.svg").read_text()


def test_unsteered_run_warns_unless_it_is_meant(tmp_path):
    journalled(tmp_path / "a", steered=False)
    comparison = compare([read_run(str(tmp_path / "a"))])
    assert any("steered nothing" in warning for warning in comparison.warnings)

    folder = tmp_path / "off"
    write_run(folder, {"videomme": [1.0]}, model_args="pretrained=tiny,policy=off")
    off = [record("videomme", 0, trace=trace(np.ones(9), steered=False))]
    write_journal(folder, off, model_args={"pretrained": "tiny", "policy": "off"})
    assert compare([read_run(str(folder))]).warnings == []


def test_peak_is_where_the_average_is_highest(tmp_path):
    traces = [trace(np.array(values)) for values in ([1.0, 3.0, 2.0, 0.0, 0.0], [2.0, 0.0], [9.0, 9.0])]
    records = [record("t", i, trace=own) for i, own in enumerate(traces)]
    path = write_journal(tmp_path, records, model_args={})
    tokens = read_journal([path], {"policy": "switch", "update_every": 2}, []).tokens
    expected = [(int(np.argmax(own["ema"])) + 1, max(own["ema"])) for own in traces]
    assert peaks(tokens).to_numpy() == pytest.approx(np.array(expected))
    medians = {name: entropy_figures(tokens)[name] for name in ("peak_token", "peak")}
    assert medians == pytest.approx({"peak_token": 2, "peak": sorted(height for _, height in expected)[1]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["report", "nowhere"], "does not exist"), (["flips", "nowhere", "nowhere"], "does not exist")],
)
def test_users_mistakes_are_one_line_and_exit_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()
    assert [message in line for line in error if line.startswith("vreason:")] == [True]


def test_too_few_resamples_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["report", "x", "--resamples", "10"])
    assert stopped.value.code == 2
    assert "at least 100" in capsys.readouterr().err
