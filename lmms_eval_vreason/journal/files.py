"""A journal's files: what a run writes as its samples finish, read back.

A journal is a folder with two files a process and run. ``<run>-rank<k>.jsonl`` has a line of kind ``run`` a start (how
the samples are made) and a line of kind ``sample`` a finished sample. ``<run>-rank<k>.traces.jsonl`` has the traces,
token by token, each written before its sample's line, which holds its place. A line that a killed process left half
written is dropped, and of lines with the same key the last one counts. The page ``docs/journal.md`` has the fields.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 2
FOLDER = "vreason_journal"
_TRACES = ".traces.jsonl"

Record = dict[str, Any]


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


@dataclass(frozen=True)
class Line:
    """One line of a journal file.

    Attributes:
        record: None where the line cannot be read.
        lost_trace: Whether the record's trace has not reached the disk.
    """

    number: int
    record: Record | None
    lost_trace: bool = False


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of one file, in order; a half-written last line is left out, a broken one has no record.

    Raises:
        JournalError: The file was written by another version of this package's journal.
    """
    traces = traces_path(path)
    traced = traces.stat().st_size if traces.exists() else 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                record = json.loads(raw)
            except ValueError:
                if not raw.endswith(b"\n"):
                    return
                record = None
            if not isinstance(record, dict) or "kind" not in record:
                yield Line(number, None)
                continue
            check_version(path, record)
            place = (record.get("trace") or {}).get("place", (0, 0))
            yield Line(number, record, lost_trace=sum(place) > traced)


def check_version(path: Path, record: Mapping[str, Any]) -> None:
    """Raises JournalError if a line of ``path`` was written by another version of the journal."""
    if (version := record.get("version", VERSION)) != VERSION:
        raise JournalError(
            f"{path}: is a journal of version {version}, and this package reads version {VERSION}. Move it away, or "
            "give the run another folder (journal=…)"
        )


def journal_files(folder: Path) -> list[Path]:
    """The samples' files of a journal folder (or the one file given), by name.

    Raises:
        JournalError: There is no such folder or file, or there is no journal in it.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise JournalError(f"{folder}: there is no such journal folder")
    files = samples_files(folder)
    if not files:
        inside = folder / FOLDER
        hint = f"give {inside}" if inside.is_dir() else f"give the folder that a run wrote, mostly named {FOLDER}"
        raise JournalError(f"{folder}: holds no journal (no .jsonl file): {hint}")
    return files


def samples_files(folder: Path) -> list[Path]:
    """The samples' files in a folder, by name; none if it holds none."""
    return sorted(path for path in folder.glob("*.jsonl") if not path.name.endswith(_TRACES))


def read_records(folder: Path, *, traces: bool = False) -> Iterator[Record]:
    """All readable records of a journal folder or file, file by file.

    Args:
        traces: Whether a sample's ``trace`` gets its columns, token by token, from the traces' file.

    Raises:
        JournalError: As :func:`journal_files` and :func:`read_lines`.
    """
    for path in journal_files(folder):
        for line in read_lines(path):
            if line.record is not None:
                yield with_trace(path, line.record) if traces else line.record


def latest_samples(records: Iterable[Mapping[str, Any]]) -> dict[str, Record]:
    """Key → the sample record of that key that counts, by :func:`counts_over`."""
    latest: dict[str, Record] = {}
    for record in records:
        if record.get("kind") == "sample" and "key" in record and counts_over(record, latest.get(record["key"])):
            latest[record["key"]] = dict(record)
    return latest


def counts_over(record: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> bool:
    """Whether a sample's record counts in place of one that was read before it: the newer one, but no failure over an
    answer. Another process may have tried the sample again, and its file may be read first."""
    return earlier is None or record.get("error") is None or earlier.get("error") is not None


def traces_path(path: Path) -> Path:
    """The traces' file beside a samples' file."""
    return path.with_name(path.name.removesuffix(".jsonl") + _TRACES)


def with_trace(path: Path, record: Record) -> Record:
    """A sample's record with its trace's columns; as it is where they are missing or were not kept.

    Args:
        path: The samples' file that the record is from.
    """
    place = (record.get("trace") or {}).get("place")
    if place is None or not traces_path(path).exists():
        return record
    with traces_path(path).open("rb") as file:
        file.seek(place[0])
        raw = file.read(place[1])
    try:
        columns = json.loads(raw)
    except ValueError:
        return record
    if columns.pop("key", None) != record.get("key"):
        return record
    return {**record, "trace": {**record["trace"], **columns}}
