"""``--batch_size``: a number, or ``auto``, which doubles until memory runs out."""

import traceback

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from loguru import logger

# The most that `auto` tries where lmms-eval's --max_batch_size says nothing. Without a GPU it is less: there a process
# that takes too much memory is mostly killed, and gets no error from which to learn.
_MOST, _MOST_WITHOUT_GPU = 64, 8


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

    ``auto`` starts at 1 and doubles after each full batch. Where memory runs out it halves, and stops growing. Any
    other failure leaves the size as it is.

    Attributes:
        now: The size to use next.
    """

    def __init__(self, asked: int | str, most: int | None, device: torch.device) -> None:
        """Args: ``asked``, a number or ``auto``; ``most``, the bound of ``auto``; ``device``, the model's."""
        self.auto = asked == "auto"
        self.now = 1 if self.auto else int(asked)
        self._most = most or (_MOST if device.type == "cuda" else _MOST_WITHOUT_GPU)
        self._ran_out = False

    def worked(self, size: int) -> None:
        """After an answered batch of ``size``."""
        if self.auto and not self._ran_out and size == self.now:
            self.now = min(2 * size, self._most)

    def ran_out(self, size: int) -> None:
        """After a batch of ``size`` that ran out of memory."""
        if self.auto:
            self.now = max(1, min(self.now, size // 2))
            logger.info(f"Batch size auto: {self.now} from here on (memory ran out with {size})")
        elif size > 1 and not self._ran_out:
            logger.warning(f"memory ran out with {size} samples a batch: --batch_size auto finds what fits")
        self._ran_out = True
