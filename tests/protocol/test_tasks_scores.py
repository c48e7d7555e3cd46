"""Scores of the six benchmarks: a right answer in any form scores 1, a wrong chain that mentions it 0. No judge."""

import math
import os
import socket
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from statistics import fmean

import lmms_eval.tasks
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmms_eval.utils import load_yaml_config
from offline_documents import OPTIONS, benchmarks

from lmms_eval_vreason.prompts.split import split
from lmms_eval_vreason.protocol import stock, videomathqa
from lmms_eval_vreason.protocol.aggregates import mean_over_benchmarks, mean_score, mean_tokens
from lmms_eval_vreason.protocol.benchmark import lettered
from lmms_eval_vreason.protocol.stock import stock_config, stock_utils
from lmms_eval_vreason.shapes.architecture import random_checkpoint

UNHURRIED = settings(deadline=None)  # a busy machine may stop in the middle of an example
ROWS = {(repository, config): rows for repository, config, _, rows, _, _ in benchmarks(10)}
PACKAGE = "lmms_eval_vreason.protocol"

# Multiple choice of all six benchmarks: the first document's answer is B, the square.
CHOICES = {
    "videomme": ("lmms-eval/Video-MME", "default", "videomme.process_results"),
    "vsibench": ("nyu-visionx/VSI-Bench", "full", "vsibench.acc_results"),
    "mvbench": ("OpenGVLab/MVBench", "action_sequence", "mvbench.process_results"),
    "tempcompass": ("lmms-eval/TempCompass", "multi-choice", "tempcompass.choice_results"),
    "mmvu": ("lmms-eval/MMVU", "default", "mmvu.process_results"),
    "video_mmmu": ("lmms-eval/VideoMMMU", "Adaptation", "videommmu.process_results"),
}
# What a stock scorer meets: the right letter, and a chain that ends wrong, as the stock tasks' weak points are known.
RIGHT = [
    "B",
    "B.",
    "B. square",
    "(B)",
    "<answer>B</answer>",
    "It turns left, then right.\nAnswer: B",
    "<think>A or C?</think>\nB",
    "<think>A or C?</think><answer>B. square</answer>",
    "<answer>B",
]
WRONG = [
    "",
    "A",
    "B would fit its corners, but it is round. Answer: A",
    "Option B says square. B is out. It is hard to tell",
    "<think>B</think><answer>A</answer>",
    "<think>B fits",
    "<answer>A or B</answer>",
]


def scorer(name: str):
    module, function = name.split(".")
    return getattr(import_module(f"{PACKAGE}.{module}"), function)


def document(repository: str, config: str, index: int = 0) -> dict:
    return ROWS[repository, config][index]


@pytest.fixture(autouse=True)
def no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a scorer opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(stock_utils("tempcompass"), "get_eval_result", refuse)


@pytest.mark.parametrize("benchmark", CHOICES)
@pytest.mark.parametrize("text", RIGHT)
def test_right_answer_scores_one(benchmark: str, text: str) -> None:
    *place, function = CHOICES[benchmark]
    figures = scorer(function)(document(*place), [text])
    assert (figures["score"]["score"], figures["score"]["answer"], figures["answer_found"]["score"]) == (1, "B", 1)


@pytest.mark.parametrize("benchmark", CHOICES)
@pytest.mark.parametrize("text", WRONG)
def test_wrong_or_missing_answer_scores_zero_and_counts(benchmark: str, text: str) -> None:
    *place, function = CHOICES[benchmark]
    figures = scorer(function)(document(*place), [text])
    assert figures["score"]["score"] == 0
    assert figures["answer_found"]["score"] == float(figures["score"]["answer"] is not None)
    response = split(text)
    assert (figures["cut"]["score"], figures["thinking_tokens"]["text"]) == (float(response.cut), response.thinking)
    assert figures["output_tokens"]["text"] == text
    assert mean_score([figures["score"], {**figures["score"], "score": 1.0}]) == 0.5


@pytest.mark.parametrize("benchmark", CHOICES)
@UNHURRIED
@given(letter=st.sampled_from("ABCD"), index=st.integers(0, 2))
def test_exactly_the_gold_letter_scores(benchmark: str, letter: str, index: int) -> None:
    *place, function = CHOICES[benchmark]
    figures = scorer(function)(document(*place, index), [f"<think>{OPTIONS}</think>{letter}"])
    assert figures["score"]["score"] == float(letter == "BAB"[index])


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("4", 1),
        ("<answer>4.0 m</answer>", 1),
        ("four", 1),
        ("about four metres", 1),
        ("There are 2 here and 2 there.\nAnswer: 4", 1),
        ("8/2", 1),
        ("5", 0.6),  # a quarter off: right for the six thresholds from 0.50 to 0.75 of the ten up to 0.95
        ("8", 0),
        ("-4", 0),
        ("4000", 0),
        ("4,000", 0),
        ("one of them is far", 0),
        ("", 0),
        ("<think>4", 0),
    ],
)
def test_numbers_by_mean_relative_accuracy(text: str, score: float) -> None:
    figures = scorer("vsibench.mra_results")(document("nyu-visionx/VSI-Bench", "full", 3), [text])
    assert figures["score"]["score"] == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("½", "0.5"),  # no digit to Python, and a number all the same
        ("three hundred and twenty one metres", "321"),
        ("I can see that four of them are here", None),
        ("four of 7 or 8", None),
    ],
)
def test_numbers_in_words(text: str, answer: str | None) -> None:
    figures = scorer("vsibench.mra_results")(document("nyu-visionx/VSI-Bench", "full", 3), [text])
    assert figures["score"]["answer"] == answer


@UNHURRIED
@given(number=st.floats(-1e6, 1e6, allow_nan=False))
def test_any_number_scores_as_the_stock_rule_scores_it(number: float) -> None:
    text = f"<answer>{number:.6f}</answer>"
    figures = scorer("vsibench.mra_results")(document("nyu-visionx/VSI-Bench", "full", 3), [text])
    expected = stock_utils("vsibench").mean_relative_accuracy(float(f"{number:.6f}"), 4.0, 0.5, 0.95, 0.05)
    assert figures["score"]["score"] == expected


@pytest.mark.parametrize(
    ("text", "score"),
    [("yes", 1), ("Yes, it does.", 1), ("<answer>Yes</answer>", 1), ("Not sure, yes?", 0), ("no", 0), ("", 0)],
)
def test_yes_no(text: str, score: int) -> None:
    figures = scorer("tempcompass.yes_no_results")(document("lmms-eval/TempCompass", "yes_no"), [text])
    assert figures["score"]["score"] == score


@pytest.mark.parametrize(
    "labels",
    [
        ("Caption A", "Caption B"),
        ("Option 1", "Option 2"),
        ("Sentence A", "Sentence B"),
        ("Description 1", "Description 2"),
    ],
)
@pytest.mark.parametrize("form", ["{key}", "{label}", "{label}: A square.", "A square.", "({key})", "Answer: {label}"])
def test_caption_matching(labels: tuple[str, str], form: str) -> None:
    question = f"Which fits?\n{labels[0]}: A circle.\n{labels[1]}: A square."
    doc = {"video_id": "1", "dim": "order", "question": question, "answer": f"{labels[1]}: A square."}
    for label, score in ((labels[1], 1), (labels[0], 0)):
        text = form.format(key=label.split()[1], label=label)
        text = text.replace("A square", "A circle") if score == 0 else text
        assert scorer("tempcompass.caption_results")(doc, [text])["score"]["score"] == score


@pytest.mark.parametrize(
    ("text", "score"), [("4", 1), ("<answer>4</answer>", 1), ("The answer is 4.", 1), ("5", 0), ("", 0), ("4 " * 20, 0)]
)
def test_open_answers_by_rule(text: str, score: int) -> None:
    doc = document("lmms-eval/VideoMMMU", "Adaptation", 3)
    figures = scorer("videommmu.process_results")(doc, [text])
    assert figures["score"]["score"] == score
    assert figures["answer_found"]["score"] == float(text not in ("", "4 " * 20))


def test_tempcompass_and_mvbench_options_are_those_of_the_question() -> None:
    question = scorer("tempcompass.question")(document("lmms-eval/TempCompass", "multi-choice"))
    assert question.options == dict(zip("ABCD", ("circle", "square", "triangle", "star"), strict=True))
    question = scorer("mvbench.question")(document("OpenGVLab/MVBench", "action_sequence"))
    assert question.text.splitlines()[1:] == OPTIONS


@pytest.mark.parametrize("form", ["{}. {}", "{}.{}", "{}) {}", "({}) {}"])
def test_a_letter_that_leads_every_option_is_taken_off(form: str) -> None:
    texts = {"A": "(x + 1)", "B": "B.", "C": ""}
    assert lettered([form.format(*option) for option in texts.items()]) == texts
    half = [form.format("A", "one"), "two"]
    assert lettered(half) == dict(zip("AB", half, strict=True))


@pytest.mark.parametrize(("benchmark", "key", "folder"), [("tempcompass", "video_id", "."), ("videommmu", "id", "Art")])
def test_videos_are_the_stock_tasks(
    benchmark: str, key: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stock_utils(benchmark), "cache_dir", str(tmp_path))
    video = tmp_path / folder / "dev_Art_1.mp4"
    video.parent.mkdir(exist_ok=True)
    video.touch()
    assert [Path(path) for path in scorer(f"{benchmark}.doc_to_visual")({key: "dev_Art_1"})] == [video]


def items(scores: list[float], benchmark: str, pooled: bool = False) -> list[dict]:
    return [{"score": score, "benchmark": benchmark, "pooled": pooled} for score in scores]


def test_benchmarks_weigh_the_same_and_pool_by_their_own_rule() -> None:
    tasks = [
        items([1, 0], "mvbench"),
        items([1, 1, 1, 1], "mvbench"),
        items([1, 0], "tempcompass", pooled=True),
        items([1, 1, 1, 1], "tempcompass", pooled=True),
        items([0], "videomme"),
    ]
    means, sizes = [mean_score(task) for task in tasks], [len(task) for task in tasks]
    assert mean_over_benchmarks(means[:2], sizes[:2], False) == 0.75
    assert mean_over_benchmarks(means[2:4], sizes[2:4], False) == pytest.approx(5 / 6)
    assert mean_over_benchmarks(means, sizes, False) == pytest.approx(fmean([0.75, 5 / 6, 0]))
    with pytest.raises(ValueError, match="shorter"):
        mean_over_benchmarks(means, sizes[:-1], False)


def test_token_lengths_are_the_checkpoints(tmp_path: Path) -> None:
    random_checkpoint(tmp_path)
    texts = [{"text": text, "benchmark": "mmvu", "pooled": False} for text in ("<think>ab</think>", "")]
    args = Namespace(model_args=f"pretrained={tmp_path},max_num_frames=4")
    assert mean_tokens(texts, args) == pytest.approx(4 / 2)
    for name in ("pretrained", "model"):  # transformers' name and vLLM's
        assert mean_tokens(texts, Namespace(model_args={name: str(tmp_path)})) == pytest.approx(4 / 2)
    for unknown in (None, Namespace(model_args=""), Namespace(model_args=f"pretrained={tmp_path / 'missing'}")):
        assert math.isnan(mean_tokens(texts, unknown))


@pytest.mark.parametrize("benchmark", stock._FILES)
def test_stock_configuration_is_what_lmms_eval_reads(benchmark: str) -> None:
    path = Path(lmms_eval.tasks.__file__).parent / stock._FILES[benchmark]
    expected = load_yaml_config(str(path), mode="full")
    own = stock_config(benchmark)
    assert own.keys() == expected.keys()
    functions = {key for key, value in expected.items() if callable(value)}
    for key in own.keys() - {"metric_list"}:  # it holds functions
        assert own[key] == (None if key in functions else expected[key])
    assert getattr(stock, f"{benchmark}__dataset_path") == expected["dataset_path"]


def test_a_stock_module_finds_the_libraries_default_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HOME", raising=False)
    stock_utils("mvbench")
    assert Path(os.environ["HF_HOME"]) == Path.home() / ".cache" / "huggingface"
    monkeypatch.setenv("HF_HOME", "elsewhere")
    stock_utils("mvbench")
    assert os.environ["HF_HOME"] == "elsewhere"


@pytest.mark.parametrize("part", ["mcq", "mcq_cot", "mbin", "mbin_cot"])
def test_every_model_gets_the_subtitles_of_qwen2_5_vl(part: str) -> None:
    expected = stock_config(f"videomathqa_{part}")["lmms_eval_specific_kwargs"]["qwen2_5_vl"]
    assert expected["frame_num"] == 768
    assert videomathqa._for_every_model(f"videomathqa_{part}") == {"default": expected}
    assert getattr(videomathqa, part) == {"default": expected}


def test_stock_configuration_is_read_and_never_shared() -> None:
    first, second = stock_config("vsibench"), stock_config("vsibench")
    assert first["dataset_path"] == "nyu-visionx/VSI-Bench"
    first["dataset_kwargs"].clear()
    assert second["dataset_kwargs"]["cache_dir"] == "vsibench"
    for name in ("nothing", "nothing__key", "vsibench"):
        with pytest.raises(AttributeError, match="no attribute"):
            getattr(stock, name)
