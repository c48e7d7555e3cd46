"""The optimisers that move ΔV: every sample of a batch has its own, and one that is not active keeps its state."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lmms_eval_vreason.method.config import VReason


class Sgd:
    """ΔV ← ΔV - lr · gradient."""

    def __init__(self, method: VReason, delta: Tensor, entries: Tensor) -> None:
        """Args: ``delta`` (batch, kv_heads, tokens, head_dim); ``entries`` (batch, 1, 1, 1), how many are video."""
        self.learning_rate = method.learning_rate

    def step(self, delta: Tensor, gradient: Tensor, active: Tensor) -> None:
        """One step of ``delta``, in place. ``active`` (batch, 1, 1, 1): 1 for a sample that moves, else 0.

        ``gradient`` is finite, and 0 for a sample that does not move.
        """
        delta.sub_(gradient, alpha=self.learning_rate)

    def state(self) -> list[Tensor]:
        """What is kept between steps; zeros at the start."""
        return []


class NormalizedSgd(Sgd):
    """ΔV ← ΔV - lr · √entries · gradient / ‖gradient‖: a step whose RMS over the sample's video is lr."""

    def __init__(self, method: VReason, delta: Tensor, entries: Tensor) -> None:
        """As :class:`Sgd`."""
        super().__init__(method, delta, entries)
        self.length = method.learning_rate * entries.to(delta.dtype).sqrt()

    def step(self, delta: Tensor, gradient: Tensor, active: Tensor) -> None:
        """As :meth:`Sgd.step`."""
        norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1)[:, None, None, None]
        delta.addcmul_(gradient, torch.where(norm > 0, self.length / norm, 0.0), value=-1)


class Adam(Sgd):
    """Adam (Kingma & Ba) with the bias correction of each sample's own number of steps."""

    eps = 1e-8

    def __init__(self, method: VReason, delta: Tensor, entries: Tensor) -> None:
        """As :class:`Sgd`. The moments are of ``delta``'s shape and dtype; β1 = 0 needs no first one."""
        super().__init__(method, delta, entries)
        self.betas = method.beta1, method.beta2
        self.mean = torch.zeros_like(delta) if method.beta1 else None
        self.square = torch.zeros_like(delta)
        self.steps = delta.new_zeros(len(delta), 1, 1, 1)

    def step(self, delta: Tensor, gradient: Tensor, active: Tensor) -> None:
        """As :meth:`Sgd.step`."""
        self.steps += active
        self.square.mul_(1 - (1 - self.betas[1]) * active).addcmul_(gradient, gradient, value=1 - self.betas[1])
        root = self._correction(self.betas[1]).sqrt()
        rate = self.learning_rate * root
        if self.mean is not None:
            gradient = self.mean.lerp_(gradient, (1 - self.betas[0]) * active)
            rate = rate * active / self._correction(self.betas[0])
        # lr · (mean / correction) / (√(square / correction) + eps), both corrections drawn into one factor a sample.
        delta.addcdiv_(gradient * rate, self.square.sqrt().add_(root * self.eps), value=-1)

    def state(self) -> list[Tensor]:
        return [*([] if self.mean is None else [self.mean]), self.square, self.steps]

    def _correction(self, beta: float) -> Tensor:
        """1 - βᵗ, (batch, 1, 1, 1), exact in float32 as well. A sample that has not stepped yet would divide by 0."""
        if not beta:
            return torch.ones_like(self.steps)
        return -torch.expm1(self.steps.clamp_min(1) * math.log(beta))


OPTIMIZERS: dict[str, Callable[[VReason, Tensor, Tensor], Sgd]] = {"adam": Adam, "sgd": Sgd, "nsgd": NormalizedSgd}
