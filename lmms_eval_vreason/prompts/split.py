"""A completion split into thinking and answer: one rule for the adapter, the scorers and the reports.

``docs/answers.md`` states the rule and lists the cases.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# lmms-eval strips <analysis> as it strips <think>. The group is "/" for a closing tag.
REASONING_TAG = re.compile(r"<(/?)(?:think|analysis)>", re.IGNORECASE)
TAG = re.compile(r"</?(?:think|analysis|answer)>", re.IGNORECASE)

# No tag of an answer inside: a repeated opener starts the block again, and the search stays linear.
_INSIDE = r"<answer>((?:[^<]|<(?!/?answer>))*)"
_BLOCK = re.compile(_INSIDE + "</answer>", re.IGNORECASE)
_OPEN_BLOCK = re.compile(_INSIDE + r"\Z", re.IGNORECASE)
_EMPTY_BLOCK = re.compile(r"<answer>\s*</answer>", re.IGNORECASE)
_ENDS_OPEN = re.compile(r"<(?:think|analysis)>\s*\Z", re.IGNORECASE)
# A quoted <answer> may stand before the closing tag, so that is looked for first.
_THINKING = re.compile(r".*?</(?:think|analysis)>|.*?(?=<answer>)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Split:
    """A completion, split; no tag is left in either part.

    Attributes:
        thinking: everything before the answer.
        answer: the text that may hold the answer; empty where there is none.
        tagged: whether ``<answer>`` marks that text.
        cut: whether the text ends before its answer does: inside its thinking, right after it, or in an open
            ``<answer>``.
    """

    thinking: str
    answer: str
    tagged: bool
    cut: bool


def split(text: str, opened: bool = False) -> Split:
    """Splits a completion; it may hold any tags, closed or not, in upper or lower case.

    Args:
        opened: Whether the prompt itself opens the thinking, so that the text begins inside it
            (:func:`opens_thinking`).
    """
    stretches = _stretches(text, opened)
    outside = ""  # The text with its thinking blanked.
    for thinks, start, end in stretches:
        outside = outside.ljust(start) + ("" if thinks else text[start:end])
    for block in _BLOCK.finditer(outside):
        if answer := untag(block[1]):
            return Split(untag(text[: block.start()]), answer, tagged=True, cut=False)
    if unclosed := _OPEN_BLOCK.search(outside):
        return Split(untag(text[: unclosed.start()]), untag(unclosed[1]), tagged=True, cut=True)
    if stretches[-1][0]:
        return _split_unclosed(text)
    for thinks, start, end in reversed(stretches):
        if not thinks and (answer := untag(text[start:end])):
            return Split(untag(text[:start]), answer, tagged=False, cut=False)
    return Split(untag(text), "", tagged=False, cut=len(stretches) > 1)


def untag(text: str) -> str:
    """The text without its tags; also without those that only appear once others are gone, as in ``<th<think>ink>``."""
    while (without := TAG.sub("", text)) != text:
        text = without
    return text.strip()


def opens_thinking(prompt: str) -> bool:
    """Whether a rendered prompt ends with an open ``<think>``, as the chat templates of thinking checkpoints do."""
    return _ENDS_OPEN.search(prompt) is not None


def closes_thinking(text: str) -> bool:
    """Whether it holds a ``</think>``."""
    return "/" in REASONING_TAG.findall(text)


def holds_answer(text: str) -> bool:
    """Whether the answer is finished, if the thinking is: by a ``</answer>`` that doesn't close an empty block."""
    thinking = _THINKING.match(text)
    answer = text[thinking.end() :] if thinking else text
    return any("</answer>" in part.lower() for part in _EMPTY_BLOCK.split(answer))


def joined(thinking: str, answer: str, return_thinking: bool) -> str:
    """What returns to lmms-eval: ``<think>…</think>`` and the bare answer, or the bare answer alone.

    lmms-eval strips the thinking before it scores; a tag within the thinking would confuse that.
    """
    thinking = untag(thinking)
    if not return_thinking or not thinking:
        return answer
    return f"<think>\n{thinking}\n</think>\n{answer}"


def cut_at(text: str, until: Sequence[str]) -> str:
    """``text`` up to the first of the ``until`` strings."""
    for stop in filter(None, until):
        text = text.partition(stop)[0]
    return text


def _stretches(text: str, opened: bool) -> list[tuple[bool, int, int]]:
    """(whether it is thinking, start, end) of each stretch between reasoning tags.

    Thinking starts with the text if the prompt opened it, or if the first reasoning tag closes it.
    """
    first = REASONING_TAG.search(text)
    thinks, position = opened or (first is not None and first[1] == "/"), 0
    stretches = []
    for tag in REASONING_TAG.finditer(text):
        stretches.append((thinks, position, tag.start()))
        thinks, position = tag[1] != "/", tag.end()
    return [*stretches, (thinks, position, len(text))]


def _split_unclosed(text: str) -> Split:
    """A text that ends inside its thinking: only a block at its very end is the answer."""
    blocks = list(_BLOCK.finditer(text))
    if blocks and not text[blocks[-1].end() :].strip() and (answer := untag(blocks[-1][1])):
        return Split(untag(text[: blocks[-1].start()]), answer, tagged=True, cut=False)
    return Split(untag(text), "", tagged=False, cut=True)
