"""One run of lmms-eval's command on the fixture: its command line, the run itself, and its figures."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmms_eval_vreason.bench.fixture import FRAMES, TASK, Fixture
from lmms_eval_vreason.journal.files import FOLDER, latest_samples, read_records
from lmms_eval_vreason.report.files import read_json, read_json_lines

# The parts that a run's answering time is split into, and their words in the tables.
PARTS = {
    "reading": "waiting for videos",
    "vision": "vision tower",
    "prefill": "prefill",
    "ordinary": "ordinary steps",
    "due": "due steps",
    "rest": "everything else",
}
_LOG_LINES = 25


@dataclass(frozen=True)
class Row:
    """One row of the table: a model class with its arguments, a batch size and a dtype.

    ``delay`` seconds go before each video's reading.
    """

    name: str
    model: str
    arguments: str
    batch: int
    dtype: str
    delay: float = 0.0

    @property
    def key(self) -> dict[str, Any]:
        """What identifies the row in the JSON file."""
        return {"name": self.name, "batch": self.batch, "dtype": self.dtype, "delay": self.delay}

    @property
    def label(self) -> str:
        slowed = f", each reading delayed by {self.delay} s" if self.delay else ""
        return f"{self.name}, batch {self.batch}, {self.dtype}{slowed}"


@dataclass(frozen=True)
class Setup:
    """What all runs have in common: ``tokens`` are generated for each sample, on ``threads`` CPU threads."""

    fixture: Fixture
    device: str
    attention: str
    tokens: int
    threads: int


@dataclass(frozen=True)
class Measurement:
    """The figures of one run.

    Attributes:
        seconds: Of the whole ``command``; of its imports, task and model, up to the call of ``generate_until``
            (``loading``); of that call (``phase``); of what follows it (``scoring``); of CPU time within the call, all
            threads together (``cpu``); of reading that ran beside it (``reading_in_background``); and of the parts of
            the call, by the names of :data:`PARTS`, where ``reading`` is what generation waited for.
        readings: Videos read.
        vision_runs: Calls of the vision tower.
        peak_bytes: The process's largest resident memory; on CUDA the allocator's peak.
        attention: The attention implementation that the model loaded with.
        outputs: Document → (generated tokens, text).
    """

    seconds: dict[str, float]
    readings: int
    vision_runs: int
    peak_bytes: int
    attention: str
    outputs: dict[int, tuple[int, str]] = field(repr=False)

    @property
    def tokens(self) -> int:
        return sum(count for count, _ in self.outputs.values())


def command(row: Row, setup: Setup, output: Path) -> list[str]:
    """lmms-eval's command for a row, started through the probe."""
    fixture = setup.fixture
    pixels = fixture.side**2
    probe = {"output": str(output / "probe.json"), "delay": row.delay, "dtype": row.dtype}
    arguments = [
        f"pretrained={fixture.checkpoint},device={setup.device},attn_implementation={setup.attention}",
        f"min_pixels={pixels},max_pixels={pixels},max_num_frames={FRAMES}",
        row.arguments,
    ]
    return [
        *(sys.executable, "-m", "lmms_eval_vreason.bench.probe", json.dumps(probe)),
        *("--model", row.model, "--model_args", ",".join(arguments), "--batch_size", str(row.batch)),
        *("--include_path", str(fixture.task), "--tasks", TASK, "--gen_kwargs", f"max_new_tokens={setup.tokens}"),
        *("--output_path", str(output), "--log_samples"),
    ]


def execute(row: Row, setup: Setup) -> Measurement:
    """Runs the command in a folder of its own and reads its figures.

    Raises:
        ValueError: The command failed or left samples out; the message ends with the end of its log.
    """
    output = Path(tempfile.mkdtemp(dir=setup.fixture.folder))
    log = output / "log"
    started = time.time()
    with log.open("wb") as file:
        line, env = command(row, setup, output), _environment(setup)
        subprocess.run(line, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, check=False)
    try:
        return read_measurement(output, started, time.time(), samples=setup.fixture.samples)
    except ValueError as error:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
        raise ValueError(f"{row.label}: {error}. The end of its log:\n{end}") from error


def read_measurement(output: Path, started: float, ended: float, *, samples: int) -> Measurement:
    """The figures of a finished run.

    Args:
        output: lmms-eval's ``--output_path``, which holds the probe's file, the samples and (ours) the journal.
        started, ended: When the command did, in seconds since the epoch.
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
    records = _finished(output / FOLDER)
    calls, phase, loading = probe["calls"], probe["phase"], probe["started"] - started
    return Measurement(
        seconds={
            "command": ended - started,
            "loading": loading,
            "phase": phase,
            "scoring": ended - started - loading - phase,
            "cpu": probe["cpu"],
            "reading_in_background": probe["seconds"].get("reading (background)", 0.0),
            **_parts(probe, records),
        },
        readings=calls.get("reading", 0) + calls.get("reading (background)", 0),
        vision_runs=calls.get("vision", 0),
        peak_bytes=max([probe["peak_bytes"], *(record["peak_memory_bytes"] or 0 for record in records)]),
        attention=probe["attention"],
        outputs=outputs,
    )


def _finished(journal: Path) -> list[dict[str, Any]]:
    """The samples of a journal; none where there is no journal. Raises ValueError if one failed."""
    records = list(latest_samples(read_records(journal)).values()) if journal.exists() else []
    failed = [record["error"]["message"] for record in records if record["error"] is not None]
    if failed:
        raise ValueError(f"{len(failed)} samples failed, the first with: {failed[0]}")
    return records


def _parts(probe: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, float]:
    """``generate_until`` split up: ours by its journal, the stock class by what transformers' ``generate`` did."""
    seconds = probe["seconds"]
    parts = {"reading": seconds.get("reading", 0.0) + seconds.get("waiting", 0.0)}
    for part, watch in {"vision": "vision", "prefill": "prefill", "ordinary": "generate", "due": ""}.items():
        own = sum(record["seconds"].get(part, 0.0) for record in records)
        parts[part] = own if records else seconds.get(watch, 0.0)
    return {**parts, "rest": probe["phase"] - sum(parts.values())}


def _environment(setup: Setup) -> dict[str, str]:
    home = setup.fixture.folder / "home"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LMMS_EVAL_"))}
    return env | {
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "LMMS_EVAL_VREASON_CACHE": str(home / "vreason"),
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": str(setup.threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
