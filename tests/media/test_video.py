"""Frames from files: counts, clips, containers, faults, and the reader that runs ahead."""

import shutil
import threading
import time

import av
import numpy as np
import pytest
from PIL import Image

from lmms_eval_vreason.media.frames import cut, frame_count, read_header, read_image, read_video
from lmms_eval_vreason.media.media import Media, MediaError
from lmms_eval_vreason.media.options import VideoOptions
from lmms_eval_vreason.media.reader import read_ahead

OPTIONS = VideoOptions(min_pixels=28 * 28, max_pixels=56 * 56, max_num_frames=8)


def write(path, frames=20, fps=10, codec="mpeg4", size=(64, 48)):
    """A video whose frame i has the grey level 10 * i, so that a frame tells its own index."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            picture = np.full((size[1], size[0], 3), 10 * i, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def indices(frames):
    return [round(float(frame.mean()) / 10) for frame in frames.pixels]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write(tmp_path_factory.mktemp("video") / "clip.mp4")


def test_frames_are_spread_evenly_over_the_whole_video(video):
    frames = read_video(Media("video", str(video)), OPTIONS)
    assert indices(frames) == [0, 3, 5, 8, 11, 14, 16, 19]
    assert frames.pixels.shape[1] == 3
    assert frames.pixels.shape[2] % 28 == frames.pixels.shape[3] % 28 == 0
    assert frames.metadata["total_num_frames"] == 20
    assert frames.metadata["fps"] == pytest.approx(10)


def test_a_clip_takes_frames_between_its_start_and_end_only(video):
    frames = read_video(Media("video", str(video), start=0.5, end=1.2), OPTIONS)
    assert indices(frames) == list(range(5, 13))
    assert frames.metadata["total_num_frames"] == 8


@pytest.mark.parametrize(
    ("total", "fps", "options", "expected"),
    [
        (300, 30, VideoOptions(max_num_frames=32), 32),
        (300, 30, VideoOptions(max_num_frames=33), 32),
        (7, 30, VideoOptions(max_num_frames=32), 6),
        (1, 30, VideoOptions(max_num_frames=32), 2),
        (300, 30, VideoOptions(max_num_frames=64, fps=2.0), 20),
        (3000, 30, VideoOptions(max_num_frames=16, fps=2.0), 16),
        (30, 30, VideoOptions(max_num_frames=16, fps=1.0), 4),
        (3, 30, VideoOptions(max_num_frames=16, fps=1.0), 2),
    ],
)
def test_frame_counts_are_even_and_within_the_clip(total, fps, options, expected):
    assert frame_count(len(cut(Media("video", "x.mp4"), total, fps)), fps, options) == expected


@pytest.mark.parametrize("start", [None, 1.25])
def test_a_single_frame_is_shown_twice(tmp_path, video, start):
    path = write(tmp_path / "one.mp4", frames=1) if start is None else video
    frames = read_video(Media("video", str(path), start=start, end=start), OPTIONS)
    assert indices(frames) == ([0, 0] if start is None else [13, 13])


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.avi", "a.mov", "a.MP4", "with space é.mp4"])
def test_containers_and_names(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".MP4":
        shutil.copy(write(tmp_path / "a.mp4"), path)
    else:
        write(path, codec="libvpx-vp9" if path.suffix == ".webm" else "mpeg4")
    assert len(read_video(Media("video", str(path)), OPTIONS).pixels) == 8


def test_frames_given_as_pictures_are_sampled_evenly():
    pictures = [Image.new("RGB", (64, 48), (10 * i,) * 3) for i in range(20)]
    assert indices(read_video(Media("video", pictures), OPTIONS)) == [0, 3, 5, 8, 11, 14, 16, 19]
    with pytest.raises(MediaError, match="holds none"):
        read_video(Media("video", []), OPTIONS)


def faulty(tmp_path):
    whole = write(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video")
    with av.open(str(tmp_path / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        for packet in [*stream.encode(sound), *stream.encode()]:
            container.mux(packet)


@pytest.mark.parametrize("name", ["truncated.mp4", "empty.mp4", "text.mp4", "audio.mp4", "missing.mp4"])
def test_a_faulty_file_is_an_error_that_names_it(tmp_path, name):
    faulty(tmp_path)
    with pytest.raises(MediaError, match=name):
        read_video(Media("video", str(tmp_path / name)), OPTIONS)


def test_the_first_failure_s_cause_is_named_and_nothing_is_said_on_the_way(tmp_path, monkeypatch, capfd, caplog):
    """A file that opens and breaks while it is decoded."""
    import decord

    path, opened = write(tmp_path / "breaks.mp4"), []

    class Breaking(decord.VideoReader):
        def __init__(self, *given, **named):
            opened.append(given)
            super().__init__(*given, **named)

        def get_batch(self, indices):
            raise decord.DECORDError("packet 7 is damaged\nat line 3")

    read_video(Media("video", str(path)), OPTIONS)
    monkeypatch.setattr(decord, "VideoReader", Breaking)
    with pytest.raises(MediaError, match=r"breaks\.mp4: cannot be decoded \(packet 7 is damaged\)$"):
        read_video(Media("video", str(path)), OPTIONS)
    assert len(opened) == 1
    assert capfd.readouterr().err == ""
    assert not caplog.records


def test_many_frames_share_the_pixels_that_a_video_may_have(tmp_path, caplog, monkeypatch):
    """Frames as qwen-vl-utils sizes them, without its warning about pixels that it does not grant."""
    from qwen_vl_utils import vision_process

    monkeypatch.setattr(vision_process, "MODEL_SEQ_LEN", 400)
    path = str(write(tmp_path / "long.mp4", frames=24, size=(320, 240)))
    options = VideoOptions(min_pixels=28 * 28, max_pixels=10**6, max_num_frames=24)
    element = {"video": path, "nframes": 24, "min_pixels": options.min_pixels, "max_pixels": options.max_pixels}
    frames = read_video(Media("video", path), options)
    assert not caplog.records
    assert frames.pixels.shape == vision_process.fetch_video(element).shape
    assert frames.pixels[0, 0].numel() < 320 * 240 / 2
    assert read_header(path).frames == 24


@pytest.mark.parametrize(("start", "end"), [(None, None), (0.5, 1.2)])
def test_pixels_are_those_of_qwen_vl_utils(video, start, end):
    from qwen_vl_utils.vision_process import fetch_video

    frames = read_video(Media("video", str(video), start=start, end=end), OPTIONS)
    element = {"video": str(video), "nframes": 8, "min_pixels": OPTIONS.min_pixels, "max_pixels": OPTIONS.max_pixels}
    clip = {} if start is None else {"video_start": start, "video_end": end}
    pixels, metadata = fetch_video({**element, **clip}, return_video_metadata=True)
    assert np.array_equal(frames.pixels, pixels)
    assert frames.metadata == metadata


def test_nothing_is_fetched_and_clips_outside_are_refused(video, tmp_path):
    with pytest.raises(MediaError, match="is a URL"):
        read_video(Media("video", "https://example.org/a.mp4"), OPTIONS)
    with pytest.raises(MediaError, match="is a URL"):
        read_image(Media("image", "http://example.org/a.png"), OPTIONS)
    with pytest.raises(MediaError, match=r"lies outside its 2\.00 s"):
        read_video(Media("video", str(video), start=5.0, end=6.0), OPTIONS)
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(MediaError, match=r"a\.png: cannot be read as an image"):
        read_image(Media("image", str(tmp_path / "a.png")), OPTIONS)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_reading_ahead_keeps_order_reads_neighbours_once_and_hands_errors_to_their_key(depth):
    read = []

    def slow(key):
        read.append(key)
        if key == "bad":
            raise ValueError(key)
        return key.upper()

    keys = ["a", "a", "b", "bad", "c", "c", "c", "a"]
    results = [(key, "failed" if f.exception() else f.result()) for key, f in read_ahead(keys, slow, depth)]
    assert results == [(key, "failed" if key == "bad" else key.upper()) for key in keys]
    order = ["a", "b", "bad", "c", "a"]
    # Several are read side by side: then only which they are is certain.
    assert read == order if depth < 2 else sorted(read) == sorted(order)


@pytest.mark.parametrize(("depth", "batch", "ahead"), [(1, 0, 1), (2, 0, 2), (2, 4, 4)])
def test_reading_ahead_is_bounded_and_stops_with_its_consumer(depth, batch, ahead):
    """What is ahead is read side by side, be it ``depth`` or the next batch; then nothing further."""
    started, release = [], threading.Event()

    def read(key):
        started.append(key)
        if key:
            release.wait(5)
        return key

    reader = read_ahead(range(100), read, depth, lambda: batch)
    next(reader)
    time.sleep(0.05)
    assert sorted(started) == list(range(ahead + 1))
    release.set()
    reader.close()
    assert len(started) <= ahead + 1


def test_reading_ahead_hides_the_reading_behind_the_work():
    busy = []
    lock = threading.Lock()

    def read(key):
        with lock:
            busy.append(("read", key))
        return key

    for key, _ in read_ahead(range(5), read, 2):
        time.sleep(0.02)
        with lock:
            busy.append(("used", key))
    assert busy.index(("read", 2)) < busy.index(("used", 0))
