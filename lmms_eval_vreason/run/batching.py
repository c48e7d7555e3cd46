"""Which samples go together: questions on one video side by side, prompts of like length next to each other."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

from lmms_eval_vreason.media.frames import estimated_tokens
from lmms_eval_vreason.media.media import Media
from lmms_eval_vreason.media.options import VideoOptions
from lmms_eval_vreason.run.records import Waiting
from lmms_eval_vreason.run.samples import Sample

# A guess that only has to put prompts in order.
_CHARACTERS_A_TOKEN = 4
_READERS = 8


def prompt_lengths(samples: Sequence[Sample], options: VideoOptions) -> list[int]:
    """Roughly how many tokens each prompt will have, from its text and the headers of its files."""
    media = list({item: None for sample in samples for item in sample.media if item.is_path})
    # Most of it is waiting for files.
    with ThreadPoolExecutor(_READERS, thread_name_prefix="headers") as pool:
        tokens: dict[Media, int] = dict(
            zip(media, pool.map(lambda item: estimated_tokens(item, options), media), strict=True)
        )
    return [
        sum(tokens[item] for item in sample.media if item.is_path) + len(sample.prompt) // _CHARACTERS_A_TOKEN
        for sample in samples
    ]


def grouped(waiting: Iterable[Waiting]) -> list[list[Waiting]]:
    """The samples in a good order, in groups that share their first video or image and their settings.

    Long prompts come first: what they need in memory, the rest fits into; and at the end, where several processes
    finish, steps are short. Within a group questions on the same clip stay together. The order depends on the samples
    alone.
    """
    by_group = sorted(waiting, key=_group)
    groups = [list(members) for _, members in groupby(by_group, key=_group)]
    for members in groups:
        members.sort(key=lambda w: (_clip(w), -w.length, w.owner, w.sample.index))
    groups.sort(key=lambda members: (_group(members[0])[0], -max(w.length for w in members), _group(members[0])))
    return groups


def _group(waiting: Waiting) -> tuple[str, str, int, int]:
    sample = waiting.sample
    first = sample.media[0] if sample.media else None
    if first is None or not first.is_path:
        # Nothing to share with others.
        return repr(sample.settings), "", waiting.owner, sample.index
    return repr(sample.settings), first.source, 0, 0


def _clip(waiting: Waiting) -> str:
    return repr(waiting.sample.media) if all(item.is_path for item in waiting.sample.media) else ""


class Padding:
    """Counts how much of the batches' prompts is padding.

    Attributes:
        tokens: All of them, padding too.
        padded: Those that are padding.
    """

    def __init__(self) -> None:
        self.tokens = self.padded = 0

    def add(self, lengths: Sequence[int]) -> None:
        """One batch with prompts of these ``lengths`` (tokens)."""
        whole = max(lengths) * len(lengths)
        self.tokens += whole
        self.padded += whole - sum(lengths)

    @property
    def share(self) -> float:
        return self.padded / self.tokens if self.tokens else 0.0
