"""A reader that runs ahead: the next videos are decoded in the background while the device generates."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_MOST_READERS = 8  # Threads that read ahead for one batch.

Key = TypeVar("Key")
Value = TypeVar("Value")


def read_ahead(
    keys: Iterable[Key],
    read: Callable[[Key], Value],
    depth: int,
    at_least: Callable[[], int] = lambda: 0,
) -> Iterator[tuple[Key, Future[Value]]]:
    """(key, finished future) in the order of ``keys``, while later keys are read in the background.

    Equal neighbours share one reading. An exception of ``read`` stays in the future of its own key.

    Args:
        depth: How many different later keys are read ahead; 0 reads a key only when it is asked for.
        at_least: How many later keys to read at least (unless ``depth`` is 0), for example the next batch's.
    """
    keys = iter(keys)
    ahead: deque[tuple[Key, Future[Value]]] = deque()
    newest: tuple[Key, Future[Value]] | None = None
    # A batch waits for all of its videos, and nothing hides the first batch's reading: so they are read side by side.
    workers = max(depth, min(at_least(), _MOST_READERS), 1)
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="read-ahead") as pool:
        try:
            while True:
                while not ahead or (depth and (_readings(ahead) <= depth or len(ahead) <= at_least())):
                    if (key := next(keys, None)) is None:
                        break
                    if newest is None or newest[0] != key:
                        newest = key, pool.submit(read, key)
                    ahead.append(newest)
                if not ahead:
                    return
                done = ahead.popleft()
                done[1].exception()  # Waits for it.
                yield done
        finally:
            for _, future in ahead:
                future.cancel()


def _readings(ahead: Iterable[tuple[Key, Future[Value]]]) -> int:
    return len({id(future) for _, future in ahead})
