"""How a model family has its frames: which ones, and who resizes them."""

from dataclasses import dataclass
from typing import Any, Literal

# Where a family's frames are chosen: evenly from the first to the last, in the middle of equal parts (InternVL), or by
# the processor's own sampling.
Sampling = Literal["even", "middles", "processor"]


@dataclass(frozen=True)
class FrameRule:
    """How a family's frames are chosen and sized.

    Attributes:
        token_side: Pixels each way that one token shows; frames are resized to a multiple of it, by qwen-vl-utils'
            rules. None: frames and images stay as they are in the file, and the processor resizes them.
        merged: Frames that the vision tower merges into one.
        video_processor: Of the checkpoint; needed for ``processor``.
    """

    token_side: int | None = 28
    merged: int = 2
    sampling: Sampling = "even"
    video_processor: Any = None

    def choose(self, clip: range, fps: float, most: int, asked: float | None) -> list[int]:
        """The frames of ``clip`` to show, by their numbers in the file.

        Args:
            most: As many, or with ``processor`` at most so many.
            asked: Frames a second, if the user set them.
        """
        import torch  # Takes seconds, and lmms-eval reads the table of models at every start.

        if self.sampling == "even":
            return [int(each) for each in torch.linspace(clip[0], clip[-1], most).round()]
        if self.sampling == "middles":
            return [clip[int((part + 0.5) * len(clip) / most)] for part in range(most)]
        from transformers.video_utils import VideoMetadata

        metadata = VideoMetadata(total_num_frames=len(clip), fps=fps, duration=len(clip) / fps)
        own = self.video_processor.sample_frames(metadata, num_frames=most, fps=asked)
        if len(own) > most:
            own = [own[int(place)] for place in torch.linspace(0, len(own) - 1, most).round()]
        return [clip[int(each)] for each in own]


QWEN2 = FrameRule()
