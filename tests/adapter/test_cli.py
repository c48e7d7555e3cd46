"""The real command, offline: unmodified stock tasks, this class beside lmms-eval's, two processes, wrong arguments."""

import signal
import subprocess
import sys

import pytest
from offline import run_lmms_eval

from lmms_eval_vreason.journal.files import journal_files, latest_samples, read_lines, read_records

pytestmark = pytest.mark.cli

SMALL = {"max_pixels": 200704, "max_num_frames": 4}
THINKING = {"max_thinking_tokens": 16, "max_answer_tokens": 6}
STOCK_TASKS = ("videomme", "mvbench_moving_direction", "vsibench")


def text(responses):
    """The one text in a sample's responses, which lmms-eval nests when there are several."""
    while isinstance(responses, list):
        (responses,) = responses
    return responses


@pytest.fixture(scope="module")
def arguments(tiny_checkpoint):
    return {"pretrained": tiny_checkpoint, "device": "cpu", **SMALL}


@pytest.fixture(scope="module")
def thinking_run(offline, arguments, tmp_path_factory):
    """Stock tasks, unmodified, under V-Reason."""
    output = tmp_path_factory.mktemp("thinking")
    return run_lmms_eval(
        offline.env,
        model="qwen2_5_vl_vreason",
        model_args={**arguments, **THINKING},
        tasks=STOCK_TASKS,
        output=output,
        extra=("--limit", "4"),
    ), output


def test_stock_tasks_are_scored_and_their_samples_hold_thinking_and_bare_answer(thinking_run):
    run, _ = thinking_run
    assert run.returncode == 0
    for task in STOCK_TASKS:
        scores = [v for k, v in run.results["results"][task].items() if k.split(",")[0] not in ("alias", "samples")]
        assert scores
        assert len(run.samples[task]) == 4
        for sample in run.samples[task]:
            raw, answer = text(sample["resps"]), text(sample["filtered_resps"])
            assert raw.startswith("<think>\n")
            assert raw == f"{raw.partition('</think>')[0]}</think>\n{answer}"
            counts = sample["token_counts"][0]
            limit = THINKING["max_thinking_tokens"] + THINKING["max_answer_tokens"] + 12
            assert 0 < counts["reasoning_tokens"] <= counts["output_tokens"] <= limit
            assert counts["input_tokens"] > 100


def test_the_run_says_that_it_was_on_and_where_its_journal_is(thinking_run):
    run, output = thinking_run
    assert "12 of 12 samples steered" in run.log
    assert list((output / "vreason_journal").glob("*-rank0.jsonl"))


def test_without_method_and_thinking_the_answers_are_the_stock_class_s(offline, arguments, tmp_path):
    same = {"tasks": STOCK_TASKS, "extra": ("--limit", "4")}
    stock = run_lmms_eval(
        offline.env,
        model="qwen2_5_vl",
        model_args={**arguments, "device_map": "cpu"},
        output=tmp_path / "stock",
        **same,
    )
    ours = run_lmms_eval(
        offline.env,
        model="qwen2_5_vl_vreason",
        # The stock class loads bfloat16 whatever the device.
        model_args={**arguments, "dtype": "bfloat16", "policy": "off", "thinking": "off", "positions": "transformers"},
        output=tmp_path / "ours",
        **same,
    )
    for task in STOCK_TASKS:
        # The stock class ignores `until`, lmms-eval's default end of an answer.
        expected = {s["doc_id"]: text(s["filtered_resps"]).split("\n\n")[0] for s in stock.samples[task]}
        assert {s["doc_id"]: text(s["filtered_resps"]) for s in ours.samples[task]} == expected
        assert any(expected.values())


def test_two_processes_answer_as_one(offline, arguments, thinking_run, tmp_path):
    run = run_lmms_eval(
        {**offline.env, "ACCELERATE_USE_CPU": "true"},
        model="qwen2_5_vl_vreason",
        model_args={**arguments, **THINKING},
        tasks=["videomme"],
        output=tmp_path,
        extra=("--limit", "4", "--batch_size", "auto", "--max_batch_size", "2"),
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
    )
    alone, _ = thinking_run
    texts = [{s["doc_id"]: text(s["filtered_resps"]) for s in r.samples["videomme"]} for r in (run, alone)]
    assert texts[0] == texts[1]
    assert run.results["config"]["batch_size"] == "auto"
    assert run.results["config"]["batch_sizes"][0] in (1, 2)
    # One line over both processes' samples, and one bar.
    assert run.log.count("4 of 4 samples steered") == 1
    assert "4/4 [" in run.log
    assert len(journal_files(tmp_path / "vreason_journal")) == 2


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"polcy": "switch"}, "did you mean policy"), ({"pretrained": "no/where"}, "neither a folder with a checkpoint")],
)
def test_a_wrong_argument_is_one_line_and_the_exit_code_says_so(offline, arguments, tmp_path, wrong, words):
    run = run_lmms_eval(
        offline.env,
        model="qwen2_5_vl_vreason",
        model_args={**arguments, **wrong},
        tasks=["videomme"],
        output=tmp_path,
        check=False,
    )
    assert run.returncode == 1
    (line,) = [line for line in run.log.splitlines() if line.startswith("qwen2_5_vl_vreason: ")]
    assert words in line
    assert "Loading weights" not in run.log


def test_sigterm_leaves_a_whole_journal_a_code_and_a_word(offline, arguments, tmp_path):
    """Ends the command in the middle of its samples, as a cluster's scheduler does."""
    given = {**arguments, "max_thinking_tokens": 400, "max_answer_tokens": 6}
    command = [sys.executable, "-m", "lmms_eval", "--model", "qwen2_5_vl_vreason", "--tasks", "videomme"]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in given.items())]
    command += ["--output_path", str(tmp_path), "--log_samples"]
    process = subprocess.Popen(command, env=offline.env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for line in process.stderr:
        if "1/4 [" in line:
            process.terminate()
            break
    _, log = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    last = log.strip().splitlines()[-1]
    assert "Run the same command again to go on from there" in last
    journal = tmp_path / "vreason_journal"
    lines = [line for path in journal_files(journal) for line in read_lines(path)]
    assert all(line.record and not line.lost_trace for line in lines)
    assert 1 <= len(latest_samples(read_records(journal))) < 4
