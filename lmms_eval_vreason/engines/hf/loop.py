"""The decoding loop: how one token follows another, and where the controller comes in.

transformers prepares the inputs, the cache, the logits processors and the stopping criteria. The model is not patched.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from lmms_eval_vreason.engines.hf.compiled import DueStep, GraphController, compiled_steps, compiles
from lmms_eval_vreason.engines.hf.steering import Steering, TailInputs, noting_call, tail_mask
from lmms_eval_vreason.engines.hf.support import check_cache
from lmms_eval_vreason.engines.hf.upstream import CACHE, attention_name, next_model_kwargs, prefill
from lmms_eval_vreason.engines.hf.upstream import pad_token as pad_token_of
from lmms_eval_vreason.families.positions import ending_highest
from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.method.entropy import POLICIES, entropy_of, log_probabilities
from lmms_eval_vreason.method.pruning import prune_video_tokens
from lmms_eval_vreason.method.trace import Trace, TraceRecorder


class DecodingLoop:
    """One generation's loop: a callable for ``custom_generate``, which leaves its :class:`Trace` list in ``traces``."""

    def __init__(
        self,
        method: VReason,
        *,
        streamer: BaseStreamer | None = None,
        generators: Sequence[torch.Generator] | None = None,
        trained_positions: bool = False,
    ) -> None:
        """``trained_positions``: the prompts' ``position_ids`` are trained ones, and generated tokens go on so."""
        # transformers does not hand the streamer to a callable of one's own, so the object carries it.
        self.method, self.streamer, self.generators = method, streamer, generators
        self._trained_positions = trained_positions
        self.steering: Steering | None = None
        self._compiled_forward: Callable[..., Any] | None = None
        self._compiled_due_step: Callable[..., DueStep] | None = None
        self._graph_controller: GraphController | None = None
        self.traces: list[Trace] = []

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor:
        """Generates until every sample has stopped. ``input_ids`` (batch, prompt) → (batch, prompt + generated)."""
        self._start(input_ids, generation_config)
        pad_token = pad_token_of(generation_config) if _has_end_token(stopping_criteria) else None
        unfinished = torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        lengths = torch.zeros_like(unfinished, dtype=torch.long)
        started = time.perf_counter()
        logits, cache = self._prefill(model, input_ids, generation_config, model_kwargs)
        if logits.device.type == "cuda":
            # Once, so that the prefill's time is its own and not the first step's.
            torch.cuda.synchronize(logits.device)
        self._recorder.seconds_prefill = time.perf_counter() - started
        if compiles(model, self.method, model_kwargs, generation_config):
            self._compiled_forward, self._compiled_due_step = compiled_steps(model, self.method, generation_config)
            if model_kwargs.get("attention_mask") is None:
                # Older transformers leave the mask over a static cache to the forward; the due step wants it made.
                cached = int(cache.get_seq_length())
                model_kwargs["attention_mask"] = input_ids.new_ones(input_ids.shape[0], cached)
            if self.steering is not None and self._compiled_due_step is not None:
                self._graph_controller = GraphController(self.steering)
                self._graph_controller.mark_dynamic()
        token = 0
        while True:
            started = time.perf_counter()
            due = self.steering is not None and self.method.is_due(token)
            if token > 0:
                inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **model_kwargs)
                logits = self._decode(model, inputs, token, unfinished)
            model_kwargs = next_model_kwargs(model, cache, model_kwargs)
            # A copy in float32, as transformers makes it: processors may write into it.
            scores = logits.to(copy=True, dtype=torch.float32, device=input_ids.device)
            del logits
            next_tokens = self._choose(logits_processor(input_ids, scores), generation_config.do_sample)
            if pad_token is not None:
                next_tokens = torch.where(unfinished, next_tokens, pad_token.to(next_tokens))
            input_ids = torch.cat([input_ids, next_tokens[:, None]], dim=-1)
            lengths += unfinished
            unfinished = unfinished & ~stopping_criteria(input_ids, None)
            if self.streamer is not None:
                self.streamer.put(next_tokens.cpu())
            self._alive = unfinished.tolist()
            if token > 0:
                self._recorder.add_seconds(time.perf_counter() - started, due)
            token += 1
            if not any(self._alive):
                break
        if self.streamer is not None:
            self.streamer.end()
        self.traces = self._recorder.traces(lengths.tolist(), self._video_tokens, self._notes(), self._faults())
        return input_ids

    def _start(self, input_ids: Tensor, generation_config: GenerationConfig) -> None:
        batch, device = input_ids.shape[0], input_ids.device
        if self.generators is not None and len(self.generators) != batch:
            raise ValueError(f"{len(self.generators)} generators for a batch of {batch}: pass one a sample")
        self._recorder = TraceRecorder(batch, self.method.ema_decay)
        self._device, self._alive = device, [True] * batch
        # Every sample sees the same coins: a sample's α does not depend on its place in a batch.
        tokens = generation_config.max_length - input_ids.shape[1]
        coins = torch.rand(tokens, generator=torch.Generator().manual_seed(self.method.seed)) < 0.5
        self._coins = torch.where(coins, 1.0, -1.0).tolist()

    def _prefill(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
    ) -> tuple[Tensor, Cache]:
        """Runs the prompt, prunes (Lite) and attaches the controllers. Changes ``model_kwargs`` when it prunes.

        Returns:
            The logits to choose the first token from, and the cache.
        """
        method, tail = self.method, TailInputs()
        with _noting_prefill(model, method, tail):
            outputs = prefill(model, input_ids, generation_config, model_kwargs)
        if self._trained_positions:
            model_kwargs["position_ids"] = ending_highest(model_kwargs["position_ids"])
        cache, attention_mask = outputs[CACHE], model_kwargs.get("attention_mask")
        check_cache(cache)
        video_mask = input_ids == model.config.video_token_id
        if method.prune_ratio > 0 and video_mask.any():
            video_mask, attention_mask = prune_video_tokens(
                cache, video_mask, attention_mask, method.prune_ratio, method.prune_score, method.seed
            )
            model_kwargs["attention_mask"] = attention_mask
        self._video_tokens = video_mask.sum(dim=1).tolist()
        if method.steers and any(self._video_tokens):
            self.steering = Steering(model, method, cache, video_mask)
            if method.first_token:
                kind = attention_name(model.config)
                tail.kwargs["attention_mask"] = tail_mask(attention_mask, cache.layers[-1], kind)
        due = self.steering is not None and method.first_token
        logits = self._steer(0, outputs.logits[:, -1], tail if due else None)
        return logits, cache

    def _decode(self, model: PreTrainedModel, inputs: dict[str, Any], token: int, unfinished: Tensor) -> Tensor:
        """One token's forward over the cache; the logits to choose the next token from."""
        if self.steering is None or not self.method.is_due(token):
            forward = model if self._compiled_forward is None else self._compiled_forward
            return self._steer(token, forward(**inputs, return_dict=True).logits[:, -1], None)
        if self._compiled_due_step is None:
            outputs, tail = self.steering.forward(model, inputs)
            return self._steer(token, outputs.logits[:, -1], tail)
        recorder, controller = self._recorder, self._graph_controller
        recorder.entropies()
        coins = [self._coins[token]] * recorder.batch
        ema, peak, coin = torch.tensor([recorder.ema, recorder.peak, coins], device=self._device)
        step = self._compiled_due_step(self.steering, controller, inputs, ema, peak, coin, unfinished)
        # Copies: a CUDA graph writes its results into the same memory again.
        kept = DueStep(step.logits, *(None if result is None else result.clone() for result in step[1:]))
        controller.healthy = kept.healthy
        recorder.add(kept.entropy)
        recorder.add_update(kept.active, kept.alpha, kept.refreshed, kept.grad_norm, self.steering.shift())
        return kept.logits

    def _steer(self, token: int, logits: Tensor, tail: TailInputs | None) -> Tensor:
        """Updates the cache if the token is due, notes the trace, and gives the logits to choose from."""
        method, recorder = self.method, self._recorder
        if tail is not None and token == 0:
            tail = self.steering.rerun(tail)
            logits = tail.logits
        logits = logits.detach()
        log_p = log_probabilities(logits)
        h = entropy_of(log_p)
        recorder.add(h.to(self._device))
        if tail is None:
            return logits
        samples = zip(recorder.entropies(), recorder.ema, recorder.peak, self._alive, strict=True)
        policy, coin = POLICIES[method.policy], self._coins[token]
        alpha = [
            policy(ema, peak, coin) if alive and entropy >= method.min_entropy else 0.0
            for entropy, ema, peak, alive in samples
        ]
        update = self.steering.update(tail, log_p, h, alpha)
        refreshed = None if update.logits is None else entropy_of(log_probabilities(update.logits))
        recorder.add_update(update.moved, alpha, refreshed, update.grad_norm, self.steering.shift())
        return logits if update.logits is None else update.logits

    def _choose(self, scores: Tensor, do_sample: bool) -> Tensor:
        if not do_sample:
            return scores.argmax(dim=-1)
        probabilities = scores.softmax(dim=-1)
        if self.generators is None:
            return torch.multinomial(probabilities, num_samples=1).squeeze(1)
        rows = zip(probabilities, self.generators, strict=True)
        return torch.cat([torch.multinomial(row, num_samples=1, generator=generator) for row, generator in rows])

    def _notes(self) -> list[str]:
        method = self.method
        if method.policy == "off":
            reason = "the policy is off"
        elif not method.steers:
            reason = "the learning rate is 0"
        else:
            reason = (
                f"no update was due (every {method.update_every} tokens) at an entropy over {method.min_entropy:g} nats"
            )
        return [reason if n else "the prompt has no video tokens" for n in self._video_tokens]

    def _faults(self) -> list[str]:
        if self.steering is None:
            return [""] * len(self._video_tokens)
        fault = "a gradient was not finite; from there on the sample went on as the base model"
        controller = self._graph_controller
        healthy = self.steering.healthy if controller is None else controller.healthy.tolist()
        return [fault if n and not ok else "" for ok, n in zip(healthy, self._video_tokens, strict=True)]


def _noting_prefill(model: PreTrainedModel, method: VReason, tail: TailInputs) -> AbstractContextManager[None]:
    """Notes the call of the prefill's tail if the method updates on the first token; else does nothing."""
    if not (method.steers and method.first_token):
        return nullcontext()
    return noting_call(model.model.language_model.layers[-method.layers], tail)


def _has_end_token(stopping_criteria: StoppingCriteriaList) -> bool:
    return any(hasattr(criteria, "eos_token_id") for criteria in stopping_criteria)
