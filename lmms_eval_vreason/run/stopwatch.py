"""Wall time on a device that works behind our back."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def now(device: torch.device) -> float:
    """Seconds, when all that was handed to ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Stopwatch:
    """Seconds that were spent while it ran."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0
        self._started = 0.0

    def start(self) -> None:
        self._started = now(self.device)

    def stop(self) -> None:
        self.seconds += now(self.device) - self._started


@contextmanager
def timed(module: nn.Module, device: torch.device) -> Iterator[Stopwatch]:
    """A stopwatch that runs within the forward of ``module``. The device is waited for at each of its calls."""
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
