"""ΔV: one trainable number per entry of the last layer's value cache at the video tokens, and how it moves V."""

import math

import torch
from torch import Tensor

from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.norm import KeptNorm
from lmms_eval_vreason.method.optimizers import OPTIMIZERS


class Shift:
    """ΔV of a batch: independent samples in one tensor, over a window of the cache, eager and compiled alike.

    What the optimiser moves is ΔV in units of each token's and KV head's RMS over head_dim, so that one learning rate
    turns the values of every model alike (ours).

    The window goes from the first video token of any sample to the last. What else lies in it (text between videos,
    padding, another sample's shorter video) gets no gradient: its ΔV stays 0 and its V_new is V to the bit. ΔV and the
    optimiser's state are float32 (float64 for a float64 cache), so that steps add up that the cache would round away;
    V_new comes from V and ΔV, never from the cache's own rounded self. A step of a useful size, a good part of the RMS,
    is many times a bfloat16 cache's spacing.

    Attributes:
        video: (batch, 1, 1, window) bool.
        original: (batch, kv_heads, window, head_dim), V as prefilled, in the cache's dtype.
        unit: (batch, kv_heads, window, 1), the RMS of V; 0 for a sample that is given up, whose V_new is V from then.
        turns: ΔV / unit, the shape of V; starts at 0 (paper).
        kept: Whether ΔV stays from one due token to the next (paper), in the cache. Else it starts at 0 at each.
    """

    def __init__(self, values: Tensor, video_mask: Tensor, method: VReason) -> None:
        """Args: ``values`` (batch, kv_heads, tokens, head_dim), a cache; ``video_mask`` (batch, tokens), not empty."""
        columns = video_mask.any(dim=0).nonzero()
        start, stop = int(columns[0]), int(columns[-1]) + 1
        # The window's place as the size of a tensor without bytes: a compiled graph leaves sizes open, but not numbers.
        # It also takes sizes of 0 and 1 for fixed ones.
        self.before = values.new_empty(start + 2, 0)
        self.video = video_mask[:, None, None, start:stop].to(values.device)
        original = values[:, :, start:stop]
        precise = original.to(torch.promote_types(values.dtype, torch.float32))
        at_video = self.video.transpose(2, 3)
        self.size = _norms(precise * at_video).clamp_min(torch.finfo(precise.dtype).tiny)
        self.norm = KeptNorm(precise, at_video, method.norm)
        norms = self.norm.length
        if norms is None or method.norm != "head":
            norms = torch.linalg.vector_norm(precise, dim=3, keepdim=True)
        self.unit = norms / math.sqrt(values.shape[3])
        # A vector of zeros has no direction (0 / 0); it stays zero as one of any direction and of length 0.
        length = self.norm.length
        self.original = original.clone() if length is None else original.masked_fill(length == 0, 1.0)
        self.turns = torch.zeros_like(self.original, dtype=precise.dtype)
        entries = self.video.sum(dim=3, keepdim=True) * values.shape[1] * values.shape[3]
        self.kept, self.optimizer = method.keep_shift, OPTIMIZERS[method.optimizer](method, self.turns, entries)

    @property
    def delta(self) -> Tensor:
        """ΔV, the shape of V."""
        return self.unit * self.turns

    def window(self, states: Tensor, dim: int = 2) -> Tensor:
        """The part of ``states``, one of the cache's tensors, that ΔV covers: a view. ``dim``: the tokens'."""
        return states.narrow(dim, self.before.shape[0] - 2, self.turns.shape[2])

    def begin(self) -> None:
        """A due token begins: a ΔV that is not kept goes back to 0, and its optimiser to its start."""
        if not self.kept:
            for tensor in (self.turns, *self.optimizer.state()):
                tensor.zero_()

    def gradient(self, p: Tensor, output_gradient: Tensor) -> Tensor:
        """dL/dΔV · unit, the shape of ΔV, from the gradient at the attention's output A of one query: dL/dV = pᵀ dL/dA.

        Args:
            p: (batch, kv_heads, query heads a KV head, window), the attention's probabilities; 0 where no video is.
            output_gradient: (batch, kv_heads, query heads a KV head, head_dim).
        """
        dtype, rows = self.turns.dtype, self.norm.kind in ("head", "none")
        # A unit goes through a norm of its own row as it is, and there are fewer probabilities than values.
        p = p.to(dtype) * self.unit.transpose(2, 3) if rows else p.to(dtype)
        gradient = self.norm.gradient(self._sum(), p.transpose(2, 3) @ output_gradient.to(dtype))
        return gradient if rows else gradient * self.unit

    def step(self, gradient: Tensor, active: Tensor) -> None:
        """One optimiser step of the ``active`` samples, (batch,) bool. All others' ``gradient`` is 0."""
        self.optimizer.step(self.turns, gradient, active[:, None, None, None].to(self.turns.dtype))

    def give_up(self, samples: Tensor) -> None:
        """ΔV ← 0 for good for the ``samples``, (batch,) bool."""
        self.unit.mul_(~samples[:, None, None, None])

    def moved(self) -> Tensor:
        """V_new, the shape of V: in the cache's dtype where it goes there, else in that of ΔV."""
        moved = self.norm.moved(self._sum())
        return moved.to(self.original.dtype) if self.kept else moved

    def relative(self) -> Tensor:
        """(batch,) ‖ΔV‖ / ‖V‖ over all of a sample's video tokens; 0 for a sample without any."""
        return _norms(torch.linalg.vector_norm(self.turns, dim=3, keepdim=True) * self.unit) / self.size

    def by_window(self) -> list[tuple[Tensor, int]]:
        """Each tensor whose size depends on the prompt, with the dimension that does."""
        wide = [self.original, self.turns, self.unit, self.norm.video, *self.optimizer.state()]
        wide += [] if self.norm.length is None else [self.norm.length]
        return [(self.before, 0), (self.video, 3), *((tensor, 2) for tensor in wide if tensor.shape[2] > 1)]

    def state_bytes(self) -> int:
        """Bytes kept between steps: V and its norms, ΔV, the optimiser's moments, what marks the video tokens."""
        kept = [tensor for tensor, _ in self.by_window()] + [self.size, *self.optimizer.state()]
        return sum(nbytes for nbytes in {tensor.data_ptr(): tensor.nbytes for tensor in kept}.values())

    def _sum(self) -> Tensor:
        """V + ΔV, in the dtype of ΔV."""
        return torch.addcmul(self.original.to(self.turns.dtype), self.unit, self.turns)


def _norms(x: Tensor) -> Tensor:
    """(batch,) L2 norms."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms
