"""``--batch_size``: a number, or ``auto``, which grows while memory allows and steps down when it runs out."""

import os
import resource
import sys
import traceback
from pathlib import Path
from typing import Protocol

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from loguru import logger

# The most that `auto` tries where lmms-eval's --max_batch_size says nothing.
MOST = 64
# Share of the memory that a batch may take; later batches may have longer answers.
_SHARE = 0.9


class Memory(Protocol):
    """Measures what a batch takes."""

    def start(self) -> None:
        """Called before a batch."""

    def share(self) -> float:
        """Peak use since then, as a share of the memory that the model leaves."""


class DeviceMemory:
    """CUDA devices; the fullest one counts."""

    def __init__(self, devices: list[torch.device]) -> None:
        self._idle = {device: torch.cuda.memory_allocated(device) for device in devices}

    def start(self) -> None:
        for device in self._idle:
            torch.cuda.reset_peak_memory_stats(device)

    def share(self) -> float:
        return max(self._share(device, idle) for device, idle in self._idle.items())

    def _share(self, device: torch.device, idle: int) -> float:
        free, _ = torch.cuda.mem_get_info(device)
        room = free + torch.cuda.memory_reserved(device) - idle
        return (torch.cuda.max_memory_allocated(device) - idle) / max(room, 1)


class HostMemory:
    """The CPU's memory. The peak covers the process' whole life, so a share is too high rather than too low."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._idle = self._process.memory_info().rss

    def start(self) -> None:
        pass  # The system keeps one peak a process.

    def share(self) -> float:
        taken_now = self._process.memory_info().rss - self._idle
        room = available_bytes() / int(os.environ.get("LOCAL_WORLD_SIZE", 1)) + taken_now
        return max(_peak_bytes() - self._idle, 0) / max(room, 1)


def available_bytes() -> int:
    """Bytes of memory that this process can still get: the machine's, or its container's where that is less."""
    available = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        return min(available, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # No such files, or no limit ("max").
        return available


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_of(model: torch.nn.Module) -> Memory:
    """Measures the memory of the devices that the model lies on."""
    devices = {parameter.device for parameter in model.parameters()}
    cuda = sorted((device for device in devices if device.type == "cuda"), key=str)
    return DeviceMemory(cuda) if cuda else HostMemory()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error)


def release(error: BaseException) -> None:
    """Frees what a failed batch holds: its traceback's frames keep inputs and caches alive."""
    failed: BaseException | None = error
    while failed is not None:
        traceback.clear_frames(failed.__traceback__)
        failed = failed.__cause__ or failed.__context__
    clear_device_cache(garbage_collection=True)


class BatchSize:
    """How many samples are decoded together.

    ``auto`` starts at 1 and doubles as long as the memory of the last full batch says that twice as much will fit. If
    memory runs out all the same, it returns to the largest size that has worked, and then tries half of the way to the
    smallest that has failed, until at most an eighth could be gained. Any other failure leaves the size as it is.

    Attributes:
        now: The size to use next.
        found: The largest size that has worked, and not failed since.
    """

    def __init__(self, asked: int | str, most: int | None, memory: Memory) -> None:
        """Args: ``asked``, a number or ``auto``; ``most``, the bound of ``auto``."""
        self.auto = asked == "auto"
        self.now = 1 if self.auto else int(asked)
        self.found = 0
        self._most = most or MOST
        self._failed: int | None = None
        self._memory = memory
        self._warned = False

    def start(self) -> None:
        """Before a batch."""
        self._memory.start()

    def worked(self, size: int) -> None:
        """After an answered batch of ``size``."""
        self.found = max(self.found, size)
        if not self.auto or size < self.now:
            return
        share = self._memory.share()
        fits = int(_SHARE * size / share) if share > 0 else self._most
        self._set(max(1, min(self._more(size), fits, self._most)), f"a batch of {size} took {share:.0%} of the memory")

    def ran_out(self, size: int) -> None:
        """After a batch of ``size`` that ran out of memory."""
        if self.auto:
            self._failed = min(size, self._failed or size)
            if self.found >= size:
                self.found = size // 2
            self._set(max(1, min(self.now, self.found or size // 2)), f"memory ran out with {size}")
        elif size > 1 and not self._warned:
            self._warned = True
            logger.warning(f"memory ran out with {size} samples a batch: --batch_size auto finds what fits")

    def _more(self, size: int) -> int:
        """What to try after ``size``."""
        if self._failed is None:
            return 2 * size
        between = (size + self._failed) // 2
        return between if 8 * between > 9 * size else size

    def _set(self, size: int, reason: str) -> None:
        if size != self.now:
            logger.info(f"Batch size auto: {self.now} → {size} ({reason})")
            self.now = size
