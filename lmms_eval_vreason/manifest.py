"""What lmms-eval reads at start to learn of the model class. Imports no torch: every lmms-eval run pays for it."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest(
    model_id="qwen2_5_vl_vreason",
    chat_class_path="lmms_eval_vreason.adapter.model.Qwen2_5_VL_VReason",
)
