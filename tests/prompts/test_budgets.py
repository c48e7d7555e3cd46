"""The budgets while a batch decodes, by scripted tokens and through the model class."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import instances
from offline import scripted_checkpoint, write_video
from transformers import PreTrainedTokenizerBase

from lmms_eval_vreason.adapter.model import Qwen2_5_VL_VReason
from lmms_eval_vreason.journal.files import read_records
from lmms_eval_vreason.prompts.budgets import FORCED_CLOSE, Budgets, Outcome
from lmms_eval_vreason.prompts.split import holds_answer
from lmms_eval_vreason.shapes.vocabulary import build_tokenizer

UNHURRIED = settings(deadline=None)  # a busy machine may stop in the middle of an example


class Pieces:
    """A tokenizer whose tokens are the given texts, however they cut a tag; the forced tag is one of them."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = [*pieces, FORCED_CLOSE]

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [0] * add_special_tokens + [self.pieces.index(text)]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[token] for token in ids)


class Script:
    """Drives budgets with scripted tokens, as a decoding loop would; the last token is repeated."""

    def __init__(
        self,
        texts: list[str],
        *,
        thinking: int,
        answer: int,
        opened: bool = False,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.tokenizer = tokenizer or build_tokenizer()
        self.plans = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        self.prompt = torch.full((len(texts), 3), self.tokenizer.encode("<think>", add_special_tokens=False)[0])
        self._budget(thinking, answer, opened)

    def _budget(self, thinking: int, answer: int, opened: bool) -> None:
        rows = [opened] * len(self.plans)
        self.budgets = Budgets(self.tokenizer, rows, 3, max_thinking_tokens=thinking, max_answer_tokens=answer)

    def run(self) -> list[str]:
        ids, stopped, lengths = self.prompt, torch.zeros(len(self.plans), dtype=torch.bool), [0] * len(self.plans)
        for step in range(self.budgets.max_new_tokens):
            scores = torch.zeros(len(self.plans), len(self.tokenizer))
            for row, plan in enumerate(self.plans):
                scores[row, plan[min(step, len(plan) - 1)]] = 1.0
            chosen = self.budgets(ids, scores).argmax(-1)
            for row, position in enumerate(self.budgets._forcing):
                if position is not None:  # All probability is on one token.
                    assert scores[row].exp().tolist() == [float(n == chosen[row]) for n in range(scores.shape[1])]
            ids = torch.cat([ids, chosen[:, None]], dim=1)
            lengths = [n + (not s) for n, s in zip(lengths, stopped.tolist(), strict=True)]
            stops = self.budgets.advance(ids, None)
            assert stops.dtype == torch.bool
            stopped = stopped | stops
            if stopped.all():
                break
        return [self.tokenizer.decode(ids[row, 3 : 3 + n].tolist()) for row, n in enumerate(lengths)]


class InPieces(Script):
    """One sample in tokens that cut its text anywhere."""

    def __init__(self, pieces: list[str], *, opened: bool) -> None:
        self.tokenizer = Pieces([*pieces, "."])
        self.plans = [list(range(len(pieces) + 1))]
        self.prompt = torch.zeros(1, 3, dtype=torch.long)
        self._budget(200, 100, opened)


def test_a_thinking_that_runs_out_is_closed_and_the_answer_asked_for() -> None:
    script = Script(["<think> way way way way way way way way way way way way"], thinking=5, answer=4)
    text = script.run()[0]
    assert FORCED_CLOSE in text
    before, after = text.split(FORCED_CLOSE)
    assert len(script.tokenizer.encode(before, add_special_tokens=False)) == 5
    assert len(script.tokenizer.encode(after, add_special_tokens=False)) == 4
    assert script.budgets.thinking_cut == [True]
    assert script.budgets.answer_cut == [True]


def test_each_sample_of_a_batch_has_its_own_budgets() -> None:
    short = "<think> way</think><answer> B</answer> way way way way way way way"
    script = Script([short, "<think> way way way way way way way way way way way way"], thinking=6, answer=5)
    first, second = script.run()
    assert first == "<think> way</think><answer> B</answer>"
    assert FORCED_CLOSE in second
    assert script.budgets.thinking_cut == [False, True]
    assert script.budgets.answer_cut == [False, True]
    assert script.budgets.thinking_tokens[0] == 3


def test_a_closed_thinking_without_an_answer_stops_at_the_answers_budget() -> None:
    script = Script(["<think> way</think> way way way way way way way way way way"], thinking=9, answer=2)
    (text,) = script.run()
    assert text == "<think> way</think> way way"
    assert script.budgets.answer_cut == [True]
    assert script.budgets.outcome(0, text, 5) == Outcome("way", "way way", False, True, 3)


def test_one_token_may_hold_two_tags() -> None:
    script = InPieces(["<think><answer>", "A</answer>", "</think><answer>", "B</answer>"], opened=False)
    (text,) = script.run()
    assert text == "<think><answer>A</answer></think><answer>B</answer>"
    assert script.budgets.thinking_tokens == [3]


QUOTE = " way<answer> and</answer>"


@pytest.mark.parametrize(
    ("text", "opened", "thinking_tokens"),
    [
        (f"<think>{QUOTE} so</think><answer> B</answer>", False, 7),
        (f"{QUOTE} so</think><answer> B</answer>", True, 6),
        (f"<think>{QUOTE} so</think> B</answer>", True, 7),
        (" way<answer> B</answer>", False, 2),
        (" way</think><answer> B</answer>", False, 2),
        ("<think> way</think><answer></answer><answer> B</answer>", False, 3),
        ("<think> way</think><think> way</think> B</answer>", False, 3),
    ],
)
def test_only_a_closing_tag_ends_a_thinking_that_is_open(text: str, opened: bool, thinking_tokens: int) -> None:
    script = Script([f"{text} way left right"], thinking=20, answer=12, opened=opened)
    assert script.run() == [text]
    assert script.budgets.thinking_tokens == [thinking_tokens]
    assert (script.budgets.thinking_cut, script.budgets.answer_cut) == ([False], [False])


@pytest.mark.parametrize("opened", [False, True])
def test_a_quoted_instruction_does_not_spare_the_budget(opened: bool) -> None:
    script = Script([f"{'' if opened else '<think>'}{QUOTE} way way way way way"], thinking=7, answer=3, opened=opened)
    (text,) = script.run()
    assert text.count("</answer>") == 1
    assert FORCED_CLOSE in text
    assert script.budgets.thinking_cut == [True]


def test_what_the_padding_of_an_ended_sample_runs_out_of_is_not_its_own() -> None:
    script = Script(["<think> way"], thinking=6, answer=4)
    script.run()
    assert (script.budgets.thinking_cut, script.budgets.answer_cut) == ([True], [True])
    outcome = script.budgets.outcome(0, "<think> way</think> B", 4)
    assert (outcome.thinking, outcome.answer) == ("way", "B")
    assert (outcome.thinking_cut, outcome.answer_cut, outcome.thinking_tokens) == (False, False, 4)
    # Without thinking, or right after it: with the last token of the budget, and before anything is forced.
    assert script.budgets.outcome(0, "B", 6) == Outcome("", "B", False, False, 0)
    closed = Script(["<think> way</think> B way"], thinking=6, answer=4)
    closed.run()
    assert closed.budgets.answer_cut == [True]
    outcome = closed.budgets.outcome(0, "<think> way</think> B", 4)
    assert (outcome.thinking_cut, outcome.answer_cut, outcome.thinking_tokens) == (False, False, 3)
    assert closed.budgets.outcome(0, "<think> way</think>", 3) == Outcome("way", "", False, True, 3)


TAGS = ["<think>", "</think>", "<answer>", "</answer>", "<analysis>", "</analysis>", "<Think>", "</THINK>", "<Answer>"]
OTHERS = ["B", "so", "é", "</", "<", " ", "\n"]
TEXTS = st.lists(st.sampled_from(TAGS + OTHERS), min_size=1, max_size=12).map("".join)


def thinking_is_over(text: str, opened: bool) -> bool:
    """By letters, one tag after the other."""
    for tag in re.findall(r"</?\w+>", text.lower()):
        if tag in ("</think>", "</analysis>") or (tag == "<answer>" and not opened):
            return True
        opened = opened or tag in ("<think>", "<analysis>")
    return False


def answer_is_over(text: str) -> bool:
    """Whether a ``</answer>`` closes more than blanks; ``text`` is what comes after the thinking."""
    kept = text.lower()
    while "</answer>" in kept:
        before, _, kept = kept.partition("</answer>")
        if not re.search(r"<answer>\s*\Z", before):
            return True
    return False


@UNHURRIED
@given(TEXTS)
def test_an_answer_is_over_once_a_tag_closes_more_than_blanks(text: str) -> None:
    thinking = re.search("</(?:think|analysis)>", text, re.IGNORECASE)
    opener = re.search("<answer>", text, re.IGNORECASE)
    start = thinking.end() if thinking else opener.start() if opener else 0
    assert holds_answer(text) == answer_is_over(text[start:])


@UNHURRIED
@given(TEXTS, st.booleans(), st.data())
def test_tags_are_found_however_the_tokens_cut_them(text: str, opened: bool, data: st.DataObject) -> None:
    pieces, rest = [], text
    while rest:
        size = data.draw(st.integers(1, min(len(rest), 8)))  # No token holds two whole tags.
        pieces, rest = [*pieces, rest[:size]], rest[size:]
    script = InPieces(pieces, opened=opened)
    (generated,) = script.run()
    prefixes = ["".join(pieces[: n + 1]) for n in range(len(pieces))]
    ended = next((n for n, prefix in enumerate(prefixes) if thinking_is_over(prefix, opened)), None)
    if ended is None:
        assert script.budgets.thinking_cut == [True]
        return
    assert script.budgets.thinking_tokens == [ended + 1]
    # The end of the thinking by letters: the shortest start of the text that holds it.
    letters = next(n for n in range(len(text) + 1) if thinking_is_over(text[:n], opened))
    start = letters - len("<answer>") if text[:letters].lower().endswith("<answer>") else letters
    stops = next((n for n in range(ended + 1, len(pieces)) if answer_is_over(prefixes[n][start:])), None)
    if stops is None:
        assert script.budgets.answer_cut == [True]
    else:
        assert generated == prefixes[stops]


@pytest.fixture(scope="module")
def opening_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its chat template opens the thinking; it quotes an answer there, closes it and answers B."""
    folder = scripted_checkpoint(tmp_path_factory.mktemp("opening"), "way<answer> left</answer> so</think>B")
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8")
    changed = re.sub(r"(assistant(?:\\n|\n))(?!.*assistant)", r"\1<think>\\n", text, flags=re.DOTALL)
    assert changed != text
    template.write_text(changed, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_video(tmp_path_factory.mktemp("video") / "a.mp4", seed=0, frames=8))


@pytest.fixture
def ask(opening_checkpoint: Path, video: str, tmp_path: Path) -> Callable[..., tuple[str, dict]]:
    """The returned text and the journal's record of one question."""

    def asked(settings: dict, **arguments: object) -> tuple[str, dict]:
        journal = tmp_path / "journal"
        model = Qwen2_5_VL_VReason(
            pretrained=str(opening_checkpoint),
            device="cpu",
            journal=str(journal),
            min_pixels=784,
            max_pixels=56 * 56,
            max_num_frames=4,
            **arguments,
        )
        (result,) = model.generate_until(instances(model, [{"video": video, "text": "what?"}], settings))
        (record,) = [line for line in read_records(journal, traces=True) if line["kind"] == "sample"]
        assert result.token_counts.reasoning_tokens == record["tokens"]["thinking"]
        return result.text, record

    return asked


@pytest.mark.parametrize("thinking", ["on", "off"])
def test_a_template_that_opens_the_thinking(ask: Callable[..., tuple[str, dict]], thinking: str) -> None:
    text, record = ask({"max_new_tokens": 30, "until": [" left", "\n\n"]}, thinking=thinking)
    assert record["trace"]["tokens"] == ["way", "<answer>", " left", "</answer>", " so", "</think>", "B", "<|im_end|>"]
    assert text == "<think>\nway left so\n</think>\nB"
    assert (record["thinking_cut"], record["answer_cut"]) == (False, False)
    assert record["tokens"]["thinking"] == 6


def test_a_template_that_opens_the_thinking_and_a_task_that_cuts_it(ask: Callable[..., tuple[str, dict]]) -> None:
    text, record = ask({"max_new_tokens": 5}, thinking="off")
    assert text == "<think>\nway left so\n</think>\n"
    assert (record["thinking_cut"], record["answer_cut"]) == (True, False)
    assert json.dumps(record["trace"]["tokens"]).count("think") == 0


def test_a_template_that_opens_the_thinking_keeps_to_its_budget(ask: Callable[..., tuple[str, dict]]) -> None:
    text, record = ask({}, thinking="on", max_thinking_tokens=4, max_answer_tokens=3)
    assert record["thinking"] == "way left"
    assert record["thinking_cut"] is True
    assert text.startswith("<think>\nway left\n</think>")
