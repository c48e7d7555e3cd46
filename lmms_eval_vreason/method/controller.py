"""ΔV: one trainable value per entry of the value cache at the video tokens, and the optimiser that moves it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from lmms_eval_vreason.method.kernels import adam_step, scaled_rows, scaled_rows_gradient


def moved_values(values: Tensor, delta: Tensor, norm: str, length: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """V_new = (V + ΔV) / ‖V + ΔV‖ · ‖V‖ (paper): the direction moves, the norm stays.

    That is weight normalisation (Salimans & Kingma, 2016) with a norm that is not trained, for which torch has a kernel
    and its gradient's.

    Args:
        values: (tokens, kv_heads, head_dim), the cache as prefilled, V.
        delta: The same shape, float32 or wider, ΔV.
        norm: Over what the norm is kept: ``head`` (each token and KV head), ``token``, or ``none``, for V + ΔV.
        length: ‖V‖ as :func:`kept_norm` gives it, if it is at hand.

    Returns:
        V_new, the shape of ``values``, the dtype of ``delta``, and ‖V + ΔV‖, the shape of ``length``. Where ΔV is 0,
        V_new is V to the bit.
    """
    moved = values + delta
    if norm == "none":
        return moved, moved.new_empty(0)
    length = kept_norm(values.to(delta.dtype), norm) if length is None else length
    new, norms = scaled_rows(_rows(moved, norm), length)
    return new.view_as(moved), norms


def shift_gradient(
    values: Tensor,
    delta: Tensor,
    gradient: Tensor,
    norm: str,
    length: Tensor | None = None,
    moved_norm: Tensor | None = None,
) -> Tensor:
    """dL/dΔV from dL/dV_new: (‖V‖/‖V+ΔV‖) (I - u uᵀ) dL/dV_new with u = (V+ΔV)/‖V+ΔV‖. Shapes as ``moved_values``.

    ``moved_norm`` is what that gave beside V_new, if it is at hand.
    """
    if norm == "none":
        return gradient
    moved = values + delta
    length = kept_norm(values.to(delta.dtype), norm) if length is None else length
    moved_norm = kept_norm(moved, norm) if moved_norm is None else moved_norm
    return scaled_rows_gradient(_rows(gradient, norm), _rows(moved, norm), length, moved_norm).view_as(moved)


def kept_norm(values: Tensor, norm: str) -> Tensor:
    """(rows, 1), ‖V‖ of all whose norm is kept: the very numbers that :func:`moved_values` divides by."""
    rows = _rows(values, norm)
    return scaled_rows(rows, rows.new_ones(len(rows), 1))[1]


def _rows(x: Tensor, norm: str) -> Tensor:
    return x.flatten(0, 1) if norm == "head" else x.flatten(1)


def rounded(values: Tensor, noise: Tensor) -> Tensor:
    """``values`` rounded to bfloat16, up or down at random in proportion to the distances.

    Args:
        values: float32.
        noise: int32 in [0, 2¹⁶), uniform, broadcast to ``values``.

    Returns:
        bfloat16, in the shape of ``values``; a value that bfloat16 holds exactly stays.
    """
    # bfloat16 is the upper half of a float32: a carry out of the lower half rounds away from zero.
    bits = values.contiguous().view(torch.int32)
    return ((bits + noise) & -0x10000).view(torch.float32).to(torch.bfloat16)


@dataclass
class Sgd:
    """ΔV ← ΔV - lr · gradient, for the samples that are active."""

    learning_rate: float

    def step(self, deltas: Sequence[Tensor], gradients: Sequence[Tensor], active: Sequence[bool]) -> None:
        """In place; one (tokens, kv_heads, head_dim) tensor a sample of each."""
        for delta, gradient, moves in zip(deltas, gradients, active, strict=True):
            if moves:
                delta.add_(gradient, alpha=-self.learning_rate)

    def state_bytes(self) -> int:
        return 0


class Adam:
    """Adam (Kingma & Ba), torch's fused kernel, with a step count of its own for each sample.

    Attributes:
        mean, square: The moments, in the shape of ΔV.
        steps: (batch,), how many steps each sample has made.
    """

    betas, eps = (0.9, 0.999), 1e-8

    def __init__(self, learning_rate: float, delta: Tensor, sizes: Sequence[int]) -> None:
        self.learning_rate = learning_rate
        self.mean, self.square = torch.zeros_like(delta), torch.zeros_like(delta)
        self.steps = torch.zeros(len(sizes), device=delta.device)
        self._states = _split(self.mean, sizes), _split(self.square, sizes), list(self.steps.unbind())

    def step(self, deltas: Sequence[Tensor], gradients: Sequence[Tensor], active: Sequence[bool]) -> None:
        """As :meth:`Sgd.step`; an inactive sample's moments stay."""
        columns = (deltas, gradients, *self._states)
        if not all(active):
            columns = ([x for x, moves in zip(column, active, strict=True) if moves] for column in columns)
        deltas, gradients, means, squares, steps = columns
        if not steps:
            return
        torch._foreach_add_(steps, 1.0)
        adam_step(deltas, gradients, (means, squares), steps, (self.learning_rate, self.betas, self.eps))

    def state_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.mean, self.square, self.steps))


OPTIMIZERS: dict[str, Callable[[float, Tensor, Sequence[int]], "Adam | Sgd"]] = {
    "adam": Adam,
    "sgd": lambda learning_rate, delta, sizes: Sgd(learning_rate),
}


class Noise:
    """Uniform int32 noise in [0, 2¹⁶), new at each call, from a Weyl sequence over (token, kv_head · head_dim, call).

    A generator would need one draw a sample to keep samples apart; this is three additions and keeps no state but the
    indices. Its multipliers are odd parts of 2¹⁶ over irrational numbers, so that it fills the range evenly.

    Args:
        ordinal: (tokens,), each token's place within its own sample, so that its noise does not depend on the batch or
            its padding.
    """

    def __init__(self, ordinal: Tensor, kv_heads: int, head_dim: int, seed: int) -> None:
        entries = torch.arange(kv_heads * head_dim, device=ordinal.device, dtype=torch.int32)
        self.tokens = (ordinal.to(torch.int32) * 40503 + seed % 65521 * 7919)[:, None, None]
        self._entries = (entries * 27145).view(1, kv_heads, head_dim)
        self._calls = torch.zeros((), dtype=torch.int32, device=ordinal.device)

    def next(self) -> Tensor:
        """(tokens, kv_heads, head_dim)."""
        self._calls += 51749
        return (self.tokens + self._entries + self._calls) & 0xFFFF

    def state_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.tokens, self._entries, self._calls))


class ValueCacheController:
    """ΔV of one decoder layer for a batch: B independent controllers whose tokens lie one after another in one tensor.

    Losses add and gradients do not mix across samples, and the optimisers are element-wise, so a batch equals its
    samples one by one. ΔV and the moments are float32 (float64 for a float64 cache): small steps add up here even where
    a bf16 cache would round each of them away. The cache gets V_new from V and ΔV, never from its own rounded self.
    With ``rounding="stochastic"`` a bf16 cache is rounded at random (ours), so that even the first steps reach it.

    Attributes:
        runs: (sample, first, behind the last) cache position of each run of video tokens, sample by sample.
        original: (tokens, kv_heads, head_dim), V as prefilled, in the cache's dtype.
        length: (rows, 1), ‖V‖ where it is kept.
        delta: The shape of ``original``, ΔV; starts at 0 (paper).
    """

    def __init__(
        self,
        values: Tensor,
        video_mask: Tensor,
        *,
        optimizer: str,
        learning_rate: float,
        norm: str = "head",
        rounding: str = "nearest",
        seed: int = 0,
    ) -> None:
        """Args: ``values`` (batch, kv_heads, tokens, head_dim), a value cache; ``video_mask`` (batch, tokens)."""
        self.norm = norm
        self.runs = _runs(video_mask)
        self._run_lengths = [end - start for _, start, end in self.runs]
        self.sizes = video_mask.sum(dim=1).tolist()
        self.original = self.take(values)
        dtype = torch.promote_types(values.dtype, torch.float32)
        original = self.original.to(dtype)
        self._original_norm = self._per_sample_norm(original).clamp_min(torch.finfo(dtype).tiny)
        self.length = self._moved_norm = None
        if norm != "none":
            self.length = kept_norm(original, norm)
            # A vector of zeros has no direction (0 / 0); it stays zero as one of any direction and of length 0.
            _rows(self.original, norm).masked_fill_(self.length == 0, 1.0)
            self._moved_norm = kept_norm(self.original.to(dtype), norm)
        self.delta = torch.zeros_like(self.original, dtype=dtype)
        self.optimizer = OPTIMIZERS[optimizer](learning_rate, self.delta, self.sizes)
        self._deltas = self.per_sample(self.delta)
        self.noise = None
        if rounding == "stochastic" and values.dtype == torch.bfloat16:
            ordinal = torch.cat([torch.arange(1, size + 1, device=values.device) for size in self.sizes])
            self.noise = Noise(ordinal, values.shape[1], values.shape[3], seed)

    def gradient(self, gradient: Tensor) -> Tensor:
        """dL/dΔV (tokens, kv_heads, head_dim) from dL/dV_cache (batch, kv_heads, tokens, head_dim)."""
        packed = self._packed(gradient).to(self.delta.dtype)
        return shift_gradient(self.original, self.delta, packed, self.norm, self.length, self._moved_norm)

    def gradient_norm(self, gradient: Tensor) -> Tensor:
        """(batch,) L2 norm of each sample's dL/dΔV; not finite where any of its entries is not."""
        return self._per_sample_norm(gradient)

    def step(self, gradient: Tensor, active: Sequence[bool]) -> None:
        """One optimiser step on the ``active`` samples, from dL/dΔV; the others' state is not touched."""
        self.optimizer.step(self._deltas, self.per_sample(gradient), active)

    def reset(self, sample: int) -> None:
        """ΔV ← 0 for one sample."""
        self._deltas[sample].zero_()

    def write(self, values: Tensor) -> None:
        """Writes V_new into the layer's value cache (batch, kv_heads, tokens, head_dim), in place."""
        moved, self._moved_norm = moved_values(self.original, self.delta, self.norm, self.length)
        moved = moved.to(values.dtype) if self.noise is None else rounded(moved, self.noise.next())
        for (row, start, end), part in zip(self.runs, _split(moved, self._run_lengths), strict=True):
            values[row, :, start:end].copy_(part.transpose(0, 1))

    def take(self, states: Tensor) -> Tensor:
        """A copy, (tokens, kv_heads, head_dim), of ``states`` (batch, kv_heads, tokens, head_dim) at the video tokens.

        ``states`` may hold more tokens than the prefill did.
        """
        return self._packed(states).clone()

    def _packed(self, states: Tensor) -> Tensor:
        # Attention's gradient lies token by token in memory: one run is a view of it, and copies are of whole runs.
        parts = [states[row, :, start:end].transpose(0, 1) for row, start, end in self.runs]
        return torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()

    def per_sample(self, packed: Tensor) -> list[Tensor]:
        """Each sample's part of ``packed`` (tokens, ...), a view."""
        return _split(packed, self.sizes)

    def shift(self) -> Tensor:
        """(batch,) ‖ΔV‖ / ‖V‖ over all of a sample's video tokens; 0 for a sample without any."""
        return self._per_sample_norm(self.delta) / self._original_norm

    def state_bytes(self) -> int:
        """Bytes this controller keeps between steps: V and its norms, ΔV, the optimiser's moments."""
        own = [self.original, self.delta, self._original_norm]
        if self.length is not None:
            own += [self.length, self._moved_norm]
        noise = 0 if self.noise is None else self.noise.state_bytes()
        return sum(t.numel() * t.element_size() for t in own) + self.optimizer.state_bytes() + noise

    def _per_sample_norm(self, x: Tensor) -> Tensor:
        return torch.stack([torch.linalg.vector_norm(part) for part in self.per_sample(x)])


def _split(packed: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Views of ``packed`` (tokens, ...), one after another; ``Tensor.split`` is not a view on every backend."""
    ends = list(accumulate(sizes))
    return [packed[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _runs(mask: Tensor) -> list[tuple[int, int, int]]:
    """(row, first, behind the last) of each run of True in ``mask`` (batch, tokens), row by row."""
    edges = nn.functional.pad(mask.int().cpu(), (1, 1)).diff(dim=1)
    starts, ends = (edges == 1).nonzero().tolist(), (edges == -1).nonzero()[:, 1].tolist()
    return [(row, start, end) for (row, start), end in zip(starts, ends, strict=True)]
