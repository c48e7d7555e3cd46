"""How long a large report takes: ``python tests/report_scale.py FOLDER`` makes the runs once, then measures.

Six benchmarks, five runs, 5,000 samples each, every run with a journal of 120 to 230 tokens a sample (2 GB of JSON).
"""

import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from report_runs import STOCK, record, trace, write_journal, write_run
from tqdm import tqdm

from lmms_eval_vreason.cli import main

RUNS, SAMPLES = 5, 5000
TASKS = [task for task in STOCK if task != "some_task"]
CHAIN = "The square is red and moves to the right of the frame while the circle stays in its corner. " * 8


def journal_records(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for task in TASKS:
        for doc_id in range(SAMPLES):
            entropy = 0.2 + rng.random(int(rng.integers(120, 232)))
            yield record(task, doc_id, thinking=CHAIN, trace=trace(entropy.astype(np.float32)))


def make(folder: Path) -> None:
    """Writes the runs under ``folder``."""
    rng = np.random.default_rng(0)
    scores = {task: (rng.random(SAMPLES) < 0.5).astype(float) for task in TASKS}
    for index in tqdm(range(RUNS), desc="making runs"):
        own = {task: np.where(rng.random(SAMPLES) < 0.1, 1 - values, values) for task, values in scores.items()}
        run = write_run(folder / f"run{index}", own, model_args=f"pretrained=tiny,seed={index}", response=CHAIN)
        write_journal(run, journal_records(rng), model_args={"pretrained": "tiny", "seed": index})


def measure(folder: Path) -> None:
    """Runs ``vreason report`` on them, all formats and figures, and prints seconds and memory."""
    started, cpu = time.perf_counter(), time.process_time()
    arguments = [f"run{index}={folder / f'run{index}'}" for index in range(RUNS)]
    main(["report", *arguments, "--output", str(folder / "report")])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{time.perf_counter() - started:.1f} s, CPU {time.process_time() - cpu:.1f} s, peak memory {memory:.2f} GB")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if not (place / f"run{RUNS - 1}").exists():
        make(place)
    measure(place)
