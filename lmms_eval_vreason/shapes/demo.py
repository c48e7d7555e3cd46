"""The whole story on a laptop: ``python -m lmms_eval_vreason.shapes.demo``.

Runs lmms-eval's own command twice on the synthetic questions, with the base model and under V-Reason, and sets
the two side by side.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from lmms_eval_vreason.paths import tasks_dir
from lmms_eval_vreason.report.journals import trace_arrays
from lmms_eval_vreason.report.runs import RunResults, read_run
from lmms_eval_vreason.shapes import checkpoint_dir
from lmms_eval_vreason.shapes.architecture import MAX_PIXELS, MIN_PIXELS

# Frames as the checkpoint was trained on them: eight of 84 x 84 pixels, two a second.
_VIDEO = f"fps=2,max_num_frames=8,min_pixels={MIN_PIXELS},max_pixels={MAX_PIXELS}"


@dataclass(frozen=True)
class Row:
    """One run in figures: accuracy and its standard error in points, the rest means over questions."""

    name: str
    questions: int
    accuracy: float
    error: float
    thinking_tokens: float
    entropy: float
    updates: float


def evaluate(folder: Path, method: str, questions: int, batch_size: int) -> None:
    """Runs lmms-eval's command on ``questions`` shapes questions, with its output under ``folder``.

    Raises:
        subprocess.CalledProcessError: if the command fails.
    """
    command = [sys.executable, "-m", "lmms_eval", "--model", "qwen2_5_vl_vreason", "--tasks", "shapes"]
    command += ["--model_args", f"pretrained=shapes,device=cpu,dtype=float32,{_VIDEO},{method}"]
    command += ["--include_path", str(tasks_dir()), "--limit", str(questions), "--batch_size", str(batch_size)]
    command += ["--output_path", str(folder), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(command, check=True, env={**offline, **os.environ})


def summarize(name: str, run: RunResults) -> Row:
    """A run's row.

    Raises:
        ValueError: if the run kept no journal.
    """
    if run.journal is None:
        raise ValueError(f"{run.path} has no journal, so there is no entropy to show: run the demo without journal=off")
    scores = 100 * run.samples["score"].to_numpy(float)
    entropy, _, owner = trace_arrays(run.journal, "entropy")
    means = np.bincount(owner, entropy) / np.bincount(owner)
    return Row(
        name,
        len(scores),
        float(scores.mean()),
        float(scores.std(ddof=1) / np.sqrt(len(scores))),
        float(run.samples["thinking_tokens"].mean()),
        float(means.mean()),
        float(run.samples["updates"].fillna(0).mean()),
    )


def side_by_side(rows: list[Row]) -> Table:
    """The runs as one table."""
    table = Table(title=f"shapes: {rows[0].questions} held-out questions, four options each")
    for heading in ("run", "accuracy, %", "thinking tokens", "mean entropy, nats", "updates a question"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for row in rows:
        accuracy = f"{row.accuracy:.1f} ± {row.error:.1f}"
        table.add_row(row.name, accuracy, f"{row.thinking_tokens:.1f}", f"{row.entropy:.3f}", f"{row.updates:.1f}")
    return table


def demo(args: argparse.Namespace) -> None:
    """Both runs and their comparison."""
    checkpoint_dir()
    output = Path(args.output)
    runs = {"base (policy=off)": (output / "base", "policy=off"), "V-Reason": (output / "vreason", args.method)}
    for folder, method in runs.values():
        evaluate(folder, method, args.questions, args.batch_size)
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(side_by_side([summarize(name, read_run(str(folder))) for name, (folder, _) in runs.items()]))
    console.print("A synthetic task and a tiny model: this shows the method at work, not that it helps on real videos.")
    for name, (folder, _) in runs.items():
        console.print(f"{name}: results, samples and journal under {folder}", highlight=False)
    console.print(f"More: vreason report base={output / 'base'} vreason={output / 'vreason'}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--questions", type=int, default=126, help="how many questions")
    parser.add_argument("--output", default="runs/demo", help="folder for both runs' files")
    parser.add_argument("--method", default="policy=switch", help="model arguments of the second run")
    parser.add_argument("--batch-size", type=int, default=21)
    demo(parser.parse_args())


if __name__ == "__main__":
    main()
