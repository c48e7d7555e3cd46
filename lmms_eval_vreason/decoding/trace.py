"""What happened at each generated token, kept on the device and moved to the host in blocks."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# The device's columns, in order. Each is (batch,) float32 at every token.
COLUMNS = ("entropy", "ema", "peak", "alpha", "entropy_change", "shift", "grad_norm")
_BLOCK = 64


@dataclass(frozen=True)
class Trace:
    """One sample's decoding, token by token. Arrays are float32, one entry a generated token (the end token included).

    Attributes:
        entropy: H of the next-token distribution before logits processors and before an update, nats.
        ema, peak: The entropy's moving average and its running peak, nats.
        alpha: The α an update used (-1 lowers the entropy, +1 raises it); 0 where no update was made.
        entropy_change: H after the update minus before, on the same token, nats; nan without update or refresh.
        shift: ‖ΔV‖ / ‖V‖ over the video tokens, after the token's update.
        grad_norm: L2 norm of dL/dΔV at an update; nan elsewhere.
        updates: How many updates were made.
        peak_index: The token (from 0) at which the EMA was highest; -1 if nothing was generated.
        video_tokens: How many video tokens the controller acted on (after Lite's pruning).
        seconds_prefill: Wall time of the batch's prefill, with pruning and the controllers' start.
        seconds_ordinary, seconds_due: Wall time of the batch's steps without and with an update, after the prefill.
        note: Why nothing was steered, or why it ended early; empty when all went well.
    """

    entropy: np.ndarray
    ema: np.ndarray
    peak: np.ndarray
    alpha: np.ndarray
    entropy_change: np.ndarray
    shift: np.ndarray
    grad_norm: np.ndarray
    updates: int
    peak_index: int
    video_tokens: int
    seconds_prefill: float
    seconds_ordinary: float
    seconds_due: float
    note: str


class TraceRecorder:
    """Collects (columns, batch) tensors without waiting for the device, but for one copy every 64 tokens."""

    def __init__(self) -> None:
        self._pending: list[Tensor] = []
        self._blocks: list[Tensor] = []
        self.seconds_prefill = 0.0
        self.seconds_ordinary = 0.0
        self.seconds_due = 0.0

    def add(self, **columns: Tensor) -> None:
        """One token: a (batch,) tensor for each of ``COLUMNS``."""
        self._pending.append(torch.stack([columns[name].float() for name in COLUMNS]))
        if len(self._pending) == _BLOCK:
            self._flush()

    def add_seconds(self, seconds: float, due: bool) -> None:
        """Wall time of one step."""
        if due:
            self.seconds_due += seconds
        else:
            self.seconds_ordinary += seconds

    def traces(self, lengths: list[int], video_tokens: list[int], notes: list[str], faults: list[str]) -> list[Trace]:
        """One :class:`Trace` a sample, cut to its ``lengths`` generated tokens.

        ``notes`` say why no update was made, and count where none was; ``faults`` (mostly empty) count always.
        """
        self._flush()
        table = (
            torch.cat(self._blocks).numpy() if self._blocks else np.zeros((0, len(COLUMNS), len(lengths)), "float32")
        )
        return [self._trace(table[:n, :, i], video_tokens[i], notes[i], faults[i]) for i, n in enumerate(lengths)]

    def _trace(self, table: np.ndarray, video_tokens: int, note: str, fault: str) -> Trace:
        columns = {name: table[:, i].copy() for i, name in enumerate(COLUMNS)}
        updates = int(np.count_nonzero(columns["alpha"]))
        if not np.isfinite(columns["entropy"]).all():
            fault = "the model's logits were not finite"
        return Trace(
            **columns,
            updates=updates,
            peak_index=int(columns["ema"].argmax()) if len(table) else -1,
            video_tokens=video_tokens,
            seconds_prefill=self.seconds_prefill,
            seconds_ordinary=self.seconds_ordinary,
            seconds_due=self.seconds_due,
            note=fault or ("" if updates else note),
        )

    def _flush(self) -> None:
        if self._pending:
            self._blocks.append(torch.stack(self._pending).cpu())
            self._pending.clear()
