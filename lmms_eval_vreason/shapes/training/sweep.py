"""V-Reason's settings on the tiny checkpoint.

    python -m lmms_eval_vreason.shapes.training.sweep --output runs/sweep.jsonl

Every setting answers the same held-out questions greedily, and is compared with the base model question by question. A
random sign is among the policies, as the control. A stopped sweep resumes from its output file.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from lmms_eval_vreason import VReason
from lmms_eval_vreason.shapes.dataset import Item, make_items
from lmms_eval_vreason.shapes.evaluate import Reasoner, standard_error

BASE = VReason(policy="off")
POLICIES = ("switch", "minimize", "maximize", "random")


@dataclass(frozen=True)
class SettingResult:
    """One setting's answers: ``right`` holds 0 or 1 a question; the figures are means over questions.

    ``shift`` is ‖ΔV‖/‖V‖ at a question's last token, so it does not depend on the values' scale.
    """

    setting: dict[str, Any]
    questions: int
    right: list[int]
    texts: list[str]
    tokens: float
    entropy: float
    updates: float
    shift: float


def settings(learning_rates: list[float], every: list[int]) -> list[VReason]:
    """The base model, all policies at each learning rate, and ``switch`` at the other intervals."""
    grid = [(policy, rate, every[0]) for rate in learning_rates for policy in POLICIES]
    grid += [("switch", rate, interval) for interval in every[1:] for rate in learning_rates]
    return [BASE, *(VReason(policy=policy, learning_rate=rate, update_every=n) for policy, rate, n in grid)]


def describe(method: VReason) -> dict[str, Any]:
    """The swept fields of a setting."""
    if not method.steers:
        return {"policy": "off"}
    return {"policy": method.policy, "learning_rate": method.learning_rate, "update_every": method.update_every}


def measure(reasoner: Reasoner, items: list[Item], method: VReason, batch_size: int) -> SettingResult:
    """The model's greedy answers under ``method`` to all items."""
    answers = reasoner.answer(items, method=method, batch_size=batch_size)
    traces = answers.traces
    return SettingResult(
        setting=describe(method),
        questions=len(items),
        right=[int(hit) for hit in answers.right],
        texts=answers.texts,
        tokens=float(np.mean([len(trace.entropy) for trace in traces])),
        entropy=float(np.mean([trace.entropy.mean() for trace in traces])),
        updates=float(np.mean([trace.updates for trace in traces])),
        shift=float(np.mean([trace.shift[-1] for trace in traces])),
    )


def paired(right: list[int], base: list[int]) -> tuple[float, float]:
    """Mean difference in points, question by question, and its standard error."""
    difference = [100.0 * (one - other) for one, other in zip(right, base, strict=True)]
    return float(np.mean(difference)), standard_error(difference)


def table(found: list[SettingResult]) -> str:
    """All settings against the base model, which comes first, as a Markdown table."""
    base = next(result for result in found if result.setting == describe(BASE))
    rows = [_table_row(result, base) for result in (base, *(result for result in found if result is not base))]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def _table_row(result: SettingResult, base: SettingResult) -> dict[str, str]:
    right = [100.0 * hit for hit in result.right]
    accuracy = f"{np.mean(right):.1f}"
    row = dict.fromkeys(("policy", "learning rate", "every", "accuracy", "paired difference", "changed"), "")
    if result is base:
        row |= {"policy": "off (base)", "accuracy": f"{accuracy} ± {standard_error(right):.1f}"}
    else:
        mean, error = paired(result.right, base.right)
        changed = np.mean([one != other for one, other in zip(result.texts, base.texts, strict=True)])
        policy, rate, every = result.setting.values()
        row |= {"policy": policy, "learning rate": f"{rate:g}", "every": str(every), "accuracy": accuracy}
        row |= {"paired difference": f"{mean:+.1f} ± {error:.1f}", "changed": f"{changed:.1%}"}
    means = {"tokens": f"{result.tokens:.1f}", "entropy": f"{result.entropy:.3f}"}
    return {**row, **means, "updates": f"{result.updates:.1f}", "shift": f"{result.shift:.3f}"}


def sweep(args: argparse.Namespace) -> list[SettingResult]:
    """Runs the settings that the file ``args.output`` does not hold yet; returns all, in their order."""
    args.output.parent.mkdir(parents=True, exist_ok=True)
    lines = args.output.read_text().splitlines() if args.output.exists() else []
    found = {str(result.setting): result for line in lines if (result := SettingResult(**json.loads(line)))}
    wanted = {str(describe(method)): method for method in settings(args.learning_rates, args.update_every)}
    if any(result.questions != args.questions for result in found.values()):
        raise ValueError(f"{args.output} holds answers to another number of questions: give another --output")
    reasoner, items = Reasoner.load(args.checkpoint), make_items("test", args.questions)
    for name, method in tqdm(wanted.items(), desc="settings"):
        if name not in found:
            found[name] = measure(reasoner, items, method, args.batch_size)
            with args.output.open("a") as file:
                file.write(json.dumps(asdict(found[name])) + "\n")
    return [found[name] for name in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON Lines file: one line a setting")
    parser.add_argument("--checkpoint", help="a folder; the packaged checkpoint if left out")
    parser.add_argument("--questions", type=int, default=900, help="how many of the test split (%(default)s)")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[0.01, 0.03, 0.1, 0.3])
    parser.add_argument("--update-every", type=int, nargs="+", default=[2, 1, 4], help="the first for all policies")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(table(sweep(args)))


if __name__ == "__main__":
    main()
