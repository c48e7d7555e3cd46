"""What a prompt shows: an image, a video, or a clip of one, and the file behind it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


class MediaError(ValueError):
    """A video or image that cannot be read; the message names the file and the reason."""


@dataclass(frozen=True)
class Media:
    """One image or video of a prompt.

    Attributes:
        kind: ``image`` or ``video``.
        source: A path, a PIL image, or a list of PIL images (a video's frames).
        start, end: Bounds of a clip in seconds; None for the video's own.
    """

    kind: str
    source: Any
    start: float | None = None
    end: float | None = None

    @property
    def is_path(self) -> bool:
        return isinstance(self.source, str)

    def path(self) -> str:
        """The local file, as given.

        Raises:
            MediaError: The source is no path, a URL, or there is no such file.
        """
        if not self.is_path:
            kind = type(self.source).__name__
            raise MediaError(f"a {self.kind} of type {kind} is not supported: give the path of a file")
        if "://" in self.source and not self.source.startswith("file://"):
            raise MediaError(f"{self.source}: is a URL, and none is fetched: download it and give the path")
        path: str = self.source.removeprefix("file://")
        if not Path(path).is_file():
            raise MediaError(f"{path}: there is no such file")
        return path


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; the name of its type if the message is empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
