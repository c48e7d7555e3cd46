"""Batches: their size found by itself, their prompts of like length, and the next videos read meanwhile."""

import threading
from functools import partial

import pytest
import torch
from instances import instances
from offline import write_video

from lmms_eval_vreason.adapter.options import parse_options
from lmms_eval_vreason.journal.files import latest_samples, read_records
from lmms_eval_vreason.media.frames import estimated_tokens, read_video
from lmms_eval_vreason.media.media import Media
from lmms_eval_vreason.media.options import VideoOptions
from lmms_eval_vreason.run import batches as batches_module
from lmms_eval_vreason.run.batch_size import BatchSize, is_out_of_memory, release
from lmms_eval_vreason.run.generation import Generator
from lmms_eval_vreason.run.plan import grouped, prompt_lengths
from lmms_eval_vreason.run.samples import GenerationSettings, Sample, Waiting

WORDS = "what moves to the left in this video and what is its colour after it has turned once more"
SIZES = [(64, 48), (140, 84), (224, 168), (98, 168)]


def tried(most=None, limit=None, batches=12, device="cuda"):
    """The sizes that ``auto`` tries, where more than ``limit`` samples run out of memory."""
    size, sizes = BatchSize("auto", most, torch.device(device)), []
    for _ in range(batches):
        sizes.append(size.now)
        if limit is not None and size.now > limit:
            size.ran_out(size.now)
        else:
            size.worked(size.now)
    return sizes


def test_auto_doubles_up_to_its_bound():
    assert tried() == [1, 2, 4, 8, 16, 32, *[64] * 6]
    assert tried(most=10) == [1, 2, 4, 8, *[10] * 8]
    # Without a GPU a process that takes too much is killed, and learns nothing.
    assert tried(device="cpu") == [1, 2, 4, *[8] * 9]
    assert tried(device="cpu", most=20)[-1] == 20


def test_auto_halves_where_memory_runs_out_and_stays_there():
    assert tried(limit=11) == [1, 2, 4, 8, 16, *[8] * 7]
    assert tried(limit=0, batches=3) == [1, 1, 1]
    size = BatchSize("auto", 8, torch.device("cuda"))
    for number in (1, 2, 4):
        size.worked(number)
    # A batch that ran out is answered in halves, and its halves may run out as well.
    for number in (8, 4):
        size.ran_out(number)
    size.worked(2)
    assert size.now == 2


def test_half_full_batches_and_a_number_that_was_asked_for_change_nothing():
    size = BatchSize("auto", None, torch.device("cuda"))
    size.worked(1)
    size.worked(1)
    assert size.now == 2
    asked = BatchSize(6, None, torch.device("cuda"))
    asked.worked(6)
    asked.ran_out(6)
    assert asked.now == 6


@pytest.mark.parametrize(("given", "parsed"), [("auto", "auto"), ("auto:4", "auto"), ("3", 3), (2, 2)])
def test_lmms_eval_s_spellings_of_the_batch_size(given, parsed):
    assert parse_options({"batch_size": given}).model.batch_size == parsed


def test_a_real_lack_of_memory_is_recognised_and_leaves_nothing_behind():
    def fill():
        held = torch.zeros(1000)
        held.big = torch.empty(2**60 // 4)
        return held

    with pytest.raises(RuntimeError) as caught:
        fill()
    error = caught.value
    assert is_out_of_memory(error)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("out of range"))
    frames = [frame for frame, _ in _frames(error) if frame.f_code.co_name == "fill"]
    assert "held" in frames[0].f_locals
    release(error)
    assert "held" not in frames[0].f_locals


def _frames(error):
    import traceback

    return traceback.walk_tb(error.__traceback__)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    paths = []
    for seed in range(8):
        width, height = SIZES[seed % len(SIZES)]
        path = folder / f"{seed}.mp4"
        paths.append(str(write_video(path, seed=seed, frames=4 + 4 * (seed // 4), size=(width, height))))
    return paths


def waiting(index, video, text="", settings=None):
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
    media = (Media("video", video),) if video else ()
    settings = settings or GenerationSettings((), {"do_sample": False})
    return Waiting(Sample(index, "task", "test", index, 0, messages, media, settings), str(index), 0, 0)


def test_a_prompt_s_length_is_known_before_its_video_is_decoded(videos, tmp_path):
    options = VideoOptions(min_pixels=784, max_pixels=112 * 112, max_num_frames=6)
    for path in videos:
        frames = read_video(Media("video", path), options).pixels
        exact = frames.shape[0] // 2 * frames.shape[2] * frames.shape[3] // 784
        assert estimated_tokens(Media("video", path), options) == exact
    assert estimated_tokens(Media("video", str(tmp_path / "missing.mp4")), options) == 0
    (length,) = prompt_lengths([waiting(0, videos[0], "x" * 40).sample], options)
    assert length == estimated_tokens(Media("video", videos[0]), options) + 10


def test_groups_share_video_and_settings_and_stand_in_an_order_that_their_input_s_order_does_not_change():
    other = GenerationSettings((), {"do_sample": True})
    samples = [waiting(i, f"{i % 3}.mp4", "x" * i, other if i == 7 else None) for i in range(10)]
    samples.append(waiting(10, None))
    groups = grouped(samples)
    assert groups == grouped(reversed(samples))
    assert sorted(w.sample.index for group in groups for w in group) == list(range(11))
    for group in groups:
        assert len({(repr(w.sample.settings), w.sample.media) for w in group}) == 1
    assert len(groups) == 5


def test_neighbours_are_of_like_length_so_that_little_is_padded(videos):
    """Mixed: eight videos of four sizes and two durations, three to five questions each."""
    options = VideoOptions(min_pixels=784, max_pixels=224 * 224, max_num_frames=8)
    samples = [
        waiting(10 * i + q, path, WORDS[: 20 + 9 * q])
        for q in range(5)
        for i, path in enumerate(videos)
        if q < 3 + i % 3
    ]
    lengths = dict(zip((w.key for w in samples), prompt_lengths([w.sample for w in samples], options), strict=True))

    def share(order):
        batches = [[lengths[w.key] for w in order[start : start + 4]] for start in range(0, len(order), 4)]
        whole = sum(max(batch) * len(batch) for batch in batches)
        return 1 - sum(map(sum, batches)) / whole

    measured = [Waiting(w.sample, w.key, 0, lengths[w.key]) for w in samples]
    ordered = [w for group in grouped(measured) for w in group]
    by_path = sorted(samples, key=lambda w: (w.sample.media[0].source, w.sample.index))
    assert share(ordered) < 0.08
    assert share(ordered) < share(by_path) / 2


@pytest.fixture
def build(load):
    budgets = {"max_thinking_tokens": 4, "max_answer_tokens": 2}
    return partial(load, min_pixels=784, max_pixels=112 * 112, max_num_frames=6, **budgets)


def answer(model, docs):
    requests = instances(model, docs, {"do_sample": False, "until": []})
    return [result.text for result in model.generate_until(requests)]


def test_auto_answers_as_one_by_one_and_finishes_where_memory_runs_out(build, videos, monkeypatch, capsys):
    docs = [{"video": path, "text": WORDS[: 10 + 9 * q]} for q in range(3) for path in videos]
    expected = answer(build(journal="off"), docs)
    generate, sizes = Generator.generate, []

    def scarce(self, samples, media, method=None):
        sizes.append(len(samples))
        if len(samples) > 5:
            raise torch.OutOfMemoryError("no room")
        if len(sizes) == 2:
            raise ValueError("not about memory")
        return generate(self, samples, media, method)

    monkeypatch.setattr(Generator, "generate", scarce)
    model = build(batch_size="auto")
    assert answer(model, docs) == expected
    # The second batch fails for a reason of its own, and is answered one by one; what follows is no smaller for it.
    assert sizes[:7] == [1, 2, 1, 1, 2, 4, 8]
    assert sum(size > 5 for size in sizes) == 1
    assert model.batch_sizes == {"generate_until": model.batch_size} == {"generate_until": 4}
    records = latest_samples(read_records(model._journal.folder)).values()
    assert not [record for record in records if record["error"]]
    bar = capsys.readouterr().err.split("\r")[-1]
    assert "24/24" in bar
    assert "tokens/s" in bar
    assert "sample/s" in bar


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_next_batch_s_videos_are_read_while_the_device_works(build, videos, monkeypatch, batch_size):
    """By the order of events: the device is held until what the next batch needs has been read by somebody else."""
    docs = [{"video": path, "text": WORDS[:20]} for path in videos for _ in range(2 // batch_size)]
    done, asked, arrived = [], set(), threading.Condition()
    generate, read = Generator.generate, batches_module.read_media

    def reading(media, *how):
        frames = read(media, *how)
        with arrived:
            done.append(media[0].source)
            arrived.notify_all()
        return frames

    def generating(self, samples, media, method=None):
        asked.update(sample.media[0].source for sample in samples)
        with arrived:
            assert arrived.wait_for(lambda: len(done) >= min(len(videos), len(asked) + batch_size), timeout=20)
        return generate(self, samples, media, method)

    monkeypatch.setattr(batches_module, "read_media", reading)
    monkeypatch.setattr(Generator, "generate", generating)
    answer(build(batch_size=batch_size, read_ahead=1, on_error="raise", journal="off"), docs)
    # One decoding of a video serves all its questions.
    assert sorted(done) == sorted(videos)


def test_one_question_bears_the_time_that_its_video_took(build, videos):
    model = build(batch_size=2)
    answer(model, [{"video": path, "text": WORDS[: 20 + i]} for path in videos[:2] for i in range(3)])
    seconds = {}
    for record in latest_samples(read_records(model._journal.folder)).values():
        seconds.setdefault(record["doc_id"] // 3, []).append(record["seconds"]["read"])
    assert [sum(second > 0 for second in of_video) for of_video in seconds.values()] == [1, 1]
