"""How every room declares its options: type and bounds, what an option is, whom it concerns, what it changes.

It imports no other room: media, prompts, run and adapter all declare theirs with it.
"""

from collections import ChainMap
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

Audience = Literal["usual", "method", "expert"]


def option(default: Any, audience: Audience, *, changes_answers: bool, or_else: str = "", **bounds: Any) -> Any:
    """Declares one option; what it is stands in its class's docstring, under ``Attributes:``.

    Args:
        default: Its value where the user gives none.
        audience: Where the documentation lists it.
        changes_answers: Whether another value can change an answer. If so, the option is part of the resume key.
        or_else: What is allowed besides numbers within the bounds, for errors.
        **bounds: ``ge``, ``gt``, ``le``, as for pydantic's ``Field``.
    """
    notes: dict[str, Any] = {"audience": audience, "changes_answers": changes_answers, "or_else": or_else}
    return Field(default, json_schema_extra=notes, **bounds)


class OptionGroup(BaseModel):
    """Base of the option classes: immutable, and tolerant of the ways in which a command line spells a value."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _spelling(cls, value: Any, info: ValidationInfo) -> Any:
        return spelled(value, cls.model_fields[str(info.field_name)].annotation)

    @classmethod
    def facts(cls, name: str) -> dict[str, Any]:
        """An option's JSON schema, with what :func:`option` noted. Of a union (``int | None``) the first counts."""
        schema: dict[str, Any] = cls.model_json_schema()["properties"][name]
        return dict(ChainMap(schema, *schema.get("anyOf", ())))

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> Self:
        """The group with these values.

        Raises:
            ValueError: One line that names the option, what was given and what is allowed.
        """
        try:
            return cls(**given)
        except ValidationError as error:
            first = error.errors()[0]
        if (ours := first.get("ctx", {}).get("error")) is not None:
            raise ValueError(str(ours))
        name = str(first["loc"][0])
        raise ValueError(f"{name}={given[name]!r} {_allowed(cls.facts(name))}")

    def changing_answers(self) -> dict[str, Any]:
        """Name → value of the options that can change an answer."""
        return {name: value for name, value in self if self.facts(name)["changes_answers"]}


def spelled(value: Any, annotation: Any) -> Any:
    """A value as its type expects it: lmms-eval turns ``true`` and ``false`` into booleans, and None comes as text."""
    if isinstance(value, bool) and annotation is not bool:
        return "on" if value else "off"
    if NoneType in get_args(annotation) and value in ("", "none", "None"):
        return None
    return value.strip() if annotation is bool and isinstance(value, str) else value


def _allowed(facts: Mapping[str, Any]) -> str:
    if words := facts.get("enum"):
        return f"is not one of {', '.join(words)}"
    also = f", {facts['or_else']}" if facts["or_else"] else ""
    if facts["type"] == "number":
        low = f"from {facts['minimum']:g}" if "minimum" in facts else f"above {facts['exclusiveMinimum']:g}"
        return f"must be a number {low} to {facts['maximum']:g}{also}"
    if facts["type"] == "integer":
        return f"must be a whole number of at least {facts['minimum']}{also}"
    return "is neither on nor off" if facts["type"] == "boolean" else "must be text"
