"""V-Reason's settings on the tiny checkpoint.

    python -m lmms_eval_vreason.shapes.training.sweep --output runs/sweep.jsonl

Every setting answers the same held-out questions greedily, and is compared with the base model question by question. A
random sign is among the policies, as the control. A stopped sweep resumes from its output file.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from lmms_eval_vreason import VReason
from lmms_eval_vreason.shapes.evaluate import Reasoner, standard_error
from lmms_eval_vreason.shapes.items import Item, make_items

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
    seconds: float


def settings(learning_rates: list[float], every: list[int]) -> list[VReason]:
    """The base model, all policies at each learning rate, and ``switch`` at the other intervals."""
    grid = [
        VReason(policy=policy, learning_rate=rate, update_every=every[0])
        for rate in learning_rates
        for policy in POLICIES
    ]
    others = [
        VReason(policy="switch", learning_rate=rate, update_every=interval)
        for interval in every[1:]
        for rate in learning_rates
    ]
    return [BASE, *grid, *others]


def describe(method: VReason) -> dict[str, Any]:
    """The swept fields of a setting."""
    if not method.steers:
        return {"policy": "off"}
    return {"policy": method.policy, "learning_rate": method.learning_rate, "update_every": method.update_every}


def measure(reasoner: Reasoner, items: list[Item], method: VReason, batch_size: int) -> SettingResult:
    """The model's greedy answers under ``method`` to all items."""
    started = time.perf_counter()
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
        seconds=time.perf_counter() - started,
    )


def paired(right: list[int], base: list[int]) -> tuple[float, float]:
    """Mean difference in points, question by question, and its standard error."""
    difference = 100 * (np.array(right) - np.array(base))
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))


def table(found: list[SettingResult]) -> str:
    """All settings against the base model, as a Markdown table."""
    base = next(result for result in found if result.setting == describe(BASE))
    rows = [_table_row(result, base) for result in (base, *(result for result in found if result is not base))]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def _table_row(result: SettingResult, base: SettingResult) -> dict[str, str]:
    setting, share = result.setting, float(np.mean(result.right))
    row = {
        "policy": setting["policy"],
        "learning rate": f"{setting.get('learning_rate', ''):g}" if result is not base else "",
        "every": str(setting.get("update_every", "")),
        "accuracy": f"{100 * share:.1f}",
        "paired difference": "",
        "changed": "",
        "tokens": f"{result.tokens:.1f}",
        "entropy": f"{result.entropy:.3f}",
        "updates": f"{result.updates:.1f}",
        "shift": f"{result.shift:.3f}",
    }
    if result is base:
        error = 100 * standard_error(share, base.questions)
        return row | {"policy": "off (base)", "accuracy": f"{100 * share:.1f} ± {error:.1f}"}
    mean, error = paired(result.right, base.right)
    changed = np.mean([one != other for one, other in zip(result.texts, base.texts, strict=True)])
    return row | {"paired difference": f"{mean:+.1f} ± {error:.1f}", "changed": f"{100 * changed:.1f}%"}


def sweep(args: argparse.Namespace) -> list[SettingResult]:
    """Runs the settings that ``args.output`` does not hold yet; returns all, in their order."""
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = output.read_text().splitlines() if output.exists() else []
    results = [SettingResult(**json.loads(line)) for line in lines]
    found = [result for result in results if result.questions == args.questions]
    wanted = settings(args.learning_rates, args.update_every)
    missing = [method for method in wanted if describe(method) not in [result.setting for result in found]]
    if missing:
        reasoner, items = Reasoner.load(args.checkpoint), make_items("test", args.questions)
        for method in tqdm(missing, desc="settings"):
            found.append(measure(reasoner, items, method, args.batch_size))
            with output.open("a") as file:
                file.write(json.dumps(asdict(found[-1])) + "\n")
    order = [describe(method) for method in wanted]
    return sorted((r for r in found if r.setting in order), key=lambda result: order.index(result.setting))


def parser() -> argparse.ArgumentParser:
    """The command line of the sweep."""
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    described.add_argument("--output", required=True, help="JSON Lines file: one line a setting")
    described.add_argument("--checkpoint", default=None, help="a folder; the packaged checkpoint if left out")
    described.add_argument("--questions", type=int, default=900, help="how many of the test split (%(default)s)")
    described.add_argument("--learning-rates", type=float, nargs="+", default=[0.01, 0.03, 0.1, 0.3])
    described.add_argument("--update-every", type=int, nargs="+", default=[2, 1, 4], help="the first for all policies")
    described.add_argument("--batch-size", type=int, default=100)
    described.add_argument("--threads", type=int, default=1)
    return described


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    print(table(sweep(args)))


if __name__ == "__main__":
    main()
