"""The model classes of all families, in memory: steered, in batches, resumed, thinking, and what each refuses."""

from importlib.metadata import version
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from family_checkpoints import family_checkpoint, processor_of
from instances import answered, instances
from offline import write_video
from packaging.version import Version
from PIL import Image
from transformers.video_utils import VideoMetadata

from lmms_eval_vreason.adapter import model as models
from lmms_eval_vreason.adapter.kinds import KINDS, kind_for
from lmms_eval_vreason.adapter.options import parse_options
from lmms_eval_vreason.families.family import FAMILIES
from lmms_eval_vreason.journal.files import latest_samples, read_records
from lmms_eval_vreason.manifest import MANIFEST
from lmms_eval_vreason.media.frames import Frames, read_video
from lmms_eval_vreason.media.media import Media
from lmms_eval_vreason.media.options import VideoOptions
from lmms_eval_vreason.media.rule import FrameRule
from lmms_eval_vreason.run.generation import Generator
from lmms_eval_vreason.run.inputs import PromptProcessor

ON_DISK = ("qwen2_vl", "qwen3_vl", "qwen3_5", "llava_onevision", "internvl", "smolvlm")
SHORT = {"max_thinking_tokens": 10, "max_answer_tokens": 4, "max_num_frames": 4, "min_entropy": 0}
QUESTIONS = ("What moves?", "Which color is the shape that moves left?", "Where?", "How many?")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {family: family_checkpoint(root / family, family, opens=family == "qwen3_5") for family in ON_DISK}


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    """Two questions on each of two videos; the second is shorter than ``max_num_frames`` asks for."""
    root = tmp_path_factory.mktemp("videos")
    videos = [write_video(root / f"{n}.mp4", seed=n, frames=frames) for n, frames in ((0, 16), (1, 3))]
    return [{"video": str(videos[index // 2]), "text": text} for index, text in enumerate(QUESTIONS)]


def loaded(checkpoints, family, **given):
    kind = kind_for(family)
    pixels = {"min_pixels": 1024, "max_pixels": 12544} if kind.resizes else {}
    arguments = {"pretrained": str(checkpoints[family]), "device": "cpu", "journal": "off", "on_error": "raise"}
    return getattr(models, kind.class_name)(**{**arguments, **SHORT, **pixels, **given})


# Before, its processor took the frames of a video for videos: docs/families.md.
SINCE = {"smolvlm": "5.24"}


@pytest.mark.parametrize("family", ON_DISK)
def test_steered_in_batches_and_after_a_crash_as_alone(family, checkpoints, docs, tmp_path, monkeypatch):
    if Version(version("transformers")) < Version(SINCE.get(family, "0")):
        pytest.skip(f"{family} needs transformers {SINCE[family]}")
    settings = {"max_new_tokens": 8}

    def answers(lm):
        return answered(lm, instances(lm, docs, settings))

    folder = tmp_path / "journal"
    alone = answers(loaded(checkpoints, family, journal=str(folder)))
    records = latest_samples(read_records(folder)).values()
    assert all(record["trace"]["updates"] > 0 for record in records)
    assert answers(loaded(checkpoints, family, batch_size=3)) == alone
    assert answers(loaded(checkpoints, family, shared_prefix="off")) == alone
    off = answers(loaded(checkpoints, family, policy="off"))
    assert [each[1] for each in off] != [each[1] for each in alone]
    assert [each[1] for each in answers(loaded(checkpoints, family, learning_rate=0))] == [each[1] for each in off]

    generate, calls = Generator.generate, []

    def failing(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return generate(self, *args)

    monkeypatch.setattr(Generator, "generate", failing)
    with pytest.raises(KeyboardInterrupt):
        answers(loaded(checkpoints, family, journal=str(tmp_path / "killed")))
    assert answers(loaded(checkpoints, family, journal=str(tmp_path / "killed"))) == alone
    assert len(calls) == 3 + 2


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
def test_a_template_that_opens_thinking(family, docs, tmp_path):
    checkpoint = {family: family_checkpoint(tmp_path / family, family, opens=True)}
    for given, thinks in (({}, True), ({"enable_thinking": "off"}, False)):
        lm = loaded(checkpoint, family, **given)
        (sample, *_) = lm.samples(instances(lm, docs, {"max_new_tokens": 8}))
        assert lm.processor.render(sample).endswith("<think>\n") is thinks
        text = answered(lm, instances(lm, docs[:1], {"max_new_tokens": 8}))[0][1]
        assert text.startswith("<think>\n")
        assert text.count("<think>") == text.count("</think>") == 1


def test_a_task_s_prompt_for_another_model_can_be_carried_over(checkpoints):
    class Task:
        def __init__(self):
            entries = {"default": {"post": "plain"}, "qwen3_vl": {"post": "theirs"}}
            self.config = SimpleNamespace(lmms_eval_specific_kwargs=entries)
            self.lmms_eval_specific_kwargs = entries["default"]

        def messages(self, doc):
            text = self.lmms_eval_specific_kwargs["post"]
            return [{"role": "user", "content": [{"type": "text", "text": text}]}]

    def prompt(**given):
        lm, task = loaded(checkpoints, "qwen3_vl", **given), Task()
        (sample,) = lm.samples(instances(lm, [{}], {}, task.messages))
        return sample.prompt.splitlines()[0]

    assert prompt() == "plain"
    assert prompt(task_prompt="qwen3_vl") == "theirs"
    with pytest.raises(ValueError, match=r"task_prompt='gpt4v': no task .*they have default, qwen3_vl"):
        prompt(task_prompt="gpt4v")


def test_the_system_turn_of_a_family_gives_way_to_a_task_s_and_to_the_user_s(checkpoints):
    def system(turns, **given):
        lm = loaded(checkpoints, "qwen3_vl", **given)
        (sample,) = lm.samples(instances(lm, [{}], {}, lambda doc: turns))
        return [turn["content"][0]["text"] for turn in sample.messages if turn["role"] == "system"]

    user = {"role": "user", "content": [{"type": "text", "text": "Where?"}]}
    own = {"role": "system", "content": [{"type": "text", "text": "The task's."}]}
    assert system([user]) == ["You are a helpful assistant."]
    assert system([own, user]) == ["The task's."]
    assert system([own, user], system_prompt="Mine.") == ["Mine."]


def test_images_and_videos_under_one_placeholder_are_told_apart():
    prompter = PromptProcessor(processor_of("internvl"), FAMILIES["internvl"], FrameRule(None, 1))
    frames = torch.zeros(3, 3, 56, 56, dtype=torch.uint8)
    metadata = {"fps": 2.0, "frames_indices": [0, 1, 2], "total_num_frames": 3}
    video, image = Frames(frames, metadata), Image.new("RGB", (56, 56))
    texts = ["<IMG_CONTEXT> then <video> end", "<video> end", "<IMG_CONTEXT>"]
    types = prompter.process(texts, [[image, video], [video], [image]])["mm_token_type_ids"]
    counts = [[int((row == kind).sum()) for kind in (1, 2)] for row in types]
    assert counts == [[4, 12], [0, 12], [4, 0]]
    first_video, last_image = int((types[0] == 2).nonzero()[0]), int((types[0] == 1).nonzero()[-1])
    assert last_image < first_video


def test_a_prompt_is_cut_where_a_mark_ends_its_last_medium(checkpoints):
    """Also where the tokenizer's config does not list the mark among its special tokens."""
    lm = loaded(checkpoints, "qwen2_vl")
    assert "<|vision_end|>" not in lm.tokenizer.all_special_tokens
    video = "<|vision_start|><|video_pad|><|vision_end|>"
    assert lm.processor.cut(f"a{video}b{video}c") == (f"a{video}b{video}", "c")
    assert lm.processor.cut("no medium") == ("", "no medium")
    with pytest.raises(ValueError, match="does not mark the end of a video: set shared_prefix=off"):
        lm.processor.cut("<|video_pad|> bare")


@pytest.mark.parametrize(("total", "most"), product((7, 16, 100), (1, 4, 7)))
def test_frames_are_those_of_internvl_s_own_sampling(total, most):
    own = processor_of("internvl").video_processor.sample_frames(
        VideoMetadata(total_num_frames=total, fps=10.0), num_frames=most, initial_shift=True
    )
    assert FrameRule(None, 1, "middles").choose(range(total), 10.0, most, None) == own.tolist()


def test_a_processor_s_own_sampling_within_a_clip_and_its_bound(docs):
    smol = processor_of("smolvlm").video_processor
    rule = FrameRule(None, 1, "processor", smol)
    # Four frames a second, of which it takes one a second.
    assert rule.choose(range(16), 4.0, 64, 1.0) == [0, 5, 10, 15]
    assert rule.choose(range(100, 116), 4.0, 64, 1.0) == [100, 105, 110, 115]
    frames = read_video(Media("video", docs[0]["video"]), VideoOptions(max_num_frames=2), rule)
    assert len(frames.pixels) == 2
    assert frames.pixels.dtype == torch.uint8


def test_every_kind_is_found_by_lmms_eval_and_has_its_class():
    assert [manifest.model_id for manifest in MANIFEST] == list(KINDS)
    for manifest, kind in zip(MANIFEST, KINDS.values(), strict=True):
        assert getattr(models, manifest.chat_class_path.rsplit(".", 1)[1]).kind is kind
        assert set(kind.model_types) - {"qwen2_5_omni"} <= set(FAMILIES)


def test_what_a_kind_does_not_take(checkpoints, tiny_checkpoint):
    with pytest.raises(ValueError, match=r"is a qwen2_5_vl checkpoint: run it with --model qwen2_5_vl_vreason"):
        models.Qwen3_VL_VReason(pretrained=str(tiny_checkpoint), device="cpu", journal="off")
    with pytest.raises(ValueError, match=r"max_pixels=100000: the processor of a internvl checkpoint resizes"):
        parse_options({"max_pixels": 100000}, KINDS["internvl_hf_vreason"])
    with pytest.raises(TypeError, match=r"Lite .*needs the keys and values of every token in every layer"):
        loaded(checkpoints, "qwen3_5", prune_ratio=0.5).setup.method.generate(
            loaded(checkpoints, "qwen3_5").setup.model, input_ids=torch.ones(1, 3, dtype=torch.long), max_new_tokens=2
        )
