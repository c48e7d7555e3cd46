"""lmms-eval's command with stopwatches around it: ``python -m lmms_eval_vreason.bench.probe SETTINGS --model …``.

The stopwatches lie outside the model class, and are the same for every one: around the call of ``generate_until`` and,
within it, qwen-vl-utils' reading of a video, the vision tower, transformers' ``generate`` and its prefill. SETTINGS is
a JSON object with ``output`` (the file for the figures), ``delay`` (seconds added to each reading of a video) and
``dtype`` (what the model is cast to before the clock starts, if it loads in another).
"""

import json
import resource
import runpy
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import wraps
from pathlib import Path
from typing import Any


class Stopwatches:
    """Seconds and calls by name. No second counts twice: an outer measure does not include the inner ones.

    What runs beside the main thread is kept apart, as ``name (background)``.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.running = False
        self.synchronize: Callable[[], None] = lambda: None
        self._open = threading.local()
        self._lock = threading.Lock()

    def around(
        self, function: Callable[..., Any], name: str, *, device: bool = False, delay: float = 0.0
    ) -> Callable[..., Any]:
        """``function``, measured; it sleeps ``delay`` seconds first, which count.

        ``device``: wait for the device before and after, so that its work is included.
        """

        @wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            if not self.running:
                return function(*args, **kwargs)
            synchronize = self.synchronize if device else lambda: None
            inner = self._open.__dict__.setdefault("measures", [])  # one entry a measure: the seconds within it
            inner.append(0.0)
            synchronize()
            started = time.perf_counter()
            try:
                time.sleep(delay)
                return function(*args, **kwargs)
            finally:
                synchronize()
                whole = time.perf_counter() - started
                self._add(name, whole - inner.pop())
                if inner:
                    inner[-1] += whole

        return measured

    def _add(self, name: str, seconds: float) -> None:
        if threading.current_thread() is not threading.main_thread():
            name += " (background)"
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            self.calls[name] = self.calls.get(name, 0) + 1


def watch_reading(watches: Stopwatches, delay: float) -> None:
    """Watches the reading of videos, and how long the main thread waits for other threads' work."""
    from qwen_vl_utils import vision_process

    from lmms_eval_vreason.media import frames

    frames.read_video = watches.around(frames.read_video, "reading", delay=delay)
    vision_process.fetch_video = watches.around(vision_process.fetch_video, "reading", delay=delay)
    for name in ("result", "exception"):
        setattr(Future, name, watches.around(getattr(Future, name), "waiting"))


def watch_model(watches: Stopwatches, model: Any) -> None:
    """Watches one loaded model's vision tower, prefill and generation."""
    import torch

    if model.device.type == "cuda":
        watches.synchronize = lambda: torch.cuda.synchronize(model.device)
    model.model.visual.forward = watches.around(model.model.visual.forward, "vision", device=True)
    # Private in transformers, and there in 5.17 to 5.24: the prefill has no public entry.
    model._prefill = watches.around(model._prefill, "prefill", device=True)
    model.generate = watches.around(model.generate, "generate")


def watch_class(watches: Stopwatches, kind: Any, settings: dict[str, Any]) -> None:
    """Watches ``generate_until`` of a model class and writes the figures when it returns."""
    import torch

    from lmms_eval_vreason.engines.hf.upstream import attention_name

    inner = kind.generate_until

    @wraps(inner)
    def generate_until(self: Any, requests: list[Any]) -> Any:
        model = self._model
        if settings["dtype"] and model.dtype != getattr(torch, settings["dtype"]):
            model.to(getattr(torch, settings["dtype"]))
        watch_model(watches, model)
        watches.synchronize()
        watches.running = True
        began, started, cpu = time.time(), time.perf_counter(), time.process_time()
        answers = inner(self, requests)
        watches.synchronize()
        phase, cpu = time.perf_counter() - started, time.process_time() - cpu
        watches.running = False
        on_cuda = model.device.type == "cuda"
        figures = {"started": began, "phase": phase, "cpu": cpu, "seconds": watches.seconds, "calls": watches.calls}
        figures["peak_bytes"] = torch.cuda.max_memory_allocated(model.device) if on_cuda else peak_resident_bytes()
        figures["attention"] = attention_name(model.config)
        Path(settings["output"]).write_text(json.dumps(figures))
        return answers

    kind.generate_until = generate_until


def peak_resident_bytes() -> int:
    """The most memory that this process has had resident."""
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike getrusage's figure, this one does not begin with the parent's.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    settings = json.loads(sys.argv[1])
    import lmms_eval.models

    watches, get_model = Stopwatches(), lmms_eval.models.get_model
    watch_reading(watches, settings["delay"])

    @wraps(get_model)
    def watched_model(*args: Any, **kwargs: Any) -> Any:
        kind = get_model(*args, **kwargs)
        watch_class(watches, kind, settings)
        return kind

    lmms_eval.models.get_model = watched_model
    sys.argv = [sys.argv[0], *sys.argv[2:]]
    # As the command itself, so that our model class behaves as in `python -m lmms_eval`.
    runpy.run_module("lmms_eval", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
