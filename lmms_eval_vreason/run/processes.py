"""Several processes on one list of samples: each takes what is next, and none idles while another still has work.

lmms-eval deals documents out to the processes one by one, so that questions on one video lie with different ones.
Here all processes know all waiting samples. A process reserves one group (the questions on one video) after another;
when none is left it helps with what the others have reserved but not yet begun. A sample belongs to whoever takes it
first: that is one atomic count in a key-value store, so nothing has to be agreed on beforehand.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from loguru import logger

from lmms_eval_vreason.run.records import Waiting

_POLL_SECONDS = 0.05
_SAY_SO_SECONDS = 60.0
# For a process that vanishes with its machine; one that ends or is killed is noticed at once.
_PATIENCE = timedelta(hours=6)
_STOPPED = "stopped"


class PeerStopped(RuntimeError):
    """Another process of this run has failed or is gone."""


class Team:
    """The processes that answer one list of requests together.

    Attributes:
        rank, size: This process' number, and how many there are.
    """

    def __init__(self, store: dist.Store, rank: int = 0, size: int = 1, group: dist.ProcessGroup | None = None) -> None:
        """Args: ``store``, shared by all; ``group``, for what all exchange, where there are several processes."""
        self.rank, self.size = rank, size
        self._store, self._group = store, group

    @classmethod
    def alone(cls) -> "Team":
        """This process and no other."""
        return cls(dist.HashStore())

    @classmethod
    def connect(cls, rank: int, size: int) -> "Team":
        """All processes of torch's default group; each of them has to call this."""
        # On the CPU, whatever the default group runs on: what is exchanged is text, the GPUs are full, and gloo notices
        # at once when a process is gone.
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        host = os.environ.get("MASTER_ADDR") or socket.gethostname()
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False) if rank == 0 else None
        address = [(host, store.port) if store is not None else None]
        dist.broadcast_object_list(address, src=0, group=group)
        if store is None:
            store = dist.TCPStore(*address[0], is_master=False, wait_for_workers=False)
        return cls(store, rank, size, group)

    def close(self) -> None:
        """After a run that went well."""
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def count(self, name: str, more: int = 1) -> int:
        """Adds to a number that all processes share; the new number."""
        with self._reaching_peers():
            return self._store.add(name, more)

    def candidates(self, groups: Sequence[Sequence[Waiting]]) -> Iterator[Waiting]:
        """Samples for this process to take: its share of the groups, then what the others have not begun.

        All processes have to give the same groups. A sample may be taken by another process before this one does.
        """
        while (reserved := self.count("groups") - 1) < len(groups):
            yield from groups[reserved]
        if self.size > 1:
            # From the end, since their owners come from the start.
            for waiting in (waiting for group in reversed(groups) for waiting in reversed(group)):
                if not self._is_taken(waiting):
                    yield waiting

    def take(self, waiting: Waiting) -> bool:
        """Whether the sample is this process' to answer; says yes to one process only.

        Raises:
            PeerStopped: Another process has failed.
        """
        self.check_peers()
        return self.count(_taken(waiting)) == 1

    def stop(self, reason: str) -> None:
        """Lets the others know that this process will not finish."""
        with suppress(dist.DistError):
            self._store.set(_STOPPED, f"process {self.rank} has stopped: {reason}")

    def check_peers(self) -> None:
        """Raises PeerStopped if another process has said that it will not finish."""
        with self._reaching_peers():
            if self.size > 1 and self._store.check([_STOPPED]):
                raise PeerStopped(self._store.get(_STOPPED).decode())

    def gather(self, value: Any, meanwhile: Callable[[], None] = lambda: None) -> list[Any]:
        """Everybody's value, by rank; all processes have to call this.

        Args:
            meanwhile: Called again and again until the last process is there.

        Raises:
            PeerStopped: A process has failed, or is gone.
        """
        if self.size == 1:
            return [value]
        self._meet(meanwhile)
        values = [None] * self.size
        with self._reaching_peers():
            dist.all_gather_object(values, value, group=self._group)
        return values

    def _meet(self, meanwhile: Callable[[], None]) -> None:
        # Not in a blocking call: a process that has failed may be alive and never come.
        barrier = dist.barrier(group=self._group, async_op=True)
        started, said = time.monotonic(), False
        while not barrier.is_completed():
            self.check_peers()
            meanwhile()
            if not said and time.monotonic() - started > _SAY_SO_SECONDS:
                said = True
                logger.info(f"Process {self.rank} waits for the others")
            time.sleep(_POLL_SECONDS)
        with self._reaching_peers():
            barrier.wait()

    def _is_taken(self, waiting: Waiting) -> bool:
        with self._reaching_peers():
            return self._store.check([_taken(waiting)])

    @contextmanager
    def _reaching_peers(self) -> Iterator[None]:
        try:
            yield
        except PeerStopped:
            raise
        except RuntimeError as error:  # gloo's own errors have no type of their own.
            with suppress(dist.DistError):
                if self._store.check([_STOPPED]):
                    raise PeerStopped(self._store.get(_STOPPED).decode()) from error
            raise PeerStopped(f"another process of this run is gone ({str(error).splitlines()[0]})") from error


def _taken(waiting: Waiting) -> str:
    return f"taken/{waiting.owner}/{waiting.sample.index}"
