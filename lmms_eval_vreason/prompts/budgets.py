"""The budgets that bound a batch's thinking and answering while it decodes, and what each sample made of them."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from lmms_eval_vreason.prompts.split import REASONING_TAG, closes_thinking, holds_answer, split

# Forced upon a sample whose thinking budget has run out, so that it still gives an answer.
FORCED_CLOSE = "\n</think>\n<answer>"

# A tag can be cut into this many tokens at most (a byte each), with a few to spare for what surrounds it.
_TAG_TOKENS = 16


@dataclass(frozen=True)
class Outcome:
    """One sample's completion, split.

    Attributes:
        thinking_cut: Whether the thinking's budget ran out, or the text ended inside it.
        answer_cut: Whether the answer's budget ran out, or the text ended in an open ``<answer>`` or before an answer.
        thinking_tokens: Generated tokens up to the end of the thinking, its closing tag included.
    """

    thinking: str
    answer: str
    thinking_cut: bool
    answer_cut: bool
    thinking_tokens: int


class Budgets(LogitsProcessor):
    """Keeps a batch within its budgets while it decodes.

    A sample thinks until ``</think>``. As long as nothing has opened ``<think>``, an ``<answer>`` ends its thinking
    too; inside an open ``<think>`` it is a quotation. If ``max_thinking_tokens`` run out first, a closing tag and the
    opening of an answer are forced upon it, token by token. From there on it has ``max_answer_tokens``, and it stops
    at the ``</answer>`` of an answer that isn't empty. For ``generate`` it is the last logits processor itself, and
    ``advance`` is its stopping criterion.

    Args:
        opened: For each sample, whether its prompt ends inside an open ``<think>``.
        prompt_length: Tokens before the first generated one, padding included.

    Attributes:
        thinking_tokens: A sample's generated tokens up to the end of its thinking; None while it thinks.
        thinking_cut, answer_cut: Whether a sample's budget ran out.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        opened: Sequence[bool],
        prompt_length: int,
        *,
        max_thinking_tokens: int,
        max_answer_tokens: int,
    ) -> None:
        self.tokenizer, self.opened, self.prompt_length = tokenizer, list(opened), prompt_length
        self.max_thinking_tokens, self.max_answer_tokens = max_thinking_tokens, max_answer_tokens
        self.forced: list[int] = tokenizer.encode(FORCED_CLOSE, add_special_tokens=False)
        self.thinking_tokens: list[int | None] = [None for _ in opened]
        self.thinking_cut = [False for _ in opened]
        self.answer_cut = [False for _ in opened]
        self._open = list(opened)
        self._forcing: list[int | None] = [None for _ in opened]
        self._done = [False for _ in opened]

    @property
    def max_new_tokens(self) -> int:
        """The most tokens a sample can take: both budgets and what is forced between them."""
        return self.max_thinking_tokens + len(self.forced) + self.max_answer_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(batch, vocabulary) scores, in which a sample that is being closed has one token, with log-probability 0."""
        for row in range(len(scores)):
            token = self.forced_token(row)
            if token is not None:
                scores[row] = -torch.inf
                scores[row, token] = 0.0
        return scores

    def advance(self, input_ids: Tensor, scores: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Takes note of the newest token of each sample; (batch,) bool, which samples have to stop."""
        length = input_ids.shape[1]
        for row, recent in enumerate(input_ids[:, max(self.prompt_length, length - self.looks_back) :].tolist()):
            self.note(row, recent, length - self.prompt_length)
        return input_ids.new_tensor(self._done, dtype=torch.bool)

    @property
    def looks_back(self) -> int:
        """How many of the newest tokens :meth:`note` needs."""
        return _TAG_TOKENS + self.max_answer_tokens

    def note(self, row: int, recent: list[int], generated: int) -> bool:
        """Takes note of a sample's newest token. Whether it has to stop.

        Args:
            recent: The newest of its generated tokens, as many as :attr:`looks_back` or all.
            generated: How many it has generated.
        """
        if not self._done[row]:
            self._advance(row, recent, generated)
        return self._done[row]

    def forced_token(self, row: int) -> int | None:
        """The token that is forced upon a sample now; None where it chooses."""
        position = self._forcing[row]
        return None if position is None else self.forced[position]

    def outcome(self, row: int, text: str, tokens: int) -> Outcome:
        """What became of a sample that generated ``text``, in so many tokens; its padding in a batch doesn't count."""
        parts, thought = split(text, self.opened[row]), self.thinking_tokens[row]
        thought = None if thought is None or thought > tokens else thought
        # The closing tag is forced behind the budget: a sample without it has ended by itself.
        thinking_cut = self.thinking_cut[row] and tokens > self.max_thinking_tokens
        thinking_cut |= parts.cut and thought is None
        answer_cut = self.answer_cut[row] and thought is not None and tokens >= thought + self.max_answer_tokens
        answer_cut |= parts.cut and not thinking_cut
        if thought is None:
            thought = tokens if parts.thinking else 0
        return Outcome(parts.thinking, parts.answer, thinking_cut, answer_cut, thought)

    def _advance(self, row: int, recent: list[int], generated: int) -> None:
        thought, position = self.thinking_tokens[row], self._forcing[row]
        if position is not None:
            if position + 1 < len(self.forced):
                self._forcing[row] = position + 1
            else:
                self._forcing[row], self.thinking_tokens[row] = None, generated
        elif thought is None:
            if self._ends_thinking(row, str(self.tokenizer.decode(recent[-_TAG_TOKENS:]))):
                self.thinking_tokens[row] = generated
            elif generated >= self.max_thinking_tokens:
                self._forcing[row], self.thinking_cut[row] = 0, True
        else:
            # With the end of the thinking: one token may hold its last letters and the answer's first.
            if holds_answer(str(self.tokenizer.decode(recent))):
                self._done[row] = True
            elif generated - thought >= self.max_answer_tokens:
                self._done[row] = self.answer_cut[row] = True

    def _ends_thinking(self, row: int, tail: str) -> bool:
        was_open, first = self._open[row], REASONING_TAG.search(tail)
        self._open[row] = was_open or first is not None
        before = tail[: first.start()] if first else tail
        return closes_thinking(tail) or (not was_open and "<answer>" in before.lower())


def outcome_without_budgets(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str, *, opened: bool, cut: bool
) -> Outcome:
    """What became of a sample that decoded freely: the text as it is, unless its prompt opened the thinking.

    In that case lmms-eval could not strip the thinking, whose opening tag stands in the prompt.

    Args:
        ids: The generated tokens, of which ``text`` is what is shown.
        cut: Whether the tokens ran out.
    """
    if not opened:
        return Outcome("", text, False, cut, 0)
    parts, closed = split(text, opened=True), closes_thinking(text)
    tokens = bisect_left(range(len(ids)), True, key=lambda n: closes_thinking(str(tokenizer.decode(list(ids[:n])))))
    thinking_cut = parts.cut and not closed
    return Outcome(parts.thinking, parts.answer, thinking_cut, cut and not thinking_cut, tokens)
