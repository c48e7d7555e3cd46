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
    """Seconds of each forward pass of ``module`` within it. Synchronises the device before and after each."""
    started, seconds = [0.0], list[float]()

    def start(*_: object) -> None:
        started[0] = now(device)

    def stop(*_: object) -> None:
        seconds.append(now(device) - started[0])

    handles = [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()
