"""A batch of samples with their media → completions: inputs, budgets, V-Reason's generate, the split answers."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from lmms_eval_vreason.decoding import Trace, VReason
from lmms_eval_vreason.options import ThinkingOptions
from lmms_eval_vreason.protocol import Budgets, cut_at, split_completion
from lmms_eval_vreason.samples import Sample
from lmms_eval_vreason.video import Frames

# lmms-eval's own Qwen classes give this much where a task names no budget.
_DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True)
class Completion:
    """One sample's outcome. Tokens are counted without padding; ``seconds`` are its share of the batch."""

    thinking: str
    answer: str
    thinking_cut: bool
    answer_cut: bool
    input_tokens: int
    output_tokens: int
    thinking_tokens: int
    tokens: list[str]
    trace: Trace
    seconds: dict[str, float]
    peak_memory_bytes: int | None


class Generator:
    """Generates batches of samples with one model under one method."""

    def __init__(self, model, processor, method: VReason, thinking: ThinkingOptions, device: torch.device) -> None:
        self.model, self.processor, self.method, self.thinking, self.device = model, processor, method, thinking, device
        self.tokenizer = processor.tokenizer
        tags = {"<think>", "</think>", "<answer>", "</answer>"}
        self._hidden_ids = {
            token for token in self.tokenizer.all_special_ids if self.tokenizer.convert_ids_to_tokens(token) not in tags
        }
        ends = model.generation_config.eos_token_id
        self._end_ids = set(ends if isinstance(ends, list) else [ends])

    def prepare(self, samples: Sequence[Sample], media: Sequence[Sequence[Any]]) -> dict[str, torch.Tensor]:
        """The processor's inputs for a batch, padded on the left, on the device.

        Args:
            media: For each sample its read images and videos, in order.

        Raises:
            ValueError: A prompt that does not fit into the model's context with its budgets.
        """
        texts = [
            self.processor.apply_chat_template(sample.messages, tokenize=False, add_generation_prompt=True)
            for sample in samples
        ]
        videos = [item for items in media for item in items if isinstance(item, Frames)]
        images = [item for items in media for item in items if not isinstance(item, Frames)]
        inputs = self.processor(
            text=texts,
            images=images or None,
            videos=[video.pixels for video in videos] or None,
            text_kwargs={"padding": True, "padding_side": "left"},
            # Sampled and resized already: a second resize would change pixels and cost time.
            images_kwargs={"do_resize": False},
            videos_kwargs={
                "do_resize": False,
                "do_sample_frames": False,
                "video_metadata": [video.metadata for video in videos] or None,
            },
            return_tensors="pt",
        )
        longest = inputs["input_ids"].shape[1]
        context = self.model.config.text_config.max_position_embeddings
        if longest >= context:
            raise ValueError(
                f"the prompt has {longest} tokens and the model's context {context}: lower max_num_frames or max_pixels"
            )
        return inputs.to(self.device)

    @torch.no_grad()
    def generate(
        self, samples: Sequence[Sample], media: Sequence[Sequence[Any]], method: VReason | None = None
    ) -> list[Completion]:
        """Answers a batch whose samples share their generation settings; ``method`` stands in for the generator's."""
        started = time.perf_counter()
        inputs = self.prepare(samples, media)
        settings = samples[0].settings
        budgets, arguments = self._arguments(samples, inputs["input_ids"].shape[1])
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        result = (method or self.method).generate(
            self.model, **inputs, **arguments, generators=self._generators(samples)
        )
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        seconds = time.perf_counter() - started
        completions = []
        for row, trace in enumerate(result.traces):
            start = inputs["input_ids"].shape[1]
            ids = result.sequences[row, start : start + len(trace.entropy)].tolist()
            completions.append(
                self._completion(
                    ids,
                    row=row,
                    budgets=budgets,
                    until=settings.until,
                    max_new_tokens=arguments["max_new_tokens"],
                    input_tokens=int(inputs["attention_mask"][row].sum()),
                    trace=trace,
                    seconds={
                        "generate": seconds / len(samples),
                        "ordinary": trace.seconds_ordinary / len(samples),
                        "due": trace.seconds_due / len(samples),
                    },
                    peak_memory_bytes=peak,
                )
            )
        return completions

    def _arguments(self, samples: Sequence[Sample], prompt_length: int) -> tuple[Budgets | None, dict[str, Any]]:
        settings = samples[0].settings
        arguments = {"max_new_tokens": _DEFAULT_NEW_TOKENS, **settings.generation}
        if not self.thinking.thinking:
            if settings.until:
                arguments |= {"stop_strings": list(settings.until), "tokenizer": self.tokenizer}
            return None, arguments
        budgets = Budgets(
            self.tokenizer,
            len(samples),
            prompt_length,
            max_thinking_tokens=self.thinking.max_thinking_tokens,
            max_answer_tokens=self.thinking.max_answer_tokens,
        )
        arguments |= {
            "max_new_tokens": budgets.max_new_tokens,
            "logits_processor": LogitsProcessorList([budgets.processor]),
            "stopping_criteria": StoppingCriteriaList([budgets.criteria]),
        }
        return budgets, arguments

    def _generators(self, samples: Sequence[Sample]) -> list[torch.Generator] | None:
        """One a sample, seeded by who the sample is: its draws don't depend on order, batch or process."""
        if not samples[0].settings.generation["do_sample"]:
            return None
        generators = []
        for sample in samples:
            who = repr((self.method.seed, sample.task, sample.split, sample.doc_id, sample.repeat))
            seed = int.from_bytes(hashlib.sha256(who.encode()).digest()[:7], "big")
            generators.append(torch.Generator(self.device).manual_seed(seed))
        return generators

    def _completion(
        self,
        ids: list[int],
        *,
        row: int,
        budgets: Budgets | None,
        until: Sequence[str],
        max_new_tokens: int,
        **rest: Any,
    ) -> Completion:
        text = self.tokenizer.decode([token for token in ids if token not in self._hidden_ids])
        ended = bool(ids) and ids[-1] in self._end_ids
        if budgets is None:
            thinking, answer, thought = "", text, 0
            thinking_cut, answer_cut = False, len(ids) >= max_new_tokens and not ended
        else:
            thinking, answer = split_completion(text)
            thought = budgets.thinking_tokens[row]
            thought = thought if thought is not None else (len(ids) if thinking else 0)
            thinking_cut, answer_cut = budgets.thinking_cut[row], budgets.answer_cut[row]
        return Completion(
            thinking=thinking,
            answer=cut_at(answer, until),
            thinking_cut=thinking_cut,
            answer_cut=answer_cut,
            output_tokens=len(ids),
            thinking_tokens=thought,
            tokens=[self.tokenizer.decode([token]) for token in ids],
            **rest,
        )
