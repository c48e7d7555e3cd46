"""Runs of the method on the language rig: fixed tokens under every setting, or free ones.

A steered text soon differs from the base model's, and then their entropies are those of different texts. So a *replay*
makes the package's own ``generate`` choose the tokens that the base model chose, whatever the setting: contexts are the
same, token by token, and so is everything but the last layer's values.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from smollm2 import Rig
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from lmms_eval_vreason import Trace, VReason
from lmms_eval_vreason.engines.hf.generation import generate
from lmms_eval_vreason.engines.hf.prefix import Prefix, continued, prefill
from lmms_eval_vreason.report.statistics import standard_error

OFF = VReason(policy="off")


@dataclass(frozen=True)
class Prompts:
    """Prompts whose prefill is shared by all runs: their caches but for the last token."""

    prefixes: list[Prefix]
    suffixes: list[Tensor]

    @classmethod
    def of(cls, model: Any, inputs: Sequence[dict[str, Tensor]]) -> "Prompts":
        """``inputs``: one prompt each, unpadded."""
        along = ("input_ids", "attention_mask", "mm_token_type_ids")
        cut = [{name: x[:, :-1] if name in along else x for name, x in one.items()} for one in inputs]
        return cls([prefill(model, one) for one in cut], [one["input_ids"][0, -1:] for one in inputs])

    def rows(self, rows: Sequence[int]) -> "Prompts":
        """Some of them."""
        return Prompts([self.prefixes[row] for row in rows], [self.suffixes[row] for row in rows])


def new_tokens(
    rig: Rig, method: VReason, prompts: Prompts, count: int, **settings: Any
) -> tuple[list[list[int]], list[Trace]]:
    """Each prompt's at most ``count`` new tokens, the end token included, and the traces. ``settings``: generate's."""
    inputs = continued(rig.model, prompts.prefixes, prompts.suffixes)
    settings = {"do_sample": False, **settings}
    result = generate(rig.model, method, **inputs, max_new_tokens=count, **settings)
    start = inputs["input_ids"].shape[1]
    lengths = [len(trace.entropy) for trace in result.traces]
    rows = result.sequences[:, start:].tolist()
    return [row[:length] for row, length in zip(rows, lengths, strict=True)], result.traces


@dataclass
class Teacher(LogitsProcessor):
    """Makes ``generate`` choose the ``tokens``, and measures the distributions that it is shown against the base's.

    Attributes:
        tokens: (batch, tokens), padded with the end token.
        base: The base model's log probabilities of each token, (batch, vocabulary); filled where there are none.
        entropy, kl, changed: (batch,) a token: nats; KL(base ‖ shown), nats; whether the likeliest token differs.
    """

    tokens: Tensor
    base: list[Tensor]
    entropy: list[Tensor] = field(default_factory=list)
    kl: list[Tensor] = field(default_factory=list)
    changed: list[Tensor] = field(default_factory=list)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        at, log_p = len(self.entropy), scores.log_softmax(dim=-1)
        if at == len(self.base):
            self.base.append(log_p)
        base = self.base[at]
        self.entropy.append(-(log_p.exp() * log_p).sum(dim=-1))
        self.kl.append((base.exp() * (base - log_p)).sum(dim=-1))
        self.changed.append(base.argmax(dim=-1) != log_p.argmax(dim=-1))
        return torch.full_like(scores, -torch.inf).scatter_(1, self.tokens[:, at, None], 0.0)


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
        end, longest = rig.model.generation_config.eos_token_id, max(map(len, answers))
        self._tokens = torch.tensor([answer + [end] * (longest - len(answer)) for answer in answers])
        self.traces: list[Trace] = []
        self._log_p: list[Tensor] = []
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
        teacher = Teacher(self._tokens, self._log_p)
        settings = {"logits_processor": LogitsProcessorList([teacher])}
        tokens, self.traces = new_tokens(self.rig, method, self.prompts, self._tokens.shape[1], **settings)
        if tokens != self.answers:
            raise RuntimeError("the replay did not choose the tokens that it was given")
        seen = {name: torch.stack(getattr(teacher, name), dim=1) for name in ("entropy", "kl", "changed")}
        noted = {name: [getattr(trace, name) for trace in self.traces] for name in ("alpha", "shift")}
        return {
            **{name: ragged([x[: len(a)] for x, a in zip(rows, tokens, strict=True)]) for name, rows in seen.items()},
            **{name: ragged(rows) for name, rows in noted.items()},
        }

    def at_temperature(self, temperature: float) -> dict[str, np.ndarray]:
        """``entropy`` and ``kl`` of the base's own distributions at a temperature, as :meth:`run`."""
        columns: dict[str, list[Tensor]] = {"entropy": [], "kl": []}
        for base in self._log_p:
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
