"""The optimisers that move ΔV: every sample of a batch has its own, and one that is not active keeps its state."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


class Sgd:
    """ΔV ← ΔV - lr · gradient."""

    def __init__(self, learning_rate: float, delta: Tensor) -> None:
        """Args: ``delta`` (batch, kv_heads, tokens, head_dim), which :meth:`step` moves in place."""
        self.learning_rate = learning_rate

    def step(self, delta: Tensor, gradient: Tensor, active: Tensor) -> None:
        """One step. ``active`` (batch, 1, 1, 1): 1 for a sample that moves, else 0; its gradient is finite."""
        delta.addcmul_(gradient, active, value=-self.learning_rate)

    def state(self) -> list[Tensor]:
        """What is kept between steps."""
        return []


class Adam(Sgd):
    """Adam (Kingma & Ba) with the bias correction of each sample's own number of steps."""

    betas, eps = (0.9, 0.999), 1e-8

    def __init__(self, learning_rate: float, delta: Tensor) -> None:
        """As :class:`Sgd`. The moments are of ``delta``'s shape and dtype."""
        super().__init__(learning_rate, delta)
        self.mean, self.square = torch.zeros_like(delta), torch.zeros_like(delta)
        self.steps = delta.new_zeros(len(delta), 1, 1, 1)

    def step(self, delta: Tensor, gradient: Tensor, active: Tensor) -> None:
        """As :meth:`Sgd.step`."""
        self.steps += active
        # 1 - βᵗ, exact in float32 as well. A sample that has not stepped yet would divide by 0.
        corrections = [-torch.expm1(self.steps.clamp_min(1) * math.log(beta)) for beta in self.betas]
        self.mean.lerp_(gradient, (1 - self.betas[0]) * active)
        self.square.lerp_(gradient.square(), (1 - self.betas[1]) * active)
        # lr · (mean / correction) / (√(square / correction) + eps), both corrections drawn into one factor a sample.
        root = corrections[1].sqrt()
        rate = active * self.learning_rate * root / corrections[0]
        delta.addcdiv_(self.mean * rate, self.square.sqrt().add_(root * self.eps), value=-1)

    def state(self) -> list[Tensor]:
        return [self.mean, self.square, self.steps]


OPTIMIZERS: dict[str, Callable[[float, Tensor], Sgd]] = {"adam": Adam, "sgd": Sgd}
