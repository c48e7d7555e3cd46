"""What the benchmark compares: plain ``generate``, the method in its settings, and the naive way."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from lmms_eval_vreason.engines.hf.generate import frozen
from lmms_eval_vreason.engines.hf.loop import DecodingLoop
from lmms_eval_vreason.engines.hf.steering import Steering, TailInputs
from lmms_eval_vreason.engines.hf.upstream import CACHE
from lmms_eval_vreason.method import VReason

# Adaptation at every due token, so that each has its full cost; random weights give some tokens next to no entropy.
_METHOD = VReason(min_entropy=0.0, compile="off")
HEAD_TOPK = 1024


@dataclass(frozen=True)
class Variant:
    """One row of the table. ``method`` None is plain ``generate``; ``full_forward`` is the naive refresh."""

    name: str
    method: VReason | None = None
    full_forward: bool = False
    cache: str = "dynamic"

    def generate(self, model: PreTrainedModel, **inputs: Any) -> Tensor:
        """Token ids, (batch, prompt + new tokens)."""
        if self.method is None:
            return model.generate(**inputs)
        if not self.full_forward:
            # As the plain rows: a prompt that is all in the cache has no grids to tell positions from.
            return self.method.generate(model, **inputs, positions="transformers").sequences
        with frozen(model):
            return model.generate(**inputs, custom_generate=_NaiveLoop(replace(self.method, refresh=False)))


class _NaiveSteering(Steering):
    """Steering as it would be written at first: the updated logits come from a second forward of the whole model."""

    def forward(self, model: PreTrainedModel, inputs: dict[str, Any]) -> tuple[ModelOutput, TailInputs]:
        self._again: Callable[[], ModelOutput] = lambda: model(**inputs, return_dict=True)
        self._cache = inputs[CACHE]
        return super().forward(model, inputs)

    @torch.no_grad()
    def update(self, *args: Any):
        update = super().update(*args)
        self._cache.crop(-1)
        return replace(update, logits=self._again().logits[:, -1])


class _NaiveLoop(DecodingLoop):
    def _prefill(self, *args: Any, **kwargs: Any):
        prefilled = super()._prefill(*args, **kwargs)
        naive = _NaiveSteering.__new__(_NaiveSteering)
        vars(naive).update(vars(self.steering))
        self.steering = naive
        return prefilled


def variants(cache: str, compiled: bool) -> list[Variant]:
    """All rows, plain ``generate`` first. ``compiled`` adds plain and the method over a static cache, compiled."""
    rows = [Variant("plain generate", cache=cache), Variant("policy off", replace(_METHOD, policy="off"), cache=cache)]
    for refresh, head_topk in ((True, 0), (False, 0), (False, HEAD_TOPK)):
        words = "" if refresh else ", no refresh"
        words += f", head_topk {head_topk}" if head_topk else ""
        for every in (1, 2, 4, 8):
            method = replace(_METHOD, update_every=every, refresh=refresh, head_topk=head_topk)
            rows.append(Variant(f"update_every {every}{words}", method, cache=cache))
    rows.append(Variant("Lite, update_every 2", replace(_METHOD, prune_ratio=0.5), cache=cache))
    if cache == "dynamic":
        for every in (1, 2):
            method = replace(_METHOD, update_every=every)
            rows.append(Variant(f"naive: second forward, update_every {every}", method, True))
    if compiled:
        rows.append(Variant("plain generate, compiled", cache="static"))
        for every in (2, 4):
            method = replace(_METHOD, update_every=every, compile="on")
            rows.append(Variant(f"update_every {every}, compiled", method, cache="static"))
    return rows
