"""vLLM's worker with the method in it: ``worker_cls``, which installs itself when the model and its pages are there."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from vllm.platforms import current_platform

from lmms_eval_vreason.engines.vllm.arguments import METHOD, fault_of_config
from lmms_eval_vreason.engines.vllm.models import Watched
from lmms_eval_vreason.engines.vllm.pages import Pages
from lmms_eval_vreason.engines.vllm.runner import RunnerV1
from lmms_eval_vreason.engines.vllm.steering import Steering
from lmms_eval_vreason.engines.vllm.wire import packed
from lmms_eval_vreason.method.config import VReason

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Worker
else:
    from vllm.v1.worker.gpu_worker import Worker


class VReasonWorker(Worker):  # type: ignore[misc]
    """A worker of one device.

    Attributes:
        vreason: The method, once the engine is ready.
        vreason_hook: The handle of what replaces the sampler's logits.
    """

    vreason: Steering | None = None
    vreason_hook: Any = None

    def compile_or_warm_up_model(self) -> Any:
        """As vLLM's; afterwards every step is steered.

        Raises:
            TypeError, ValueError: The model or the engine's settings do not go with the method.
            RuntimeError: An internal of vLLM is not where it was.
        """
        times = super().compile_or_warm_up_model()
        fault = fault_of_config(self.vllm_config)
        if fault:
            raise ValueError(fault)
        if not isinstance(self.model_runner.model, Watched):
            kind = type(self.model_runner.model).__name__
            raise TypeError(f"steering lost: the model is a {kind}; pass what engine_args returns, hf_overrides too")
        method = VReason(**self.vllm_config.additional_config[METHOD])
        runner = RunnerV1(self)
        with torch.inference_mode(False), torch.no_grad():
            pages = Pages(runner.attention)
            if pages.size != runner.page_size:
                raise RuntimeError(f"vLLM's tables have pages of {runner.page_size} tokens, its cache of {pages.size}")
            self.vreason = Steering(runner.model, pages, method, runner.slots)
        self.vreason_hook = runner.bind(self.vreason.step)
        return times

    def execute_model(self, scheduler_output: Any) -> Any:
        """As vLLM's."""
        if self.vreason is not None:
            self._vreason_started = time.perf_counter()
            self.vreason.schedule(scheduler_output)
        return super().execute_model(scheduler_output)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """As vLLM's.

        Raises:
            RuntimeError: The tokens were chosen from logits that the method never saw.
        """
        output, steering = super().sample_tokens(grammar_output), self.vreason
        if steering is not None:
            if not steering.fired:
                raise RuntimeError("steering lost: the sampler ran without the method's hook on it")
            steering.requests.timed(time.perf_counter() - self._vreason_started, steering.sampled, steering.due)
        return output

    def vreason_traces(self, names: Sequence[str]) -> dict[str, Any]:
        """The finished ones of the requests ``names``, packed as in :mod:`lmms_eval_vreason.engines.vllm.wire`."""
        if self.vreason is None:
            raise RuntimeError("steering lost: the worker never installed the method")
        traces = self.vreason.requests.traces(names, self.vreason.method)
        return {name: packed(trace) for name, trace in traces.items()}
