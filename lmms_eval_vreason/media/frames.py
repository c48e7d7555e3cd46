"""Frames from files: decord decodes them, and qwen-vl-utils' rules choose which frames and which size."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from lmms_eval_vreason.media.media import Media, MediaError, first_line
from lmms_eval_vreason.media.options import VideoOptions
from lmms_eval_vreason.media.rule import QWEN2, FrameRule

_SEQUENCE_SHARE = 0.9  # Of qwen-vl-utils' sequence length, for a video's tokens.
MAX_SOURCE_PIXELS = 8192 * 8192
MAX_HOURS = 24
_TOKENS_A_FRAME = 256  # Where the processor resizes: roughly, to order prompts.
_MIN_FRAMES = 4  # At a rate (fps), the least that a clip gives, as in qwen-vl-utils.


class Header(NamedTuple):
    """What a video file says of itself. ``frames`` and ``fps`` (frames a second) are 0 where it does not say."""

    width: int
    height: int
    frames: int
    fps: float


@dataclass(frozen=True)
class Frames:
    """A read video: ``pixels`` (frames, 3, height, width) in 0..255.

    float32 at the size the model takes; uint8 at the file's where the processor resizes.
    """

    pixels: Any
    metadata: dict[str, Any]


def read_media(media: tuple[Media, ...], options: VideoOptions, rule: FrameRule = QWEN2) -> list[Any]:
    """All of a prompt's media, in order: :class:`Frames` for a video, a PIL image for an image.

    Raises:
        MediaError: One of them cannot be read.
    """
    return [(read_video if item.kind == "video" else read_image)(item, options, rule) for item in media]


def read_video(media: Media, options: VideoOptions, rule: FrameRule = QWEN2) -> Frames:
    """Decodes the frames of a video's clip that ``rule`` chooses, and resizes them within the pixel bounds.

    A clip of a single frame shows it twice, since the model takes frames in pairs.

    Raises:
        MediaError: A missing, unreadable or empty file, or a clip outside it.
    """
    import decord
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    if isinstance(media.source, list | tuple):
        return _given_frames(media.source, options, rule)
    path = media.path()
    read_header(path)
    with _as_media_error(f"{path}: cannot be decoded"):
        reader = decord.VideoReader(path)
        fps = float(reader.get_avg_fps())
        clip = cut(media, len(reader), fps)
        most = min(options.max_num_frames, len(clip))
        count = most if rule.sampling == "processor" else frame_count(len(clip), fps, options, rule.merged)
        indices = rule.choose(clip, fps, count, options.fps)
        pixels = torch.from_numpy(reader.get_batch(indices).asnumpy()).permute(0, 3, 1, 2)
        if rule.token_side is not None:
            size = _size(pixels.shape[2], pixels.shape[3], len(indices), options, rule.token_side)
            # Interpolated as in qwen-vl-utils, so that the stock classes' pixels are ours.
            pixels = resize(pixels, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True).float()
    metadata = {"fps": fps, "frames_indices": indices, "total_num_frames": max(len(clip), len(indices))}
    length = {} if rule.token_side else {"duration": len(clip) / fps}  # Some processors write it into the prompt.
    return Frames(pixels, {**metadata, **length, "video_backend": "decord"})


def read_image(media: Media, options: VideoOptions, rule: FrameRule = QWEN2) -> Any:
    """A PIL image, RGB, resized within the pixel bounds unless the processor resizes.

    Raises:
        MediaError: It cannot be read.
    """
    from PIL import Image
    from qwen_vl_utils.vision_process import fetch_image, to_rgb

    source = media.path() if media.is_path else media.source
    with _as_media_error(f"{source}: cannot be read as an image"):
        if rule.token_side is None:
            return to_rgb(Image.open(source) if media.is_path else source)
        bounds = {"min_pixels": options.min_pixels, "max_pixels": options.max_pixels}
        return fetch_image({"image": source, **bounds}, rule.token_side // 2)


def estimated_tokens(media: Media, options: VideoOptions, rule: FrameRule = QWEN2) -> int:
    """Roughly how many tokens an image or video file takes, from its header alone; 0 if that cannot be read."""
    from PIL import Image
    from qwen_vl_utils.vision_process import smart_resize

    try:
        path, frames, side = media.path(), rule.merged, rule.token_side
        if media.kind == "video":
            header = read_header(path)
            frames = frame_count(len(cut(media, header.frames, header.fps)), header.fps, options, rule.merged)
            size = header.height, header.width
        else:
            with Image.open(path) as image:
                size = image.height, image.width
        if side is None:
            return frames // rule.merged * _TOKENS_A_FRAME
        if media.kind == "video":
            height, width = _size(*size, frames, options, side)
        else:
            height, width = smart_resize(*size, side, options.min_pixels, options.max_pixels)
    except (OSError, ValueError):
        return 0  # The reader reports what is wrong, with the sample that asked for the file.
    return frames // rule.merged * height * width // side**2


def read_header(path: str) -> Header:
    """Reads a video's header and refuses what no benchmark holds, before a frame is decoded.

    Raises:
        MediaError: No video stream, or a picture or duration beyond ``MAX_SOURCE_PIXELS`` and ``MAX_HOURS``.
    """
    import av

    with _as_media_error(f"{path}: cannot be opened as a video"), av.open(path) as container:
        hours = (container.duration or 0) / av.time_base / 3600
        if not container.streams.video:
            raise MediaError(f"{path}: holds no video frames")
        stream = container.streams.video[0]
        fps = float(stream.average_rate or 0)
        frames = stream.frames or int(3600 * hours * fps)
        header = Header(stream.codec_context.width, stream.codec_context.height, frames, fps)
    if header.width * header.height > MAX_SOURCE_PIXELS:
        size = f"{header.width} x {header.height}"
        raise MediaError(f"{path}: its {size} pixels a frame are over the bound of {MAX_SOURCE_PIXELS}")
    if hours > MAX_HOURS:
        raise MediaError(f"{path}: its {hours:.1f} hours are over the bound of {MAX_HOURS}")
    return header


def cut(media: Media, total: int, fps: float) -> range:
    """The frames of a video that lie in its medium's clip, by qwen-vl-utils' rounding; at least one.

    Args:
        total, fps: Frames of the file, and how many there are a second.

    Raises:
        MediaError: The file holds no frames, or the clip lies outside it.
    """
    if total < 1 or not fps > 0 or not math.isfinite(fps):
        raise MediaError(f"{media.source}: holds no video frames")
    duration, begin = total / fps, media.start or 0.0
    if begin >= duration or (media.end is not None and media.end < begin):
        bounds = f"from {begin:g} s to {media.end} s"
        raise MediaError(f"{media.source}: the clip {bounds} lies outside its {duration:.2f} s")
    first = min(math.ceil(max(begin, 0.0) * fps), total - 1)
    last = total - 1 if media.end is None else min(math.floor(min(media.end, duration) * fps), total - 1)
    return range(first, max(first, last) + 1)


def frame_count(frames: int, fps: float, options: VideoOptions, merged: int = QWEN2.merged) -> int:
    """How many frames to take: at most ``max_num_frames`` and the clip's own, at the rate ``options.fps`` if set.

    Args:
        frames, fps: Frames of the clip, and how many there are a second.
        merged: The count is a multiple of it.
    """
    most = min(options.max_num_frames, frames)
    wanted = most if options.fps is None else max(frames / fps * options.fps, _MIN_FRAMES)
    return max(int(min(wanted, most)) // merged * merged, merged)


@contextmanager
def _as_media_error(words: str) -> Iterator[None]:
    """Turns any exception into a MediaError: decord, av and PIL have a type for each way a file can be broken."""
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(f"{words} ({first_line(error)})") from error


def _given_frames(frames: Sequence[Any], options: VideoOptions, rule: FrameRule) -> Frames:
    import torch
    from qwen_vl_utils.vision_process import fetch_video
    from torchvision.transforms.functional import pil_to_tensor

    if not frames:
        raise MediaError("a video given as frames holds none")
    count = min(len(frames), options.max_num_frames)
    chosen = [frames[round(i * (len(frames) - 1) / max(count - 1, 1))] for i in range(count)]
    with _as_media_error(f"a video given as {len(frames)} frames cannot be read"):
        if rule.token_side is None:
            pixels, fps = torch.stack([pil_to_tensor(frame.convert("RGB")) for frame in chosen]), options.fps or 2.0
            metadata = {"fps": fps, "frames_indices": list(range(count)), "total_num_frames": count}
            return Frames(pixels, {**metadata, "duration": count / fps})
        bounds = {"min_pixels": options.min_pixels, "max_pixels": _most_pixels(count, options, rule.token_side)}
        rate = {} if options.fps is None else {"sample_fps": options.fps}
        element = {"video": chosen, **bounds, **rate}
        return Frames(*fetch_video(element, rule.token_side // 2, return_video_metadata=True))


def _size(height: int, width: int, frames: int, options: VideoOptions, side: int) -> tuple[int, int]:
    """Height and width that a video's frames are resized to."""
    from qwen_vl_utils.vision_process import smart_resize

    most = _most_pixels(frames, options, side)
    resized: tuple[int, int] = smart_resize(height, width, side, min(options.min_pixels, most), most)
    return resized


def _most_pixels(frames: int, options: VideoOptions, side: int) -> int:
    """Pixels a frame, at most: ``max_pixels`` under qwen-vl-utils' own bounds, at whose excess it warns."""
    from qwen_vl_utils.vision_process import FRAME_FACTOR, MODEL_SEQ_LEN, VIDEO_MAX_TOKEN_NUM

    of_video = _SEQUENCE_SHARE * MODEL_SEQ_LEN * side**2 / frames * FRAME_FACTOR
    bound = max(min(VIDEO_MAX_TOKEN_NUM * side**2, of_video), int(options.min_pixels * 1.05))
    return int(min(options.max_pixels, bound))
