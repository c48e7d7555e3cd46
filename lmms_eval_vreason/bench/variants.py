"""What the benchmark compares: plain ``generate``, the method with different settings, and a naive implementation."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from lmms_eval_vreason import generate
from lmms_eval_vreason.engines.hf.upstream import CACHE
from lmms_eval_vreason.method import VReason

# Every due token gets its update, and so its full cost: random weights give some tokens next to no entropy.
_METHOD = VReason(min_entropy=0.0, compile="off")
_SETTINGS = {
    "": _METHOD,
    ", no refresh": replace(_METHOD, refresh=False),
    ", no refresh, head_topk 1024": replace(_METHOD, refresh=False, head_topk=1024),
}


@dataclass(frozen=True)
class Variant:
    """One row of the table. Without a ``method`` it is plain ``generate``; ``full_forward`` is the naive refresh."""

    name: str
    method: VReason | None = None
    full_forward: bool = False
    compiled: bool = False

    @property
    def cache(self) -> str:
        """The kind of cache. Compiled steps need one that stays in its place."""
        return "static" if self.compiled else "dynamic"

    @property
    def baseline(self) -> str:
        """The name of the variant that this one's ratio is to."""
        return "plain generate, compiled" if self.compiled else "plain generate"

    def generate(self, model: Any, **inputs: Any) -> Tensor:
        """Token ids, (batch, prompt + new tokens)."""
        if self.method is None:
            return torch.as_tensor(model.generate(**inputs))
        if not self.full_forward:
            return generate(model, self.method, **inputs).sequences
        refresh = _SecondForward(model, self.method)
        try:
            inputs["logits_processor"] = LogitsProcessorList([refresh])
            return generate(model, replace(self.method, refresh=False), **inputs).sequences
        finally:
            refresh.hook.remove()


class _SecondForward(LogitsProcessor):
    """The refresh as one would write it at first: the whole model runs again over the updated cache."""

    def __init__(self, model: Any, method: VReason) -> None:
        self.model, self.method, self.token = model, method, 0
        self.hook = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.inputs = kwargs

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.method.is_due(self.token):
            self.inputs[CACHE].crop(-1)
            scores = self.model(**self.inputs).logits[:, -1].to(scores)
        self.token += 1
        return scores


def variants(compiled: bool) -> list[Variant]:
    """All rows, plain ``generate`` first. ``compiled`` adds plain and the method over a static cache, compiled."""
    rows = [Variant("plain generate"), Variant("policy off", replace(_METHOD, policy="off"))]
    for words, method in _SETTINGS.items():
        rows += [Variant(f"update_every {n}{words}", replace(method, update_every=n)) for n in (1, 2, 4, 8)]
    rows.append(Variant("Lite, update_every 2", replace(_METHOD, prune_ratio=0.5)))
    for every in (1, 2):
        method = replace(_METHOD, update_every=every)
        rows.append(Variant(f"naive: second forward, update_every {every}", method, full_forward=True))
    if compiled:
        rows.append(Variant("plain generate, compiled", compiled=True))
        for every in (2, 4):
            method = replace(_METHOD, update_every=every, compile="on")
            rows.append(Variant(f"update_every {every}, compiled", method, compiled=True))
    return rows
