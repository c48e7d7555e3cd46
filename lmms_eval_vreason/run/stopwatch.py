"""Wall time on an asynchronous device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def now(device: torch.device) -> float:
    """The clock in seconds, read after ``device`` has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def timed(module: nn.Module, device: torch.device) -> Iterator[list[float]]:
    """A list whose sum is the seconds of ``module``'s forward passes within it. Synchronises the device around each."""
    readings: list[float] = []
    handles = [
        module.register_forward_pre_hook(lambda *_: readings.append(-now(device))),
        module.register_forward_hook(lambda *_: readings.append(now(device))),
    ]
    try:
        yield readings
    finally:
        for handle in handles:
            handle.remove()
