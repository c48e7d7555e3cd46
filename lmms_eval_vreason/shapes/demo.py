"""The package at work on a laptop: ``python -m lmms_eval_vreason.shapes.demo``.

Runs lmms-eval's own command twice on the synthetic questions, with the base model and under V-Reason, and reports on
both side by side.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from lmms_eval_vreason.cli import main as vreason
from lmms_eval_vreason.paths import tasks_dir
from lmms_eval_vreason.shapes import checkpoint_dir

_RUNS = {"base": "policy=off", "vreason": "policy=switch"}


def evaluate(folder: Path, method: str, args: argparse.Namespace) -> None:
    """Runs lmms-eval's command on ``args.questions`` shapes questions, with its output under ``folder``.

    Raises:
        subprocess.CalledProcessError: The command failed.
    """
    command = [sys.executable, "-m", "lmms_eval", "--model", "qwen2_5_vl_vreason", "--tasks", "shapes"]
    command += ["--model_args", f"pretrained=shapes,device=cpu,{method}", "--include_path", str(tasks_dir())]
    command += ["--limit", str(args.questions), "--batch_size", str(args.batch_size)]
    command += ["--output_path", str(folder), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(command, check=True, env={**offline, **os.environ})


def main() -> None:
    """Both runs and their comparison; the last line is the path of the report's page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=126, help="how many questions (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for all results (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=21)
    args = parser.parse_args()
    checkpoint_dir()  # A missing checkpoint is an error before the first run starts.
    for name, method in _RUNS.items():
        evaluate(args.output / name, method, args)
    report = args.output / "report"
    vreason(["report", *(f"{name}={args.output / name}" for name in _RUNS), "--output", str(report)])
    print("A synthetic task and a tiny model: this shows the method at work, not that it helps on real videos.")
    print(report.with_name("report.html"))


if __name__ == "__main__":
    main()
