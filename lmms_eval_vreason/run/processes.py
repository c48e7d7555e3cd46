"""Several processes on one list of samples: each takes the next one, and none idles while another still has work.

lmms-eval deals documents out one by one, so that different processes get the questions on one video. Here every process
knows all waiting samples. A process reserves one group (the questions on one video) after another. When none is left,
it helps with the samples that others have reserved but not begun. The first to take a sample answers it: an atomic
count in a key-value store decides, so nothing has to be agreed on beforehand. Answer lengths are not known beforehand,
so shares fixed at the start would cost time: 9 to 17% at 8 processes (simulated, 60 videos with 3 to 18 questions).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store  # What torch.distributed gives, with types.

from lmms_eval_vreason.run.samples import Waiting

_POLL_SECONDS = 0.05
# For a process that vanishes with its machine; one that ends or is killed is noticed at once.
_TIMEOUT = timedelta(hours=6)
_STOPPED = "stopped"


class PeerStopped(RuntimeError):
    """Another process of this run has failed or is gone."""


class Team:
    """The processes that answer one list of requests together.

    Attributes:
        rank, size: This process' number, and how many there are.
    """

    def __init__(self, store: Store, rank: int = 0, size: int = 1, group: dist.ProcessGroup | None = None) -> None:
        """Args: ``store``, shared by all; ``group``, for what all exchange, where there are several processes."""
        self.rank, self.size = rank, size
        self._store, self._group = store, group

    @classmethod
    def alone(cls) -> "Team":
        """This process and no other."""
        return cls(HashStore())

    @classmethod
    def connect(cls, rank: int, size: int) -> "Team":
        """All processes of torch's default group; each of them has to call this."""
        # On the CPU, whatever the default group runs on: what is exchanged is text, the GPUs are full, and gloo notices
        # at once when a process is gone.
        group: Any = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        return cls(group.get_group_store(), rank, size, group)

    def close(self) -> None:
        """After a run that went well."""
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def count(self, name: str, more: int = 1) -> int:
        """Adds to a number that all processes share; the new number."""
        with self._reaching_peers():
            return int(self._store.add(name, more))

    def candidates(self, groups: Sequence[Sequence[Waiting]]) -> Iterator[Waiting]:
        """Samples for this process to take: group by group, then those that other processes have not begun.

        All processes have to give the same groups. Another process may take a sample before this one does.
        """
        while (reserved := self.count("groups") - 1) < len(groups):
            yield from groups[reserved]
        if self.size > 1:
            # From the end: the processes that reserved them work from the start.
            for waiting in (waiting for group in reversed(groups) for waiting in reversed(group)):
                if not self.count(_taken(waiting), 0):
                    yield waiting

    def take(self, waiting: Waiting) -> bool:
        """Whether this process is the one to answer the sample; true for one process only.

        Raises:
            PeerStopped: Another process has failed.
        """
        self.check_peers()
        return self.count(_taken(waiting)) == 1

    def stop(self, reason: str) -> None:
        """Tells the others that this process will not finish."""
        with suppress(dist.DistError):
            self._store.set(_STOPPED, f"process {self.rank} has stopped: {reason}")

    def check_peers(self) -> None:
        """Raises PeerStopped if another process has said that it will not finish."""
        with self._reaching_peers():
            self._check_stopped()

    def gather(self, value: Any, meanwhile: Callable[[], None] = lambda: None) -> list[Any]:
        """The values of all processes, by rank. Every process has to call it.

        Args:
            meanwhile: Called repeatedly until the last process has arrived.

        Raises:
            PeerStopped: A process has failed, or is gone.
        """
        if self.size == 1:
            return [value]
        # Not in a blocking call: a process that has failed may be alive and never come.
        barrier = dist.barrier(group=self._group, async_op=True)
        while not barrier.is_completed():
            self.check_peers()
            meanwhile()
            time.sleep(_POLL_SECONDS)
        values = [None] * self.size
        with self._reaching_peers():
            barrier.wait()
            dist.all_gather_object(values, value, group=self._group)
        return values

    def _check_stopped(self) -> None:
        if self.size > 1 and self._store.check([_STOPPED]):
            raise PeerStopped(self._store.get(_STOPPED).decode())

    @contextmanager
    def _reaching_peers(self) -> Iterator[None]:
        try:
            yield
        except PeerStopped:
            raise
        except RuntimeError as error:  # gloo's own errors have no type of their own.
            with suppress(dist.DistError):
                self._check_stopped()
            raise PeerStopped(f"another process of this run is gone ({str(error).splitlines()[0]})") from error


def _taken(waiting: Waiting) -> str:
    return f"taken/{waiting.owner}/{waiting.sample.index}"
