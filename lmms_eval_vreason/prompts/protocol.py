"""Thinking and answering: the reasoning prompt, the two budgets, and a completion split into thinking and answer."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

REASONING_PROMPT = (
    "Think about the question step by step, using what the video shows, and write your reasoning between <think> and "
    "</think>. Then write only the final answer, in exactly the form that the question asks for, between <answer> and "
    "</answer>."
)

# What closes a thinking that has used up its budget, so that the answer is still asked for.
FORCED_CLOSE = f"\n{THINK_CLOSE}\n{ANSWER_OPEN}"

# A tag can be cut into this many tokens at most (a byte each), with a few to spare for what surrounds it.
_TAIL_TOKENS = 16


def asks_for_thinking(text: str) -> bool:
    """Whether a prompt already asks for thinking and answer in tags of their own."""
    return THINK_OPEN in text and ANSWER_OPEN in text


def add_reasoning_prompt(text: str, reasoning_prompt: str | None = None) -> str:
    """The prompt with the reasoning instruction after it, unless it already asks for thinking."""
    if asks_for_thinking(text):
        return text
    return f"{text.rstrip()}\n{REASONING_PROMPT if reasoning_prompt is None else reasoning_prompt}"


def split_completion(completion: str) -> tuple[str, str]:
    """(thinking, bare answer) of a completion.

    The thinking ends at the first ``</think>``; without one, everything before the first ``<answer>`` is thinking, and
    an unclosed ``<think>`` without an answer is all thinking. The answer is the first ``<answer>`` block after the
    thinking (an unclosed one goes to the end); without one it is all the text after the thinking.
    """
    before, closed, after = completion.partition(THINK_CLOSE)
    if not closed:
        before, opened, after = completion.partition(ANSWER_OPEN)
        if opened:
            after = opened + after
        elif THINK_OPEN not in completion:
            return "", completion.strip()
    thinking = before.strip().removeprefix(THINK_OPEN).strip()
    _, opened, inside = after.partition(ANSWER_OPEN)
    answer = inside.partition(ANSWER_CLOSE)[0] if opened else after.replace(ANSWER_CLOSE, "")
    return thinking, answer.strip()


def cut_at(text: str, until: Sequence[str]) -> str:
    """``text`` up to the first of the ``until`` strings."""
    for stop in until:
        if stop:
            text = text.split(stop, 1)[0]
    return text


def joined(thinking: str, answer: str, return_thinking: bool) -> str:
    """What returns to lmms-eval: ``<think>…</think>`` and the bare answer, or the bare answer alone.

    lmms-eval takes the thinking out before it scores; a closing tag inside the thinking would end that early.
    """
    if not return_thinking or not thinking:
        return answer
    thinking = thinking.replace(THINK_OPEN, "").replace(THINK_CLOSE, "")
    return f"{THINK_OPEN}\n{thinking}\n{THINK_CLOSE}\n{answer}"


class Budgets:
    """Keeps a batch within its budgets while it decodes.

    A sample thinks until ``</think>`` or ``<answer>`` appears. If ``max_thinking_tokens`` run out first, a closing tag
    and the opening of an answer are forced upon it, token by token. From there on it has ``max_answer_tokens``, and it
    stops at ``</answer>``. ``processor`` and ``criteria`` go to ``generate``, the first as the last logits processor.

    Attributes:
        thinking_tokens: A sample's generated tokens up to the end of its thinking; None while it thinks.
        thinking_cut, answer_cut: Whether a sample's budget ran out.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        batch: int,
        prompt_length: int,
        *,
        max_thinking_tokens: int,
        max_answer_tokens: int,
    ) -> None:
        self.tokenizer, self.prompt_length = tokenizer, prompt_length
        self.max_thinking_tokens, self.max_answer_tokens = max_thinking_tokens, max_answer_tokens
        self.forced: list[int] = tokenizer.encode(FORCED_CLOSE, add_special_tokens=False)
        self.thinking_tokens: list[int | None] = [None] * batch
        self.thinking_cut = [False] * batch
        self.answer_cut = [False] * batch
        self._forcing: list[int | None] = [None] * batch
        self._done = [False] * batch
        self.processor, self.criteria = _Forcing(self), _Stopping(self)

    @property
    def max_new_tokens(self) -> int:
        """The most tokens a sample can take: both budgets and what is forced between them."""
        return self.max_thinking_tokens + len(self.forced) + self.max_answer_tokens

    def force(self, scores: Tensor) -> Tensor:
        """(batch, vocabulary) scores, in which a sample that is being closed has one possible token."""
        for row, position in enumerate(self._forcing):
            if position is not None:
                scores[row] = -torch.inf
                scores[row, self.forced[position]] = 0.0
        return scores

    def advance(self, input_ids: Tensor) -> Tensor:
        """Takes note of the newest token of each sample; (batch,) bool, which samples have to stop."""
        generated = input_ids.shape[1] - self.prompt_length
        tails = input_ids[:, max(self.prompt_length, input_ids.shape[1] - _TAIL_TOKENS) :].tolist()
        for row, tail in enumerate(tails):
            if not self._done[row]:
                self._advance(row, tail, generated)
        return torch.tensor(self._done, device=input_ids.device)

    def _advance(self, row: int, tail: list[int], generated: int) -> None:
        thought, position = self.thinking_tokens[row], self._forcing[row]
        if position is not None:
            finished = position + 1 == len(self.forced)
            self._forcing[row] = None if finished else position + 1
            self.thinking_tokens[row] = generated if finished else None
        elif thought is None:
            text = self.tokenizer.decode(tail)
            if THINK_CLOSE in text or ANSWER_OPEN in text:
                self.thinking_tokens[row] = generated
            elif generated >= self.max_thinking_tokens:
                self._forcing[row], self.thinking_cut[row] = 0, True
        elif ANSWER_CLOSE in self.tokenizer.decode(tail[-(generated - thought) :]):
            self._done[row] = True
        elif generated - thought >= self.max_answer_tokens:
            self._done[row] = self.answer_cut[row] = True


class _Forcing(LogitsProcessor):
    def __init__(self, budgets: Budgets) -> None:
        self.budgets = budgets

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.budgets.force(scores)


class _Stopping(StoppingCriteria):
    def __init__(self, budgets: Budgets) -> None:
        self.budgets = budgets

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:
        return self.budgets.advance(input_ids)
