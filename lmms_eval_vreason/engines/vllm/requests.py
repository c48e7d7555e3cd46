"""Which requests an engine has, how far each has come, and what happened at each of its tokens."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmms_eval_vreason.engines.due_step import NOT_FINITE, why_not
from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.trace import COLUMNS, Trace

# What a step leaves of each token, in order.
FIGURES = ("entropy", "ema", "peak", "alpha", "refreshed", "changed", "shift", "grad_norm", "healthy")
# How many steps may wait on the device for their figures to be read.
_PENDING = 256
# How many finished requests wait for somebody to ask for their traces: an engine that serves has nobody who does.
_FINISHED = 4096
_SECONDS = ("prefill", "ordinary", "due")


@dataclass(eq=False)
class Request:
    """One request.

    Attributes:
        slot: Its place in what is kept on the device.
        prompt, video: Its tokens, and how many of them are video.
        computed, scheduled: Tokens whose K and V are in the cache, and those of the present step.
        tokens: Sampled so far.
        told: Whether its trace was asked for.
        resumed: Whether its K and V were computed anew, after a preemption, since the last token.
        kept: ΔV and the optimiser's state where they stay, from the first update on.
        seconds, steps: Its share of the wall time, and its steps, by kind.
    """

    name: str
    slot: int
    prompt: int
    video: int
    computed: int
    scheduled: int = 0
    tokens: int = 0
    told: bool = False
    resumed: bool = False
    kept: list[Tensor] | None = None
    figures: list[np.ndarray] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_SECONDS, 0.0))
    steps: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SECONDS, 0))

    @property
    def length(self) -> int:
        """Tokens in the cache after the present step."""
        return self.computed + self.scheduled

    def samples(self) -> bool:
        """Whether the present step chooses a token; not for a part of a prompt, or of what is computed anew.

        Raises:
            RuntimeError: The engine has computed more than was sampled.
        """
        if self.length > self.prompt + self.tokens:
            raise RuntimeError(
                f"steering lost: {self.length} tokens of request {self.name} are computed, but it has "
                f"{self.prompt} and was seen to sample {self.tokens}"
            )
        return self.length == self.prompt + self.tokens


class Requests:
    """The requests of one worker, kept by the scheduler's news.

    Attributes:
        video_positions: (slots, most video tokens of a request), where they are in the prompts.
    """

    def __init__(self, slots: int, video_token: int, device: torch.device) -> None:
        self._video_token, self._free = video_token, list(range(slots))[::-1]
        self._running: dict[str, Request] = {}
        self._finished: dict[str, Request] = {}
        self._pending: list[tuple[list[Request], Tensor]] = []
        self.video_positions = torch.zeros(slots, 1, dtype=torch.long, device=device)

    def __getitem__(self, name: str) -> Request:
        """Raises RuntimeError if the scheduler never told of it."""
        if name not in self._running:
            raise RuntimeError(f"steering lost: request {name} is sampled, but the scheduler never told of it")
        return self._running[name]

    def schedule(self, output: Any) -> list[Request]:
        """Takes note of a ``SchedulerOutput``. Returns the slots' new owners."""
        for name in output.finished_req_ids:
            if (request := self._running.pop(name, None)) is not None:
                self._free.append(request.slot)
                self._keep(request)
        new = [self._add(data) for data in output.scheduled_new_reqs if data.req_id not in self._running]
        cached = output.scheduled_cached_reqs
        for name, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            self[name].computed = computed
            self[name].resumed |= name in cached.resumed_req_ids
        for name, scheduled in output.num_scheduled_tokens.items():
            self[name].scheduled = scheduled
        return new

    def _keep(self, request: Request) -> None:
        """Keeps a finished one until its trace is asked for, if it ever is."""
        request.kept = None
        if not request.told:
            self._finished[request.name] = request
        if len(self._finished) > _FINISHED:
            self._flush()
            self._finished.pop(next(iter(self._finished)))

    def _add(self, data: Any) -> Request:
        if data.prompt_token_ids is None:
            raise RuntimeError(f"request {data.req_id} is a prompt of embeddings, in which no video can be found")
        ids = torch.tensor(data.prompt_token_ids)
        video = (ids == self._video_token).nonzero()[:, 0]
        request = Request(data.req_id, self._free.pop(), len(ids), len(video), data.num_computed_tokens)
        self._running[data.req_id] = request
        missing = len(video) - self.video_positions.shape[1]
        if missing > 0:
            self.video_positions = torch.nn.functional.pad(self.video_positions, (0, missing))
        self.video_positions[request.slot, : len(video)] = video.to(self.video_positions)
        return request

    def note(self, requests: list[Request], figures: Tensor) -> None:
        """A token of each of the ``requests``: its :data:`FIGURES`, (requests, figures), which stay on the device."""
        self._pending.append((requests, figures))
        for request in requests:
            request.tokens += 1
            request.resumed = False
        if len(self._pending) >= _PENDING:
            self._flush()

    def timed(self, seconds: float, sampled: Iterable[Request], due: bool) -> None:
        """A step that took ``seconds``, which its requests share."""
        sampled = set(sampled)
        taking_part = [request for request in self._running.values() if request.scheduled]
        for request in taking_part:
            # The token that a prefill ends with is the first.
            first = request.tokens - (request in sampled) == 0
            kind = "prefill" if first else "due" if due else "ordinary"
            request.seconds[kind] += seconds / len(taking_part)
            request.steps[kind] += request in sampled
            request.scheduled = 0

    def traces(self, names: Iterable[str], method: VReason) -> dict[str, Trace]:
        """The traces of those of the requests ``names`` that are known; they are told once.

        The scheduler tells of a request's end with the next step, if there is one.
        """
        self._flush()
        told = {}
        for name in names:
            request = self._finished.pop(name, None) or self._running.get(name)
            if request is not None:
                request.told = True
                told[name] = _trace(request, method)
        return told

    def _flush(self) -> None:
        if self._pending:
            rows = iter(torch.cat([figures for _, figures in self._pending]).cpu().numpy())
            for requests, _ in self._pending:
                for request in requests:
                    request.figures.append(next(rows))
            self._pending.clear()


def _trace(request: Request, method: VReason) -> Trace:
    table = np.stack(request.figures) if request.figures else np.zeros((0, len(FIGURES)))
    columns = dict(zip(FIGURES, table.T.astype("float32"), strict=True))
    updated = columns["alpha"] != 0
    columns["entropy_change"] = columns["refreshed"] - columns["entropy"]
    columns["changed"] = np.where(np.isnan(columns["refreshed"]), np.float32(math.nan), columns["changed"])
    if method.keep_shift:
        latest = np.maximum.accumulate(np.where(updated, np.arange(len(table)), -1))
        columns["shift"] = np.where(latest < 0, np.float32(0), columns["shift"][latest])
    given_up = request.video and not table[:, FIGURES.index("healthy")].all()
    seconds: dict[str, Any] = {f"seconds_{kind}": request.seconds[kind] for kind in _SECONDS}
    return Trace.of(
        {name: columns[name] for name in COLUMNS},
        note=why_not(method, request.video),
        fault=NOT_FINITE if given_up else "",
        video_tokens=request.video,
        **seconds,
        ordinary_steps=request.steps["ordinary"],
        due_steps=request.steps["due"],
    )
