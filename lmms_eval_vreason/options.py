"""How every room declares its options: type and bounds, what an option is, whom it concerns, what it changes."""

from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

Audience = Literal["usual", "method", "expert"]
Group = TypeVar("Group", bound="OptionGroup")


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
    def note(cls, name: str, of: str) -> Any:
        """What :func:`option` noted of the option ``name``."""
        extra = cls.model_fields[name].json_schema_extra
        assert isinstance(extra, dict), f"{cls.__name__}.{name} is not declared with option()"
        return extra[of]

    def changing_answers(self) -> dict[str, Any]:
        """Name → value of the options that can change an answer."""
        return {name: value for name, value in self if self.note(name, "changes_answers")}


def spelled(value: Any, annotation: Any) -> Any:
    """A value as its type expects it: lmms-eval turns ``true`` and ``false`` into booleans, and None comes as text."""
    if isinstance(value, bool) and annotation is not bool:
        return "on" if value else "off"
    if NoneType in get_args(annotation) and value in ("", "none", "None"):
        return None
    return value.strip() if annotation is bool and isinstance(value, str) else value


def parse_group(kind: type[Group], given: Mapping[str, Any]) -> Group:
    """Checks a group's options.

    Raises:
        ValueError: One line that names the option, what was given and what is allowed.
    """
    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors()[0]
    if (ours := first.get("ctx", {}).get("error")) is not None:
        raise ValueError(str(ours))
    name = str(first["loc"][0])
    raise ValueError(f"{name}={given[name]!r} {_allowed(kind, name)}")


def choices(annotation: Any) -> tuple[str, ...]:
    """The words that an option may take; empty where it takes other values."""
    kinds = [annotation, *get_args(annotation)]
    return next((get_args(kind) for kind in kinds if get_origin(kind) is Literal and len(get_args(kind)) > 1), ())


def _allowed(kind: type[OptionGroup], name: str) -> str:
    field = kind.model_fields[name]
    wanted = {field.annotation, *get_args(field.annotation)}
    sides = {side: getattr(part, side) for part in field.metadata for side in ("ge", "gt", "le") if hasattr(part, side)}
    also = f", {kind.note(name, 'or_else')}" if kind.note(name, "or_else") else ""
    if words := choices(field.annotation):
        return f"is not one of {', '.join(words)}"
    if float in wanted:
        low = f"from {sides['ge']:g}" if "ge" in sides else f"above {sides['gt']:g}"
        return f"must be a number {low} to {sides['le']:g}{also}"
    if int in wanted or also:
        return f"must be a whole number of at least {sides.get('ge', 1)}{also}"
    return "is neither on nor off" if bool in wanted else "must be text"
