"""The options of frames and pixels."""

from pydantic import model_validator

from lmms_eval_vreason.options import OptionGroup, option


class VideoOptions(OptionGroup):
    """Frames and pixels, with lmms-eval's defaults.

    Attributes:
        max_num_frames: Most frames of a video.
        fps: Frames a second of video. None spreads ``max_num_frames`` evenly.
        max_pixels: Most pixels of a frame or image after resizing. A video's frame never has more than 602112.
        min_pixels: Fewest pixels of a frame or image after resizing.
        read_ahead: Videos read in the background while the device decodes tokens. 0 reads a video when it is needed.
    """

    max_num_frames: int = option(32, "usual", changes_answers=True, ge=2)
    fps: float | None = option(None, "usual", changes_answers=True, gt=0, le=240)
    max_pixels: int = option(1605632, "usual", changes_answers=True, ge=28 * 28)
    min_pixels: int = option(256 * 28 * 28, "expert", changes_answers=True, ge=28 * 28)
    read_ahead: int = option(2, "expert", changes_answers=False, ge=0)

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "VideoOptions":
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} is above max_pixels={self.max_pixels}: lower it")
        return self
