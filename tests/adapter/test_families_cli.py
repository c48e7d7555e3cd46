"""Every family through the real command: lmms-eval's own class answers as ours with everything off.

Tiny random checkpoints with the families' real processors, real mp4 files, the stock task.
"""

import pytest
from family_checkpoints import family_checkpoint
from offline import run_lmms_eval

from lmms_eval_vreason.adapter.kinds import kind_for

SMALL = {"min_pixels": 1024, "max_pixels": 50176}
OFF = {"policy": "off", "thinking": "off", "device": "cpu", "journal": "off"}
# Family → the stock class, its arguments, ours for the same frames and weights.
STOCK = {
    "qwen2_vl": (
        "qwen2_vl",
        {**SMALL, "device_map": "cpu", "max_num_frames": 64},
        {**SMALL, "fps": 2, "max_num_frames": 64, "positions": "transformers"},
    ),
    "qwen3_vl": (
        "qwen3_vl",
        {**SMALL, "device_map": "cpu", "max_num_frames": 4},
        # lmms-eval asks its own class in that model's words.
        {**SMALL, "dtype": "bfloat16", "max_num_frames": 4, "task_prompt": "qwen3_vl"},
    ),
    "qwen3_5": (
        "qwen3_5",
        # With thinking the stock class gives back what follows </think>, which sixteen random tokens do not reach.
        {**SMALL, "device_map": "cpu", "total_pixels": 12845056, "enable_thinking": False},
        {**SMALL, "dtype": "bfloat16", "enable_thinking": "off"},
    ),
    # It shows every frame of the file.
    "llava_onevision": ("llava_hf", {"device_map": "cpu"}, {"max_num_frames": 64}),
    "internvl": ("internvl_hf", {"device_map": "cpu", "num_frames": 4}, {"dtype": "bfloat16", "max_num_frames": 4}),
}


# Without torchcodec transformers decodes no files: these two classes get PyAV. And llava_hf hands over an empty list of
# images, which transformers 5 refuses.
_PYAV = """
import runpy, transformers, transformers.video_processing_utils as video
call = transformers.LlavaOnevisionProcessor.__call__
def without(self, images=None, **kwargs):
    return call(self, images=images or None, **kwargs)
transformers.LlavaOnevisionProcessor.__call__ = without
video.is_torchcodec_usable = lambda **kwargs: True
load = video.load_video
video.load_video = lambda file, backend, **kwargs: load(file, backend="pyav", **kwargs)
runpy.run_module("lmms_eval", run_name="__main__", alter_sys=True)
"""


@pytest.mark.cli
@pytest.mark.parametrize("family", STOCK)
def test_with_everything_off_the_answers_are_the_stock_class_s(family, offline, tmp_path):
    checkpoint = family_checkpoint(tmp_path / "checkpoint", family, opens=family == "qwen3_5")
    (tmp_path / "with_pyav.py").write_text(_PYAV)
    name, theirs, own = STOCK[family]
    answers = []
    for model, arguments in ((name, {"device": "cpu", **theirs}), (kind_for(family).model_id, {**OFF, **own})):
        run = run_lmms_eval(
            offline.env,
            model=model,
            model_args={"pretrained": checkpoint, **arguments},
            tasks=["videomme"],
            output=tmp_path / model,
            extra=("--limit", "4"),
            script=str(tmp_path / "with_pyav.py") if model in ("llava_hf", "internvl_hf") else "",
        )
        answers.append({sample["doc_id"]: sample["filtered_resps"] for sample in run.samples["videomme"]})
    assert answers[0] == answers[1]
    assert all(str(each).strip("[]' ") for each in answers[0].values())
