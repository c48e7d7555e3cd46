"""A sample's record, number by number, from a completion made by hand."""

import json

import numpy as np
import pytest
from offline import write_video
from PIL import Image

from lmms_eval_vreason.media.frames import read_media
from lmms_eval_vreason.media.media import Media, MediaError
from lmms_eval_vreason.media.options import VideoOptions
from lmms_eval_vreason.method.trace import COLUMNS, Trace
from lmms_eval_vreason.prompts.budgets import Outcome as Split
from lmms_eval_vreason.run.answers import Outcome
from lmms_eval_vreason.run.batches import Question
from lmms_eval_vreason.run.generation import Completion
from lmms_eval_vreason.run.records import failure, sample_record, shown, trace_columns, trace_summary
from lmms_eval_vreason.run.samples import GenerationSettings, Sample, Waiting

NAN = float("nan")
WHO = {"task": "task", "split": "test", "doc_id": 5, "repeat": 1}
CONTENT = [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "What moves?"}]
ARRAYS = {
    "entropy": [3.0, 2.0, 1.0, 0.5],
    "ema": [0.3, 0.5, 0.25, 0.2],
    "peak": [0.3, 0.5, 0.5, 0.5],
    "alpha": [0, -1, 1, -1],
    "entropy_change": [NAN, -0.5, 0.25, -1.0],
    "changed": [NAN, 1, 0, 0],
    "shift": [0, 0.1, 0.2, 0.123456789],
    "grad_norm": [NAN, 1, 2, 3],
}


def trace(**changes) -> Trace:
    arrays = {name: np.array(changes.pop(name, ARRAYS[name]), "float32") for name in COLUMNS}
    counts = {"updates": 3, "peak_index": 1, "video_tokens": 7, "ordinary_steps": 5, "due_steps": 2}
    return Trace(**arrays, **counts, seconds_prefill=1.0, seconds_ordinary=1.0, seconds_due=1.0, note="a note")


def question(**options) -> Question:
    messages = [{"role": "system", "content": CONTENT[2:]}, {"role": "user", "content": CONTENT}]
    media = (Media("video", "a.mp4"), Media("image", object()))
    sample = Sample(0, *WHO.values(), messages, media, GenerationSettings((), {}), "prompt's digest")
    return Question(Waiting(sample, "key"), read_seconds=0.25, **options)


HEAD = {
    "key": "key",
    **WHO,
    "prompt_digest": "prompt's digest",
    "prompt": "What moves?",
    "media": ["a.mp4", "(image)"],
}


@pytest.mark.parametrize(("return_thinking", "text"), [(True, "<think>\nway\n</think>\nB"), (False, "B")])
def test_an_answered_sample(return_thinking, text):
    split = Split("way", "B", thinking_cut=True, answer_cut=False, thinking_tokens=3)
    completion = Completion(split, ["a", "b", "c", "d"], 40, 30, trace(), {"generate": 1.23456789}, 1000)
    record, columns = sample_record(Outcome(question(), completion, remark="a remark"), return_thinking)
    assert record == {
        **HEAD,
        "tokens": {"input": 40, "output": 4, "thinking": 3, "prefilled": 30},
        "thinking": "way",
        "answer": "B",
        "thinking_cut": True,
        "answer_cut": False,
        "text": text,
        "seconds": {"read": 0.25, "generate": 1.234568},
        "peak_memory_bytes": 1000,
        "trace": trace_summary(completion.trace),
        "remark": "a remark",
        "shown": [],
        "error": None,
    }
    assert columns == trace_columns(completion.trace, completion.tokens)
    assert json.loads(json.dumps([record, columns], allow_nan=False)) == [record, columns]


def test_a_failed_sample_has_the_same_fields_and_says_why():
    record, columns = sample_record(Outcome(question(), error=MediaError("a.mp4: gone\nin full")), True)
    assert columns is None
    assert record == {
        **HEAD,
        "tokens": {"input": 0, "output": 0, "thinking": 0, "prefilled": 0},
        "thinking": "",
        "answer": "",
        "thinking_cut": False,
        "answer_cut": False,
        "text": "",
        "seconds": {},
        "peak_memory_bytes": None,
        "trace": None,
        "remark": "",
        "shown": [],
        "error": {"type": "MediaError", "message": "a.mp4: gone\nin full"},
    }
    assert failure(record) == "task doc 5, repeat 1: MediaError: a.mp4: gone"
    assert failure({**record, "repeat": 0}) == "task doc 5: MediaError: a.mp4: gone"


def test_a_trace_in_a_few_numbers():
    """ΔH is the mean over the updates of one sign, of those whose change is known."""
    assert trace_summary(trace()) == {
        "updates": 3,
        "peak_index": 1,
        "video_tokens": 7,
        "last_shift": 0.123457,
        "lowering": {"updates": 2, "entropy_change": -0.75},
        "raising": {"updates": 1, "entropy_change": 0.25},
        "refreshed": {"updates": 3, "entropy": 1.16667, "absolute_change": 0.583333, "changed": 1},
        "ordinary_steps": 5,
        "due_steps": 2,
        "note": "a note",
    }
    unknown = trace_summary(trace(entropy_change=[NAN, -0.5, NAN, NAN]))
    assert unknown["lowering"] == {"updates": 1, "entropy_change": -0.5}
    assert unknown["raising"] == {"updates": 0, "entropy_change": None}
    assert unknown["refreshed"] == {"updates": 1, "entropy": 2, "absolute_change": 0.5, "changed": 1}
    empty = trace_summary(trace(**{name: [] for name in COLUMNS}))
    assert (empty["last_shift"], empty["lowering"]["updates"]) == (None, 0)
    assert empty["refreshed"] == {"updates": 0, "entropy": None, "absolute_change": None, "changed": 0}


def test_a_trace_token_by_token():
    columns = trace_columns(trace(), ["a", "b", "c", "d"])
    assert list(columns) == ["tokens", *COLUMNS]
    assert columns["tokens"] == ["a", "b", "c", "d"]
    assert columns["entropy_change"] == [None, -0.5, 0.25, -1]
    assert columns["shift"] == [0, 0.1, 0.2, 0.123457]
    # Whole numbers need no point.
    assert [type(value) for value in columns["entropy"]] == [int, int, int, float]


def test_what_the_model_saw_of_a_video_a_clip_and_an_image(tmp_path):
    path = str(write_video(tmp_path / "a.mp4", frames=16, fps=4, size=(112, 84)))
    options = VideoOptions(max_num_frames=6, min_pixels=784, max_pixels=56 * 56)
    media = (Media("video", path), Media("video", path, 0.0, 1.0), Media("image", Image.new("RGB", (300, 200))))
    whole, clip, image = map(shown, read_media(media, options))
    assert whole == {"frames": 6, "height": 28, "width": 56, "clip_frames": 16}
    assert (clip["frames"], clip["clip_frames"]) == (4, 5)
    assert (image["frames"], image["clip_frames"]) == (1, 1)
    assert image["height"] * image["width"] <= 56 * 56
