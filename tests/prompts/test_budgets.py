"""The reasoning prompt, the split of a completion, and the budgets while a batch decodes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lmms_eval_vreason.prompts.protocol import (
    FORCED_CLOSE,
    REASONING_PROMPT,
    Budgets,
    add_reasoning_prompt,
    cut_at,
    joined,
    split_completion,
)

from lmms_eval_vreason.shapes.vocabulary import build_tokenizer


@pytest.mark.parametrize(
    ("completion", "thinking", "answer"),
    [
        ("<think>a red one</think><answer>B</answer>", "a red one", "B"),
        ("<think>\na red one\n</think>\n\n<answer>\nB\n</answer> and more", "a red one", "B"),
        ("<think>maybe <answer>A</answer></think><answer>B</answer>", "maybe <answer>A</answer>", "B"),
        ("<think>a red one</think>B", "a red one", "B"),
        ("a red one</think>\n<answer>B", "a red one", "B"),
        ("a red one <answer>B</answer>", "a red one", "B"),
        ("<think>a red one", "a red one", ""),
        ("<think></think><answer>B</answer><answer>C</answer>", "", "B"),
        ("B. circle", "", "B. circle"),
        ("", "", ""),
        ("<think>x</think>B</answer>", "x", "B"),
        ("<think>三个圆</think><answer>三</answer>", "三个圆", "三"),
    ],
)
def test_a_completion_is_split(completion, thinking, answer):
    assert split_completion(completion) == (thinking, answer)


@given(st.text(alphabet="ab<>/think answer\n", max_size=80))
def test_no_completion_breaks_the_split_and_scoring_sees_no_thinking(completion):
    thinking, answer = split_completion(completion)
    text = joined(thinking, answer, return_thinking=True)
    if thinking:
        assert text.count("<think>") >= 1
        assert text.split("</think>\n", 1)[1] == answer
    assert joined(thinking, answer, return_thinking=False) == answer


def test_a_task_that_asks_for_thinking_itself_is_left_alone():
    own = "What moves? Think in <think></think> and answer in <answer></answer>."
    assert add_reasoning_prompt(own) == own
    assert add_reasoning_prompt("What moves?\n") == f"What moves?\n{REASONING_PROMPT}"
    assert add_reasoning_prompt("What moves?", "Reason.") == "What moves?\nReason."


def test_until_cuts_the_answer_at_its_first_occurrence():
    assert cut_at("B\n\nC", ["\n\n", ""]) == "B"
    assert cut_at("B", ["\n\n"]) == "B"


class Script:
    """Drives budgets with scripted tokens, as a decoding loop would."""

    def __init__(self, texts, *, thinking, answer):
        self.tokenizer = build_tokenizer()
        self.plans = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        self.prompt = torch.full((len(texts), 3), self.tokenizer.encode("<think>", add_special_tokens=False)[0])
        self.budgets = Budgets(self.tokenizer, len(texts), 3, max_thinking_tokens=thinking, max_answer_tokens=answer)

    def run(self):
        ids, stopped, lengths = self.prompt, torch.zeros(len(self.plans), dtype=torch.bool), [0] * len(self.plans)
        for step in range(self.budgets.max_new_tokens):
            scores = torch.zeros(len(self.plans), len(self.tokenizer))
            for row, plan in enumerate(self.plans):
                scores[row, plan[min(step, len(plan) - 1)]] = 1.0
            chosen = self.budgets.processor(ids, scores).argmax(-1)
            ids = torch.cat([ids, chosen[:, None]], dim=1)
            lengths = [n + (not s) for n, s in zip(lengths, stopped.tolist(), strict=True)]
            stopped = stopped | self.budgets.criteria(ids, None)
            if stopped.all():
                break
        return [self.tokenizer.decode(ids[row, 3 : 3 + n]) for row, n in enumerate(lengths)]


def test_a_thinking_that_runs_out_is_closed_and_the_answer_asked_for():
    script = Script(["<think> way way way way way way way way way way way way"], thinking=5, answer=4)
    text = script.run()[0]
    assert FORCED_CLOSE in text
    before, after = text.split(FORCED_CLOSE)
    assert len(script.tokenizer.encode(before, add_special_tokens=False)) == 5
    assert len(script.tokenizer.encode(after, add_special_tokens=False)) == 4
    assert script.budgets.thinking_cut == [True]
    assert script.budgets.answer_cut == [True]


def test_each_sample_of_a_batch_has_its_own_budgets():
    short = "<think> way</think><answer> B</answer> way way way way way way way"
    script = Script([short, "<think> way way way way way way way way way way way way"], thinking=6, answer=5)
    first, second = script.run()
    assert first == "<think> way</think><answer> B</answer>"
    assert FORCED_CLOSE in second
    assert script.budgets.thinking_cut == [False, True]
    assert script.budgets.answer_cut == [False, True]
    assert script.budgets.thinking_tokens[0] == 3


def test_a_closed_thinking_without_an_answer_stops_at_the_answers_budget():
    script = Script(["<think> way</think> way way way way way way way way way way"], thinking=9, answer=2)
    assert script.run() == ["<think> way</think> way way"]
    assert script.budgets.answer_cut == [True]
