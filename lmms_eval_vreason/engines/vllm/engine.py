"""vLLM under V-Reason as a run needs it: everything is submitted at once, and each request comes as it finishes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError

from lmms_eval_vreason.engines.vllm.arguments import engine_args
from lmms_eval_vreason.engines.vllm.followed import BUDGETS_KEY, Followed
from lmms_eval_vreason.engines.vllm.wire import unpacked
from lmms_eval_vreason.media.frames import Frames
from lmms_eval_vreason.method import Trace, VReason
from lmms_eval_vreason.method.trace import COLUMNS, totals

# Settings of transformers' generate → those of vLLM.
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repetition_penalty",
}
_PLAIN = {"num_beams": (None, 1), "num_return_sequences": (None, 1)}


@dataclass(frozen=True)
class Settings:
    """How a request is generated.

    Attributes:
        generation: Settings of transformers' ``generate``: max_new_tokens, do_sample, temperature, top_p, top_k, …
        stop: Strings that end the text; not with budgets.
        budgets: ``opened``, ``max_thinking_tokens`` and ``max_answer_tokens``, or None to decode freely.
        seed: Of the draws, where ``do_sample``.
    """

    generation: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    budgets: dict[str, Any] | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Finished:
    """A request that has ended.

    Attributes:
        key: As it was submitted.
        tokens: The generated ones, the end token included; not the one that the budgets forced to end the text.
        prompt_tokens, cached_tokens: Tokens of the prompt, and how many of them were in the cache already.
        trace: One entry a token. Its seconds are this request's share of the steps that it took part in.
        cut: Whether the tokens ran out.
        followed: The budgets, which have seen all tokens; None without.
    """

    key: str
    tokens: list[int]
    prompt_tokens: int
    cached_tokens: int
    trace: Trace
    cut: bool
    followed: Followed | None = None


class Engine:
    """One vLLM engine under V-Reason.

    Attributes:
        llm: vLLM's.
    """

    def __init__(self, method: VReason, **vllm_args: Any) -> None:
        """Args and errors: as of :func:`~lmms_eval_vreason.engines.vllm.engine_args`."""
        self.llm = LLM(**engine_args(method, **vllm_args))
        self.tokenizer = self.llm.get_tokenizer()
        self._waiting: dict[str, tuple[str, Followed | None]] = {}

    def submit(self, key: str, prompt: str, media: Sequence[Any], settings: Settings) -> None:
        """Queues a request.

        Args:
            key: Unique among those that have not finished.
            prompt: As the chat template writes it, with one placeholder an image or video.
            media: Its read images and videos, in order.

        Raises:
            ValueError: The prompt does not fit into the context, or a setting does not go with the method.
        """
        if key in self._waiting:
            raise ValueError(f"a request with the key {key!r} is waiting already")
        limits = settings.budgets
        followed = None if limits is None else Followed(self.tokenizer, **limits)
        try:
            params = self._params(settings)
            name = self.llm.llm_engine.add_request(key, _prompt(prompt, media), params)
        except VLLMValidationError as error:
            raise ValueError(str(error)) from error
        self._waiting[key] = name, followed

    def finished(self) -> Iterator[Finished]:
        """Runs the engine until all that was submitted has finished, each as soon as it has. More may be submitted.

        Raises:
            RuntimeError: Steering was lost.
        """
        while self._waiting:
            for output in self.llm.llm_engine.step():
                if output.finished:
                    yield self._finished(output)

    def close(self) -> None:
        """Ends the engine's process and gives its memory back."""
        self.llm.llm_engine.engine_core.shutdown()

    def _finished(self, output: Any) -> Finished:
        name, followed = self._waiting.pop(output.request_id)
        (completion,) = output.outputs
        tokens = list(completion.token_ids)
        if followed is not None:
            followed.follow(tokens)
            tokens = tokens[: followed.done]
        (traces,) = self.llm.collective_rpc("vreason_traces", args=([name],))
        if name not in traces:
            raise RuntimeError(f"steering lost: the worker has no trace of request {output.request_id}")
        trace = unpacked(traces[name])
        # A stop string is found in the text, when the next token may be on its way.
        by_text = completion.finish_reason == "stop" and isinstance(completion.stop_reason, str)
        seen, chosen = len(trace.entropy), len(completion.token_ids)
        if seen != chosen and not (by_text and seen > chosen):
            raise RuntimeError(f"steering lost: {seen} of the {chosen} tokens of {output.request_id} were seen")
        return Finished(
            output.request_id,
            tokens,
            len(output.prompt_token_ids),
            output.num_cached_tokens or 0,
            _cut(trace, len(tokens)),
            completion.finish_reason == "length" and (followed is None or followed.done is None),
            followed,
        )

    def _params(self, settings: Settings) -> SamplingParams:
        generation = dict(settings.generation)
        for name, allowed in _PLAIN.items():
            if generation.get(name) not in allowed:
                raise ValueError(f"{name}={generation[name]!r} does not go with V-Reason: set it to 1")
        params = self.llm.get_default_sampling_params()
        for name in _SAMPLING:
            if generation.get(name) is not None:
                setattr(params, name, generation[name])
        if not generation.get("do_sample"):
            params.temperature, params.top_p, params.top_k, params.min_p = 0.0, 1.0, 0, 0.0
        params.seed, params.stop = settings.seed, list(settings.stop)
        if settings.budgets is not None:
            # One more, which is forced to end the text.
            params.max_tokens = Followed(self.tokenizer, **settings.budgets).max_new_tokens + 1
            params.extra_args = {BUDGETS_KEY: settings.budgets}
        else:
            params.max_tokens = generation.get("max_new_tokens") or params.max_tokens
        # A new one, so that vLLM checks what was set.
        return SamplingParams(**{name: getattr(params, name) for name in _CHECKED})


_CHECKED = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("seed", "stop", "max_tokens", "extra_args"),
)


def _prompt(text: str, media: Sequence[Any]) -> dict[str, Any]:
    """A prompt as vLLM takes it. Frames are sampled and resized already."""
    videos = [(item.pixels, item.metadata) for item in media if isinstance(item, Frames)]
    images = [item for item in media if not isinstance(item, Frames)]
    data = {name: items for name, items in (("video", videos), ("image", images)) if items}
    if not data:
        return {"prompt": text}
    kwargs = {"do_resize": False, "do_sample_frames": False} if videos else {"do_resize": False}
    return {"prompt": text, "multi_modal_data": data, "mm_processor_kwargs": kwargs}


def _cut(trace: Trace, tokens: int) -> Trace:
    """The trace of the first ``tokens``."""
    if tokens == len(trace.entropy):
        return trace
    columns: dict[str, Any] = {name: getattr(trace, name)[:tokens] for name in COLUMNS}
    return replace(trace, **columns, **totals(columns))
