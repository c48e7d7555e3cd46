"""The writer of one process' journal: whole lines, flushed as samples finish, and the samples of earlier runs."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO

from lmms_eval_vreason.journal.files import (
    VERSION,
    JournalError,
    Record,
    latest_samples,
    read_lines,
    samples_files,
    traces_path,
)

_SHOWN = 40  # characters of a setting that a message shows


class Journal:
    """Writes one process' samples, and knows what earlier runs have finished.

    Attributes:
        folder, path: The journal's folder, and this process' file of samples in it.
        finished: Key → record of each sample that an earlier run answered, whose trace is there as well.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], *, rank: int = 0, resume: bool = True) -> None:
        """Opens the journal, and locks this process' files against another run.

        Args:
            run: How the samples are made: ``run`` (digest of the settings), ``settings``, and whatever else belongs
                into the line of kind ``run``.

        Raises:
            JournalError: The folder cannot be made or written to, another run is writing to it, or it holds a journal
                of another version.
        """
        self.folder = Path(folder).expanduser()
        self.path = self.folder / f"{run['run'][:12]}-rank{rank}.jsonl"
        self._run: dict[str, Any] = dict(run)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.path.with_suffix(".lock"))
            earlier = list(_earlier(self.folder)) if resume else []
            self._samples, self._traces = _Lines(self.path), _Lines(traces_path(self.path))
        except OSError as error:
            raise JournalError(f"{self.folder}: the journal cannot be written ({error.strerror})") from error
        self._settings = {record["run"]: record.get("settings", {}) for record in earlier if record["kind"] == "run"}
        latest = latest_samples(earlier)
        self.finished = {key: record for key, record in latest.items() if record["error"] is None}
        self._failed = latest.keys() - self.finished.keys()
        self._made_by = {_identity(record): record["run"] for record in self.finished.values()}
        self._samples.add({"kind": "run", "version": VERSION, **run})

    def add(self, record: Mapping[str, Any], trace: Mapping[str, Any] | None = None) -> None:
        """Writes a finished sample: its trace first, so that the sample's line says that both are there.

        Raises:
            JournalError: A line cannot be written, on a full disk for instance. What stood before stays whole.
        """
        if trace is not None:
            place = self._traces.add({"key": record["key"], **trace})
            record = {**record, "trace": {**record["trace"], "place": place}}
        self._samples.add({"kind": "sample", "version": VERSION, "run": self._run["run"], **record})

    def note(self, kind: str, record: Mapping[str, Any]) -> None:
        """Writes a line of another kind, on how the samples that follow are made.

        Raises:
            JournalError: As for :meth:`add`.
        """
        self._samples.add({"kind": kind, "version": VERSION, "run": self._run["run"], **record})

    def why_not(self, key: str, identity: Mapping[str, Any]) -> str:
        """Why the journal does not answer a sample that it knows, for the user; empty if it does not know it.

        Args:
            identity: The sample's task, split, doc_id and repeat.
        """
        if key in self._failed:
            return "failed before"
        run = self._made_by.get(_identity(identity))
        if run is None:
            return ""
        if run == self._run["run"]:
            return "had another prompt, media file or generation setting"
        settings = json.loads(json.dumps(self._run.get("settings", {}), default=str))
        return "were made with other settings: " + ", ".join(_differences(self._settings.get(run, {}), settings))

    def close(self) -> None:
        """Closes the files, and with them frees the lock."""
        for file in (self._samples, self._traces, self._lock):
            file.close()


class _Lines:
    """A file that grows by whole JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _drop_half_line(path)
        # Without a buffer: what could not be written must not be tried again later.
        self._file = path.open("ab", buffering=0)

    def add(self, record: Mapping[str, Any]) -> list[int]:
        """Writes a line; [its first byte, its length in bytes]."""
        text = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        # A lone surrogate has no UTF-8; its escape is JSON's own.
        line = text.encode("utf-8", "backslashreplace")
        start, rest = self._file.seek(0, os.SEEK_END), memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(start)
            raise JournalError(
                f"{self.path}: the journal cannot be written ({error.strerror}). Make room and run the same command "
                "again: finished samples are kept"
            ) from error
        return [start, len(line)]

    def close(self) -> None:
        self._file.close()


def _earlier(folder: Path) -> Iterator[Record]:
    """The records in a folder, but for samples whose traces have not reached the disk."""
    for path in samples_files(folder):
        for line in read_lines(path):
            if line.record is not None and not line.lost_trace:
                yield line.record


def _lock(path: Path) -> BinaryIO:
    """Locks a run's files until the file returned is closed, or its process ends in whatever way.

    Raises:
        JournalError: Another process holds the lock.
    """
    file = path.open("a+b", buffering=0)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return file  # A file system without locks.
        file.seek(0)
        holder = file.read().decode(errors="replace").strip()
        raise JournalError(
            f"{path.parent}: another run with the same settings is writing to this journal ({holder}), and both would "
            "do all the work. Wait for it or end it, or give this run a folder of its own (--output_path or journal=…)"
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file


def _drop_half_line(path: Path) -> None:
    """Takes off what a killed process left after the last whole line."""
    if path.exists() and path.stat().st_size:
        with path.open("r+b") as file:
            with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
                end = content.rfind(b"\n") + 1
            file.truncate(end)


def _identity(record: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(repr(record.get(name)) for name in ("task", "split", "doc_id", "repeat"))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """The settings that differ, each with its value before."""
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new)
        elif old != new:
            yield f"{name}={old}" if len(str(old)) <= _SHOWN else name
