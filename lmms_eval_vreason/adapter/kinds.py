"""The names under which lmms-eval knows this package: one line each. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmms_eval_vreason.media.rule import Sampling


@dataclass(frozen=True)
class Kind:
    """A name for ``--model``, and how its checkpoints are run.

    Attributes:
        class_name: The class in :mod:`lmms_eval_vreason.adapter.model`.
        pretrained: The checkpoint where the user gives none.
        model_types: The ``model_type`` of the checkpoints that it takes.
        sampling: How frames are chosen, as in :class:`~lmms_eval_vreason.media.rule.FrameRule`.
        resizes: Whether frames are resized here, by qwen-vl-utils' rules; else the checkpoint's processor does it.
        system: A system turn for prompts without one, as lmms-eval's own class adds it.
        defaults: Arguments whose default is another here, as the authors' own protocol or lmms-eval's class has it.
    """

    model_id: str
    class_name: str
    pretrained: str
    model_types: tuple[str, ...]
    sampling: Sampling = "even"
    resizes: bool = True
    system: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


# The words that lmms-eval's classes of these families send.
_ASSISTANT = "You are a helpful assistant."
_OMNI = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and "
    "visual inputs, as well as generating text and speech."
)
_QWEN3_5 = {"max_num_frames": 768, "fps": 2.0, "min_pixels": 64 * 32 * 32, "enable_thinking": True}
_OMNI_VIDEO = {"max_num_frames": 16, "fps": 2.0, "min_pixels": 128 * 28 * 28, "max_pixels": 384 * 384}
_SMOL, _GLM = {"max_num_frames": 64, "fps": 1.0}, {"max_num_frames": 600, "fps": 2.0}

KINDS: dict[str, Kind] = {
    kind.model_id: kind
    for kind in (
        Kind("qwen2_vl_vreason", "Qwen2_VL_VReason", "Qwen/Qwen2-VL-7B-Instruct", ("qwen2_vl",)),
        Kind("qwen2_5_vl_vreason", "Qwen2_5_VL_VReason", "Qwen/Qwen2.5-VL-7B-Instruct", ("qwen2_5_vl",)),
        Kind(
            "qwen3_vl_vreason",
            "Qwen3_VL_VReason",
            "Qwen/Qwen3-VL-8B-Instruct",
            ("qwen3_vl", "qwen3_vl_moe"),
            system=_ASSISTANT,
        ),
        Kind(
            "qwen3_5_vreason",
            "Qwen3_5_VReason",
            "Qwen/Qwen3.5-9B",
            ("qwen3_5", "qwen3_5_moe"),
            system=_ASSISTANT,
            defaults=_QWEN3_5,
        ),
        Kind(
            "qwen2_5_omni_vreason",
            "Qwen2_5_Omni_VReason",
            "Qwen/Qwen2.5-Omni-7B",
            ("qwen2_5_omni", "qwen2_5_omni_thinker"),
            system=_OMNI,
            defaults=_OMNI_VIDEO,
        ),
        Kind(
            "llava_hf_vreason",
            "Llava_Hf_VReason",
            "llava-hf/llava-onevision-qwen2-7b-ov-hf",
            ("llava_onevision", "llava_next_video"),
            resizes=False,
        ),
        Kind(
            "internvl_hf_vreason",
            "InternVL_Hf_VReason",
            "OpenGVLab/InternVL3_5-8B-HF",
            ("internvl",),
            sampling="middles",
            resizes=False,
        ),
        Kind(
            "smolvlm_vreason",
            "SmolVLM_VReason",
            "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
            ("smolvlm",),
            sampling="processor",
            resizes=False,
            defaults=_SMOL,
        ),
        Kind(
            "glm4v_vreason",
            "GLM4V_VReason",
            "zai-org/GLM-4.1V-9B-Thinking",
            ("glm4v",),
            sampling="processor",
            resizes=False,
            defaults=_GLM,
        ),
    )
}


def kind_for(model_type: str) -> Kind | None:
    """The kind that runs checkpoints of this ``model_type``; None where no kind does."""
    return next((kind for kind in KINDS.values() if model_type in kind.model_types), None)
