"""The options of a run: its journal, its faults, and what is kept between samples. None of them changes an answer."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import field_validator

from lmms_eval_vreason.media.options import VideoOptions
from lmms_eval_vreason.method.config import VReason
from lmms_eval_vreason.options import OptionGroup, option
from lmms_eval_vreason.prompts.options import ThinkingOptions

_SHARED_PREFIX = 4.0
_WORDS = {"off": 0.0, "false": 0.0, "auto": _SHARED_PREFIX, "on": _SHARED_PREFIX, "true": _SHARED_PREFIX}


class RunOptions(OptionGroup):
    """The journal, what happens to a sample that fails, and memory for shared prefixes.

    Attributes:
        journal: Folder of the journal, by default beside ``--output_path``. ``off`` for none.
        resume: Take finished samples from the journal.
        on_error: A sample that fails is skipped (empty answer, marked, counted), or ends the run (``raise``).
        max_error_rate: Share of failed samples above which the run stops. One failure is always tolerated.
        oom: A sample that does not fit into memory by itself is an ``error``, or is answered with ``prune_ratio=0.5``
            and marked (``lite``). A later run takes such answers from the journal only with ``lite``.
        shared_prefix: GB (10⁹ bytes) for prefilled prompt prefixes, so that several questions on one video share its
            prefill, with the same answers. ``auto`` is the default, ``off`` prefills each prompt by itself.
    """

    journal: str | None = option(None, "expert", changes_answers=False)
    resume: bool = option(True, "expert", changes_answers=False)
    on_error: Literal["skip", "raise"] = option("skip", "expert", changes_answers=False)
    max_error_rate: float = option(0.05, "expert", changes_answers=False, ge=0, le=1)
    oom: Literal["error", "lite"] = option("error", "expert", changes_answers=False)
    shared_prefix: float = option(_SHARED_PREFIX, "expert", changes_answers=False, or_else="auto or off", ge=0, le=1000)

    @field_validator("shared_prefix", mode="before")
    @classmethod
    def _in_words(cls, value: Any) -> Any:
        return _WORDS.get(str(value).strip().lower(), value)


@dataclass(frozen=True)
class AnswerOptions:
    """All options that a run needs, whoever starts it."""

    video: VideoOptions
    thinking: ThinkingOptions
    run: RunOptions
    method: VReason
