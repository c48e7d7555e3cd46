"""Runs of the method on the language rig: the base model's tokens under any setting (the package's replay), or free."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from smollm2 import Rig
from torch import Tensor

from lmms_eval_vreason import Trace, VReason
from lmms_eval_vreason.calibrate.replay import Prompts, replay
from lmms_eval_vreason.engines.hf.generation import generate
from lmms_eval_vreason.report.statistics import standard_error

OFF = VReason(policy="off")


def new_tokens(
    rig: Rig, method: VReason, prompts: Prompts, count: int, **settings: Any
) -> tuple[list[list[int]], list[Trace]]:
    """Each prompt's at most ``count`` new tokens, the end token included, and the traces. ``settings``: generate's."""
    inputs = prompts.arguments(rig.model)
    settings = {"do_sample": False, **settings}
    result = generate(rig.model, method, **inputs, max_new_tokens=count, **settings)
    return result.new_tokens(inputs["input_ids"].shape[1]), result.traces


class FixedLayers:
    """What reaches the last layer, noted in one run. Under fixed tokens it is the same in all others, to the bit.

    So they need not compute it again: :meth:`given` leaves out the layers between the first, which counts the cache's
    tokens, and the last, which is steered.
    """

    def __init__(self, model: Any) -> None:
        self.layers = model.model.language_model.layers
        self.states: list[Tensor] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Within it a run's states are noted."""
        handle = self.layers[-2].register_forward_hook(lambda layer, args, output: self.states.append(output))
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def given(self) -> Iterator[None]:
        """Within it one run takes the noted states."""
        states, left_out = iter(self.states), self.layers[1:-1]
        for layer in left_out:
            layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
        left_out[-1].forward = lambda *args, **kwargs: next(states)
        try:
            yield
        finally:
            for layer in left_out:
                del layer.forward


class Replay:
    """The base model's own answers, given to any setting.

    Attributes:
        answers: One list of tokens a prompt.
        base: What policy ``off`` gives, as :meth:`run` gives it.
        traces: Of the last run.
    """

    def __init__(self, rig: Rig, prompts: Prompts, answers: list[list[int]]) -> None:
        self.rig, self.prompts, self.answers = rig, prompts, answers
        self.traces: list[Trace] = []
        self._base: list[Tensor] = []
        self._layers = FixedLayers(rig.model)
        with self._layers.noted():
            self.base = self._run(OFF)

    def run(self, method: VReason, *, whole: bool = False) -> dict[str, np.ndarray]:
        """(prompts, tokens) arrays, nan after an answer's end: ``entropy`` of the distribution that a token was chosen
        from, ``kl`` to the base's, ``changed``, and the trace's ``alpha`` and ``shift``.

        ``whole``: runs all layers, which gives the same.
        """
        with nullcontext() if whole else self._layers.given():
            return self._run(method)

    def _run(self, method: VReason) -> dict[str, np.ndarray]:
        model = self.rig.model
        replayed = replay(model, method, self.prompts.arguments(model), self.answers, self._base, do_sample=False)
        self.traces = replayed.traces
        noted = {name: [getattr(trace, name) for trace in self.traces] for name in ("alpha", "shift")}
        seen = {name: getattr(replayed, name) for name in ("entropy", "kl", "changed")}
        return {name: ragged(rows) for name, rows in (seen | noted).items()}

    def at_temperature(self, temperature: float) -> dict[str, np.ndarray]:
        """``entropy`` and ``kl`` of the base's own distributions at a temperature, as :meth:`run`."""
        columns: dict[str, list[Tensor]] = {"entropy": [], "kl": []}
        for base in self._base:
            log_p = (base / temperature).log_softmax(dim=-1)
            columns["entropy"].append(-(log_p.exp() * log_p).sum(dim=-1))
            columns["kl"].append((base.exp() * (base - log_p)).sum(dim=-1))
        lengths = [len(answer) for answer in self.answers]
        return {
            name: ragged([row[:n] for row, n in zip(torch.stack(column, dim=1), lengths, strict=True)])
            for name, column in columns.items()
        }


def ragged(rows: Sequence[Any]) -> np.ndarray:
    """(rows, longest) float64, nan after a row's end."""
    result = np.full((len(rows), max(map(len, rows))), np.nan)
    for filled, row in zip(result, rows, strict=True):
        filled[: len(row)] = np.asarray(row, dtype=float)
    return result


def mean(x: np.ndarray) -> tuple[float, float]:
    """Mean over all tokens, (questions, tokens) with nan where there is none, and its error clustered by question."""
    rows, _ = there = np.isfinite(x).nonzero()
    return float(x[there].mean()), standard_error(x[there], rows)
