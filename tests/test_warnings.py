"""A run prints what its user can act on, and nothing that the libraries have to say to us."""

import pytest
from offline import run_lmms_eval

# Deprecations, transformers on the pixels of frames that are already resized, qwen-vl-utils on how it reads a file.
NOISE = ("deprecat", "pixel cap", "FutureWarning", "to read video")


@pytest.mark.cli
def test_a_run_prints_no_warning_of_the_libraries(offline, tiny_checkpoint, tmp_path):
    run = run_lmms_eval(
        offline.env,
        model="qwen2_5_vl_vreason",
        model_args={"pretrained": tiny_checkpoint, "device": "cpu", "max_pixels": 200704, "max_num_frames": 4},
        tasks=["videomme"],
        output=tmp_path,
        extra=("--limit", "2", "--gen_kwargs", "max_new_tokens=8"),
    )
    noisy = [line for line in run.log.splitlines() if any(noise in line for noise in NOISE)]
    assert not noisy
