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


class Stopwatch:
    """Adds up the seconds between its starts and stops."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0
        self._started = 0.0

    def start(self) -> None:
        self._started = now(self.device)

    def stop(self) -> None:
        self.seconds += now(self.device) - self._started


@contextmanager
def timed(module: nn.Module, device: torch.device) -> Iterator[Stopwatch]:
    """A stopwatch that runs during the forward passes of ``module``, and synchronises the device at each."""
    watch = Stopwatch(device)
    handles = [
        module.register_forward_pre_hook(lambda *_: watch.start()),
        module.register_forward_hook(lambda *_: watch.stop()),
    ]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()
