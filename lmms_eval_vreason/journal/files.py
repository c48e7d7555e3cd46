"""One JSON line a finished sample, written and flushed as it finishes: resume, traces, errors.

A journal is a folder with one file a process and run, ``<run>-rank<k>.jsonl``. Its first line (``kind: run``) says how
the samples were made; each further one (``kind: sample``) is a finished sample. A line that a killed process left half
written is dropped. A later line with the same key replaces an earlier one.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmms_eval_vreason.method.trace import Trace

VERSION = 1
FOLDER = "vreason_journal"


class JournalError(ValueError):
    """A journal that cannot be read or written; the message names the file and the mend."""


def digest(value: Any) -> str:
    """Hex SHA-256 of a JSON-able value, the same for equal values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def file_identity(path: str) -> list[Any]:
    """What tells whether a file is still the same one: its path, size in bytes and time of change in ns."""
    try:
        status = os.stat(path)
    except OSError:
        return [path, None, None]
    return [path, status.st_size, status.st_mtime_ns]


def trace_record(trace: "Trace", tokens: list[str]) -> dict[str, Any]:
    """A trace as JSON: nan becomes null, numbers keep six significant digits."""
    # Here, because the reports read journals without torch.
    from lmms_eval_vreason.method.trace import COLUMNS

    return {
        "tokens": tokens,
        **{name: [_number(value) for value in getattr(trace, name)] for name in COLUMNS},
        "updates": trace.updates,
        "peak_index": trace.peak_index,
        "video_tokens": trace.video_tokens,
        "note": trace.note,
    }


def _number(value: float) -> float | int | None:
    value = float(value)
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() else rounded


@dataclass(frozen=True)
class Line:
    """One line of a journal file: its record, or why it could not be read."""

    path: Path
    number: int
    record: dict[str, Any] | None
    problem: str = ""


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of one file, in order; a half-written last line is left out; a broken one has a ``problem``."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                record = json.loads(raw)
                problem = "" if isinstance(record, dict) and "kind" in record else "is not a journal line"
            except ValueError as error:
                if not raw.endswith(b"\n"):
                    return
                record, problem = None, f"is not JSON ({error})"
            yield Line(path, number, None if problem else record, problem)


def journal_files(folder: Path) -> list[Path]:
    """The files of a journal folder (or the one file given), by name.

    Raises:
        JournalError: There is no such folder or file.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise JournalError(f"{folder}: there is no such journal folder")
    return sorted(folder.glob("*.jsonl"))


def read_records(folder: Path) -> Iterator[dict[str, Any]]:
    """All readable records of a journal folder or file, file by file."""
    for path in journal_files(folder):
        for line in read_lines(path):
            if line.record is not None:
                yield line.record


def latest_samples(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Key → the newest sample record of that key."""
    return {record["key"]: dict(record) for record in records if record.get("kind") == "sample" and "key" in record}


class Journal:
    """The writer of one process, and what earlier runs with the same settings have finished."""

    def __init__(self, folder: Path, run: dict[str, Any], *, rank: int = 0, resume: bool = True) -> None:
        """Args: ``run``, how the samples are made, everything that goes into the journal's first line.

        Raises:
            JournalError: The folder cannot be made or written to.
        """
        self.folder = Path(folder).expanduser()
        self.run = run["run"]
        self.path = self.folder / f"{self.run[:12]}-rank{rank}.jsonl"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.finished = self._finished() if resume else {}
            _drop_half_line(self.path)
            # Without a buffer: what could not be written must not be tried again behind our back.
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise JournalError(f"{self.folder}: the journal cannot be written ({error.strerror})") from error
        self._write({"kind": "run", "version": VERSION, **run})

    def _finished(self) -> dict[str, dict[str, Any]]:
        samples = latest_samples(read_records(self.folder))
        return {key: record for key, record in samples.items() if record.get("error") is None}

    def add(self, record: dict[str, Any]) -> None:
        """Writes one finished sample; it is on its way to the disk when this returns.

        Raises:
            JournalError: The line cannot be written, on a full disk for instance. What stood before stays whole.
        """
        self._write({"kind": "sample", "version": VERSION, "run": self.run, **record})

    def close(self) -> None:
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        # A lone surrogate has no UTF-8; its escape is JSON's own.
        rest = memoryview(line.encode("utf-8", "backslashreplace"))
        start = self._file.seek(0, os.SEEK_END)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(start)
            raise JournalError(
                f"{self.path}: the journal cannot be written ({error.strerror}). Make room and run the same command "
                "again: finished samples are kept"
            ) from error


def _drop_half_line(path: Path) -> None:
    """Takes off what a killed process left after the last whole line."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
