"""What lmms-eval reads at start to learn of the model classes. Imports no torch: every lmms-eval run pays for it."""

from lmms_eval.models.registry_v2 import ModelManifest

from lmms_eval_vreason.adapter.kinds import KINDS

MANIFEST = [
    ModelManifest(kind.model_id, chat_class_path=f"lmms_eval_vreason.adapter.model.{kind.class_name}")
    for kind in KINDS.values()
]
