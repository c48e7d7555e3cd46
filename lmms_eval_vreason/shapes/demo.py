"""The package at work on a laptop: ``python -m lmms_eval_vreason.shapes.demo``.

Runs lmms-eval's own command on the synthetic questions with the base model and under V-Reason, and shows both side by
side on one page, with one question's frames, thinking and updates.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from lmms_eval_vreason.cli import main as vreason
from lmms_eval_vreason.paths import tasks_dir
from lmms_eval_vreason.shapes import checkpoint_dir

_RUNS = {"base": "policy=off", "vreason": "preset=default", "strong": "preset=strong"}
ABOUT = "A synthetic task and a tiny model: this shows the method at work, not that it helps on real videos."


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


def one_page(report: Path, samples: dict[str, Path]) -> str:
    """The report's page, with what it is about on top and the pages of one question's answers at its end.

    Args:
        report: the page of ``vreason report``.
        samples: run → the page of ``vreason plot`` for the question.
    """
    head, _, end = report.read_text(encoding="utf-8").rpartition("</body>")
    head = head.replace("</h1>", f"</h1>\n<p class='warning'>{ABOUT}</p>", 1)
    for name, page in samples.items():
        (body,) = re.findall("<body>(.*)</body>", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        # What a page of its own calls h1 and h2 stands one step lower here.
        body = re.sub(r"(</?h)([12])>", lambda tag: f"{tag[1]}{int(tag[2]) + 2}>", body)
        head += f"<h2>One answer: {name}</h2>{body}"
    return f"{head}</body>{end}"


def main() -> None:
    """The runs and their comparison; the last line is the path of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=126, help="how many questions (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for all results (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=21)
    args = parser.parse_args()
    checkpoint_dir()  # A missing checkpoint is an error before the first run starts.
    for name, method in _RUNS.items():
        evaluate(args.output / name, method, args)
    report, samples = args.output / "report", {name: args.output / f"sample-{name}" for name in _RUNS}
    vreason(["report", *(f"{name}={args.output / name}" for name in _RUNS), "--output", str(report)])
    for name, prefix in samples.items():
        vreason(["plot", f"{args.output / name}#shapes/{args.questions // 2}", "--output", str(prefix)])
    page = args.output / "demo.html"
    pages = {name: prefix.with_suffix(".html") for name, prefix in samples.items()}
    page.write_text(one_page(report.with_suffix(".html"), pages), encoding="utf-8")
    print(ABOUT)
    print(page)


if __name__ == "__main__":
    main()
