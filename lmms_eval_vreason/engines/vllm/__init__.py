"""The method inside vLLM: continuous batching, the same policies, ΔV and traces as the transformers engine.

Importing this imports no vLLM.
"""

from typing import TYPE_CHECKING, Any

from lmms_eval_vreason.engines.vllm.arguments import engine_args

if TYPE_CHECKING:
    from lmms_eval_vreason.engines.vllm.engine import Engine, Finished

__all__ = ["Engine", "Finished", "engine_args"]


def __getattr__(name: str) -> Any:
    if name in ("Engine", "Finished"):
        from lmms_eval_vreason.engines.vllm import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
