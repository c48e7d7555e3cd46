"""The head in a due step: the rows of the likeliest tokens where these carry the distribution, or the whole of it."""

from typing import NamedTuple

import torch
from torch import Tensor

from lmms_eval_vreason.families.family import VocabularyHead
from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.entropy import OBJECTIVE_GRADIENTS, entropy_of, log_probabilities


class Head(NamedTuple):
    """The head in one due step: over the whole vocabulary, or over the tokens that take part, their rows at hand.

    Tokens that do not take part keep their logits. Each sample has its own: what it gets is the same in any batch.

    Attributes:
        first: (batch, vocabulary), the token's own logits.
        tokens: (batch, n), the ``rows``' tokens; None for the whole vocabulary.
        taking_part: (batch, n) or (batch, vocabulary) bool; None for all.
    """

    tail: VocabularyHead
    method: VReason
    first: Tensor
    tokens: Tensor | None = None
    rows: tuple[Tensor, Tensor | None] | None = None
    taking_part: Tensor | None = None

    @classmethod
    def of(cls, tail: VocabularyHead, method: VReason, at: tuple[Tensor, Tensor], active: Tensor) -> "Head | None":
        """The head ``at`` (logits, log p) for the ``active`` samples; None if none is, which waits for the device.

        A graph has the whole vocabulary: the number of rows would differ from step to step.
        """
        logits, log_p = at
        most = min(method.head_topk, log_p.shape[-1]) if method.objective == "kl_p_u" else 0
        eager = not torch.compiler.is_compiling()
        if not most:
            return None if eager and not bool(active.any()) else cls(tail, method, logits)
        likeliest, tokens = log_p.topk(most, dim=-1)
        enough = likeliest.exp().cumsum(dim=-1) >= 1 - method.head_tail
        # Tokens of equal probability go together, or the batch would decide between them.
        least = torch.where(enough, likeliest, -torch.inf).amax(dim=-1, keepdim=True)
        if eager:
            number = int(torch.where(active, (likeliest >= least).sum(dim=-1), 0).max())
            if not number:
                return None
            if number < most:
                tokens = tokens[:, :number]
                return cls(tail, method, logits, tokens, tail.rows(tokens), likeliest[:, :number] >= least)
        return cls(tail, method, logits, taking_part=log_p >= least)

    def distribution(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and log p, (batch, vocabulary), and their entropy, (batch,), from the final norm's output."""
        logits = self.tail.logits(hidden, self.rows).to(self.first)
        if self.taking_part is not None:
            before = self.first if self.tokens is None else self.first.gather(1, self.tokens)
            logits = torch.where(self.taking_part, logits, before)
        logits = logits if self.tokens is None else self.first.scatter(1, self.tokens, logits)
        log_p = log_probabilities(logits)
        return logits, log_p, entropy_of(log_p)

    def gradient(self, logits: Tensor, log_p: Tensor, h: Tensor, weights: Tensor) -> Tensor:
        """The gradient of Σ weights · objective in the final norm's output, (batch, hidden_size), in closed form.

        Args:
            logits, log_p, h: As :meth:`distribution` gives them.
            weights: (batch,), α, or 0.
        """
        if self.tokens is not None:
            logits, log_p = logits.gather(1, self.tokens), log_p.gather(1, self.tokens)
        gradient = OBJECTIVE_GRADIENTS[self.method.objective](log_p, h) * weights[:, None]
        if self.taking_part is not None:
            gradient = torch.where(self.taking_part, gradient, 0.0)
        return self.tail.before_head(gradient, logits, self.rows)
