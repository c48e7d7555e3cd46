"""Where lmms-eval put a run: which samples files a path on the command line means."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lmms_eval_vreason.report.reading import read_json

_SAMPLES = re.compile(r"(?P<date>.+)_samples_(?P<task>.+)\.jsonl")


@dataclass(frozen=True)
class SamplesFile:
    """One ``*_samples_<task>.jsonl`` and the results file of the same run (None if it is missing)."""

    path: Path
    task: str
    results: Path | None


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
    if path.is_file() and path.name.endswith("_results.json"):
        date = path.name.removesuffix("_results.json")
        candidates = sorted(path.parent.glob(f"{date}_samples_*.jsonl"))
    elif path.is_file():
        candidates = [path]
    else:
        candidates = sorted(path.rglob("*_samples_*.jsonl"))
    files = [file for file in map(_samples_file, candidates) if file and fnmatchcase(file.task, pattern)]
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


def _samples_file(path: Path) -> SamplesFile | None:
    match = _SAMPLES.fullmatch(path.name)
    if not match:
        return None
    results = path.with_name(f"{match['date']}_results.json")
    return SamplesFile(path, match["task"], results if results.exists() else None)


def _refuse_mixture(path: Path, files: Sequence[SamplesFile]) -> None:
    models = {}
    for results in {file.results for file in files if file.results}:
        config = read_json(results).get("config", {})
        models.setdefault((config.get("model"), str(config.get("model_args"))), []).append(results)
    if len(models) > 1:
        lines = [f"  {max(paths)}  ({model}: {arguments})" for (model, arguments), paths in models.items()]
        raise ValueError(
            f"{path} holds runs with different model arguments; name one results file:\n" + "\n".join(sorted(lines))
        )
