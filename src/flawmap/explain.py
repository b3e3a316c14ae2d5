"""What pydantic refuses, in words that name the option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flawmap.errors import ConfigError, nearest


def _plain(message: str) -> str:
    """What pydantic says of a value, as what is expected of it."""
    text = message.removeprefix("Value error, ").removeprefix("Input should be ")
    text = text.split(", unable to parse")[0]
    return text.replace("a valid tuple", "several values in brackets, such as [a, b]")


def explain(
    error: ValidationError,
    model: type[BaseModel],
    prefix: str = "",
    hint: str = "see 'flawmap methods --options' for every option with its type and default",
) -> ConfigError:
    """The first problem of a validation error, in words that name the option.

    Args:
        error: What pydantic raised.
        model: The section that was validated.
        prefix: What stands before the option's name.
        hint: What to do about a wrong value.
    """
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    option = prefix + ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = sorted(_section_at(model, path[:-1]).model_fields)
        guess = nearest(path[-1], known)
        return ConfigError(
            f"unknown option '{option}'",
            where=option,
            given=problem.get("input"),
            expected=f"one of: {', '.join(known)}",
            hint=f"did you mean '{prefix + '.'.join([*path[:-1], guess])}'?" if guess else None,
        )
    branches = [e for e in error.errors() if _same_value(e, problem)]
    if len(branches) > 1:
        # Each kind of value that the option takes has its own complaint.
        option = prefix + ".".join(path[:-1])
        expected = " or ".join(dict.fromkeys(_plain(e["msg"]) for e in branches))
    else:
        expected = _plain(problem["msg"])
    return ConfigError(
        f"the option '{option}' has a wrong value"
        if problem["type"] != "missing"
        else f"the option '{option}' is missing",
        where=option,
        given=repr(problem.get("input")),
        expected=expected,
        hint=hint,
    )


def _same_value(one: ErrorDetails, other: ErrorDetails) -> bool:
    """Whether two problems are those of one value, in two branches of a union."""
    return (
        "missing" not in (one["type"], other["type"])
        and one["loc"][:-1] == other["loc"][:-1]
        and one["input"] is other["input"]
    )


def _section_at(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    """The section that a path leads to, also through lists and mappings of sections."""
    section = model
    for part in path:
        field = section.model_fields.get(part)
        # An index or a key chooses among sections of one kind: it leads no deeper.
        section = _section_in(field.annotation) if field is not None else section
        section = section or model
    return section


def _section_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)
