"""``compile=auto``: whether a run's steps are compiled. A trial on the run's first batch decides.

Compiling takes minutes and pays over hours, and only where launching operations is what a step waits for. So a long run
on a CUDA device measures its own steps both ways before its clocks start, and takes the faster.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from loguru import logger
from transformers import PreTrainedModel

from lmms_eval_vreason.engines.hf.cache import CACHE_STEP, static_cache
from lmms_eval_vreason.engines.hf.generation import Generation, generate
from lmms_eval_vreason.engines.hf.upstream import CACHE, attention_name
from lmms_eval_vreason.media.media import first_line
from lmms_eval_vreason.method import Trace, VReason
from lmms_eval_vreason.run.batch_size import is_out_of_memory, release

# Shorter runs would not win back the minutes that compiling takes. An estimate: no GPU was at hand to measure it.
MIN_STEPS = 16_384
# Of the trial's generations, and of those before them, which compile and warm up.
_TOKENS, _WARM_UP_TOKENS = 64, 16
# By how much a step has to be faster.
_GAIN = 1.05
# Nats between the entropies of both ways, as long as their tokens agree; room for bfloat16's rounding. An estimate too.
_TOLERANCE = 0.1


def may_pay(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether a trial makes sense: a whole model on one CUDA device, and attention that a static cache goes with."""
    whole = len(set(getattr(model, "hf_device_map", {}).values())) <= 1
    return device.type == "cuda" and whole and "flash" not in attention_name(model.config)


class AutoCompile:
    """What one run knows of its compiled steps. With another ``compile`` than ``auto`` it leaves every method as it is.

    Attributes:
        batch: The size of the batches whose steps are compiled; another size would be compiled anew. None: no batches.
    """

    def __init__(self, model: PreTrainedModel, method: VReason, device: torch.device) -> None:
        self.model = model
        self.batch: int | None = None
        self._undecided = method.compile == "auto" and may_pay(model, device)
        self._full: int | None = None

    def expect(self, batch: int | None, tokens: int) -> None:
        """Takes note of the run: the size of a full batch, None if it is not known, and all samples' tokens at most."""
        self._full = batch if batch and tokens / batch >= MIN_STEPS else None

    def is_due(self, batch: int) -> bool:
        """Whether a batch of this size is to be the trial: a full one of a run that is long enough."""
        return self._undecided and batch == self._full

    def applied(self, method: VReason, batch: int) -> VReason:
        """``method`` as it is to decode a batch of this size."""
        return replace(method, compile="on") if self.batch == batch and method.compile == "auto" else method

    def give_up(self, error: Exception) -> None:
        """From here on steps are not compiled."""
        self.batch, self._undecided = None, False
        reason = f"{type(error).__name__}: {first_line(error)}"
        logger.warning(f"compile=auto: compiled steps failed; going on without ({reason})")

    def hold_trial(self, method: VReason, inputs: Mapping[str, Any], new_tokens: int) -> None:
        """Generates from ``inputs``, the processor's, both ways, and decides. What it generates is thrown away.

        Args:
            new_tokens: That this run generates a sample at most.
        """
        self._undecided = False
        logger.info("compile=auto: measuring compiled steps on the first batch; compiling takes some minutes")
        started = time.perf_counter()
        try:
            longest = inputs["input_ids"].shape[1] + max(new_tokens, _TOKENS)
            compiled, eager = self._both(method, inputs, longest)
        except Exception as error:
            self.give_up(error)
            if is_out_of_memory(error):
                release(error)
            return
        verdict = f"{milliseconds(compiled.traces):.1f} ms a step, {milliseconds(eager.traces):.1f} without"
        if not _agree(compiled, eager):
            verdict += "; but they give other entropies, so they are not used"
        elif milliseconds(compiled.traces) * _GAIN > milliseconds(eager.traces):
            verdict += "; not used"
        else:
            self.batch = len(inputs["input_ids"])
            verdict += f"; used for batches of {self.batch}"
        logger.info(f"compile=auto: {verdict} (the trial took {time.perf_counter() - started:.0f} s)")

    def _both(self, method: VReason, inputs: Mapping[str, Any], longest: int) -> tuple[Generation, Generation]:
        eager, compiled = replace(method, compile="off"), replace(method, compile="on")
        self._run(eager, inputs, _WARM_UP_TOKENS)
        reference = self._run(eager, inputs, _TOKENS)
        # Two lengths of cache: from the second on the graphs leave it open, and serve every later one.
        for tokens in (longest, longest + CACHE_STEP):
            self._run(compiled, inputs, _WARM_UP_TOKENS, static_cache(self.model, tokens))
        return self._run(compiled, inputs, _TOKENS, static_cache(self.model, longest)), reference

    def _run(self, method: VReason, inputs: Mapping[str, Any], tokens: int, cache: Any = None) -> Generation:
        caches = {} if cache is None else {CACHE: cache}
        length: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        return generate(self.model, method, **inputs, **caches, **length, do_sample=False)


def milliseconds(traces: Sequence[Trace]) -> float:
    """Of a step: the mean over a generation's steps after the first token."""
    trace = traces[0]
    return 1e3 * (trace.seconds_ordinary + trace.seconds_due) / max(len(trace.entropy) - 1, 1)


def _agree(one: Generation, other: Generation) -> bool:
    """Whether both decoded alike for as long as they had the same tokens before them."""
    for row, (mine, theirs) in enumerate(zip(one.traces, other.traces, strict=True)):
        count = len(mine.entropy)
        same = (one.sequences[row, -count:] == other.sequences[row, -count:]).long().cumprod(0).sum().item()
        if not (abs(mine.entropy[: same + 1] - theirs.entropy[: same + 1]) <= _TOLERANCE).all():
            return False
    return True
