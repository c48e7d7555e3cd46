"""lmms-eval's output files: which samples files a path on the command line means, and how they are read.

A killed or crashed run may have left them half-written.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

_SAMPLES = re.compile(r"(?P<date>.+)_samples_(?P<task>[^/\\]+)\.jsonl")


@dataclass(frozen=True)
class SamplesFile:
    """One ``*_samples_<task>.jsonl``, and where the results file of the same run lies, if it was written."""

    path: Path
    task: str
    results: Path


def parse_run(argument: str) -> tuple[str, Path, str]:
    """``[label=]path[#tasks]`` → label, path, and a pattern of task names (``*`` = all).

    The default label is the folder's or file's name.
    """
    label, separator, path = argument.partition("=")
    if not separator or "/" in label:
        label, path = "", argument
    path, _, pattern = path.partition("#")
    found = Path(path).expanduser()
    return label or found.resolve().name, found, pattern or "*"


def find_samples(path: Path, notices: list[str], pattern: str = "*") -> list[SamplesFile]:
    """The samples files of one run under a path: the newest of each task whose name fits the pattern.

    Raises:
        ValueError: there is none, or the folder holds runs with different model arguments.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if path.is_dir():
        candidates = list(path.rglob("*_samples_*.jsonl"))
    elif path.name.endswith("_results.json"):
        candidates = list(path.parent.glob(f"{path.name.removesuffix('_results.json')}_samples_*.jsonl"))
    else:
        candidates = [path]
    matches = ((file, _SAMPLES.fullmatch(str(file))) for file in candidates)
    files = [
        SamplesFile(file, match["task"], Path(f"{match['date']}_results.json"))
        for file, match in matches
        if match and fnmatchcase(match["task"], pattern)
    ]
    if not files and pattern != "*":
        raise ValueError(f"{path} holds no samples of a task that fits {pattern!r}")
    if not files:
        raise ValueError(f"{path} holds no *_samples_*.jsonl: run lmms-eval with --log_samples and --output_path")
    _refuse_mixture(path, files)
    newest: dict[str, SamplesFile] = {}
    for file in sorted(files, key=lambda file: file.path.name):
        if file.task in newest:
            notices.append(f"{path}: task {file.task} was run more than once; {file.path.name} counts, as the newest")
        newest[file.task] = file
    return list(newest.values())


def _refuse_mixture(path: Path, files: Sequence[SamplesFile]) -> None:
    newest: dict[tuple[str, str], Path] = {}
    for results in sorted({file.results for file in files if file.results.exists()}):
        config = read_json(results).get("config", {})
        newest[str(config.get("model")), str(config.get("model_args"))] = results
    if len(newest) > 1:
        lines = sorted(f"  {results}  ({model}: {arguments})" for (model, arguments), results in newest.items())
        raise ValueError(
            f"{path} holds runs with different model arguments; name one results file:\n" + "\n".join(lines)
        )


def read_json_lines(path: Path, notices: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSON Lines file, one a line; lines that hold none are dropped.

    Args:
        path: the file.
        notices: receives one sentence for a half-written last line, and one for broken lines elsewhere.
    """
    broken: list[int] = []
    number, line = 0, "\n"
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line) if line.strip() else {}
            except json.JSONDecodeError:
                record = None
            if not isinstance(record, dict):
                broken.append(number)
            elif record:
                yield record
    if broken[-1:] == [number] and not line.endswith("\n"):  # what a killed run leaves
        broken.pop()
        notices.append(f"{path.name}: the last line is half-written (a killed run) and was left out")
    if broken:
        notices.append(f"{path.name}: {len(broken)} lines are not JSON and were left out (line {listed(broken)})")


def listed(values: Sequence[Any]) -> str:
    """The first five values, and that there are more."""
    return ", ".join(map(str, values[:5])) + (", …" if len(values) > 5 else "")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: the file is not JSON; the message names it.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON (line {error.lineno}): was the run killed while it wrote?") from error
    return content


def write_files(prefix: Path, contents: Mapping[str, str | bytes]) -> list[Path]:
    """Writes files and the folders above them.

    Args:
        prefix: the path that each file's name starts with.
        contents: what follows the prefix, as ``.csv`` → text or bytes.

    Returns:
        The files' paths.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True)
    paths = {prefix.with_name(prefix.name + ending): content for ending, content in contents.items()}
    for path, content in paths.items():
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(paths)
