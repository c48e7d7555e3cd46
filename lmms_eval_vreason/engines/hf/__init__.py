"""V-Reason on transformers models: ``generate`` and what it returns."""

from lmms_eval_vreason.engines.hf.generation import Generation, generate

__all__ = ["Generation", "generate"]
