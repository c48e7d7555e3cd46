"""What a run answers: a sample, with its media and how it is generated; or a request that gave no sample."""

from dataclasses import dataclass
from typing import Any

from lmms_eval_vreason.media.media import Media


@dataclass(frozen=True)
class GenerationSettings:
    """How a sample is generated: ``until`` ends the answer, ``generation`` goes to ``generate`` as it is."""

    until: tuple[str, ...]
    generation: dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One request.

    Attributes:
        index: Its place among the requests.
        task, split, doc_id, repeat: Which sample it is for lmms-eval; ``repeat`` counts the earlier requests for the
            same document.
        messages: (role, content) turns for the chat template, with placeholders for media.
        media: The images and videos, in the order of their placeholders.
        settings: How to generate.
        prompt_digest: Hex digest of the messages: their roles, their texts and where media stand.
    """

    index: int
    task: str
    split: str
    doc_id: Any
    repeat: int
    messages: list[dict[str, Any]]
    media: tuple[Media, ...]
    settings: GenerationSettings
    prompt_digest: str = ""

    @property
    def prompt(self) -> str:
        """The user's text as it is sent."""
        users = [turn["content"] for turn in self.messages if turn["role"] == "user"]
        return "\n".join(part["text"] for content in users for part in content if part["type"] == "text")


@dataclass(frozen=True)
class UnbuiltSample:
    """A request whose prompt could not be built; the error stays with it, as with any sample that fails."""

    index: int
    task: str
    split: str
    doc_id: Any
    repeat: int
    error: Exception
