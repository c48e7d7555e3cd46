"""JSON Lines files that a killed or crashed run may have left half-written."""

import json
from collections.abc import Iterator
from pathlib import Path


def read_json_lines(path: Path, notices: list[str]) -> Iterator[dict]:
    """Yields the objects of a JSON Lines file, one a line.

    A half-written last line is what a killed run leaves: it is dropped and said. A broken line elsewhere is dropped and
    said as well, with its number.

    Args:
        path: the file.
        notices: receives one sentence a finding.
    """
    broken: list[int] = []
    number, complete = 0, True
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            complete = line.endswith("\n")
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                broken.append(number)
                continue
            if isinstance(record, dict):
                yield record
            else:
                broken.append(number)
    if broken and broken[-1] == number and not complete:
        broken.pop()
        notices.append(f"{path.name}: the last line is half-written (a killed run) and was left out")
    if broken:
        shown = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
        notices.append(f"{path.name}: {len(broken)} lines are not JSON and were left out (line {shown})")


def read_json(path: Path) -> dict:
    """The object in a JSON file.

    Raises:
        ValueError: the file is not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON (line {error.lineno}): was the run killed while it wrote?") from error
