"""Replay: ``generate`` under a setting, but with the tokens of an answer that is given.

A steered text soon differs from the base model's, and then their entropies are those of different texts. In a replay
all settings have the same context at every token, so what differs is the setting's own doing. Ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from lmms_eval_vreason.engines.hf.generation import generate
from lmms_eval_vreason.engines.hf.prefix import Prefix, continued, prefill
from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.trace import Trace

_ALONG_TOKENS = ("input_ids", "attention_mask", "mm_token_type_ids")


@dataclass(frozen=True)
class Prompts:
    """Prompts that are prefilled once for all runs: their caches but for the last token, and that token."""

    prefixes: list[Prefix]
    suffixes: list[Tensor]

    @classmethod
    def of(cls, model: PreTrainedModel, inputs: Sequence[Mapping[str, Tensor]], positions: str = "trained") -> Self:
        """Args: ``inputs``, the processor's outputs for one unpadded prompt each; ``positions``, as of ``generate``."""
        cut = [{name: x[:, :-1] if name in _ALONG_TOKENS else x for name, x in one.items()} for one in inputs]
        return cls([prefill(model, one, positions) for one in cut], [one["input_ids"][0, -1:] for one in inputs])

    def arguments(self, model: PreTrainedModel) -> dict[str, Any]:
        """The batch's keyword arguments of ``generate``, with a cache of its own."""
        return continued(model, self.prefixes, self.suffixes)


@dataclass
class Teacher(LogitsProcessor):
    """Makes ``generate`` choose given tokens, and compares the distributions that it is shown with the base model's.

    It has to be the last logits processor. Temperature, top-k and the like come after it and have no say.

    Attributes:
        tokens: (batch, tokens), padded in any way.
        base: The base model's log probabilities of each token, (batch, vocabulary). Where the list ends, what is shown
            is taken as the base model's and added.
        entropy, kl, changed: (batch,) a token: entropy of the distribution that the token is chosen from, nats;
            KL(base ‖ shown), nats; whether the likeliest token is another than the base model's.
    """

    tokens: Tensor
    base: list[Tensor]
    entropy: list[Tensor] = field(default_factory=list)
    kl: list[Tensor] = field(default_factory=list)
    changed: list[Tensor] = field(default_factory=list)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        at, log_p = len(self.entropy), scores.log_softmax(dim=-1)
        if at == len(self.base):
            self.base.append(log_p)
        base, p = self.base[at], log_p.exp()
        self.entropy.append(torch.special.entr(p).sum(dim=-1))
        # A token that a processor has ruled out has -inf on both sides and takes no part.
        self.kl.append(torch.where(base > -torch.inf, base.exp() * (base - log_p), 0.0).sum(dim=-1))
        self.changed.append(base.argmax(dim=-1) != log_p.argmax(dim=-1))
        return torch.full_like(scores, -torch.inf).scatter_(1, self.tokens[:, at, None], 0.0)


@dataclass(frozen=True)
class Replayed:
    """One list a sample, of one number a token, as in :class:`Teacher`; and the samples' traces."""

    entropy: list[list[float]]
    kl: list[list[float]]
    changed: list[list[bool]]
    traces: list[Trace]


def replay(
    model: PreTrainedModel,
    method: VReason,
    inputs: Mapping[str, Any],
    answers: Sequence[list[int]],
    base: list[Tensor],
    **settings: Any,
) -> Replayed:
    """``answers`` once more under ``method``.

    Args:
        inputs: Keyword arguments of ``generate`` for the prompts (:meth:`Prompts.arguments`, or the processor's).
        answers: A prompt's new tokens, the end token included.
        base: As in :class:`Teacher`: an empty list is filled, and then serves the replays of other settings.
        **settings: Of ``generate``. Its logits processors see the tokens as in a free run.

    Raises:
        RuntimeError: ``generate`` did not choose these tokens: its stopping criteria are not those of the answers.
    """
    lengths = [len(answer) for answer in answers]
    longest = max(lengths)
    tokens = torch.tensor([answer + [0] * (longest - len(answer)) for answer in answers], device=model.device)
    teacher = Teacher(tokens, base)
    processors = LogitsProcessorList([*settings.pop("logits_processor", ()), teacher])
    settings |= {"max_new_tokens": longest, "logits_processor": processors}
    result = generate(model, method, **inputs, **settings)
    if result.new_tokens(inputs["input_ids"].shape[1]) != list(answers):
        raise RuntimeError("the replay did not choose the tokens that it was given")
    noted = {name: torch.stack(getattr(teacher, name), dim=1).tolist() for name in ("entropy", "kl", "changed")}
    numbers = {name: [row[:length] for row, length in zip(rows, lengths, strict=True)] for name, rows in noted.items()}
    return Replayed(**numbers, traces=result.traces)
