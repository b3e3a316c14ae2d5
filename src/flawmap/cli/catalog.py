"""What there is to choose from: methods with their options, and encoders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def methods(name: str | None = None) -> list[dict[str, Any]]:
    """The registered methods, or one of them, as plain JSON values.

    Raises:
        ConfigError: The name is unknown.
    """
    from flawmap.registry import METHODS

    found = []
    for each in sorted(METHODS) if name is None else [name]:
        cls = METHODS.load(each)
        found.append(
            {
                "name": each,
                "kind": cls.kind,
                "summary": cls.summary,
                "source": cls.source,
                "defaults": dict(cls.defaults),
                "presets": {preset: dict(changes) for preset, changes in cls.presets.items()},
            }
        )
    return found


def method_options(name: str) -> list[dict[str, Any]]:
    """Every option of a run with a method, its own first, as plain JSON values.

    The default is the one in force with this method; "presets" tells what presets make of it.

    Raises:
        ConfigError: The name is unknown.
    """
    from flawmap.config import Config
    from flawmap.registry import METHODS

    cls = METHODS.load(name)
    found = []
    for option, field, text in [
        *_fields(cls.Config, "method."),
        *_fields(Config, "", leave_out=("method", "chosen")),
    ]:
        if option == "method.name":
            continue
        default = field.get_default(call_default_factory=True)
        found.append(
            {
                "name": option,
                "type": type_text(field),
                "default": _plain(cls.defaults.get(option, default)),
                "description": text,
                "presets": {
                    preset: _plain(changes[option])
                    for preset, changes in cls.presets.items()
                    if option in changes
                },
            }
        )
    return found


def encoders() -> list[dict[str, Any]]:
    """The encoders that flawmap knows by name, as plain JSON values."""
    from flawmap.encoders.table import ENCODERS
    from flawmap.encoders.weights import find, missing

    found = []
    for spec in ENCODERS.values():
        file = find(spec)
        found.append(
            {
                "name": spec.name,
                "timm_name": spec.timm_name,
                "family": spec.family,
                "parameters": spec.parameters,
                "licence": spec.licence,
                "origin": f"PyPI package {spec.package}" if spec.package else "a file, or the hub",
                "present": file is not None,
                "path": None if file is None else str(file.path),
                "note": spec.note,
                "get": None if file is not None else missing(spec).hint,
            }
        )
    return found


def type_text(field: FieldInfo) -> str:
    """A field's type and limits for people.

    Example:
        >>> type_text(FieldInfo(annotation=int, default=1, ge=1))
        'int, >= 1'
    """
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None
    ]
    return ", ".join([_annotation(field.annotation), *limits])


def _annotation(annotation: Any) -> str:
    if annotation is None or annotation is type(None):
        return "none"
    arguments = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Literal:
        return " | ".join(str(choice) for choice in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_annotation(arguments[0])}"
        return f"{len(arguments)} x {_annotation(arguments[0])}"
    if hasattr(annotation, "__metadata__"):
        return _annotation(arguments[0])
    if arguments:
        return " | ".join(_annotation(argument) for argument in arguments)
    return "file" if annotation.__name__ == "Path" else str(annotation.__name__)


def _fields(
    model: type[BaseModel], prefix: str, leave_out: tuple[str, ...] = ()
) -> Iterator[tuple[str, FieldInfo, str]]:
    for name, field in model.model_fields.items():
        if name in leave_out:
            continue
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _fields(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field, " ".join((field.description or "").split())


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, str | int | float | list | None) else str(value)
