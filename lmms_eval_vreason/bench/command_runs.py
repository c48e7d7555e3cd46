"""One run of lmms-eval's command on the fixture: which command, the run itself, and its figures."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmms_eval_vreason.bench.fixture import FRAMES, TASK, Fixture
from lmms_eval_vreason.journal.files import FOLDER, latest_samples, read_records
from lmms_eval_vreason.report.files import read_json, read_json_lines

PARTS = ("reading", "vision", "prefill", "ordinary", "due", "rest")
_LOG_LINES = 25


@dataclass(frozen=True)
class Entry:
    """One row of the table: a model class with its arguments, a batch size and a dtype."""

    name: str
    model: str
    arguments: str
    batch: int
    dtype: str

    @property
    def label(self) -> str:
        return f"{self.name}, batch {self.batch}, {self.dtype}"


@dataclass(frozen=True)
class Settings:
    """What all runs have in common."""

    fixture: Fixture
    device: str
    attention: str
    tokens: int
    threads: int


@dataclass(frozen=True)
class Measurement:
    """The figures of one run.

    Attributes:
        command: Seconds of the whole command.
        loading: Of these, imports, task and model, up to the call of ``generate_until``.
        phase: That call.
        cpu: Seconds of CPU time in it, all threads together.
        parts: ``phase`` split up, by the names of :data:`PARTS`. ``reading`` is what generation waited for.
        readings: Videos read, and the seconds of it that ran in the background.
        vision_runs: Calls of the vision tower.
        outputs: Document → (generated tokens, text).
        peak_bytes: Resident memory of the process; on CUDA the allocator's peak.
    """

    command: float
    loading: float
    phase: float
    cpu: float
    parts: dict[str, float]
    readings: int
    background: float
    vision_runs: int
    outputs: dict[int, tuple[int, str]] = field(repr=False)
    peak_bytes: int
    attention: str

    @property
    def tokens(self) -> int:
        return sum(count for count, _ in self.outputs.values())


def command(entry: Entry, settings: Settings, output: Path, delay: float = 0.0) -> list[str]:
    """lmms-eval's command for an entry, with the probe in front of it."""
    fixture = settings.fixture
    probe = {"output": str(output / "probe.json"), "delay": delay, "dtype": entry.dtype}
    arguments = [
        f"pretrained={fixture.checkpoint},device={settings.device},attn_implementation={settings.attention}",
        f"min_pixels={fixture.pixels},max_pixels={fixture.pixels},max_num_frames={FRAMES}",
        entry.arguments,
    ]
    return [
        *(sys.executable, "-m", "lmms_eval_vreason.bench.probe", json.dumps(probe)),
        *("--model", entry.model, "--model_args", ",".join(arguments), "--batch_size", str(entry.batch)),
        *("--include_path", str(fixture.task), "--tasks", TASK, "--gen_kwargs", f"max_new_tokens={settings.tokens}"),
        *("--output_path", str(output), "--log_samples"),
    ]


def execute(
    entry: Entry, settings: Settings, output: Path, *, delay: float = 0.0, tick: Callable[[], Any] = lambda: None
) -> Measurement:
    """Runs the command and reads its figures; ``tick`` is called about once a second meanwhile.

    Raises:
        ValueError: The command failed or left something out; the message ends with the end of its log.
    """
    output.mkdir(parents=True)
    log = output / "log"
    started = time.time()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command(entry, settings, output, delay),
            env=_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                try:
                    process.wait(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    tick()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    try:
        return read_measurement(output, started, time.time(), samples=settings.fixture.samples)
    except ValueError as error:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
        raise ValueError(f"{entry.label}: {error}. The end of its log:\n{end}") from error


def read_measurement(output: Path, started: float, ended: float, *, samples: int) -> Measurement:
    """The figures of a finished run.

    Args:
        output: lmms-eval's ``--output_path``, in which the probe's file, the samples and (ours) the journal lie.
        started, ended: Of the command, in seconds since the epoch.
        samples: How many there have to be.

    Raises:
        ValueError: Something is missing, or a sample failed.
    """
    probe_file, files = output / "probe.json", sorted(output.rglob(f"*_samples_{TASK}.jsonl"))
    if not probe_file.exists() or len(files) != 1:
        raise ValueError("the run did not finish")
    probe = read_json(probe_file)
    outputs = {}
    for sample in read_json_lines(files[0], []):
        (count,) = sample["token_counts"]
        outputs[sample["doc_id"]] = (count["output_tokens"], str(sample["filtered_resps"]))
    if len(outputs) != samples:
        raise ValueError(f"it answered {len(outputs)} of {samples} samples")
    seconds, calls = probe["seconds"], probe["calls"]
    parts, peak = _stock_parts(seconds), probe["peak_bytes"]
    if (output / FOLDER).exists():
        records = latest_samples(read_records(output / FOLDER)).values()
        failed = [record["error"]["message"] for record in records if record["error"] is not None]
        if failed:
            raise ValueError(f"{len(failed)} samples failed, the first with: {failed[0]}")
        parts = {part: sum(record["seconds"].get(part, 0.0) for record in records) for part in PARTS[1:5]}
        peak = max([peak, *(record["peak_memory_bytes"] or 0 for record in records)])
    parts = {"reading": seconds.get("reading", 0.0) + seconds.get("waiting", 0.0), **parts}
    parts["rest"] = probe["phase"] - sum(parts.values())
    return Measurement(
        command=ended - started,
        loading=probe["started"] - started,
        phase=probe["phase"],
        cpu=probe["cpu"],
        parts=parts,
        readings=calls.get("reading", 0) + calls.get("reading (background)", 0),
        background=seconds.get("reading (background)", 0.0),
        vision_runs=calls.get("vision", 0),
        outputs=outputs,
        peak_bytes=peak,
        attention=probe["attention"],
    )


def _stock_parts(seconds: dict[str, float]) -> dict[str, float]:
    """Without a journal: what transformers' ``generate`` did, seen from outside."""
    return {"vision": seconds["vision"], "prefill": seconds["prefill"], "ordinary": seconds["generate"], "due": 0.0}


def _environment(settings: Settings) -> dict[str, str]:
    home = settings.fixture.folder / "home"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LMMS_EVAL_"))}
    return env | {
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "LMMS_EVAL_VREASON_CACHE": str(home / "vreason"),
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": str(settings.threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
