"""Frames from files: qwen-vl-utils on decord, each video probed and read for itself, and a reader that runs ahead."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lmms_eval_vreason.media.options import VideoOptions
from lmms_eval_vreason.run.samples import Media

_FRAME_FACTOR = 2  # The vision tower merges frames two by two.
_TOKEN_PIXELS = (2 * 14) ** 2  # and patches of 14 x 14 pixels two by two each way.
MAX_SOURCE_PIXELS = 8192 * 8192
MAX_HOURS = 24
_MIN_FRAMES = 4  # At a rate (fps), the least that a clip gives, as in qwen-vl-utils.
_MOST_READERS = 8  # Threads that read ahead for one batch.

Key = TypeVar("Key")
Value = TypeVar("Value")


class MediaError(ValueError):
    """A video or image that cannot be read; the message names the file and the reason."""


@dataclass(frozen=True)
class Clip:
    """The part of a video file that a prompt asks for: frames ``first`` to ``last``, both in it."""

    path: str
    fps: float
    first: int
    last: int

    @property
    def frames(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True)
class Header:
    """What a video file says of itself; frames and their rate (a second) may be 0 where it does not."""

    width: int
    height: int
    frames: int
    fps: float
    seconds: float


@dataclass(frozen=True)
class Frames:
    """A read video: ``pixels`` (frames, 3, height, width) float32 in 0..255 at the size the model takes."""

    pixels: Any
    metadata: dict[str, Any]


def probe(media: Media) -> Clip:
    """Opens a video and finds the frames between its start and end.

    Raises:
        MediaError: A missing, unreadable or empty file, or a clip that lies outside it.
    """
    import decord

    path = local_path(media)
    check_bounds(path)
    try:
        reader = decord.VideoReader(path, num_threads=1)
        total, fps = len(reader), float(reader.get_avg_fps())
    except Exception as error:  # decord raises types of its own for each way a file can be broken.
        raise MediaError(f"{path}: cannot be opened as a video ({first_line(error)})") from error
    if total < 1 or not fps > 0 or not math.isfinite(fps):
        raise MediaError(f"{path}: holds no video frames")
    return cut(path, total, fps, media.start, media.end)


def check_bounds(path: str) -> Header:
    """Reads a video's header and refuses what no benchmark holds, before a frame is decoded.

    Raises:
        MediaError: No video stream, or a picture or duration beyond ``MAX_SOURCE_PIXELS`` and ``MAX_HOURS``.
    """
    import av

    try:
        with av.open(path) as container:
            streams = container.streams.video
            seconds = (container.duration or 0) / av.time_base
            header = None
            if streams:
                codec, rate = streams[0].codec_context, float(streams[0].average_rate or 0)
                header = Header(codec.width, codec.height, streams[0].frames or int(seconds * rate), rate, seconds)
    except Exception as error:  # av raises types of its own for each way a file can be broken.
        raise MediaError(f"{path}: cannot be opened as a video ({first_line(error)})") from error
    if header is None:
        raise MediaError(f"{path}: holds no video frames")
    if header.width * header.height > MAX_SOURCE_PIXELS:
        raise MediaError(
            f"{path}: its {header.width} x {header.height} pixels a frame are over the bound of {MAX_SOURCE_PIXELS}"
        )
    if (hours := header.seconds / 3600) > MAX_HOURS:
        raise MediaError(f"{path}: its {hours:.1f} hours are over the bound of {MAX_HOURS}")
    return header


def cut(path: str, total: int, fps: float, start: float | None, end: float | None) -> Clip:
    """The frames from ``start`` to ``end`` seconds, by qwen-vl-utils' rounding; at least one frame."""
    duration = total / fps
    begin = 0.0 if start is None else start
    if begin >= duration or (end is not None and end < begin):
        raise MediaError(f"{path}: the clip from {begin:g} s to {end} s lies outside its {duration:.2f} s")
    first = math.ceil(max(begin, 0.0) * fps)
    last = total - 1 if end is None else min(math.floor(min(end, duration) * fps), total - 1)
    first = min(first, total - 1)
    return Clip(path, fps, first, max(first, last))


def frame_count(clip: Clip, options: VideoOptions) -> int:
    """How many frames to take: even, at most ``max_num_frames`` and the clip's own, at the rate ``fps`` if set."""
    most = min(options.max_num_frames, clip.frames)
    wanted = most if options.fps is None else max(clip.frames / clip.fps * options.fps, _MIN_FRAMES)
    return max(int(min(wanted, most)) // _FRAME_FACTOR * _FRAME_FACTOR, _FRAME_FACTOR)


def read_video(media: Media, options: VideoOptions) -> Frames:
    """Decodes a video's frames, evenly spaced over its clip, and resizes them within the pixel bounds.

    A clip of a single frame shows it twice, since the model takes frames in pairs.

    Raises:
        MediaError: The file cannot be opened or decoded.
    """
    from qwen_vl_utils.vision_process import VIDEO_MAX_TOKEN_NUM, fetch_video

    # What qwen-vl-utils allows a frame at most; asked for more, it warns at every video.
    most = VIDEO_MAX_TOKEN_NUM * _TOKEN_PIXELS
    element: dict[str, Any] = {"min_pixels": options.min_pixels, "max_pixels": min(options.max_pixels, most)}
    if isinstance(media.source, list | tuple):
        return _given_frames(media.source, element, options)
    clip = probe(media)
    try:
        if clip.frames < _FRAME_FACTOR:
            element |= {"video": [_single_frame(clip)] * _FRAME_FACTOR, "sample_fps": clip.fps}
        else:
            element |= {"video": clip.path, "nframes": frame_count(clip, options)}
            if media.start is not None or media.end is not None:
                # qwen-vl-utils takes the range in seconds and rounds inwards: half a frame outside is the frame itself.
                element |= {"video_start": (clip.first - 0.5) / clip.fps, "video_end": (clip.last + 0.5) / clip.fps}
        pixels, metadata = fetch_video(element, return_video_metadata=True)
    except Exception as error:  # The reader's libraries raise types of their own.
        raise MediaError(f"{clip.path}: cannot be decoded ({_reason(element, error)})") from error
    return Frames(pixels, metadata)


def read_image(media: Media, options: VideoOptions) -> Any:
    """A PIL image, RGB, resized within the pixel bounds.

    Raises:
        MediaError: It cannot be read.
    """
    from qwen_vl_utils.vision_process import fetch_image

    source = local_path(media) if media.is_path else media.source
    try:
        return fetch_image({"image": source, "min_pixels": options.min_pixels, "max_pixels": options.max_pixels})
    except Exception as error:  # PIL raises types of its own for each way a file can be broken.
        raise MediaError(f"{source}: cannot be read as an image ({first_line(error)})") from error


def estimated_tokens(media: Media, options: VideoOptions) -> int:
    """Roughly how many tokens an image or video file takes, from its header alone; 0 if that cannot be read."""
    from PIL import Image
    from qwen_vl_utils.vision_process import VIDEO_MAX_TOKEN_NUM, smart_resize

    try:
        path, frames, most = local_path(media), _FRAME_FACTOR, options.max_pixels
        if media.kind == "video":
            header = check_bounds(path)
            width, height, most = header.width, header.height, min(most, VIDEO_MAX_TOKEN_NUM * _TOKEN_PIXELS)
            frames = frame_count(cut(path, header.frames, header.fps, media.start, media.end), options)
        else:
            with Image.open(path) as image:
                width, height = image.size
        height, width = smart_resize(height, width, 28, options.min_pixels, max(most, options.min_pixels))
    except (OSError, ValueError, ZeroDivisionError):
        return 0  # Its reader will say what is wrong with it, and to whom.
    return frames // _FRAME_FACTOR * height * width // _TOKEN_PIXELS


def read_media(media: tuple[Media, ...], options: VideoOptions) -> list[Any]:
    """All of a prompt's media, in order: :class:`Frames` for a video, a PIL image for an image."""
    return [read_video(item, options) if item.kind == "video" else read_image(item, options) for item in media]


def local_path(media: Media) -> str:
    """The file that a medium names, as given.

    Raises:
        MediaError: It is a URL, or there is no such file.
    """
    source = media.source
    if not media.is_path:
        raise MediaError(f"a {media.kind} of type {type(source).__name__} is not supported: give the path of a file")
    if "://" in source and not source.startswith("file://"):
        raise MediaError(f"{source}: is a URL, and none is fetched: download it and give the path")
    path = source.removeprefix("file://")
    if not Path(path).is_file():
        raise MediaError(f"{path}: there is no such file")
    return path


def read_ahead(
    keys: Iterable[Key],
    read: Callable[[Key], Value],
    depth: int,
    at_least: Callable[[], int] = lambda: 0,
) -> Iterator[tuple[Key, Future[Value]]]:
    """(key, finished future) in the order of ``keys``, while further ones are read in the background.

    Neighbouring equal keys are read once. An exception of ``read`` stays in its future, so it reaches its own key.

    Args:
        depth: How many different further keys are read ahead; 0 reads only when asked.
        at_least: How many further keys have to be among them (unless ``depth`` is 0): the next batch's.
    """
    keys = iter(keys)
    ahead: deque[tuple[Key, Future[Value]]] = deque()
    newest: tuple[Key, Future[Value]] | None = None
    # A batch waits for all of its own, the first one with nothing to do meanwhile: so they are read side by side.
    workers = max(depth, min(at_least(), _MOST_READERS), 1)
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="read-ahead") as pool:
        try:
            while True:
                while not ahead or (depth and (_readings(ahead) <= depth or len(ahead) <= at_least())):
                    try:
                        key = next(keys)
                    except StopIteration:
                        break
                    same = newest is not None and newest[0] == key
                    newest = (key, newest[1] if same else pool.submit(read, key))
                    ahead.append(newest)
                if not ahead:
                    return
                key, future = ahead.popleft()
                future.exception()
                yield key, future
        finally:
            for _, future in ahead:
                future.cancel()


def _readings(ahead: Iterable[tuple[Key, Future[Value]]]) -> int:
    return len({id(future) for _, future in ahead})


def _given_frames(frames: Sequence[Any], element: dict[str, Any], options: VideoOptions) -> Frames:
    from qwen_vl_utils.vision_process import fetch_video

    if not frames:
        raise MediaError("a video given as frames holds none")
    count = min(len(frames), options.max_num_frames)
    chosen = [frames[round(i * (len(frames) - 1) / max(count - 1, 1))] for i in range(count)]
    rate = {} if options.fps is None else {"sample_fps": options.fps}
    try:
        return Frames(*fetch_video({**element, **rate, "video": chosen}, return_video_metadata=True))
    except Exception as error:  # PIL raises types of its own for each way a frame can be broken.
        raise MediaError(f"a video given as {len(frames)} frames cannot be read ({first_line(error)})") from error


def _single_frame(clip: Clip):
    import decord
    from PIL import Image

    return Image.fromarray(decord.VideoReader(clip.path, num_threads=1)[clip.first].asnumpy())


def _reason(element: dict[str, Any], error: Exception) -> str:
    """Why a video was not decoded: qwen-vl-utils hides its reader's error behind that of a fallback."""
    from qwen_vl_utils.vision_process import VIDEO_READER_BACKENDS, get_video_reader_backend

    if not isinstance(element.get("video"), str):
        return first_line(error)
    try:
        VIDEO_READER_BACKENDS[get_video_reader_backend()](element)
    except Exception as cause:  # As above.
        return first_line(cause)
    return first_line(error)


def first_line(error: Exception) -> str:
    """What ``error`` says first, in at most 200 characters; its type's name if it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
