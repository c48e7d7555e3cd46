"""The splitter: the table of cases through all that use it, any text, and what returns to lmms-eval."""

import json
import re
import subprocess
import sys

import pytest
from answer_cases import CASES, DOCS, Case, written
from hypothesis import given, settings
from hypothesis import strategies as st
from lmms_eval.api.reasoning import parse_reasoning_tags_config, strip_reasoning_tags

from lmms_eval_vreason.prompts.budgets import Budgets, Outcome, outcome_without_budgets
from lmms_eval_vreason.prompts.split import cut_at, joined, opens_thinking, split, untag
from lmms_eval_vreason.protocol.answers import parse_choice
from lmms_eval_vreason.protocol.benchmark import Benchmark, Question
from lmms_eval_vreason.report.scores import answer_of, scored_with_tags, unfinished
from lmms_eval_vreason.shapes.vocabulary import build_tokenizer

UNHURRIED = settings(deadline=None)  # a busy machine may stop in the middle of an example
TOKENIZER = build_tokenizer()
# A task of this package whose answer is whatever text the splitter finds.
TASK = Benchmark(
    "any", lambda doc: Question("?", "open", "video"), lambda doc, answer: 0.0, lambda found, _: found.answer
)
# lmms-eval's default, as its command line has it.
REASONING_TAGS = parse_reasoning_tags_config('[["<think>", "</think>"], ["<analysis>", "</analysis>"]]')

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
# Texts of whole tags and of their pieces.
PIECES = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<analysis>",
    "</ANALYSIS>",
    "<Think>",
    "</ans",
    "wer>",
    "<th",
]
TEXTS = st.lists(st.one_of(st.sampled_from([*PIECES, "B", " ", "\n", "so"]), st.text(max_size=3)), max_size=14).map(
    "".join
)


def budgets(opened: bool) -> Budgets:
    return Budgets(TOKENIZER, [opened], 0, max_thinking_tokens=99, max_answer_tokens=9)


def returned(case: Case) -> str:
    outcome = budgets(case.opened).outcome(0, case.text, 9)
    return joined(outcome.thinking, outcome.answer, return_thinking=True)


@cases
def test_the_splitter(case: Case) -> None:
    found = split(case.text, case.opened)
    assert (found.thinking, found.answer, found.tagged, found.cut) == (
        case.thinking,
        case.answer,
        case.tagged,
        case.cut,
    )


@cases
def test_the_model_class(case: Case) -> None:
    outcome = budgets(case.opened).outcome(0, case.text, 9)
    assert (outcome.thinking, outcome.answer) == (case.thinking, case.answer)
    assert (outcome.thinking_cut, outcome.answer_cut) == (case.cut, False)
    closed = budgets(case.opened)
    closed.thinking_tokens = [3]
    outcome = closed.outcome(0, case.text, 9)
    assert (outcome.thinking_cut, outcome.answer_cut) == (False, case.cut)
    assert strip_reasoning_tags(returned(case), REASONING_TAGS) == case.answer


@cases
def test_the_scorer(case: Case) -> None:
    """On the model's own text, and, where only the model class knows of the prompt, on what that returns."""
    text = returned(case) if case.opened else case.text
    figures = TASK.process_results({}, [text])
    assert figures["score"]["answer"] == case.answer
    assert figures["thinking_tokens"]["text"] == case.thinking
    # Without any text there is nothing by which to tell.
    assert bool(figures["cut"]["score"]) == (case.cut and bool(text))


@cases
def test_the_report(case: Case) -> None:
    """On stock samples, once as logged where nothing is stripped, once as lmms-eval strips them."""
    text = returned(case) if case.opened else case.text
    sample = {"doc_id": 0, "filtered_resps": [text]}
    assert (answer_of(sample), unfinished(sample)) == (case.answer, case.cut and bool(text))
    assert scored_with_tags(sample) == (case.tagged and not case.opened)
    sample = {"resps": [[returned(case)]], "filtered_resps": [strip_reasoning_tags(returned(case), REASONING_TAGS)]}
    assert answer_of(sample) == case.answer
    own = json.loads(json.dumps(TASK.process_results({}, [text])))
    assert (answer_of(own), unfinished(own)) == (case.answer, case.cut and bool(text))


def test_the_answer_after_an_empty_block_scores_everywhere() -> None:
    text = "<think>a</think><answer></answer><answer>B</answer>"
    assert parse_choice(split(text), {"A": "circle", "B": "square"}) == "B"
    assert answer_of({"filtered_resps": text}) == "B"
    assert returned(Case("", text, "", "")) == "<think>\na\n</think>\nB"


def test_the_table_of_the_docs_is_the_cases() -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert written(page) == page, "run python tests/answer_cases.py"
    assert len(CASES) >= 40
    assert len({(case.text, case.opened) for case in CASES}) == len(CASES)


@UNHURRIED
@given(TEXTS, st.booleans())
def test_any_text_is_split(text: str, opened: bool) -> None:
    found = split(text, opened)
    for part in (found.thinking, found.answer):
        assert part == untag(part)
        assert _in_order(part, text)
    assert len(found.thinking) + len(found.answer) <= len(text)
    assert found.answer or found.cut or not (opened or found.thinking)


@UNHURRIED
@given(TEXTS)
def test_without_pieces_of_tags_both_parts_are_substrings(text: str) -> None:
    text = re.sub(r"[<>]", "", text)
    for whole in (f"<think>{text}</think><answer>{text}</answer>", f"<think>{text}</think>{text}"):
        found = split(whole)
        assert found.thinking in untag(whole)
        assert found.answer in untag(whole)
        assert found.answer == found.thinking == text.strip()


@UNHURRIED
@given(TEXTS, st.booleans())
def test_what_returns_splits_into_the_same_parts_and_is_stripped_to_the_answer(text: str, opened: bool) -> None:
    found = split(text, opened)
    back = joined(found.thinking, found.answer, return_thinking=True)
    again = split(back)
    assert (again.thinking, again.answer) == (found.thinking, found.answer)
    assert strip_reasoning_tags(back, REASONING_TAGS) == found.answer
    assert joined(found.thinking, found.answer, return_thinking=False) == found.answer


def _in_order(part: str, text: str) -> bool:
    letters = iter(text)
    return all(letter.isspace() or letter in letters for letter in part)


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<THINK>", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("Reason between <think> and </think>.<|im_end|>\n<|im_start|>assistant\n", False),
        ("Start with <think><|im_end|>\n<|im_start|>assistant\n", False),
        ("", False),
    ],
)
def test_a_prompt_that_opens_the_thinking_is_known(prompt: str, opens: bool) -> None:
    assert opens_thinking(prompt) is opens


def test_without_budgets_a_completion_returns_as_it_is_unless_the_prompt_opened_its_thinking() -> None:
    text = " <think> way</think><answer> B</answer>\n"
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    plain = outcome_without_budgets(TOKENIZER, ids, text, opened=False, cut=True)
    assert plain == Outcome("", text, thinking_cut=False, answer_cut=True, thinking_tokens=0)


@pytest.mark.parametrize(
    ("text", "cut", "expected"),
    [
        (" way left</think> B", False, ("way left", "B", False, False, 3)),
        (" way left</think> B", True, ("way left", "B", False, True, 3)),
        (" way left", True, ("way left", "", True, False, 2)),
        (" way left", False, ("way left", "", True, False, 2)),
        (" way left</think>", True, ("way left", "", False, True, 3)),
    ],
)
def test_without_budgets_an_opened_thinking_gets_its_opener(text: str, cut: bool, expected: tuple) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    outcome = outcome_without_budgets(TOKENIZER, ids, text, opened=True, cut=cut)
    thinking, answer, *rest = expected
    assert (outcome.thinking, outcome.answer) == (thinking, answer)
    assert [outcome.thinking_cut, outcome.answer_cut, outcome.thinking_tokens] == rest
    back = joined(outcome.thinking, outcome.answer, return_thinking=True)
    assert back.startswith("<think>")
    assert strip_reasoning_tags(back, REASONING_TAGS) == answer


def test_until_cuts_the_answer_at_its_first_occurrence() -> None:
    assert cut_at("the B\n\nC\n\nD", ["\n\n", ""]) == "the B"
    assert cut_at("B\n\nC, D", [",", "\n\n"]) == "B"
    assert cut_at("B", ["\n\n"]) == "B"


def test_a_text_that_repeats_a_tag_is_split_in_no_time() -> None:
    for tag in ("<think>", "</think>", "<answer>", "</answer>", "<", "</answer"):
        split(tag * 20_000)
        split(tag * 20_000, opened=True)


def test_the_splitter_and_the_reports_scores_need_no_torch() -> None:
    names = ("prompts.split", "prompts.instruction", "report.scores")
    code = ", ".join(f"lmms_eval_vreason.{name}" for name in names)
    subprocess.run([sys.executable, "-c", f"import sys, {code}; assert 'torch' not in sys.modules"], check=True)
