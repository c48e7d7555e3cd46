"""What the benchmark compares: plain ``generate``, the method in its settings, and the naive way."""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from lmms_eval_vreason.engines.hf.due_step import Steering
from lmms_eval_vreason.engines.hf.generation import frozen, generate
from lmms_eval_vreason.engines.hf.loop import Decoding, DecodingLoop
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
            return generate(model, self.method, **inputs).sequences
        with frozen(model):
            return model.generate(**inputs, custom_generate=_NaiveLoop(replace(self.method, refresh=False)))


class _NaiveDecoding(Decoding):
    def due(self, steering: Steering, inputs: dict[str, Any], unfinished: Tensor) -> Tensor:
        super().due(steering, inputs, unfinished)
        inputs[CACHE].crop(-1)
        logits: Tensor = self.model(**inputs, return_dict=True).logits[:, -1]
        return logits


class _NaiveLoop(DecodingLoop):
    """The loop as it would be written at first: the updated logits come from a second forward of the whole model."""

    kind = _NaiveDecoding


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
