"""The entry point of the group ``vllm.general_plugins``: vLLM calls it in each of its processes.

Imports no model: that would start CUDA in the front-end process.
"""

_MODELS = "lmms_eval_vreason.engines.vllm.models"
# A checkpoint's model_type → the architecture that steers it. Other instances in the same process stay untouched.
ARCHITECTURES = {"qwen2_5_vl": "Qwen2_5_VLVReason", "qwen3_vl": "Qwen3VLVReason"}


def register() -> None:
    """Registers the architectures, by the names of their classes."""
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for name in ARCHITECTURES.values():
        if name not in known:
            ModelRegistry.register_model(name, f"{_MODELS}:{name}")
