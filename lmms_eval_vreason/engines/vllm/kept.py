"""ΔV that stays from one update to the next, by request: packed for a step, and taken apart after it."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.shift import Shift

if TYPE_CHECKING:
    from lmms_eval_vreason.engines.vllm.requests import Request
    from lmms_eval_vreason.engines.vllm.steering import Attended


def pack(requests: "list[Request]", reached: "Attended", healthy: Tensor, method: VReason) -> Shift:
    """The requests' ΔV as they left it; 0 for one at its first update, whose V is that in ``reached``.

    Args:
        healthy: (rows,) bool. A request that is given up has its own V.
    """
    for request, values, mask in zip(requests, reached.values, reached.video, strict=True):
        request.kept = request.kept or [values.transpose(0, 1)[mask]]
    kept = [request.kept or [] for request in requests]
    shift = Shift(_padded([state[0] for state in kept], reached.video), reached.video, method)
    for number, tensor in enumerate([shift.turns, *shift.optimizer.state()], start=1):
        for row, state in enumerate(kept):
            if len(state) > number:
                own = state[number].transpose(0, 1)
                tensor[row, :, : own.shape[1]] = own
    shift.give_up(~healthy)
    return shift


def unpack(requests: "list[Request]", shift: Shift) -> None:
    """Leaves ΔV and the optimiser's state with each request, beside its V as prefilled: tokens first."""
    states = [shift.turns, *shift.optimizer.state()]
    for row, request in enumerate(requests):
        own = [state[row, :, : request.video].transpose(0, 1).clone() for state in states]
        request.kept = [*(request.kept or [])[:1], *own]


def _padded(states: list[Tensor], video: Tensor) -> Tensor:
    """(rows, kv_heads, video, head_dim), from (video of one, kv_heads, head_dim) each."""
    padded: Tensor = pad_sequence(states, batch_first=True)
    missing = video.shape[1] - padded.shape[1]
    return torch.nn.functional.pad(padded, (0, 0, 0, 0, 0, missing)).transpose(1, 2)
