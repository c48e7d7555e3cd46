"""ΔV: one trainable value per entry of the value cache at the video tokens, and the optimiser that moves it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Over which of (tokens, kv_heads, head_dim) the norm of V is kept.
NORM_DIMS: dict[str, tuple[int, ...]] = {"head": (-1,), "token": (-2, -1), "none": ()}


def moved_values(values: Tensor, delta: Tensor, norm: str, length: Tensor | None = None) -> Tensor:
    """V_new = (V + ΔV) / ‖V + ΔV‖ · ‖V‖ (paper): the direction moves, the norm stays.

    Args:
        values: (tokens, kv_heads, head_dim), the cache as prefilled, V.
        delta: The same shape, float32 or wider, ΔV.
        norm: A key of ``NORM_DIMS``; ``none`` gives V + ΔV.
        length: ‖V‖ as :func:`kept_norm` gives it, if it is at hand.

    Returns:
        V_new, the shape of ``values``, the dtype of ``delta``. Where ΔV is 0 it is V to the bit.
    """
    moved = values + delta
    if dims := NORM_DIMS[norm]:
        length = kept_norm(values, norm, delta.dtype) if length is None else length
        moved *= length / _divisor(_norm(moved, dims))
    return moved


def shift_gradient(values: Tensor, delta: Tensor, gradient: Tensor, norm: str, length: Tensor | None = None) -> Tensor:
    """dL/dΔV from dL/dV_new: (‖V‖/‖V+ΔV‖) (I - u uᵀ) dL/dV_new with u = (V+ΔV)/‖V+ΔV‖. Shapes as ``moved_values``.

    ``gradient``, in the dtype of ``delta``, is overwritten and returned.
    """
    dims = NORM_DIMS[norm]
    if not dims:
        return gradient
    length = kept_norm(values, norm, delta.dtype) if length is None else length
    moved = values + delta
    divisor = _divisor(_norm(moved, dims))
    along = (moved * gradient).sum(dims, keepdim=True).div_(divisor).div_(divisor)
    return gradient.addcmul_(moved, along, value=-1).mul_(length / divisor)


def kept_norm(values: Tensor, norm: str, dtype: torch.dtype) -> Tensor:
    """‖V‖ over the entries whose norm is kept, with their dimensions left as 1; in ``dtype``."""
    return _norm(values.to(dtype), NORM_DIMS[norm])


def _norm(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return torch.linalg.vector_norm(x, dim=dims, keepdim=True)


def _divisor(norm: Tensor) -> Tensor:
    # A vector of zeros keeps its (zero) norm: 0 / tiny is 0, where 0 / 0 would be nan.
    return norm.clamp_min(torch.finfo(norm.dtype).tiny)


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

    def step(self, delta: Tensor, gradient: Tensor, active: Tensor, spread: Callable[[Tensor], Tensor]) -> None:
        """In place. ``delta``, ``gradient``: (tokens, kv_heads, head_dim); ``active``: (batch,) 1.0 or 0.0; ``spread``
        brings (n, batch) to the tokens. ``gradient`` is finite, and is overwritten."""
        delta.addcmul_(gradient, spread(active[None])[0], value=-self.learning_rate)

    def packed(self) -> list[Tensor]:
        """What has one entry a video token."""
        return []

    def state_bytes(self) -> int:
        return 0


class Adam:
    """Adam (Kingma & Ba) with a step count of its own for each sample; an inactive sample's moments stay."""

    def __init__(self, learning_rate: float, delta: Tensor, batch: int) -> None:
        self.learning_rate, self.eps = learning_rate, 1e-8
        self.betas = torch.tensor([[0.9], [0.999]], dtype=delta.dtype, device=delta.device)
        self.mean = torch.zeros_like(delta)
        self.square = torch.zeros_like(delta)
        self.steps = torch.zeros(batch, dtype=delta.dtype, device=delta.device)

    def step(self, delta: Tensor, gradient: Tensor, active: Tensor, spread: Callable[[Tensor], Tensor]) -> None:
        """As :meth:`Sgd.step`."""
        self.steps += active
        # An inactive sample that has never stepped would divide by 1 - β⁰ = 0.
        correction1, correction2 = 1 - self.betas ** self.steps.clamp_min(1)
        root = correction2.sqrt()
        rate = active * root * self.learning_rate / correction1
        weights, per_sample = (1 - self.betas) * active, torch.stack([root * self.eps, rate])
        weight1, weight2, eps, rate = spread(torch.cat([weights, per_sample]))
        self.mean.lerp_(gradient, weight1)
        self.square.lerp_(gradient.square_(), weight2)
        # lr · (mean / correction1) / (√(square / correction2) + eps); a rate of 0 makes the divisor infinite.
        divisor = torch.sqrt(self.square, out=gradient).add_(eps).div_(rate)
        delta.addcdiv_(self.mean, divisor, value=-1)

    def packed(self) -> list[Tensor]:
        """As :meth:`Sgd.packed`."""
        return [self.mean, self.square]

    def state_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.mean, self.square, self.steps, self.betas))


OPTIMIZERS: dict[str, Callable[[float, Tensor, int], "Adam | Sgd"]] = {
    "adam": Adam,
    "sgd": lambda learning_rate, delta, batch: Sgd(learning_rate),
}


class _Noise:
    """Uniform int32 noise in [0, 2¹⁶), new at each call, from a Weyl sequence over (token, kv_head · head_dim, call).

    A generator would need one draw a sample to keep samples apart; this is three additions and keeps no state but the
    indices. Its multipliers are odd parts of 2¹⁶ over irrational numbers, so that it fills the range evenly.
    """

    def __init__(self, ordinal: Tensor, kv_heads: int, head_dim: int, seed: int) -> None:
        entries = torch.arange(kv_heads * head_dim, device=ordinal.device, dtype=torch.int32)
        self._tokens = (ordinal.to(torch.int32) * 40503 + seed % 65521 * 7919)[:, None, None]
        self._entries = (entries * 27145).view(1, kv_heads, head_dim)
        self._calls = torch.zeros((), dtype=torch.int32, device=ordinal.device)

    def next(self) -> Tensor:
        """(tokens, kv_heads, head_dim)."""
        self._calls += 51749
        return (self._tokens + self._entries + self._calls) & 0xFFFF

    def packed(self) -> list[Tensor]:
        """What has one entry a video token."""
        return [self._tokens]

    def state_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self._tokens, self._entries, self._calls))


class ValueCacheController:
    """ΔV of one decoder layer for a batch: B independent controllers whose tokens lie packed in one tensor.

    Losses add and gradients do not mix across samples, and the optimisers are element-wise, so a batch equals its
    samples one by one. ΔV and the moments are float32 (float64 for a float64 cache): small steps add up here even where
    a bf16 cache would round each of them away. The cache gets V_new from V and ΔV, never from its own rounded self.
    With ``rounding="stochastic"`` a bf16 cache is rounded at random (ours), so that even the first steps reach it.

    Attributes:
        rows, columns: (tokens,) sample and cache position of each video token.
        original: (tokens, kv_heads, head_dim), V as prefilled, in the cache's dtype.
        delta: The same shape, ΔV; starts at 0 (paper).
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
        video_mask = video_mask.to(values.device)
        self.rows, self.columns = video_mask.nonzero(as_tuple=True)
        self.batch = values.shape[0]
        self.kv_heads, self.head_dim = values.shape[1], values.shape[3]
        self.original = self._take(values)
        dtype = torch.promote_types(values.dtype, torch.float32)
        self.delta = torch.zeros_like(self.original, dtype=dtype)
        self.optimizer = OPTIMIZERS[optimizer](learning_rate, self.delta, self.batch)
        self._heads = torch.arange(self.kv_heads, device=values.device)
        self._noise = None
        if rounding == "stochastic" and values.dtype == torch.bfloat16:
            # Counted within its own sample, so that a token's noise does not depend on the batch or its padding.
            ordinal = video_mask.cumsum(dim=1)[self.rows, self.columns]
            self._noise = _Noise(ordinal, self.kv_heads, self.head_dim, seed)
        self._length = kept_norm(self.original, norm, dtype) if NORM_DIMS[norm] else None
        self._original_norm = _divisor(self._per_sample_norm(self.original.to(dtype)))

    def gradient(self, gradient: Tensor) -> Tensor:
        """dL/dΔV (tokens, kv_heads, head_dim) from dL/dV_cache (batch, kv_heads, tokens, head_dim)."""
        packed = self._take(gradient).to(self.delta.dtype)  # a copy
        return shift_gradient(self.original, self.delta, packed, self.norm, self._length)

    def gradient_norm(self, gradient: Tensor) -> Tensor:
        """(batch,) L2 norm of each sample's dL/dΔV; not finite where any of its entries is not."""
        return self._per_sample_norm(gradient)

    def step(self, gradient: Tensor, active: Tensor) -> None:
        """One optimiser step on the ``active`` (batch,) bool samples, from dL/dΔV; the others' state is not touched.

        ``gradient`` is finite, see :meth:`clear`, and is overwritten.
        """
        self.optimizer.step(self.delta, gradient, active.to(self.delta.dtype), self._spread)

    def clear(self, gradient: Tensor, samples: Tensor) -> None:
        """gradient ← 0 and ΔV ← 0 for the ``samples`` (batch,) bool, in place."""
        mask = self._spread(samples[None])[0]
        gradient.masked_fill_(mask, 0.0)
        self.delta.masked_fill_(mask, 0.0)

    def write(self, values: Tensor) -> None:
        """Writes V_new into the layer's value cache (batch, kv_heads, tokens, head_dim), in place."""
        moved = moved_values(self.original, self.delta, self.norm, self._length)
        moved = moved.to(values.dtype) if self._noise is None else rounded(moved, self._noise.next())
        self._put(values, moved)

    def shift(self) -> Tensor:
        """(batch,) ‖ΔV‖ / ‖V‖ over all of a sample's video tokens; 0 for a sample without any."""
        return self._per_sample_norm(self.delta) / self._original_norm

    def mark_dynamic(self) -> None:
        """Tells torch.compile that the number of video tokens differs from prompt to prompt."""
        packed = [self.rows, self.columns, self.original, self.delta, *self.optimizer.packed()]
        if self._length is not None:
            packed.append(self._length)
        if self._noise is not None:
            packed += self._noise.packed()
        for tensor in packed:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)

    def state_bytes(self) -> int:
        """Bytes this controller keeps between steps: V and its norms, ΔV, the optimiser's moments and the index."""
        own = [self.original, self.delta, self.rows, self.columns, self._heads, self._original_norm]
        if self._length is not None:
            own.append(self._length)
        noise = 0 if self._noise is None else self._noise.state_bytes()
        return sum(t.numel() * t.element_size() for t in own) + self.optimizer.state_bytes() + noise

    def _take(self, states: Tensor) -> Tensor:
        """(tokens, kv_heads, head_dim) of ``states`` (batch, kv_heads, tokens, head_dim)."""
        # Attention's gradient lies token by token in memory, so that this is a view of it.
        by_token = states.transpose(1, 2).reshape(-1, self.kv_heads, self.head_dim)
        return by_token.index_select(0, self.columns if self.batch == 1 else self.rows * states.shape[2] + self.columns)

    def _put(self, states: Tensor, packed: Tensor) -> None:
        """Writes ``packed`` (tokens, kv_heads, head_dim) into the contiguous ``states``, in place."""
        first = self._heads if self.batch == 1 else self.rows[:, None] * self.kv_heads + self._heads
        vectors = first * states.shape[2] + self.columns[:, None]
        # Whole vectors move several times as fast as by states[rows, :, columns].
        states.view(-1, self.head_dim).index_copy_(0, vectors.flatten(), packed.view(-1, self.head_dim))

    def _spread(self, samples: Tensor) -> Tensor:
        """(n, batch) → (n, tokens, 1, 1), each token with its sample's; one sample's is broadcast."""
        return (samples if self.batch == 1 else samples[:, self.rows])[..., None, None]

    def _per_sample_norm(self, x: Tensor) -> Tensor:
        if self.batch == 1:
            return torch.linalg.vector_norm(x).view(1)
        squares = torch.linalg.vector_norm(x, dim=(1, 2)).square()
        return squares.new_zeros(self.batch).index_add_(0, self.rows, squares).sqrt_()
