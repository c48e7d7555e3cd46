"""V-Reason's settings on the tiny checkpoint: ``python -m lmms_eval_vreason.shapes.sweep --output runs/sweep.jsonl``.

Every setting answers the same held-out questions greedily, and is compared with the base model question by question. A
random sign is among the policies, as the control. A stopped sweep goes on where it was.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from lmms_eval_vreason.method import VReason
from lmms_eval_vreason.shapes import checkpoint_dir
from lmms_eval_vreason.shapes.evaluate import MAX_NEW_TOKENS, prepare, read_answer
from lmms_eval_vreason.shapes.items import Item, make_items
from lmms_eval_vreason.shapes.render import sampled

BASE = VReason(policy="off")
POLICIES = ("switch", "minimize", "maximize", "random")


@dataclass(frozen=True)
class Answers:
    """One setting's answers: ``right`` holds 0 or 1 a question, the figures are means over questions.

    ``shift`` is ‖ΔV‖/‖V‖ at a question's last token: it says how far the values went whatever their scale is.
    """

    setting: dict
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


def describe(method: VReason) -> dict:
    """The swept fields of a setting."""
    if not method.steers:
        return {"policy": "off"}
    return {"policy": method.policy, "learning_rate": method.learning_rate, "update_every": method.update_every}


def answer(model, processor, items: list[Item], method: VReason, batch_size: int) -> Answers:
    """Greedy answers of ``model`` under ``method`` to all items."""
    texts: list[str] = []
    traces = []
    started = time.perf_counter()
    # Questions of one kind are about as long: batched together, few steps go to those that have finished.
    order = sorted(range(len(items)), key=lambda index: (items[index].question.kind, index))
    for start in tqdm(range(0, len(items), batch_size), desc=str(describe(method)), leave=False):
        part = [items[index] for index in order[start : start + batch_size]]
        inputs = prepare(processor, part, [sampled(item.pictures) for item in part])
        result = method.generate(model, **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        texts += processor.batch_decode(result.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        traces += result.traces
    by_item = dict(zip(order, texts, strict=True))
    texts = [by_item[index] for index in range(len(items))]
    return Answers(
        setting=describe(method),
        questions=len(items),
        right=[int(read_answer(text) == item.question.letter) for text, item in zip(texts, items, strict=True)],
        texts=texts,
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


def table(found: list[Answers]) -> str:
    """All settings against the base model, as a Markdown table."""
    base = next(answers for answers in found if answers.setting == describe(BASE))
    share = np.mean(base.right)
    error = 100 * np.sqrt(share * (1 - share) / (base.questions - 1))
    heads = "policy", "learning rate", "every", "accuracy", "paired difference", "changed"
    heads += "tokens", "entropy", "updates", "shift"
    lines = [
        f"| {' | '.join(heads)} |",
        f"|{' --- |' * len(heads)}",
        f"| off (base) | | | {100 * share:.1f} ± {error:.1f} | | | {base.tokens:.1f} | {base.entropy:.3f} | 0 | 0 |",
    ]
    for answers in found:
        if answers is base:
            continue
        mean, error = paired(answers.right, base.right)
        changed = np.mean([one != other for one, other in zip(answers.texts, base.texts, strict=True)])
        setting = answers.setting
        lines.append(
            f"| {setting['policy']} | {setting['learning_rate']:g} | {setting['update_every']} "
            f"| {100 * np.mean(answers.right):.1f} | {mean:+.1f} ± {error:.1f} | {100 * changed:.1f}% "
            f"| {answers.tokens:.1f} | {answers.entropy:.3f} | {answers.updates:.1f} "
            f"| {answers.shift:.3f} |"
        )
    return "\n".join(lines)


def sweep(args: argparse.Namespace) -> list[Answers]:
    """Runs the settings that ``args.output`` does not hold yet; gives all, in their order."""
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = output.read_text().splitlines() if output.exists() else []
    found = [Answers(**json.loads(line)) for line in lines]
    done = [answers.setting for answers in found if answers.questions == args.questions]
    checkpoint = args.checkpoint or checkpoint_dir()
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    items = make_items("test", args.questions)
    wanted = settings(args.learning_rates, args.update_every)
    for method in tqdm(wanted, desc="settings"):
        if describe(method) in done:
            continue
        answers = answer(model, processor, items, method, args.batch_size)
        found.append(answers)
        with output.open("a") as file:
            file.write(json.dumps(vars(answers)) + "\n")
    order = [describe(method) for method in wanted]
    chosen = [answers for answers in found if answers.setting in order and answers.questions == args.questions]
    return sorted(chosen, key=lambda answers: order.index(answers.setting))


def parser() -> argparse.ArgumentParser:
    """The command line of the sweep."""
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    described.add_argument("--output", required=True, help="JSON Lines file: one line a setting")
    described.add_argument("--checkpoint", default=None, help="a folder; the packaged checkpoint if left out")
    described.add_argument("--questions", type=int, default=900, help="the first so many questions of the test split")
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
