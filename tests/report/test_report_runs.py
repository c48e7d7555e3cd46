"""Reading runs: scores of every benchmark, journals, and broken or mixed input."""

import json
import subprocess
import sys
from dataclasses import asdict
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offline import MINIMUM_DOCS, run_lmms_eval
from report_runs import STOCK, record, trace, write_journal, write_run

from lmms_eval_vreason.journal.summary import steering_facts, steering_line, steering_warning
from lmms_eval_vreason.report.catalogue import VSI_ACCURACY, VSI_MRA, benchmark_of, part_of
from lmms_eval_vreason.report.compare import compare
from lmms_eval_vreason.report.files import parse_run, read_json_lines
from lmms_eval_vreason.report.journals import curve, read_journal
from lmms_eval_vreason.report.runs import arguments, read_run
from lmms_eval_vreason.report.scores import answer_of, score_of, unfinished, video_of

SWITCH = {"policy": "switch", "update_every": 2}


@pytest.mark.parametrize("task", [task for task in STOCK if task != "vsibench"])
def test_score_of_each_stock_benchmark(task, tmp_path):
    run = read_run(str(write_run(tmp_path, {task: [1.0, 0.0, 1.0, 1.0]})))
    assert run.samples["score"].tolist() == [1.0, 0.0, 1.0, 1.0]
    assert run.notices == []


def test_vsibench_has_two_rows(tmp_path):
    samples = read_run(str(write_run(tmp_path, {"vsibench": [1.0, 0.7, 0.0, 0.4]}))).samples
    assert samples.groupby("row")["score"].apply(list).to_dict() == {VSI_ACCURACY: [1, 0], VSI_MRA: [0.7, 0.4]}
    assert samples["video"].tolist() == ["scannet/scene0"] * 4


def test_videommmu_scores_as_lmms_eval_aggregates(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # the module reads it when it is imported
    stock = import_module("lmms_eval.tasks.videommmu.utils")
    cases = [
        *(("open", "4", parsed) for parsed in ([4.0], [5.0, "no"], [])),
        *(("open", "B", parsed) for parsed in (["it is b "], ["bobbin"], [" b"])),
        *(("open", ["cat", "dog"], parsed) for parsed in (["a dog"], ["a bird"])),
        *(("open", "1,200", parsed) for parsed in ([1200.0], ["1200"])),
        *(("open", "2.345", parsed) for parsed in ([2.35], [2.34], [2.345])),
        *(("multiple-choice", "B", parsed) for parsed in ("B", "C")),
        *(("perception", ["A", "B"], parsed) for parsed in ("B", "C")),
    ]
    verdicts = []
    for kind, gold, predicted in cases:
        metric = {"id": "x", "question_type": kind, "answer": gold, "parsed_pred": predicted}
        verdicts.append(score_of({"mmmu_acc": metric}, "video_mmmu_adaptation", "VideoMMMU", [])[2])
        assert verdicts[-1] == stock.evaluate_videommmu([metric])[1]["acc"], metric
    assert set(verdicts) == {0.0, 1.0}
    unanswered = {"question_type": "open", "answer": "a", "parsed_pred": "API Error"}
    assert score_of({"mmmu_acc": unanswered}, "video_mmmu_adaptation", "VideoMMMU", [])[2] == 0


def test_this_packages_tasks_bring_answer_cut_and_video():
    shared = {"video": "clip7", "benchmark": "videomme", "pooled": False}
    sample = {
        "score": {"score": 1.0, "answer": "B", **shared},
        "answer_found": {"score": 1.0, **shared},
        "cut": {"score": 1.0, **shared},
        "filtered_resps": "<think>so</think><answer>B</answer>",
    }
    assert score_of(sample, "vreason_videomme", "Video-MME", ["score", "answer_found"])[2] == 1.0
    assert (answer_of(sample), video_of(sample), unfinished(sample)) == ("B", "clip7", True)


def test_unknown_task_counts_its_leading_numeric_metric():
    assert score_of({"quality": 0.3, "other": 1}, "t", "t", ["other", "quality"]) == ("t", "other", 1.0)
    assert score_of({"words": "x", "quality": True}, "t", "t", ["words"]) == ("t", "quality", 1.0)
    assert score_of({"words": "x", "quality": float("nan")}, "t", "t", []) is None


@pytest.mark.parametrize(
    ("task", "benchmark", "part"),
    [
        ("videomme", "Video-MME", "videomme"),
        ("vreason_direct_videomme", "Video-MME", "videomme"),
        ("videomme_w_subtitle", "videomme_w_subtitle", "videomme_w_subtitle"),
        ("vreason_mmvu", "MMVU", "mmvu"),
        ("mmvu_val_cot", "MMVU", "mmvu"),
        ("vreason_video_mmmu_adaptation", "VideoMMMU", "video_mmmu_adaptation"),
        ("mvbench_action_count", "MVBench", "mvbench_action_count"),
        ("shapes_count", "shapes", "shapes_count"),
    ],
)
def test_stock_and_own_tasks_share_rows_and_documents(task, benchmark, part):
    groups = {"everything": ["shapes_count", "x", "y"], "shapes": ["shapes_count", "x"]}
    assert (benchmark_of(task, groups), part_of(task)) == (benchmark, part)


@pytest.mark.parametrize(
    ("text", "answer", "open_ended"),
    [("<think>a</think>\nB", "B", False), ("<think>no end", "", True), ("B", "B", False), ([["B"]], "B", False)],
)
def test_answer_and_unfinished_thinking(text, answer, open_ended):
    assert (answer_of({"filtered_resps": text}), unfinished({"filtered_resps": text})) == (answer, open_ended)


def test_label_path_and_pattern():
    label, path, pattern = parse_run("off=out/base#vreason_*")
    assert (label, str(path), pattern) == ("off", "out/base", "vreason_*")
    assert parse_run("/data/a=b/run")[0] == "run"


def test_half_written_and_broken_lines_are_said(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\nnot json\n[3]\n{"a": 2}\n{"a":')
    notices = []
    assert [line["a"] for line in read_json_lines(path, notices)] == [1, 2]
    assert "half-written" in notices[0]
    assert "2 lines are not JSON" in notices[1]
    assert "line 2, 3" in notices[1]


def test_duplicated_doc_ids_count_once_and_are_said(tmp_path):
    folder = write_run(tmp_path, {"videomme": [0.0, 0.0]})
    path = next(folder.rglob("*_samples_videomme.jsonl"))
    again = json.loads(path.read_text().splitlines()[0])
    again["videomme_perception_score"]["score"] = 1.0
    path.write_text(path.read_text() + json.dumps(again) + "\n")
    run = read_run(str(folder))
    assert dict(zip(run.samples["doc_id"], run.samples["score"], strict=True)) == {0: 1.0, 1: 0.0}
    assert "1 doc_ids occur more than once" in run.notices[0]


def test_several_runs_in_one_folder(tmp_path):
    write_run(tmp_path, {"videomme": [0.0], "mmvu_val": [0.0]})
    write_run(tmp_path, {"videomme": [1.0]}, date="20250102_000000")
    run = read_run(str(tmp_path))
    assert run.samples.set_index("task")["score"].to_dict() == {"videomme": 1.0, "mmvu_val": 0.0}
    assert "run more than once" in run.notices[0]

    write_run(tmp_path, {"videomme": [1.0]}, date="20250103_000000", model_args="pretrained=tiny,policy=off")
    with pytest.raises(ValueError, match="different model arguments; name one results file"):
        read_run(str(tmp_path))
    assert len(read_run(str(tmp_path / "tiny" / "20250103_000000_results.json")).samples) == 1


@pytest.mark.parametrize("content", ["nothing", "empty", "no metric"])
def test_nothing_to_read_is_a_clear_error(content, tmp_path):
    if content == "nothing":
        with pytest.raises(ValueError, match="does not exist"):
            read_run(str(tmp_path / "away"))
    elif content == "empty":
        with pytest.raises(ValueError, match="--log_samples"):
            read_run(str(tmp_path))
    else:
        (tmp_path / "x_samples_t.jsonl").write_text('{"doc_id": 0, "remark": "none"}\n')
        with pytest.raises(ValueError, match="numeric score"):
            read_run(str(tmp_path))


def test_truncated_results_file_is_named(tmp_path):
    results = next(write_run(tmp_path, {"videomme": [1.0]}).rglob("*_results.json"))
    results.write_text(results.read_text()[:40])
    with pytest.raises(ValueError, match=r"_results\.json is not JSON"):
        read_run(str(tmp_path))


def test_other_aggregate_of_lmms_eval_is_said(tmp_path):
    results = next(write_run(tmp_path, {"mvbench_action_count": [1.0, 0.0, 0.0, 0.0]}).rglob("*_results.json"))
    content = json.loads(results.read_text())
    content["results"]["mvbench_action_count"]["mvbench_accuracy,none"] = 25.0
    results.write_text(json.dumps(content))
    assert read_run(str(tmp_path)).notices == []
    content["results"]["mvbench_action_count"]["mvbench_accuracy,none"] = 33.333
    results.write_text(json.dumps(content))
    assert "lmms-eval reports 33.33, the mean over all samples is 0.25" in read_run(str(tmp_path)).notices[0]


def test_answers_in_tags_are_said(tmp_path):
    path = next(write_run(tmp_path, {"some_task": [0.0, 0.0]}).rglob("*_samples_*.jsonl"))
    path.write_text(path.read_text().replace('"words"', '"<answer>B</answer>"', 1))
    assert "1 answers were scored with their <answer> tags" in compare([read_run(str(tmp_path))]).warnings[0]


def test_two_prompts_of_one_benchmark_need_a_choice(tmp_path):
    write_run(tmp_path, {"mmvu_val": [1.0]})
    path = next(tmp_path.rglob("*_samples_mmvu_val.jsonl"))
    path.with_name(path.name.replace("mmvu_val", "mmvu_val_cot")).write_text(path.read_text())
    with pytest.raises(ValueError, match="same documents; choose"):
        read_run(str(tmp_path))
    assert set(read_run(f"{tmp_path}#mmvu_val").samples["task"]) == {"mmvu_val"}
    with pytest.raises(ValueError, match="fits 'nothing'"):
        read_run(f"{tmp_path}#nothing")


def test_token_limit_and_journal_say_what_was_cut(tmp_path):
    run = read_run(str(write_run(tmp_path / "stock", {"videomme": [1.0] * 4}, tokens=64)))
    assert run.samples["cut"].all()

    write_run(tmp_path / "own", {"videomme": [1.0] * 10}, model_args="pretrained=tiny,learning_rate=0.010")
    write_journal(tmp_path / "own", [record("videomme", i) for i in range(10)],
                  model_args={"pretrained": "tiny", "learning_rate": 0.01, "fps": 2})  # fmt: skip
    own = read_run(str(tmp_path / "own")).samples
    assert own["cut"].tolist() == [False] * 9 + [True]
    assert own["thinking_tokens"].tolist() == [15.0] * 10
    assert own["output_tokens"].tolist() == [20.0] * 10
    assert own["peak_memory"].tolist() == [3e9] * 10
    assert own["seconds"].iat[0] == pytest.approx(2.1)
    assert own["video"].iat[3] == "clip1"


def test_journal_of_other_arguments_is_left_alone(tmp_path):
    write_run(tmp_path, {"videomme": [1.0]}, model_args="pretrained=tiny,policy=off")
    write_journal(tmp_path, [record("videomme", 0)], model_args={"pretrained": "tiny", "policy": "switch"})
    run = read_run(str(tmp_path))
    assert run.journal is None
    assert "no journal there was written with this run's model arguments" in run.notices[0]


def test_journal_lies_where_the_run_was_told(tmp_path):
    write_run(tmp_path / "run", {"videomme": [1.0]}, model_args=f"pretrained=tiny,journal={tmp_path / 'Kept'}")
    path = write_journal(tmp_path / "made", [record("videomme", 0)],
                         model_args={"pretrained": "tiny", "journal": str(tmp_path / "Kept")})  # fmt: skip
    path.parent.rename(tmp_path / "Kept")
    assert read_run(str(tmp_path / "run")).samples["thinking_tokens"].tolist() == [15.0]


def test_arguments_compare_across_text_and_values():
    assert arguments("a=0.010,b=True,c=1;2") == arguments({"a": 0.01, "b": True, "c": "1;2"})
    assert arguments("a=1") != arguments({"a": 2})


def test_journal_drops_half_a_line_and_keeps_the_last_of_a_key(tmp_path):
    path = write_journal(tmp_path, [record("t", 0), record("t", 1), record("t", 0, answer_cut=True)], model_args={})
    path.write_text(path.read_text() + '{"kind": "sample", "ke')
    notices = []
    samples = read_journal([path], SWITCH, notices).samples
    assert samples["doc_id"].tolist() == [1, 0]
    assert samples["cut"].tolist() == [False, True]
    assert "half-written" in notices[0]


def test_journal_with_a_broken_line_in_the_middle(tmp_path):
    path = write_journal(tmp_path, [record("t", 0), record("t", 1)], model_args={})
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1], "{broken", lines[2]]) + "\n")
    notices = []
    assert read_journal([path], SWITCH, notices).samples["doc_id"].tolist() == [0, 1]
    assert "1 lines are not JSON" in notices[0]


def test_curve_is_the_mean_over_samples_that_reach_a_token(tmp_path):
    long, short = np.array([1.0, 2.0, 4.0, 8.0]), np.array([3.0, 4.0])
    records = [record("t", i, trace=trace(values)) for i, values in enumerate([long, short, short])]
    tokens = read_journal([write_journal(tmp_path, records, model_args={})], SWITCH, []).tokens
    found = curve(tokens, "entropy")
    assert found["mean"].tolist() == pytest.approx([7 / 3, 10 / 3])  # one sample alone goes further
    errors = [np.std([1, 3, 3], ddof=1) / 3**0.5, np.std([2, 4, 4], ddof=1) / 3**0.5]
    assert found["sem"].tolist() == pytest.approx(errors)
    assert curve(tokens, "entropy", least=1)["count"].tolist() == [3, 3, 1, 1]
    assert curve(tokens, "entropy", least=1).index.tolist() == [1, 2, 3, 4]


def mixed_records():
    return [
        *(record("t", i) for i in range(3)),
        record("t", 3, trace=trace(np.ones(16), video_tokens=0, steered=False)),
        record("t", 4, trace=None, error={"type": "OSError", "message": "gone"}),
    ]


def facts_of(records, policy="switch"):
    return steering_facts(records, policy=policy)


def test_steering_line_counts_what_the_journal_holds():
    line = steering_line(facts_of(mixed_records()))
    assert "3 of 5 samples steered, 30 updates, mean ΔH +0.0080 nats an update (-0.0100 where α = −1, +0.0200" in line
    assert "relative shift ‖ΔV‖/‖V‖ at the last update 1.0%" in line  # ten updates of 0.001 each
    assert "25% without video tokens" in line
    assert "1 failed" in line
    assert steering_warning(facts_of(mixed_records())) == ""


def test_small_entropy_changes_keep_their_digits():
    values = trace(np.linspace(1, 2, 20)) | {"raising": {"updates": 10, "entropy_change": -1.4e-5}}
    assert "mean ΔH -1.4e-05 nats an update" in steering_line(facts_of([record("t", 0, trace=values)]))


def test_last_line_says_that_the_method_is_off():
    records = [record("t", i, trace=trace(np.ones(9), steered=False)) for i in range(3)]
    facts = facts_of(records, policy="off")
    assert steering_line(facts) == "V-Reason: the method is off (policy=off): the base model answered 3 samples"
    assert steering_warning(facts) == ""


def test_cost_of_due_steps():
    """20 tokens: one of the prefill, ten due steps of 0.12 s, nine ordinary ones of 0.1 s."""
    facts = facts_of([record("t", 0)])
    assert facts.due_step_ratio == pytest.approx(1.2)
    assert facts.overhead == pytest.approx((1.2 / 0.1 - 10) / 19)
    assert "a due step takes 1.20 times an ordinary one, which adds 10.5% to the decoding time" in steering_line(facts)


@given(st.integers(0, 60), st.integers(0, 60), st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_cost_counts_the_steps_of_the_batch(ordinary, due, lengths):
    """Its samples end when they end and share its seconds; in some no update is made."""
    records, size = [], len(lengths)
    for index, tokens in enumerate(lengths):
        seconds = {"ordinary": 0.1 * ordinary / size, "due": 0.15 * due / size}
        moved = {"updates": 0, "ordinary_steps": ordinary, "due_steps": due, "entropy_change": [None] * tokens}
        records.append(record("t", index, trace=trace(np.ones(tokens)) | moved, seconds=seconds,
                              tokens={"output": tokens}))  # fmt: skip
    facts = facts_of(records)
    if due and ordinary:
        assert facts.due_step_ratio == pytest.approx(1.5)
        assert facts.overhead == pytest.approx(0.5 * due / (due + ordinary))
    else:
        assert facts.due_step_ratio is facts.overhead is None


def test_facts_of_a_journal_are_those_of_its_samples(tmp_path):
    path = write_journal(tmp_path, [*mixed_records(), record("other", 0)], model_args={})
    own = asdict(read_journal([path], SWITCH, [], tasks={"t"}).facts)
    assert own == asdict(facts_of(mixed_records()))
    assert own["entropy_change_lowering"] is not None
    assert read_journal([path], SWITCH, [], tasks={"none"}).facts is None


def test_facts_without_all_traces_keep_their_counts(tmp_path):
    records = [record("t", i) for i in range(40)]
    journal = read_journal([write_journal(tmp_path, records, model_args={})], SWITCH, [], traces=4)
    assert journal.tokens.index.unique("sample").tolist() == [0, 10, 20, 30]
    assert (journal.facts.steered, journal.facts.updates, journal.facts.due_step_ratio) == (40, 400, pytest.approx(1.2))
    assert journal.facts.shift == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([record("t", 0, trace=trace(np.ones(9), steered=False))], "policy is off (1 samples)"),
        ([record("t", 0, trace=None)], "no trace was kept"),
    ],
)
def test_nothing_steered_is_a_warning_with_the_reason(records, reason):
    assert reason in steering_warning(facts_of(records))


def test_no_records_no_warning():
    assert steering_warning(facts_of([])) == ""


def test_reports_import_no_torch_and_no_lmms_eval():
    code = (
        "import sys\n"
        "from lmms_eval_vreason.report import compare, figures, flips, sample_page, submit, tables\n"
        "assert not {'torch', 'lmms_eval', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.cli
def test_real_files_of_the_stock_benchmarks_give_lmms_evals_own_figures(offline, tmp_path):
    """The dummy model answers everything with B; each task's mean over samples is the figure in the results file."""
    tasks = {
        "videomme": "videomme_perception_score",
        "mvbench_action_count": "mvbench_accuracy",
        "mmvu_val": "accuracy",
        "video_mmmu_adaptation": "mmmu_acc",
        "tempcompass_multi_choice": "avg_accuracy",
        "vsibench": "object_rel_direction_accuracy",
    }
    real = run_lmms_eval(offline.env, model="dummy", model_args={"response": "B"}, tasks=tasks, output=tmp_path)
    run = read_run(str(tmp_path))
    assert run.notices == []
    means = run.samples[run.samples["row"] != VSI_MRA].groupby("task")["score"].mean()
    for task, metric in tasks.items():
        expected = real.metric(task, metric)
        assert any(means[task] * scale == pytest.approx(expected, abs=1e-3) for scale in (1, 100)), task
    assert run.samples.groupby("row").size().to_dict() == {
        **dict.fromkeys(("Video-MME", "MVBench", "MMVU", "VideoMMMU", "TempCompass"), MINIMUM_DOCS),
        VSI_ACCURACY: 3,
        VSI_MRA: 1,
    }
    assert run.samples.set_index("row")["video"].nunique() >= 3  # Video-MME, TempCompass and VSI-Bench know theirs
