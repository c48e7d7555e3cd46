"""What must hold at every due step; where it does not, the engine stops instead of going on unsteered."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmms_eval_vreason.method.shift import Shift

if TYPE_CHECKING:
    from lmms_eval_vreason.engines.vllm.requests import Request
    from lmms_eval_vreason.engines.vllm.steering import Attended, PagedSeam

# How far ‖V‖ over a request's video may move between its updates where nothing is written: a preemption's prefill
# rounds in another way.
_NORM_TOLERANCE = 1e-3


class Checks:
    """The checks of one worker."""

    def __init__(self, slots: int, kept: bool, device: torch.device) -> None:
        """Args: ``kept``, whether V_new is in the pages."""
        self._kept = kept
        self._sizes = torch.zeros(slots, dtype=torch.float64, device=device)

    def forget(self, slots: Tensor) -> None:
        """New requests have the ``slots``."""
        self._sizes[slots] = 0.0

    def values(self, requests: "list[Request]", slots: Tensor, reached: "Attended", shift: Shift) -> None:
        """Raises RuntimeError unless the pages hold V (or V_new where it is kept) as they were left."""
        if self._kept:
            # To the bit, but for one norm over a whole video, whose sum depends on the batch's padding.
            distance = (reached.values - shift.moved()).float() * reached.video[:, None, :, None]
            allowed = _NORM_TOLERANCE * shift.size.flatten() if shift.norm.kind == "cache" else 0.0
            wrong = ~(torch.linalg.vector_norm(distance.flatten(1), dim=1) <= allowed)
        else:
            before, now = self._sizes[slots], shift.size.flatten().double()
            wrong = (before > 0) & ~((now - before).abs() <= _NORM_TOLERANCE * before)
            self._sizes[slots] = torch.where(before > 0, before, now)
        _raise(requests, wrong, "the values of its video in the cache are not those that were there at its last update")

    def tail(self, requests: "list[Request]", seam: "PagedSeam") -> None:
        """Raises RuntimeError unless the tail, from the pages on, gives the model's own hidden states."""
        own, ours = seam.reached.final, seam.first
        if ours is None:
            raise RuntimeError("steering lost: a due step ran without its forward")
        tolerance = max(100 * torch.finfo(torch.float32).eps, 8 * torch.finfo(own.dtype).eps)
        difference, scale = (ours - own).abs().amax(dim=1), own.abs().amax(dim=1)
        # A model whose states are not finite is decoded as it is.
        wrong = scale.isfinite() & ~(difference <= tolerance * scale)
        _raise(requests, wrong, "the last layer, computed from the cache, does not give the model's own hidden state")


def _raise(requests: "list[Request]", wrong: Tensor, what: str) -> None:
    faulty = [request.name for request, bad in zip(requests, wrong.tolist(), strict=True) if bad]
    if faulty:
        raise RuntimeError(f"steering lost at request {', '.join(faulty)}: {what}. Report it; policy=off goes on")
