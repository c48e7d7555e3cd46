"""Prints the tables of ``docs/arguments.md``, made from the options themselves: ``python docs/make_arguments.py``."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lmms_eval_vreason.adapter.options import GROUPS
from lmms_eval_vreason.method.config import CHOICES, PRESETS, VReason
from lmms_eval_vreason.options import Audience

_HEADINGS: dict[Audience, str] = {"usual": "The usual eight", "method": "The method", "expert": "For experts"}
_USUAL = {"policy"}
_EXPERT = {"compile", "head_topk", "head_tail", "seed"}


@dataclass(frozen=True)
class Row:
    """One argument as the page shows it."""

    name: str
    default: Any
    choices: Sequence[str]
    what: str
    audience: Audience


def rows() -> Iterator[Row]:
    """All arguments, group by group."""
    for kind in GROUPS.values():
        described = attributes(kind)
        for name, field in kind.model_fields.items():
            facts = kind.facts(name)
            yield Row(name, field.default, facts.get("enum", ()), described[name], facts["audience"])
    settings = "; ".join(f"`{name}`: {_spelled(preset)}" for name, preset in PRESETS.items())
    yield Row("preset", "default", (), f"A strength by its name; arguments of one's own win. {settings}.", "method")
    described = attributes(VReason)
    for option in fields(VReason):
        audience: Audience = "usual" if option.name in _USUAL else "expert" if option.name in _EXPERT else "method"
        yield Row(option.name, option.default, CHOICES.get(option.name, ()), described[option.name], audience)


def attributes(kind: type) -> dict[str, str]:
    """Name → description, from the section ``Attributes:`` of a class's docstring."""
    _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+(?:, \w+)*): (.+(?:\n {5,}.+)*)", section.split("\n\n")[0], re.MULTILINE)
    plain = {names: re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", " ".join(text.split())) for names, text in entries}
    return {name: text.replace("``", "`") for names, text in plain.items() for name in names.split(", ")}


def tables() -> str:
    """The page's tables, under their headings."""
    parts = []
    for audience, heading in _HEADINGS.items():
        lines = [f"## {heading}", "", "| argument | default | what it is |", "| --- | --- | --- |"]
        parts.append("\n".join([*lines, *(_line(row) for row in rows() if row.audience == audience), ""]))
    return "\n".join(parts)


def _line(row: Row) -> str:
    unsaid = any(f"`{choice}`" not in row.what for choice in row.choices)
    allowed = f" One of {', '.join(f'`{choice}`' for choice in row.choices)}." if unsaid else ""
    return f"| `{row.name}` | {_shown(row.default)} | {row.what}{allowed} |"


def _spelled(preset: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={_shown(value)[1:-1]}`" for name, value in preset.items()) or "the defaults"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "`on`" if value else "`off`"
    return "none" if value is None else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


if __name__ == "__main__":
    print(tables(), end="")
