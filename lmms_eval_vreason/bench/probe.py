"""lmms-eval's command, timed: ``python -m lmms_eval_vreason.bench.probe SETTINGS --model …``.

The clock runs around ``generate_until``, and is the same for every model class. SETTINGS is a JSON object with
``output`` (the file for the figures) and ``dtype`` (what the model is cast to before the clock starts, if it loads in
another).
"""

import json
import resource
import runpy
import sys
import time
from pathlib import Path
from typing import Any

from lmms_eval_vreason.bench.stack import on_roomy_stack


def watch_class(kind: Any, settings: dict[str, Any]) -> None:
    """Times ``generate_until`` of a model class and writes the figures when it returns."""
    import torch

    from lmms_eval_vreason.run.stopwatch import now

    inner = kind.generate_until

    def generate_until(self: Any, requests: list[Any]) -> Any:
        model, dtype = self._model, getattr(torch, settings["dtype"])
        if model.dtype != dtype:
            model.to(dtype)
        started, cpu = now(model.device), time.process_time()
        answers = on_roomy_stack(inner, self, requests)
        seconds = {"wall": now(model.device) - started, "CPU": time.process_time() - cpu}
        on_cuda = model.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(model.device) if on_cuda else peak_resident_bytes()
        Path(settings["output"]).write_text(json.dumps({"seconds": seconds, "peak_bytes": peak}))
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
    from lmms_eval.models import get_model

    watch_class(get_model(sys.argv[sys.argv.index("--model") + 1]), json.loads(sys.argv[1]))
    sys.argv = [sys.argv[0], *sys.argv[2:]]
    # As the command itself, so that our model class behaves as in `python -m lmms_eval`.
    runpy.run_module("lmms_eval", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
