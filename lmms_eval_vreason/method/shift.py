"""ΔV: one trainable number per entry of the last layer's value cache at the video tokens, and how it moves V."""

import torch
from torch import Tensor

from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.kernels import scaled_rows, scaled_rows_gradient
from lmms_eval_vreason.method.optimizers import OPTIMIZERS


def moved_values(moved: Tensor, length: Tensor | None) -> Tensor:
    """V_new = (V + ΔV) / ‖V + ΔV‖ · ‖V‖ (paper): the direction moves, the norm stays.

    Args:
        moved: (batch, kv_heads, tokens, head_dim), V + ΔV.
        length: ‖V‖ as :func:`kept_norm` gives it. None: the norm is free, V_new is V + ΔV.

    Returns:
        The shape of ``moved``. Where ΔV is 0, V_new is V to the bit.
    """
    if length is None:
        return moved
    return _from_rows(scaled_rows(_rows(moved, length), length.view(-1, 1))[0], moved, length)


def shift_gradient(moved: Tensor, gradient: Tensor, length: Tensor | None) -> Tensor:
    """dL/dΔV from dL/dV_new: (‖V‖/‖V+ΔV‖) (I - u uᵀ) dL/dV_new, u = (V+ΔV)/‖V+ΔV‖. As :func:`moved_values`."""
    if length is None:
        return gradient
    rows = scaled_rows_gradient(_rows(gradient, length), _rows(moved, length), length.view(-1, 1))
    return _from_rows(rows, moved, length)


def kept_norm(values: Tensor, norm: str) -> Tensor | None:
    """‖V‖ over what ``norm`` keeps it: (batch, kv_heads or 1, tokens, 1), None for ``none``."""
    if norm == "none":
        return None
    batch, kv_heads, tokens, _ = values.shape
    length = values.new_ones(batch, kv_heads if norm == "head" else 1, tokens, 1)
    # The very kernel that divides by it later on.
    return scaled_rows(_rows(values, length), length.view(-1, 1))[1].view_as(length)


def _rows(x: Tensor, length: Tensor) -> Tensor:
    """(rows, entries): one row for each norm that is kept."""
    return x.flatten(0, 2) if length.shape[1] == x.shape[1] else x.transpose(1, 2).flatten(2).flatten(0, 1)


def _from_rows(rows: Tensor, like: Tensor, length: Tensor) -> Tensor:
    batch, kv_heads, tokens, head_dim = like.shape
    if length.shape[1] == kv_heads:
        return rows.view(batch, kv_heads, tokens, head_dim)
    return rows.view(batch, tokens, kv_heads, head_dim).transpose(1, 2)


def rounded(values: Tensor, noise: Tensor) -> Tensor:
    """``values`` (float32) rounded to bfloat16, up or down at random in proportion to the distances.

    Args:
        noise: int32 in [0, 2¹⁶), uniform, in a shape that broadcasts to that of ``values``.

    Returns:
        bfloat16. A value that bfloat16 holds exactly stays.
    """
    # bfloat16 is the upper half of a float32: a carry out of the lower half rounds away from zero.
    bits = values.contiguous().view(torch.int32)
    return ((bits + noise) & -0x10000).view(torch.float32).to(torch.bfloat16)


class Noise:
    """Uniform int32 noise in [0, 2¹⁶), new at each call, from a Weyl sequence over (token, kv_head · head_dim, call).

    A generator would need one draw a sample to keep samples apart; this is three additions and keeps no state but the
    indices. Its multipliers are odd parts of 2¹⁶ over irrational numbers, so that it fills the range evenly.
    """

    def __init__(self, video: Tensor, shape: tuple[int, int], seed: int) -> None:
        """Args: ``video`` (batch, tokens) bool; ``shape`` (kv_heads, head_dim)."""
        # A token's place among its own sample's video tokens: its noise depends on neither the batch nor its padding.
        ordinal = video.cumsum(dim=1, dtype=torch.int32)
        self.tokens = (ordinal * 40503 + seed % 65521 * 7919)[:, None, :, None]
        entries = torch.arange(shape[0] * shape[1], device=video.device, dtype=torch.int32)
        self.entries = (entries * 27145).view(1, shape[0], 1, shape[1])
        self.calls = torch.zeros((), dtype=torch.int32, device=video.device)

    def next(self) -> Tensor:
        """(batch, kv_heads, tokens, head_dim)."""
        self.calls += 51749
        return (self.tokens + self.entries + self.calls) & 0xFFFF


class Shift:
    """ΔV of a batch: independent samples in one tensor, over a window of the cache, eager and compiled alike.

    The window goes from the first video token of any sample to the last. What else lies in it (text between videos,
    padding, another sample's shorter video) gets no gradient: its ΔV stays 0 and its V_new is V to the bit. ΔV and the
    optimiser's state are float32 (float64 for a float64 cache), so that steps add up that the cache would round away.
    V_new comes from V and ΔV, never from the cache's own rounded self.

    Attributes:
        video: (batch, 1, 1, window) bool.
        original: (batch, kv_heads, window, head_dim), V as prefilled, in the cache's dtype.
        delta: The same shape, ΔV; starts at 0 (paper).
        length: ‖V‖, see :func:`kept_norm`.
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
        dtype = torch.promote_types(values.dtype, torch.float32)
        at_video = (original * self.video.transpose(2, 3)).to(dtype)
        self.size = _norms(at_video).clamp_min(torch.finfo(dtype).tiny)
        self.length = kept_norm(original.to(dtype), method.norm)
        # A vector of zeros has no direction (0 / 0); it stays zero as one of any direction and of length 0.
        self.original = original.clone() if self.length is None else original.masked_fill(self.length == 0, 1.0)
        self.delta = torch.zeros_like(self.original, dtype=dtype)
        self.optimizer = OPTIMIZERS[method.optimizer](method.learning_rate, self.delta)
        self.noise = None
        if method.rounding == "stochastic" and values.dtype == torch.bfloat16:
            self.noise = Noise(self.video[:, 0, 0], (values.shape[1], values.shape[3]), method.seed)

    def window(self, states: Tensor, dim: int = 2) -> Tensor:
        """The part of ``states``, one of the cache's tensors, that ΔV covers: a view. ``dim``: the tokens'."""
        return states.narrow(dim, self.before.shape[0] - 2, self.delta.shape[2])

    def gradient(self, p: Tensor, output_gradient: Tensor) -> Tensor:
        """dL/dΔV, the shape of ΔV, from the gradient at the attention's output A of one query: dL/dV = pᵀ dL/dA.

        Args:
            p: (batch, kv_heads, query heads a KV head, window), the attention's probabilities; 0 where no video is.
            output_gradient: (batch, kv_heads, query heads a KV head, head_dim).
        """
        gradient = p.transpose(2, 3) @ output_gradient
        return shift_gradient(self.original + self.delta, gradient.to(self.delta.dtype), self.length)

    def step(self, gradient: Tensor, active: Tensor, sound: Tensor) -> None:
        """One optimiser step of the ``active`` samples, (batch,) bool; ΔV ← 0 for those that are not ``sound``."""
        moves = (active & sound)[:, None, None, None]
        self.delta.mul_(sound[:, None, None, None])
        self.optimizer.step(self.delta, torch.where(moves, gradient, 0.0), moves.to(self.delta.dtype))

    def moved(self) -> Tensor:
        """V_new, (batch, kv_heads, window, head_dim), in the cache's dtype."""
        moved = moved_values(self.original + self.delta, self.length)
        return moved.to(self.original.dtype) if self.noise is None else rounded(moved, self.noise.next())

    def relative(self) -> Tensor:
        """(batch,) ‖ΔV‖ / ‖V‖ over all of a sample's video tokens; 0 for a sample without any."""
        return _norms(self.delta) / self.size

    def by_window(self) -> list[tuple[Tensor, int]]:
        """Each tensor whose size depends on the prompt, with the dimension that does."""
        wide = [self.original, self.delta, *(x for x in self.optimizer.state() if x.shape[2] > 1)]
        wide += [] if self.length is None else [self.length]
        wide += [] if self.noise is None else [self.noise.tokens]
        return [(self.before, 0), (self.video, 3), *((tensor, 2) for tensor in wide)]

    def state_bytes(self) -> int:
        """Bytes kept between steps: V and its norms, ΔV, the optimiser's moments, what marks the video tokens."""
        kept = [tensor for tensor, _ in self.by_window()] + [self.size, *self.optimizer.state()]
        kept += [] if self.noise is None else [self.noise.entries, self.noise.calls]
        return sum(nbytes for nbytes in {id(tensor): tensor.nbytes for tensor in kept}.values())


def _norms(x: Tensor) -> Tensor:
    """(batch,) L2 norms."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms
