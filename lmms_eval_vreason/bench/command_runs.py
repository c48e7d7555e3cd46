"""One run of lmms-eval's command on the fixture: its command line, the run itself, and its figures."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lmms_eval_vreason.bench.fixture import FRAMES, TASK, Fixture
from lmms_eval_vreason.journal.files import FOLDER, latest_samples, read_records
from lmms_eval_vreason.report.files import read_json, read_json_lines

_LOG_LINES = 25


@dataclass(frozen=True)
class Row:
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
        seconds: Of ``generate_until``, in ``wall`` and in ``CPU`` time, all threads together.
        peak_bytes: The process's largest resident memory; on CUDA the allocator's peak.
        texts: Document → generated text.
    """

    seconds: dict[str, float]
    peak_bytes: int
    texts: dict[int, str]


def command(row: Row, setup: Setup, output: Path) -> list[str]:
    """lmms-eval's command for a row, started through the probe."""
    fixture, pixels = setup.fixture, setup.fixture.side**2
    probe = {"output": str(output / "probe.json"), "dtype": row.dtype}
    arguments = [
        f"pretrained={fixture.folder}/checkpoint,device={setup.device},attn_implementation={setup.attention}",
        f"min_pixels={pixels},max_pixels={pixels},max_num_frames={FRAMES}",
        row.arguments,
    ]
    return [
        *(sys.executable, "-m", "lmms_eval_vreason.bench.probe", json.dumps(probe)),
        *("--model", row.model, "--model_args", ",".join(arguments), "--batch_size", str(row.batch)),
        *("--include_path", f"{fixture.folder}/task", "--tasks", TASK, "--log_samples"),
        *("--gen_kwargs", f"max_new_tokens={setup.tokens}", "--output_path", str(output)),
    ]


def execute(row: Row, setup: Setup) -> Measurement:
    """Runs the command in a folder of its own and reads its figures.

    Raises:
        ValueError: The command failed, or a sample is missing or has too few tokens; with the end of the log.
    """
    output = Path(tempfile.mkdtemp(dir=setup.fixture.folder))
    log = output / "log"
    with log.open("wb") as file:
        line, env = command(row, setup, output), _environment(setup)
        subprocess.run(line, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, check=False)
    try:
        samples = setup.fixture.videos * setup.fixture.questions
        return read_measurement(output, samples=samples, tokens=setup.tokens)
    except ValueError as error:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
        raise ValueError(f"{row.label}: {error}. The end of its log:\n{end}") from error


def read_measurement(output: Path, *, samples: int, tokens: int) -> Measurement:
    """The figures of a finished run.

    Args:
        output: lmms-eval's ``--output_path``, which holds the probe's file, the samples and (ours) the journal.
        samples: How many there have to be.
        tokens: How many each has to have. Times of unequal work are no ratio.

    Raises:
        ValueError: Something is missing, or a sample failed or has another number of tokens.
    """
    probe_file, files = output / "probe.json", sorted(output.rglob(f"*_samples_{TASK}.jsonl"))
    if not probe_file.exists() or len(files) != 1:
        raise ValueError("the run did not finish")
    answers = list(read_json_lines(files[0], []))
    probe, journal = read_json(probe_file), output / FOLDER
    records = list(latest_samples(read_records(journal)).values()) if journal.exists() else []
    if failed := [record["error"]["message"] for record in records if record["error"] is not None]:
        raise ValueError(f"{len(failed)} samples failed, the first with: {failed[0]}")
    made = {count["output_tokens"] for sample in answers for count in sample["token_counts"]}
    if len(answers) != samples or made != {tokens}:
        raise ValueError(f"it answered {len(answers)} of {samples} samples, with {sorted(made)} tokens for {tokens}")
    # On CUDA our class measures each batch anew, and the probe sees the last one.
    peaks = [record["peak_memory_bytes"] or 0 for record in records]
    texts = {sample["doc_id"]: str(sample["filtered_resps"]) for sample in answers}
    return Measurement(probe["seconds"], max([probe["peak_bytes"], *peaks]), texts)


def _environment(setup: Setup) -> dict[str, str]:
    home = setup.fixture.folder / "home"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LMMS_EVAL_"))}
    env |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    env |= {"LMMS_EVAL_VREASON_CACHE": str(home / "vreason"), "NO_COLOR": "1"}
    return env | {"OMP_NUM_THREADS": str(setup.threads), "TOKENIZERS_PARALLELISM": "false"}
