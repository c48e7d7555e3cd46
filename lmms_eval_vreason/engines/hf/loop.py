"""The decoding loop: how one token follows another, and which of them is due for an update.

transformers prepares the inputs, the cache, the logits processors and the stopping criteria.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig, GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers import StoppingCriteriaList as StoppingCriteria

from lmms_eval_vreason.engines.due_step import NOT_FINITE, why_not
from lmms_eval_vreason.engines.hf.cache import check_cache, prune_video_tokens
from lmms_eval_vreason.engines.hf.due_step import Steering
from lmms_eval_vreason.engines.hf.seam import Seam
from lmms_eval_vreason.engines.hf.upstream import (
    CACHE,
    compiles_by_itself,
    experts_for_decoding,
    next_model_kwargs,
    pad_token,
    prefill,
)
from lmms_eval_vreason.families.family import check_columns, family_of
from lmms_eval_vreason.families.positions import ending_highest
from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.entropy import entropy
from lmms_eval_vreason.method.policies import coins, weight_of
from lmms_eval_vreason.method.shift import Shift
from lmms_eval_vreason.method.trace import Trace, TraceRecorder


class Choice:
    """Chooses tokens from logits as ``generate`` does.

    Attributes:
        unfinished: (batch,) bool, the samples that have not ended.
    """

    def __init__(
        self,
        processor: LogitsProcessorList,
        criteria: StoppingCriteria,
        config: GenerationConfig,
        generators: Sequence[torch.Generator] | None,
        input_ids: Tensor,
    ) -> None:
        """``input_ids`` (batch, prompt)."""
        batch = len(input_ids)
        if generators is not None and len(generators) != batch:
            raise ValueError(f"{len(generators)} generators for a batch of {batch}: pass one a sample")
        self.processor: Any = processor
        self.criteria, self.generators = criteria, generators
        self.do_sample = config.do_sample
        ends = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
        self.pad_token = pad_token(config) if ends else None
        self.unfinished = input_ids.new_ones(batch, dtype=torch.bool)

    def __call__(self, input_ids: Tensor, logits: Tensor) -> Tensor:
        """``input_ids`` (batch, tokens) with a token more, from ``logits`` (batch, vocabulary)."""
        # A copy in float32, as transformers makes it: processors may write into it.
        scores = logits.to(copy=True, dtype=torch.float32, device=input_ids.device)
        tokens = self._pick(self.processor(input_ids, scores))
        if self.pad_token is not None:
            tokens = torch.where(self.unfinished, tokens, self.pad_token.to(tokens))
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
        self.unfinished = self.unfinished & ~self.criteria(input_ids, None)
        return input_ids

    def _pick(self, scores: Tensor) -> Tensor:
        if not self.do_sample:
            return scores.argmax(dim=-1)
        probabilities = scores.softmax(dim=-1)
        if self.generators is None:
            return torch.multinomial(probabilities, num_samples=1).squeeze(1)
        rows = zip(probabilities, self.generators, strict=True)
        return torch.cat([torch.multinomial(row, num_samples=1, generator=generator) for row, generator in rows])


class Decoding:
    """One generation's forwards: the prefill, then a token at a time, each noted in the recorder.

    Attributes:
        steering: The due steps, from the prefill on; None where nothing is steered.
    """

    def __init__(self, loop: "DecodingLoop", model: Any, config: GenerationConfig, input_ids: Tensor) -> None:
        """Args: ``loop``, whose method and settings apply; ``input_ids`` (batch, prompt)."""
        batch, prompt = input_ids.shape
        self.method = method = loop.method
        self.model, self.config = model, config
        self.trained_positions, self.token_types = loop.trained_positions, loop.token_types
        self.recorder = TraceRecorder(batch, method)
        self.steering: Steering | None = None
        self.cache: Any = None
        self.video_tokens = [0] * batch
        self._forward: Callable[..., Any] = model
        self._kwargs: dict[str, Any] = {}
        self._coins = coins(config.max_length - prompt, method.seed) if method.policy == "random" else []

    def prefill(self, input_ids: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        """Runs the prompt, prunes (Lite) and makes ready to steer. The first token's logits, (batch, vocabulary)."""
        started = time.perf_counter()
        if self.method.prune_ratio > 0:
            check_columns(self.model, f"Lite (prune_ratio={self.method.prune_ratio:g})")
        video_mask = family_of(self.model).video_mask(self.model, input_ids, self.token_types)
        outputs = prefill(self.model, input_ids, self.config, model_kwargs)
        if self.trained_positions:
            model_kwargs = {**model_kwargs, "position_ids": ending_highest(model_kwargs["position_ids"])}
        logits: Tensor = outputs["logits"][:, -1]
        self.cache = cache = outputs[CACHE]
        check_cache(cache, pruned=self.method.prune_ratio > 0)
        attention_mask = model_kwargs.get("attention_mask")
        if self.method.prune_ratio > 0 and video_mask.any():
            video_mask, attention_mask = prune_video_tokens(cache, video_mask, attention_mask, self.method)
        self.video_tokens = video_mask.sum(dim=1).tolist()
        if self.method.steers and any(self.video_tokens):
            shift = Shift(cache.layers[-1].values, video_mask, self.method)
            self.steering = Steering(Seam(self.model), shift, self.method, video_mask)
        self._kwargs = {**model_kwargs, "attention_mask": attention_mask}
        auto = self.method.compile == "auto" and compiles_by_itself(self.model, self._kwargs, self.config)
        if auto or self.method.compile == "on":
            self._compile(input_ids.new_ones(len(input_ids), int(cache.get_seq_length())))
        self.recorder.add(entropy(logits).to(input_ids.device))
        if logits.device.type == "cuda":
            # Once, so that the prefill's time is its own and not the first step's.
            torch.cuda.synchronize(logits.device)
        self.recorder.prefilled(time.perf_counter() - started)
        return logits

    def next(self, input_ids: Tensor, unfinished: Tensor) -> Tensor:
        """The logits (batch, vocabulary) of the token after ``input_ids`` (batch, tokens)."""
        self._kwargs = next_model_kwargs(self.model, self.cache, self._kwargs)
        inputs = self.model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **self._kwargs)
        recorder = self.recorder
        if self.steering is None or not self.method.is_due(recorder.tokens):
            logits: Tensor = self._forward(**inputs, return_dict=True).logits[:, -1]
            recorder.add(entropy(logits).to(unfinished.device))
            return logits
        coin = self._coins[recorder.tokens] if self._coins else 0.0
        weight = weight_of(recorder.tokens, self.method.ema_decay, self.method.ema_correction)
        averages = [*recorder.averages(), [weight] * recorder.batch, [coin] * recorder.batch]
        step = self.steering.step(inputs, averages, unfinished)
        recorder.add(step.entropy)
        if step.shift is not None:
            recorder.add_update(step._asdict())
        return step.logits

    def traces(self) -> list[Trace]:
        """One a sample."""
        return self.recorder.traces(self.video_tokens, self._notes(), self._faults())

    def _compile(self, nothing_masked: Tensor) -> None:
        """Args: ``nothing_masked`` (batch, tokens), the mask of a batch without padding."""
        settings = self.config.compile_config
        if settings is None:
            mode = "reduce-overhead" if self.model.device.type == "cuda" else "default"
            settings = CompileConfig(fullgraph=True, mode=mode)
        self._forward = self.model.get_compiled_call(settings)
        if self.steering is not None:
            if self.model.device.type == "cpu" and self._has_grouped_experts(self.steering.seam.tail.layer):
                raise ValueError(
                    "a due step over grouped experts does not compile on a CPU: set compile=off, or call "
                    "model.set_experts_implementation('batched_mm')"
                )
            self.steering.compile(settings)
        if self._kwargs["attention_mask"] is None:
            # Older transformers leave the mask over a static cache to the forward; the due step wants it made.
            self._kwargs["attention_mask"] = nothing_masked

    def _has_grouped_experts(self, layer: Any) -> bool:
        grouped = "grouped_mm" in self.model.get_experts_implementation().values()
        return grouped and any(name.endswith("experts") for name, _ in layer.named_modules())

    def _notes(self) -> list[str]:
        return [why_not(self.method, tokens) for tokens in self.video_tokens]

    def _faults(self) -> list[str]:
        if self.steering is None:
            return [""] * len(self.video_tokens)
        broken = self.steering.steered & ~self.steering.healthy
        return [NOT_FINITE if sample else "" for sample in broken.tolist()]


@dataclass(eq=False)
class DecodingLoop:
    """One generation's loop: a callable for ``custom_generate``, which leaves its :class:`Trace` list in ``traces``.

    Attributes:
        streamer: transformers does not hand it to a callable of one's own, so the object carries it.
        trained_positions: Whether the prompts' ``position_ids`` are trained ones, and generated tokens go on so.
        token_types: (batch, prompt), as in :meth:`~lmms_eval_vreason.families.family.Family.video_mask`.
        decoding: Its forwards and its cache, once it runs.
    """

    method: VReason
    streamer: Any = None
    generators: Sequence[torch.Generator] | None = None
    trained_positions: bool = False
    token_types: Tensor | None = None
    decoding: Decoding | None = field(default=None, init=False)
    traces: list[Trace] = field(default_factory=list, init=False)

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteria,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor:
        """Generates until every sample has stopped. ``input_ids`` (batch, prompt) → (batch, prompt + generated)."""
        choose = Choice(logits_processor, stopping_criteria, generation_config, self.generators, input_ids)
        decoding = self.decoding = Decoding(self, model, generation_config, input_ids)
        logits = decoding.prefill(input_ids, model_kwargs)
        with experts_for_decoding(model):
            while True:
                input_ids = choose(input_ids, logits)
                if self.streamer is not None:
                    self.streamer.put(input_ids[:, -1].cpu())
                # Waits for the device, so that each step's time is its own.
                if decoding.recorder.chosen(choose.unfinished.tolist()):
                    break
                logits = decoding.next(input_ids, choose.unfinished)
        if self.streamer is not None:
            self.streamer.end()
        self.traces = decoding.traces()
        return input_ids
