"""What happened at each generated token, kept on the device and moved to the host in blocks."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmms_eval_vreason.decoding.entropy import moving_average

# A trace's arrays, in order.
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
    """Collects (batch,) tensors without waiting for the device, but for one copy every 64 tokens.

    An ordinary token leaves its entropy and nothing else: the moving average is brought up to date when an update asks
    for it or a block is full, token by token as the paper has it.
    """

    def __init__(self, batch: int, ema_decay: float, device: torch.device) -> None:
        self.ema_decay = ema_decay
        self.ema = self.peak = torch.zeros(batch, device=device)
        self._nan = torch.full((batch,), torch.nan, device=device)
        self._entropies: list[Tensor] = []
        self._averages: list[Tensor] = []
        self._updates: list[tuple[Tensor, ...]] = []
        self._updated: list[int] = []
        self._tokens = 0
        self._token_blocks: list[Tensor] = []
        self._update_blocks: list[Tensor] = []
        self.seconds_prefill = 0.0
        self.seconds_ordinary = 0.0
        self.seconds_due = 0.0

    def add(self, entropy: Tensor) -> None:
        """One token: its entropy (batch,), nats."""
        if len(self._entropies) == _BLOCK:
            self._flush()
        self._entropies.append(entropy)
        self._tokens += 1

    def averages(self) -> tuple[Tensor, Tensor]:
        """The entropy's moving average and its peak, (batch,) each, up to the last token that was added."""
        for entropy in self._entropies[len(self._averages) // 2 :]:
            self.add_averages(*moving_average(self.ema, self.peak, entropy, self.ema_decay))
        return self.ema, self.peak

    def add_averages(self, ema: Tensor, peak: Tensor) -> None:
        """The last token's moving average and peak, where they are at hand already."""
        self.ema, self.peak = ema, peak
        self._averages += (ema, peak)

    def add_update(
        self, active: Tensor, alpha: Tensor, entropy_change: Tensor | None, grad_norm: Tensor, shift: Tensor
    ) -> None:
        """The last token's update, all (batch,); what it says of samples that were not ``active`` does not count."""
        change = self._nan if entropy_change is None else entropy_change
        self._updates.append((active, alpha, change, grad_norm, shift))
        self._updated.append(self._tokens - 1)

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
        columns = self._columns()
        return [
            self._trace({name: column[:n, i].copy() for name, column in columns.items()}, *about)
            for i, (n, *about) in enumerate(zip(lengths, video_tokens, notes, faults, strict=True))
        ]

    def _columns(self) -> dict[str, np.ndarray]:
        """(tokens, batch) arrays, by their names."""
        batch, updated = len(self.ema), self._updated
        empty = torch.zeros(0, 3, batch), torch.zeros(0, 5, batch)
        blocks = self._token_blocks or empty[:1], self._update_blocks or empty[1:]
        tokens, updates = (torch.cat(block).numpy() for block in blocks)
        active, alpha, change, grad_norm, shift = updates.transpose(1, 0, 2)
        columns = dict(zip(COLUMNS[:3], tokens.transpose(1, 0, 2), strict=True))
        for name, values, elsewhere in (
            ("alpha", alpha, 0),
            ("entropy_change", change, np.nan),
            ("grad_norm", grad_norm, np.nan),
        ):
            columns[name] = np.full((self._tokens, batch), elsewhere, "float32")
            columns[name][updated] = np.where(active > 0, values, np.float32(elsewhere))
        # ΔV stays between updates.
        latest = np.searchsorted(updated, np.arange(self._tokens), side="right")
        columns["shift"] = np.concatenate([np.zeros((1, batch), "float32"), shift])[latest]
        return columns

    def _trace(self, columns: dict[str, np.ndarray], video_tokens: int, note: str, fault: str) -> Trace:
        updates = int(np.count_nonzero(columns["alpha"]))
        if not np.isfinite(columns["entropy"]).all():
            fault = "the model's logits were not finite"
        return Trace(
            **columns,
            updates=updates,
            peak_index=int(columns["ema"].argmax()) if len(columns["ema"]) else -1,
            video_tokens=video_tokens,
            seconds_prefill=self.seconds_prefill,
            seconds_ordinary=self.seconds_ordinary,
            seconds_due=self.seconds_due,
            note=fault or ("" if updates else note),
        )

    def _flush(self) -> None:
        if not self._entropies:
            return
        self.averages()
        columns = torch.stack(self._entropies).float(), torch.stack(self._averages).unflatten(0, (-1, 2))
        self._token_blocks.append(torch.cat([columns[0][:, None], columns[1]], dim=1).cpu())
        if self._updates:
            columns = [torch.stack(column).float() for column in zip(*self._updates, strict=True)]
            self._update_blocks.append(torch.stack(columns, dim=1).cpu())
        self._entropies.clear(), self._averages.clear(), self._updates.clear()
