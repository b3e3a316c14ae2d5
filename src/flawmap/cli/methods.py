"""`flawmap methods`: the algorithms and their options."""

from __future__ import annotations

from typing import Annotated

import typer

from flawmap.cli import options, show

NAME = "methods"
EPILOG = """\b
Examples:
  flawmap methods
  flawmap methods patchcore --options
"""


def run(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this method.")] = None,
    all_options: Annotated[
        bool,
        typer.Option("--options", help="Every option for --set: type, default, meaning, presets."),
    ] = False,
    json: options.Json = False,
) -> None:
    """List the methods and their options."""
    from flawmap.auto import AUTO
    from flawmap.cli.catalog import method_options, methods

    # JSON lists what a bundle may hold; no bundle holds a choice.
    found = [] if name == AUTO and not json else methods(name)
    if json:
        if all_options:
            found = [{**entry, "options": method_options(entry["name"])} for entry in found]
        show.json_out({"methods": found})
        return
    if name in (None, AUTO):
        show.out(f"{AUTO}  (the default of fit)")
        show.out("  chooses one of the methods by images, device, time and options, and says why")
        show.out()
    for entry in found:
        show.out(f"{entry['name']}  ({entry['kind']})")
        show.out(f"  {entry['summary']}")
        show.out(f"  source: {entry['source']}")
        show.out(f"  defaults: {_pairs(entry['defaults'])}")
        for preset, changes in entry["presets"].items():
            show.out(f"  preset {preset}: {_pairs(changes)}")
        if all_options:
            show.out("  options, for --set NAME=VALUE:")
            for option in method_options(entry["name"]):
                presets = "".join(
                    f" [preset {preset}: {_text(value)}]"
                    for preset, value in option["presets"].items()
                )
                show.out(
                    f"    {option['name']}  ({option['type']}) = "
                    f"{_text(option['default'])}{presets}"
                )
                if option["description"]:
                    show.out(f"        {option['description']}")
        show.out()


def _text(value: object) -> str:
    return "none" if value is None else str(value)


def _pairs(values: dict[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items()) or "as the defaults"
