"""Thinking and answering budgets in vLLM: a logits processor a request, by the rule of :mod:`...prompts.budgets`."""

from typing import Any

import torch
from torch import Tensor
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from lmms_eval_vreason.engines.vllm.followed import BUDGETS_KEY, Followed


class Budgets(AdapterLogitsProcessor):  # type: ignore[misc]
    """Bounds the requests whose ``SamplingParams.extra_args`` have :data:`BUDGETS_KEY`."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self._tokenizer = cached_tokenizer_from_config(vllm_config.model_config)

    def is_argmax_invariant(self) -> bool:
        """It is not: a forced token is the likeliest."""
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        """One request's, or None for one without budgets."""
        limits = (params.extra_args or {}).get(BUDGETS_KEY)
        return None if limits is None else Bounded(Followed(self._tokenizer, **limits), self._tokenizer.eos_token_id)


class Bounded:
    """One request's logits processor. Its state is a function of the tokens: a preemption changes nothing."""

    def __init__(self, followed: Followed, end: int) -> None:
        """Args: ``end``, the token that is forced where the budgets end the text."""
        self._followed, self._end = followed, end

    def __call__(self, output: list[int], logits: Tensor) -> Tensor:
        """(vocabulary,) logits, in which a forced token is alone. ``output``: the generated tokens so far."""
        self._followed.follow(output)
        token = self._end if self._followed.done is not None else self._followed.forced_token
        if token is not None:
            logits.fill_(-torch.inf)
            logits[token] = 0.0
        return logits
