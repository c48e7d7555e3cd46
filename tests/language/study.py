"""What each setting of the method does to a trained language model.

    python tests/language/study.py --output runs/effect.jsonl

One JSON line a run: by replay on the base model's own tokens, and free-running. A second call goes on where the first
one stopped. `effect.py` makes tables and figures of it. It takes about an hour on one core.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clips import Question, questions
from replay import Prompts, Replay, new_tokens, ragged
from smollm2 import Rig
from tqdm import tqdm

from lmms_eval_vreason import VReason

QUESTIONS, TOKENS, LONG = 12, 100, 200
# The presets in full: a file's lines stay readable when the package's change.
DEFAULT = VReason(
    learning_rate=1.0,
    update_every=2,
    keep_shift=False,
    optimizer="nsgd",
    beta1=0.0,
    steps_per_update=1,
    norm="head",
    ema_decay=0.9,
    ema_correction=False,
    min_entropy=0.5,
)
BASE = replace(DEFAULT, policy="off")
PRESETS = {
    "gentle": replace(DEFAULT, learning_rate=0.3),
    "default": DEFAULT,
    "strong": replace(DEFAULT, update_every=1),
}
# As published where that is known: ΔV stays.
KEPT = replace(DEFAULT, keep_shift=True, optimizer="adam")
_TEMPERATURES = {"kind": "temperature"}


@dataclass(frozen=True)
class Run:
    """One run of the study.

    Attributes:
        kind: ``replay``, ``greedy`` or ``sampled``.
        tokens: Most of an answer.
        seed: Of ``sampled``.
    """

    method: VReason
    kind: str = "replay"
    tokens: int = TOKENS
    seed: int = 0

    @property
    def key(self) -> str:
        """Its line in the file."""
        return json.dumps(asdict(self), sort_keys=True)


def settings() -> Iterator[VReason]:
    """What is replayed beside the presets, with ``minimize``: its sign does not depend on the entropy's course."""
    kept, strong = (replace(method, policy="minimize") for method in (KEPT, PRESETS["strong"]))
    yield from (kept, replace(kept, learning_rate=0.3))
    yield from (replace(kept, min_entropy=1e-4), replace(kept, update_every=1, min_entropy=1.0))
    yield from (replace(kept, update_every=every) for every in (1, 4))
    yield from (replace(kept, learning_rate=rate) for rate in (0.1, 3.0))
    yield from (replace(strong, learning_rate=rate) for rate in (0.3, 2.0))
    yield from (replace(strong, min_entropy=gate) for gate in (1e-4, 1.0))
    yield from (replace(kept, steps_per_update=4), replace(strong, steps_per_update=2))
    yield from (replace(kept, beta1=0.9), replace(kept, beta1=0.9, learning_rate=0.01, min_entropy=1e-4))
    yield from (replace(kept, keep_shift=False), replace(kept, optimizer="nsgd"), replace(strong, keep_shift=True))
    yield from (replace(kept, norm=norm) for norm in ("token", "cache", "none"))
    yield replace(strong, head_topk=0)


def under(*policies: str, names: Iterable[str] = PRESETS) -> list[VReason]:
    """The presets under each policy."""
    return [replace(PRESETS[name], policy=policy) for name in names for policy in policies]


def plan() -> list[Run]:
    """All runs, each once."""
    every_policy = "minimize", "maximize", "switch", "random"
    runs = [Run(method) for method in (BASE, *under(*every_policy), *settings())]
    default, strong = under("switch", names=["default", "strong"])
    runs += [Run(replace(method, policy="random", seed=1)) for method in (default, strong, KEPT)]
    free = [BASE, default, strong, *under("minimize", "maximize", names=["default"])]
    runs += [Run(method, "greedy") for method in (*free, replace(strong, policy="minimize"))]
    runs += [Run(method, "sampled", seed=seed) for seed in range(2) for method in (BASE, default, strong)]
    averages: list[dict[str, Any]] = [{}, {"ema_decay": 0.98}, {"ema_correction": True}]
    runs += [Run(BASE, tokens=LONG)]
    longer = (default, strong, KEPT)
    runs += [Run(replace(method, **average), tokens=LONG) for average in averages for method in longer]
    return list({run.key: run for run in runs}.values())


@dataclass
class Study:
    """The rig with its questions, whose prefill and base answers its runs share."""

    rig: Rig = field(default_factory=Rig.load)
    count: int = QUESTIONS
    _prompts: tuple[list[Question], Prompts] | None = None
    _replays: dict[int, Replay] = field(default_factory=dict)

    def prompts(self) -> tuple[list[Question], Prompts]:
        """The questions, and their prompts."""
        if self._prompts is None:
            asked = questions(self.count)
            inputs = [self.rig.inputs(question.description, question.text) for question in asked]
            self._prompts = asked, Prompts.of(self.rig.model, inputs)
        return self._prompts

    def replay(self, tokens: int = TOKENS) -> Replay:
        """The base model's greedy answers. The last one stays in memory: its distributions take half a gigabyte."""
        if tokens not in self._replays:
            self._replays.clear()
            _, prompts = self.prompts()
            answers, _ = new_tokens(self.rig, BASE, prompts, tokens)
            self._replays[tokens] = Replay(self.rig, prompts, answers)
        return self._replays[tokens]

    def run(self, run: Run) -> dict[str, Any]:
        """Its figures: arrays as nested lists, (questions, tokens)."""
        if run.kind == "replay":
            arrays = self.replay(run.tokens).run(run.method)
            return {name: _rows(array) for name, array in arrays.items()}
        asked, prompts = self.prompts()
        settings: dict[str, Any] = {}
        if run.kind == "sampled":
            # Each question draws the same numbers under every setting.
            draws = [torch.Generator().manual_seed(1000 * run.seed + number) for number in range(len(asked))]
            settings = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0, "generators": draws}
        answers, traces = new_tokens(self.rig, run.method, prompts, run.tokens, **settings)
        texts = [self.rig.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
        chosen_from = [trace.entropy + np.nan_to_num(trace.entropy_change) for trace in traces]
        return {
            "entropy": _rows(ragged(chosen_from)),
            "alpha": _rows(ragged([trace.alpha for trace in traces])),
            "tokens": answers,
            "right": [question.is_right(text) for question, text in zip(asked, texts, strict=True)],
            "texts": texts,
        }

    def temperatures(self) -> Iterator[dict[str, Any]]:
        """The base model's own distributions at other temperatures, on its own tokens: the control."""
        for percent in range(50, 151, 5):
            arrays = self.replay().at_temperature(percent / 100)
            yield {"temperature": percent / 100, **{name: _rows(array) for name, array in arrays.items()}}


def _rows(array: np.ndarray) -> list[list[float]]:
    """Without the nans that fill an answer's end."""
    return [[round(float(x), 5) for x in row[: np.flatnonzero(np.isfinite(row))[-1] + 1]] for row in array]


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
    left = [run for run in plan() if run.key not in done and options.kind in (None, run.kind)]
    study = Study()
    with options.output.open("a") as file:

        def write(line: dict[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        for run in tqdm(left, unit="run"):
            write({"run": asdict(run), **study.run(run)})
        if json.dumps(_TEMPERATURES) not in done:
            for line in list(study.temperatures()):
                write({"run": _TEMPERATURES, **line})


if __name__ == "__main__":
    main()
