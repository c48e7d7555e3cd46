"""What vLLM's ``LLM`` is built with, and what does not go with the method. Imports neither vLLM nor torch's models."""

import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from lmms_eval_vreason.engines.vllm.plugin import ARCHITECTURES
from lmms_eval_vreason.engines.vllm.runner import VALIDATED, installed_version
from lmms_eval_vreason.method.config import VReason

# The key of the method in vLLM's additional_config, which also salts the hash of its compile cache.
METHOD = "vreason"
WORKER = "lmms_eval_vreason.engines.vllm.worker.VReasonWorker"
BUDGETS = "lmms_eval_vreason.engines.vllm.budgets:Budgets"
_PLAIN_CACHES = ("auto", "float32", "bfloat16", "float16")

# Argument of vLLM: (whether a value goes with the method, why others do not and what to do).
_REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "kv_cache_dtype": (
        lambda v: v in _PLAIN_CACHES,
        "V is read from the cache and needs its own dtype: set it to auto",
    ),
    "speculative_config": (lambda v: not v, "several tokens a step have no due step yet: leave it out"),
    "quantization": (lambda v: v is None, "the last layer's gradient needs its plain weights: leave it out"),
    "enable_lora": (lambda v: not v, "an adapter's last layer is not the one that is steered: merge it first"),
    "pipeline_parallel_size": (lambda v: v == 1, "the last layer must see the whole request: set it to 1"),
    "tensor_parallel_size": (lambda v: v == 1, "the tail's sums over ranks are not proven: set data_parallel_size"),
    "decode_context_parallel_size": (lambda v: v == 1, "a request's pages must lie on one rank: set it to 1"),
    "prefill_context_parallel_size": (lambda v: v == 1, "a request's pages must lie on one rank: set it to 1"),
    "async_scheduling": (lambda v: not v, "a step would begin before the last one's token is known: leave it out"),
    "video_pruning_rate": (lambda v: not v, "the video tokens in the cache must be the prompt's: leave it out"),
    "enable_prompt_embeds": (lambda v: not v, "no video can be found in a prompt of embeddings: leave it out"),
    "worker_cls": (lambda v: v in ("auto", WORKER), "the method is in a worker class of its own: leave it out"),
}
_KEPT_PREFIXES = (
    "enable_prefix_caching=True does not go with keep_shift=on: V_new is written into pages that requests would share; "
    "leave it out, or set keep_shift=off, which writes nothing"
)


def engine_args(method: VReason, **vllm_args: Any) -> dict[str, Any]:
    """Keyword arguments for ``vllm.LLM`` under V-Reason.

    Prefix caching is on where nothing is written into the pages (``keep_shift=False``), so that questions on one video
    share its prefill. The model runs eager unless ``enforce_eager=False`` is passed. Sets the environment variable
    VLLM_USE_V2_MODEL_RUNNER to 0 where it is not set.

    Args:
        method: The hyperparameters.
        **vllm_args: ``model``, and whatever else ``LLM`` takes; it wins over the defaults made here.

    Raises:
        ValueError: What does not go with the method, in one line, or a model of no supported family.
        ImportError: vLLM is not installed.
    """
    _check_version()
    check_method(method)
    for name, (goes, why) in _REFUSED.items():
        if name in vllm_args and not goes(vllm_args[name]):
            raise ValueError(f"{name}={vllm_args[name]!r} does not go with V-Reason: {why}")
    if method.keep_shift and vllm_args.get("enable_prefix_caching"):
        raise ValueError(_KEPT_PREFIXES)
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    overrides = vllm_args.get("hf_overrides") or {}
    if not isinstance(overrides, dict):
        raise ValueError("hf_overrides must be a dictionary: the architecture is set in it")
    return {
        "enforce_eager": True,
        "enable_prefix_caching": not method.keep_shift,
        **vllm_args,
        "async_scheduling": False,
        "worker_cls": WORKER,
        "hf_overrides": {**overrides, "architectures": [_architecture(vllm_args)]},
        "additional_config": {**(vllm_args.get("additional_config") or {}), METHOD: asdict(method)},
        "logits_processors": [*(vllm_args.get("logits_processors") or []), BUDGETS],
    }


def _check_version() -> None:
    """Raises ImportError without vLLM, and warns of a release that this engine was not run on."""
    installed = installed_version()
    if not installed:
        raise ImportError("vLLM is not installed: pip install 'lmms-eval-vreason[vllm]' in an environment of its own")
    if installed not in VALIDATED:
        logging.getLogger(__name__).warning(
            "V-Reason's engine was run on vLLM %s, not on %s: compare rate 0 with plain vLLM first",
            ", ".join(VALIDATED),
            installed,
        )


def check_method(method: VReason) -> None:
    """Raises ValueError for hyperparameters that only the transformers engine has."""
    if method.prune_ratio > 0:
        raise ValueError(
            f"prune_ratio={method.prune_ratio:g} (Lite) does not go with vLLM: tokens cannot leave its pages; use the "
            "transformers engine"
        )
    if method.compile == "on":
        raise ValueError("compile=on is the transformers engine's: pass enforce_eager=False to vLLM instead")


def fault_of_config(config: Any) -> str:
    """Why the resolved ``VllmConfig`` does not go with the method; empty if it does."""
    method, cache, parallel = config.additional_config.get(METHOD), config.cache_config, config.parallel_config
    if method is None:
        return f"additional_config has no {METHOD!r}: pass what engine_args returns"
    values = {
        "kv_cache_dtype": cache.cache_dtype,
        "speculative_config": config.speculative_config,
        "quantization": config.model_config.quantization,
        "enable_lora": config.lora_config is not None,
        "pipeline_parallel_size": parallel.pipeline_parallel_size,
        "tensor_parallel_size": parallel.tensor_parallel_size,
        "decode_context_parallel_size": parallel.decode_context_parallel_size,
        "async_scheduling": config.scheduler_config.async_scheduling,
    }
    for name, value in values.items():
        goes, why = _REFUSED[name]
        if not goes(value):
            return f"{name}={value!r} does not go with V-Reason: {why}"
    if config.use_v2_model_runner:
        return "vLLM's model runner V2 is not supported: set the environment variable VLLM_USE_V2_MODEL_RUNNER=0"
    if method["keep_shift"] and cache.enable_prefix_caching:
        return _KEPT_PREFIXES
    return ""


def _architecture(vllm_args: dict[str, Any]) -> str:
    """The steered architecture of the checkpoint ``model``."""
    from transformers import PretrainedConfig

    if not vllm_args.get("model"):
        raise ValueError("engine_args needs model=..., a checkpoint's folder or name")
    config, _ = PretrainedConfig.get_config_dict(vllm_args["model"], revision=vllm_args.get("revision"))
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ValueError(f"V-Reason steers {', '.join(ARCHITECTURES)} in vLLM, not {kind}: use the transformers engine")
    if config.get("quantization_config"):
        raise ValueError(f"{vllm_args['model']} is quantised: {_REFUSED['quantization'][1]}; use the plain checkpoint")
    return ARCHITECTURES[kind]
