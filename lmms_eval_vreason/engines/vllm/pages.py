"""One layer's K and V in vLLM's pages, read and written without knowing the backend's layout."""

from typing import Any

import torch
from torch import Tensor

_DIGIT = 128  # Whole numbers up to it are exact in every dtype of a cache.


class Pages:
    """K and V of one attention layer as strided views: (pages, page size, kv_heads, head_dim) each.

    The layout is found by a probe: the backend's own write stores numbered entries into a scratch page.

    Attributes:
        size: Tokens a page.
    """

    def __init__(self, attention: Any) -> None:
        """Args: ``attention``, vLLM's attention layer. Raises TypeError where the layout is none that is known."""
        cache: Tensor = attention.kv_cache
        heads, dim = attention.num_kv_heads, attention.head_size
        entries = cache[0].numel()
        if cache.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise TypeError(f"V-Reason cannot steer a KV cache of {cache.dtype}: set kv_cache_dtype=auto")
        if entries % (2 * heads * dim) or not cache[0].is_contiguous():
            raise TypeError(f"V-Reason does not know a KV cache of shape {tuple(cache.shape)}: report the backend")
        self.size = entries // (2 * heads * dim)
        # In base 128, digit by digit.
        numbers, index = torch.arange(entries, device=cache.device), torch.zeros(entries, dtype=torch.long)
        for digit in range(4):
            scratch = torch.zeros_like(cache[:1])
            code = (numbers // _DIGIT**digit % _DIGIT).to(cache.dtype).view(2, self.size, heads, dim)
            slots = numbers[: self.size]
            attention.impl.do_kv_cache_update(attention, code[0].clone(), code[1].clone(), scratch, slots)
            index += scratch.flatten().long().cpu() * _DIGIT**digit
        places = torch.empty_like(index)
        places[index.clamp(max=entries - 1)] = torch.arange(entries)
        if not torch.equal(index.sort().values, torch.arange(entries)):
            raise TypeError("K and V of a page are no permutation of its entries: report the attention backend")
        shape = (self.size, heads, dim)
        self.k, self.v = (_view(cache, part) for part in places.view(2, *shape))

    def read(self, tables: Tensor) -> tuple[Tensor, Tensor]:
        """K and V, (rows, kv_heads, tokens, head_dim), of the pages in ``tables`` (rows, pages)."""
        return self.k[tables].flatten(1, 2).transpose(1, 2), self.v[tables].flatten(1, 2).transpose(1, 2)

    @torch.inference_mode()  # Only there may be written what was made there.
    def write_values(self, values: Tensor, slots: Tensor) -> None:
        """V (tokens, kv_heads, head_dim) into the ``slots`` (tokens,): page · size + place in it."""
        self.v[slots // self.size, slots % self.size] = values.to(self.v.dtype)


def _view(cache: Tensor, places: Tensor) -> Tensor:
    """All pages, from where one page's entries (page size, kv_heads, head_dim) lie in it."""
    base = int(places[0, 0, 0])
    strides = [int(places.select(axis, min(1, size - 1)).flatten()[0]) - base for axis, size in enumerate(places.shape)]
    line = torch.full_like(places, base)
    for axis, size in enumerate(places.shape):
        line += torch.arange(size).view([-1 if i == axis else 1 for i in range(3)]) * strides[axis]
    if not torch.equal(places, line):
        raise TypeError("a page's K and V are not a strided view of it: report the attention backend")
    shape = (cache.shape[0], *places.shape)
    return cache.as_strided(shape, (cache.stride(0), *strides), cache.storage_offset() + base)
