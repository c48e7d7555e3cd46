"""What a run answers: a sample, with its media and how it is generated."""

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
        error: Why the prompt could not be built. It stays with the sample, as with any sample that fails.
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
    error: Exception | None = None

    @property
    def prompt(self) -> str:
        """The user's text as it is sent."""
        users = [turn["content"] for turn in self.messages if turn["role"] == "user"]
        return "\n".join(part["text"] for content in users for part in content if part["type"] == "text")

    @property
    def movable(self) -> bool:
        """Whether any process can answer it: its media are files, which also tell it from other samples."""
        return self.error is None and all(item.is_path for item in self.media)


@dataclass(frozen=True)
class Waiting:
    """A sample that is to be answered.

    Attributes:
        key: As of :func:`~lmms_eval_vreason.run.records.sample_key`.
        owner: Rank of the process that got the request.
        length: Prompt tokens, estimated; 0 where no order is needed.
    """

    sample: Sample
    key: str
    owner: int = 0
    length: int = 0
