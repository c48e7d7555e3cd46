"""The method over vLLM's pages: all requests that are due are one packed batch, padded on the right."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmms_eval_vreason.engines.due_step import Before, DueStep, Gradient, due_step, linearised, probabilities
from lmms_eval_vreason.engines.vllm.checks import Checks
from lmms_eval_vreason.engines.vllm.kept import pack, unpack
from lmms_eval_vreason.engines.vllm.pages import Pages
from lmms_eval_vreason.engines.vllm.requests import FIGURES, Request, Requests
from lmms_eval_vreason.engines.vllm.tail import PagedTail
from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.entropy import entropy
from lmms_eval_vreason.method.policies import coins, moving_average, weight_of
from lmms_eval_vreason.method.shift import Shift

# Rows times the longest of them, at most, whose K and V are gathered at once: 64 Ki tokens of a 7B model's last layer
# are 0.4 GB in bfloat16 and float32.
PACKED_TOKENS = 65536


class Rows(NamedTuple):
    """The requests of one step, as the model runner has them.

    Attributes:
        names: One a row of the logits.
        last: (rows,), where among the step's tokens each one's last is.
        tables: (rows, pages), the pages of each.
    """

    names: Sequence[str]
    last: Tensor
    tables: Tensor


class Attended(NamedTuple):
    """The last layer's attention of one query a row.

    Attributes:
        residual, final: (rows, hidden_size), the layer's input, and what the model's own final norm gave.
        p: (rows, kv_heads, query heads a KV head, video), probabilities; ``exact``, (…, head_dim), A; float32 at least.
        output: (rows, 1, heads, head_dim), A in the model's dtype.
        values: (rows, kv_heads, video, head_dim), V at the video tokens.
        video: (rows, video) bool; ``slots`` (rows, video), where in the cache they are.
    """

    residual: Tensor
    final: Tensor
    p: Tensor
    exact: Tensor
    output: Tensor
    values: Tensor
    video: Tensor
    slots: Tensor

    def attention(self) -> tuple[Tensor, Tensor]:
        """p and A."""
        return self.p, self.exact


class PagedSeam:
    """One packed due step's seam: the tail from A on, over rows whose attention is at hand."""

    def __init__(self, tail: PagedTail, reached: Attended, logits: Tensor) -> None:
        """Args: ``logits`` (rows, vocabulary), the engine's own."""
        self.tail, self.reached, self.logits = tail, reached, logits
        self.first: Tensor | None = None

    def forward(self, inputs: dict[str, Any]) -> tuple[Attended, Tensor, Gradient]:
        """As of :class:`~lmms_eval_vreason.engines.due_step.TailSeam`; the forward itself is done."""
        self.first, to_output = linearised(self.hidden, self.reached.output)
        return self.reached, self.logits, to_output

    def hidden(self, output: Tensor) -> Tensor:
        """(rows, hidden_size), from A."""
        return self.tail.hidden(self.reached.residual, output.flatten(1))


class Steering:
    """V-Reason on one model in vLLM.

    Attributes:
        requests: What is known of each request.
        fired: Whether logits have come by since the scheduler's last news; ``due``, whether any had an update then.
    """

    def __init__(self, model: Any, pages: Pages, method: VReason, slots: int) -> None:
        """Args: ``slots``, how many requests there can be at once."""
        self.model, self.pages, self.method = model, pages, method
        self.tail = PagedTail(model)
        self.device = model.residual.device
        self.requests = Requests(slots, model.config.video_token_id, self.device)
        self.checks = Checks(slots, method.keep_shift, self.device)
        # In float64, as the other engine keeps them.
        self._ema = torch.zeros(slots, dtype=torch.float64, device=self.device)
        self._peak = torch.zeros_like(self._ema)
        self._healthy = torch.ones(slots, dtype=torch.bool, device=self.device)
        self._coins: list[float] = []
        self.sampled: list[Request] = []
        self.fired = self.due = True

    def schedule(self, output: Any) -> None:
        """Takes note of a ``SchedulerOutput``."""
        new = [request.slot for request in self.requests.schedule(output)]
        self.fired, self.due, self.sampled = not output.num_scheduled_tokens, False, []
        if new:
            slots = self._tensor(new)
            self._ema[slots], self._peak[slots], self._healthy[slots] = 0.0, 0.0, True
            self.checks.forget(slots)

    def step(self, rows: Rows, logits: Tensor) -> Tensor:
        """The logits to choose from, (rows, vocabulary), from the model's own."""
        self.fired = True
        if not len(rows.names) == len(logits) == len(rows.last) == len(rows.tables):
            raise RuntimeError(f"steering lost: {len(logits)} rows of logits for {len(rows.names)} requests")
        requests = [self.requests[name] for name in rows.names]
        sampling = [i for i, request in enumerate(requests) if request.samples()]
        if not sampling:
            return logits
        if len(sampling) < len(requests):
            index = self._tensor(sampling)
            inner = Rows([rows.names[i] for i in sampling], rows.last[index], rows.tables[index])
            return logits.index_copy(0, index, self._sampled([requests[i] for i in sampling], inner, logits[index]))
        return self._sampled(requests, rows, logits)

    def _sampled(self, requests: list[Request], rows: Rows, logits: Tensor) -> Tensor:
        """As :meth:`step`, for rows that all choose a token."""
        method, self.sampled = self.method, requests
        again = [i for i, request in enumerate(requests) if request.resumed and request.kept]
        if again:
            logits = self._restored([requests[i] for i in again], rows, logits, self._tensor(again))
        slots, h = self._tensor([request.slot for request in requests]), entropy(logits)
        figures = self._figures(h)
        due = [method.steers and method.is_due(request.tokens) and request.video > 0 for request in requests]
        if any(due):
            active = self._tensor(due) & self._healthy[slots] & (h >= method.min_entropy)
            chosen: list[int] = active.nonzero()[:, 0].tolist()
            chosen.sort(key=lambda i: requests[i].length)
            for part in _parts(chosen, [request.length for request in requests]):
                index, own = self._tensor(part), [requests[i] for i in part]
                step = self._due_step(own, self._chosen(rows, part), logits[index], slots[index])
                if step.shift is not None:
                    logits = logits.index_copy(0, index, step.logits)
                    self._healthy[slots[index]] &= step.healthy
                    self._note(figures, step, index)
                    self.due = True
        self._average(requests, slots, h, figures)
        self.requests.note(requests, torch.stack([figures[name] for name in FIGURES], dim=1))
        return logits

    def _due_step(self, requests: list[Request], rows: Rows, logits: Tensor, slots: Tensor) -> DueStep:
        reached = self._attend(requests, rows, slots)
        shift = self._shift(requests, reached, self._healthy[slots])
        self.checks.values(requests, slots, reached, shift)
        seam, method = PagedSeam(self.tail, reached, logits), self.method
        coin = [self._coin(request.tokens) for request in requests]
        alive = torch.ones_like(slots, dtype=torch.bool)
        ema, peak = self._ema[slots].float(), self._peak[slots].float()
        before = Before(ema, peak, self._weights(requests), self._tensor(coin), alive, alive)
        step = due_step(seam, shift, method, {}, before)
        self.checks.tail(requests, seam)
        if method.keep_shift and step.shift is not None:
            unpack(requests, shift)
            self._write(reached)
        return step

    def _restored(self, requests: list[Request], rows: Rows, logits: Tensor, index: Tensor) -> Tensor:
        """Logits for V_new: K and V were computed anew, so that V_new goes back into the pages first.

        Args:
            index: (requests,), which of the ``rows`` they are.
        """
        rows = self._chosen(rows, index.tolist())
        slots = self._tensor([request.slot for request in requests])
        reached = self._attend(requests, rows, slots)
        moved = self._shift(requests, reached, self._healthy[slots]).moved()
        change = (moved - reached.values).masked_fill(~reached.video[:, None, :, None], 0.0).to(reached.p.dtype)
        output = (reached.exact + reached.p @ change).to(reached.output.dtype)
        reached.values.copy_(moved)
        self._write(reached)
        hidden = self.tail.hidden(reached.residual, output.flatten(1))
        self.model.final[rows.last] = hidden
        return logits.index_copy(0, index, self.tail.logits(hidden).to(logits.dtype))

    def _attend(self, requests: list[Request], rows: Rows, slots: Tensor) -> Attended:
        tail, longest = self.tail, max(request.length for request in requests)
        residual = self.model.residual[rows.last]
        query = tail.query(residual, self.model.positions[:, rows.last])
        tables = rows.tables[:, : -(-longest // self.pages.size)].long()
        key, value = self.pages.read(tables)
        lengths = self._tensor([request.length for request in requests])
        seen = torch.arange(key.shape[2], device=self.device) < lengths[:, None]
        p = probabilities(query, key, seen, tail.scaling)
        # What lies behind a request's last token may be anything, and 0 times that is not 0.
        exact = p @ value.to(p.dtype).masked_fill(~seen[:, None, :, None], 0.0)
        most = max(request.video for request in requests)
        counts = self._tensor([request.video for request in requests])
        video = torch.arange(most, device=self.device) < counts[:, None]
        positions = self.requests.video_positions[slots, :most] * video
        own = positions[:, None, :, None].expand(-1, tail.kv_heads, -1, tail.head_dim)
        of_video = positions[:, None, None].expand(-1, *p.shape[1:3], -1)
        places = tables.gather(1, positions // self.pages.size) * self.pages.size + positions % self.pages.size
        return Attended(
            residual,
            self.model.final[rows.last],
            p.gather(3, of_video),
            exact,
            exact.flatten(1, 2)[:, None].to(residual.dtype),
            value.gather(2, own),
            video,
            places,
        )

    def _shift(self, requests: list[Request], reached: Attended, healthy: Tensor) -> Shift:
        if not self.method.keep_shift:
            return Shift(reached.values, reached.video, self.method)
        return pack(requests, reached, healthy, self.method)

    def _write(self, reached: Attended) -> None:
        """V, in ``reached``, into the pages."""
        self.pages.write_values(reached.values.transpose(1, 2)[reached.video], reached.slots[reached.video])

    def _figures(self, h: Tensor) -> dict[str, Tensor]:
        """What is noted of each row, (rows,) each, before any update."""
        nan, zero = torch.full_like(h, math.nan, dtype=torch.float64), torch.zeros_like(h, dtype=torch.float64)
        figures = {name: nan.clone() for name in ("refreshed", "changed", "grad_norm")}
        return {**figures, "entropy": h.double(), "alpha": zero.clone(), "shift": zero.clone()}

    def _note(self, figures: dict[str, Tensor], step: DueStep, index: Tensor) -> None:
        for name in ("alpha", "refreshed", "changed", "grad_norm", "shift"):
            values: Tensor = getattr(step, name).double()
            figures[name][index] = torch.where(step.active, values, figures[name][index])

    def _average(self, requests: list[Request], slots: Tensor, h: Tensor, figures: dict[str, Tensor]) -> None:
        """Takes H into the moving average and its peak, and notes both."""
        ema, peak = moving_average(self._ema[slots], self._peak[slots], h, self._weights(requests).double())
        self._ema[slots], self._peak[slots] = ema, peak
        figures |= {"ema": ema, "peak": peak, "healthy": self._healthy[slots].double()}

    def _weights(self, requests: list[Request]) -> Tensor:
        """(requests,), what each one's present entropy counts in its moving average."""
        method = self.method
        return self._tensor([weight_of(each.tokens, method.ema_decay, method.ema_correction) for each in requests])

    def _coin(self, token: int) -> float:
        if self.method.policy != "random":
            return 0.0
        if token >= len(self._coins):
            self._coins = coins(max(2 * token, 1024), self.method.seed)
        return self._coins[token]

    def _chosen(self, rows: Rows, index: list[int]) -> Rows:
        which = self._tensor(index)
        return Rows([rows.names[i] for i in index], rows.last[which], rows.tables[which])

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, device=self.device)


def _parts(chosen: list[int], lengths: list[int]) -> list[list[int]]:
    """The rows ``chosen``, by length, in parts of at most :data:`PACKED_TOKENS`."""
    parts: list[list[int]] = []
    for i in chosen:
        if parts and (len(parts[-1]) + 1) * lengths[i] <= PACKED_TOKENS:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts
