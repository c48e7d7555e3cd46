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


def evaluate(folder: Path, method: str, questions: int, batch_size: int) -> None:
    """Runs lmms-eval's command on ``questions`` shapes questions, with its output under ``folder``.

    Raises:
        subprocess.CalledProcessError: The command failed.
    """
    command = [sys.executable, "-m", "lmms_eval", "--model", "qwen2_5_vl_vreason", "--tasks", "shapes"]
    command += ["--model_args", f"pretrained=shapes,device=cpu,{method}"]
    command += ["--include_path", str(tasks_dir()), "--limit", str(questions), "--batch_size", str(batch_size)]
    command += ["--output_path", str(folder), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(command, check=True, env={**offline, **os.environ})


def demo(args: argparse.Namespace) -> None:
    """Both runs and their comparison; the last line is the path of the report's page."""
    checkpoint_dir()  # A missing checkpoint is an error before the first run starts.
    output = Path(args.output)
    runs = {"base": "policy=off", "vreason": args.method}
    for name, method in runs.items():
        evaluate(output / name, method, args.questions, args.batch_size)
    report = output / "report"
    vreason(["report", *(f"{name}={output / name}" for name in runs), "--output", str(report)])
    print("A synthetic task and a tiny model: this shows the method at work, not that it helps on real videos.")
    print(report.with_name("report.html"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=126, help="how many questions (%(default)s)")
    parser.add_argument("--output", default="runs/demo", help="folder for both runs and the report (%(default)s)")
    parser.add_argument("--method", default="policy=switch", help="model arguments of the second run (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=21)
    demo(parser.parse_args())


if __name__ == "__main__":
    main()
