"""What each setting of the method does to a trained language model.

    python tests/language/study.py --output runs/effect.jsonl

One JSON line a run: by replay on the base model's own tokens, and free-running. A second call goes on where the first
one stopped. `effect.py` makes tables and figures of it. It takes about an hour on one core.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clips import Question, questions
from replay import OFF, Prompts, Replay, new_tokens, ragged
from smollm2 import Rig
from tqdm import tqdm

from lmms_eval_vreason import VReason

QUESTIONS = 24
REPLAYED, FREE = 150, 100


@dataclass(frozen=True)
class Run:
    """One run of the study.

    Attributes:
        method: What differs from the package's defaults; the key ``preset`` names one of its presets.
        kind: ``replay``, ``greedy`` or ``sampled``.
        instruction: Of :data:`clips.INSTRUCTIONS`.
        seed: Of ``sampled``.
    """

    method: dict[str, Any]
    kind: str = "replay"
    instruction: str = "reason"
    seed: int = 0

    def vreason(self) -> VReason:
        """The method itself."""
        return VReason.preset(**{"name": "default", **{_NAME.get(key, key): x for key, x in self.method.items()}})


_NAME = {"preset": "name"}
KEPT: dict[str, Any] = {
    "keep_shift": True,
    "optimizer": "adam",
    "beta1": 0.0,
    "learning_rate": 1.0,
    "min_entropy": 1e-4,
}
FRESH: dict[str, Any] = {"keep_shift": False, "optimizer": "nsgd", "learning_rate": 1.0, "min_entropy": 0.5}


def replays() -> Iterator[dict[str, Any]]:
    """The settings of the replay, most of them with ``minimize``: its sign does not depend on the entropy's course."""
    kept = {**KEPT, "policy": "minimize", "update_every": 1, "min_entropy": 1e-4}
    fresh = {**FRESH, "policy": "minimize", "update_every": 1}
    yield {"policy": "off"}
    yield from (fresh, kept, {**kept, "update_every": 2})
    yield from ({**kept, "beta1": beta, "learning_rate": rate} for beta, rate in ((0.9, 0.01), (0.9, 1.0), (0.5, 1.0)))
    yield {**kept, "beta1": 0.9, "learning_rate": 0.01, "update_every": 2}
    yield {**kept, "beta2": 0.9}
    yield from ({**kept, "learning_rate": rate} for rate in (0.01, 0.1, 0.3, 3.0))
    yield from ({**fresh, "learning_rate": rate} for rate in (0.1, 0.3, 2.0, 3.0))
    yield from ({**fresh, "steps_per_update": n} for n in (2, 4))
    yield from ({**fresh, "learning_rate": 0.3, "steps_per_update": n} for n in (4, 10))
    yield from ({**kept, "update_every": 2, "steps_per_update": n, "learning_rate": 0.3} for n in (4, 10))
    yield from ({**kept, "min_entropy": 0.5, "steps_per_update": n} for n in (1, 2, 4))
    yield from ({**kept, "update_every": every} for every in (4, 8))
    yield from ({**fresh, "update_every": every} for every in (2, 4))
    yield from ({**kept, "optimizer": "nsgd", "learning_rate": rate} for rate in (0.3, 1.0, 3.0))
    yield from ({**fresh, "optimizer": "adam", "learning_rate": rate} for rate in (0.3, 1.0))
    yield from ({**setting, "norm": norm} for setting in (kept, fresh) for norm in ("token", "cache", "none"))
    yield from ({**kept, "min_entropy": gate} for gate in (1.0, 1.5))
    yield from ({**fresh, "min_entropy": gate} for gate in (1e-4, 1.0, 1.5))
    yield from ({**fresh, "head_topk": rows, "head_tail": tail} for rows, tail in ((0, 0.01), (256, 0.0), (1024, 0.0)))
    for setting in ({**kept, "update_every": 2}, fresh):
        yield {**setting, "policy": "maximize"}
        yield from ({**setting, "policy": "random", "seed": seed} for seed in range(4))
        switch = {**setting, "policy": "switch"}
        yield from ({**switch, "ema_decay": decay} for decay in (0.98, 0.95, 0.9, 0.8))
        yield from ({**switch, "ema_decay": decay, "ema_correction": True} for decay in (0.98, 0.9))


def presets(policies: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The package's presets under some policies."""
    yield from ({"preset": name, "policy": policy} for name in ("gentle", "default", "strong") for policy in policies)


def plan() -> list[Run]:
    """All runs."""
    runs = [Run(method) for method in (*replays(), *presets(("switch", "minimize", "maximize")))]
    base = {"policy": "off"}
    runs += [Run(method, instruction="story") for method in (base, *presets(("minimize", "maximize")))]
    free = [base, *presets(("switch", "minimize", "maximize"))]
    runs += [Run(method, "greedy") for method in free]
    sampled = [method for method in free if method.get("preset") != "gentle"]
    return runs + [Run(method, "sampled", seed=seed) for seed in range(3) for method in sampled]


@dataclass
class Study:
    """The rig with its questions, whose prefill and base answers all runs of one instruction share."""

    rig: Rig = field(default_factory=Rig.load)
    count: int = QUESTIONS
    _prompts: dict[str, tuple[list[Question], Prompts]] = field(default_factory=dict)
    _replays: dict[str, Replay] = field(default_factory=dict)

    def prompts(self, instruction: str) -> tuple[list[Question], Prompts]:
        """The questions, and their prompts."""
        if instruction not in self._prompts:
            asked = questions(self.count, instruction)
            inputs = [self.rig.inputs(question.description, question.text) for question in asked]
            self._prompts[instruction] = asked, Prompts.of(self.rig.model, inputs)
        return self._prompts[instruction]

    def replay(self, instruction: str = "reason", tokens: int = REPLAYED) -> Replay:
        """The base model's greedy answers. The last one stays in memory: its distributions take gigabytes."""
        if instruction not in self._replays:
            self._replays.clear()
            _, prompts = self.prompts(instruction)
            answers, _ = new_tokens(self.rig, OFF, prompts, tokens)
            self._replays[instruction] = Replay(self.rig, prompts, answers)
        return self._replays[instruction]

    def run(self, run: Run) -> dict[str, Any]:
        """Its figures: arrays as nested lists, (questions, tokens)."""
        if run.kind == "replay":
            arrays = self.replay(run.instruction).run(run.vreason())
            return {name: _rows(array) for name, array in arrays.items()}
        asked, prompts = self.prompts(run.instruction)
        settings: dict[str, Any] = {}
        if run.kind == "sampled":
            # Each question draws the same numbers under every setting.
            draws = [torch.Generator().manual_seed(1000 * run.seed + number) for number in range(len(asked))]
            settings = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0, "generators": draws}
        answers, traces = new_tokens(self.rig, run.vreason(), prompts, FREE, **settings)
        texts = [self.rig.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
        chosen_from = [trace.entropy + np.nan_to_num(trace.entropy_change) for trace in traces]
        return {
            "entropy": _rows(ragged(chosen_from)),
            "alpha": _rows(ragged([trace.alpha for trace in traces])),
            "tokens": answers,
            "right": [question.is_right(text) for question, text in zip(asked, texts, strict=True)],
            "texts": texts,
        }

    def temperatures(self, instruction: str = "reason") -> list[dict[str, Any]]:
        """The base model's own distributions at other temperatures, on its own tokens: the control."""
        replay = self.replay(instruction)
        steps = [round(0.5 + 0.05 * step, 2) for step in range(21)]
        return [
            {"temperature": step, **{name: _rows(x) for name, x in replay.at_temperature(step).items()}}
            for step in steps
        ]


def _rows(array: np.ndarray) -> list[list[float]]:
    """Without the nans that fill an answer's end."""
    return [[round(float(x), 5) for x in row[np.isfinite(row)]] for row in array]


def main() -> None:
    """Makes the runs that the file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--kind", choices=("replay", "greedy", "sampled"), help="these runs only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    written = options.output.read_text().splitlines() if options.output.exists() else []
    done = {json.dumps(json.loads(line)["run"], sort_keys=True) for line in written}
    runs = [run for run in plan() if options.kind in (None, run.kind)]
    # Two settings may be one: a preset, and the same in full.
    runs = list({json.dumps(asdict(run), sort_keys=True): run for run in runs}.values())
    left = [run for run in runs if json.dumps(asdict(run), sort_keys=True) not in done]
    study = Study()
    with options.output.open("a") as file:
        for run in tqdm(left, unit="run"):
            started = time.process_time()
            figures = study.run(run)
            seconds = round(time.process_time() - started, 1)
            file.write(json.dumps({"run": asdict(run), "seconds": seconds, **figures}) + "\n")
            file.flush()
        if left and options.kind in (None, "replay"):
            for line in study.temperatures():
                file.write(json.dumps({"run": {"kind": "temperature"}, **line}) + "\n")


if __name__ == "__main__":
    main()
