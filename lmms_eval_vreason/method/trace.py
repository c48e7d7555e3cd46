"""What happened at each generated token, kept on the device until an update or the end asks for it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.policies import weight_of

# A trace's arrays, in order.
COLUMNS = ("entropy", "ema", "peak", "alpha", "entropy_change", "changed", "shift", "grad_norm")
# What an update leaves, in order.
_UPDATE = ("active", "alpha", "refreshed", "changed", "grad_norm", "shift")


@dataclass(frozen=True)
class Trace:
    """One sample's decoding, token by token. Arrays are float32, one entry a generated token (the end token included).

    Attributes:
        entropy: H of the next-token distribution before logits processors and before an update, nats.
        ema, peak: The entropy's moving average and its running peak, nats.
        alpha: The α an update used (-1 lowers the entropy, +1 raises it); 0 where no update was made.
        entropy_change: H after the update minus before, on the same token, nats; nan without update or refresh.
        changed: 1 where that made another token the likeliest, 0 where not; nan without update or refresh.
        shift: ‖ΔV‖ / ‖V‖ over the video tokens, after the token's update; 0 between updates where ΔV is not kept.
        grad_norm: L2 norm of the first step's gradient in ΔV, in its units, at an update; nan elsewhere.
        updates: How many updates were made.
        peak_index: The token (from 0) at which the EMA was highest; -1 if nothing was generated.
        video_tokens: How many video tokens the controller acted on (after Lite's pruning).
        seconds_prefill: Wall time of the batch's prefill, with pruning and the controllers' start.
        seconds_ordinary, seconds_due: Wall time of the batch's steps without and with an update, after the prefill. A
            due step at which no sample reaches ``min_entropy`` is one without.
        ordinary_steps, due_steps: How many steps these are.
        note: Why nothing was steered, or why it ended early; empty when all went well.
    """

    entropy: np.ndarray
    ema: np.ndarray
    peak: np.ndarray
    alpha: np.ndarray
    entropy_change: np.ndarray
    changed: np.ndarray
    shift: np.ndarray
    grad_norm: np.ndarray
    updates: int
    peak_index: int
    video_tokens: int
    seconds_prefill: float
    seconds_ordinary: float
    seconds_due: float
    ordinary_steps: int
    due_steps: int
    note: str

    @classmethod
    def of(cls, columns: Mapping[str, np.ndarray], *, note: str, fault: str, **facts: Any) -> "Trace":
        """A trace of its ``columns``, with what follows from them.

        Args:
            note: Counts where no update was made; ``fault`` (mostly empty) counts always.
            **facts: The fields that the columns do not tell.
        """
        if not np.isfinite(columns["entropy"]).all():
            fault = "the model's logits were not finite"
        facts |= {**columns, **totals(columns)}
        return cls(**facts, note=fault or ("" if facts["updates"] else note))


def totals(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """``updates`` and ``peak_index`` of a trace's columns."""
    ema = columns["ema"]
    return {
        "updates": int(np.count_nonzero(columns["alpha"])),
        "peak_index": int(ema.argmax()) if len(ema) else -1,
    }


class TraceRecorder:
    """Collects each token's figures, and waits for the device only when an update asks for the averages, or at the end.

    An ordinary token leaves its entropy and nothing else: the moving average is brought up to date when it is asked
    for, token by token as the paper has it.
    """

    def __init__(self, batch: int, method: VReason) -> None:
        self.batch, self.method = batch, method
        self.tokens = 0
        self._ema, self._peak = np.zeros(batch), np.zeros(batch)
        self._entropies: list[Tensor] = []
        self._rows: list[np.ndarray] = []
        self._updates: dict[int, list[Tensor]] = {}
        self._lengths, self._unfinished = [0] * batch, [True] * batch
        self._seconds_prefill, self._seconds = 0.0, [0.0, 0.0]
        self._since = time.perf_counter()

    def add(self, entropy: Tensor) -> None:
        """One token: its entropy (batch,), nats."""
        self._entropies.append(entropy)
        self.tokens += 1

    def averages(self) -> tuple[list[float], list[float]]:
        """The entropy's moving average and its peak of each sample, nats, the last token's entropy included."""
        for h in torch.stack(self._entropies).double().cpu().numpy() if self._entropies else ():
            weight = weight_of(len(self._rows), self.method.ema_decay, self.method.ema_correction)
            # As moving_average has it; neither nan nor infinity is below infinity.
            known = h < np.inf
            self._ema[known] += weight * (h - self._ema)[known]
            self._peak = np.maximum(self._peak, self._ema)
            self._rows.append(np.stack([h, self._ema, self._peak]))
        self._entropies.clear()
        return self._ema.tolist(), self._peak.tolist()

    def add_update(self, update: Mapping[str, Tensor]) -> None:
        """The last token's update; what it says of samples that were not ``active`` does not count.

        Args:
            update: ``active``, ``alpha``, ``refreshed`` (the entropy after it, nats; nan where it is not known),
                ``changed``, ``grad_norm`` and ``shift``, (batch,) each.
        """
        self._updates[self.tokens - 1] = [update[name] for name in _UPDATE]

    def prefilled(self, seconds: float) -> None:
        """The prefill is over; steps are timed from here on."""
        self._seconds_prefill, self._since = seconds, time.perf_counter()

    def chosen(self, unfinished: list[bool]) -> bool:
        """A token was chosen for each sample, which leaves those ``unfinished``. Whether all have ended."""
        self._lengths = [n + before for n, before in zip(self._lengths, self._unfinished, strict=True)]
        self._unfinished, now = unfinished, time.perf_counter()
        # The first token comes from the prefill.
        if self.tokens > 1:
            self._seconds[self.tokens - 1 in self._updates] += now - self._since
        self._since = now
        return not any(unfinished)

    def traces(self, video_tokens: list[int], notes: list[str], faults: list[str]) -> list[Trace]:
        """One :class:`Trace` a sample, cut to the tokens that it generated.

        ``notes`` say why no update was made, and count where none was; ``faults`` (mostly empty) count always.
        """
        columns, traces = self._columns(), []
        for i, (length, tokens, note, fault) in enumerate(zip(self._lengths, video_tokens, notes, faults, strict=True)):
            own = {name: column[:length, i].copy() for name, column in columns.items()}
            trace = Trace.of(
                own,
                note=note,
                fault=fault,
                video_tokens=tokens,
                seconds_prefill=self._seconds_prefill,
                seconds_ordinary=self._seconds[False],
                seconds_due=self._seconds[True],
                ordinary_steps=max(self.tokens - 1, 0) - len(self._updates),
                due_steps=len(self._updates),
            )
            traces.append(trace)
        return traces

    def _columns(self) -> dict[str, np.ndarray]:
        """(tokens, batch) arrays, by their names."""
        self.averages()
        batch, updated = self.batch, [*self._updates]
        tokens = np.array(self._rows, "float32").reshape(-1, 3, batch)
        columns = dict(zip(COLUMNS[:3], tokens.transpose(1, 0, 2), strict=True))
        rows = [torch.stack(column).tolist() for column in zip(*self._updates.values(), strict=True)]
        update = dict(zip(_UPDATE, np.array(rows, "float32").reshape(len(_UPDATE), -1, batch), strict=True))
        update["entropy_change"] = update["refreshed"] - columns["entropy"][updated]
        update["changed"] = np.where(np.isnan(update["refreshed"]), np.nan, update["changed"])
        elsewhere = {"alpha": 0, "entropy_change": np.nan, "changed": np.nan, "shift": 0, "grad_norm": np.nan}
        for name, nothing in elsewhere.items():
            columns[name] = np.full((self.tokens, batch), nothing, "float32")
            columns[name][updated] = np.where(update["active"] > 0, update[name], np.float32(nothing))
        if self.method.keep_shift:
            latest = np.searchsorted(updated, np.arange(self.tokens), side="right")
            columns["shift"] = np.concatenate([np.zeros((1, batch), "float32"), update["shift"]])[latest]
        return columns
