"""Our model class on lmms-eval's unmodified tasks: a right answer scores right in each of them, without network."""

from pathlib import Path

import pytest
from offline import OfflineBenchmarks, run_lmms_eval, scripted_checkpoint

pytestmark = pytest.mark.cli

VIDEO = {"max_num_frames": 4, "min_pixels": 784, "max_pixels": 12544}
# Of three documents two want B. Task → metric and its figure, in the task's own unit.
SIX = {
    "videomme": ("videomme_perception_score", 200 / 3),
    "vsibench": ("object_rel_direction_accuracy", 2 / 3),
    "mvbench_action_sequence": ("mvbench_accuracy", 200 / 3),
    "tempcompass_multi_choice": ("avg_accuracy", 200 / 3),
    "tempcompass_caption_matching": ("avg_accuracy", 200 / 3),
    "mmvu_val": ("accuracy", 200 / 3),
    "video_mmmu_perception": ("mmmu_acc", 2 / 3),
    "video_mmmu_comprehension": ("mmmu_acc", 2 / 3),
    "video_mmmu_adaptation": ("mmmu_acc", 2 / 3),
}
FURTHER = {
    "egoschema_subset": ("score", 2 / 3),
    "perceptiontest_val_mc": ("accuracy", 2 / 3),
    "mlvu_dev": ("mlvu_percetion_score", 200 / 7),  # a mean over seven categories, of which the documents have three
    "longvideobench_val_v": ("lvb_acc", 2 / 3),
    "videomathqa_mcq": ("videomathqa_perception_score", 200 / 3),
    "videomathqa_mcq_w_subtitles": ("videomathqa_perception_score", 200 / 3),
    "videomathqa_mbin": ("videomathqa_perception_score", 200 / 3),
    "lvbench": ("lvbench_score", 2 / 3),
    "tvbench_action_antonym": ("tvbench_acc", 2 / 3),
    "mmsi_video": ("overall_accuracy", 200 / 3),
}


def test_a_letter(offline: OfflineBenchmarks, tmp_path: Path) -> None:
    checkpoint = scripted_checkpoint(tmp_path / "checkpoint", "<think>hm so</think><answer>B</answer>")
    expected = {**SIX, **FURTHER}
    assert set(FURTHER) == set(offline.further)
    run = run_lmms_eval(
        offline.env,
        model="qwen2_5_vl_vreason",
        model_args={"pretrained": checkpoint, **VIDEO},
        tasks=expected,
        output=tmp_path / "out",
        extra=["--limit", "3"],
    )
    for task, (metric, figure) in expected.items():
        assert run.metric(task, metric) == pytest.approx(figure, rel=1e-3), task
        assert [sample["filtered_resps"] for sample in run.samples[task]] == ["B"] * 3
        assert run.samples[task][0]["resps"] == "<think>\nhm so\n</think>\nB"
    assert offline.network_calls() == []


def test_yes_or_no(offline: OfflineBenchmarks, tmp_path: Path) -> None:
    checkpoint = scripted_checkpoint(tmp_path / "checkpoint", "<think>hm</think><answer>yes</answer>")
    run = run_lmms_eval(
        offline.env,
        model="qwen2_5_vl_vreason",
        model_args={"pretrained": checkpoint, **VIDEO},
        tasks=["tempcompass_yes_no"],
        output=tmp_path / "out",
    )
    assert run.metric("tempcompass_yes_no", "avg_accuracy") == 50
    assert offline.network_calls() == []
