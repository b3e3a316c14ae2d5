"""A grid: methods x options x data x categories x seeds, and the cells that it makes.

A cell is one model that is fitted and measured. With the setting "unified" a cell fits all
categories of a data set in one model; with "separate" there is a cell for each category. A cell is
known by all that decides its figures (the whole configuration, the data's fingerprint, the
categories, the metrics), so the same cell is never run twice, whichever grid asks for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator

from flawmap.api import configure
from flawmap.config import Config, Section, explain
from flawmap.data.detect import read_data
from flawmap.data.samples import SampleTable
from flawmap.errors import ConfigError
from flawmap.metrics.catalog import info

Setting = Literal["unified", "separate"]

SETTINGS: tuple[Setting, ...] = ("unified", "separate")

UNKEYED = frozenset(
    f"training.{name}"
    for name in (
        *("device", "threads", "checkpoint_seconds"),
        *("cache", "cache_memory_mib", "cache_disk_mib"),
    )
)
"""Options that change how fast a figure comes, not the figure."""


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str | int | Mapping) else value


def _place(value: Any) -> Any:
    return {"path": value} if isinstance(value, str | Path) else value


def _entry(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


class DataEntry(Section):
    """One data set of a grid."""

    path: Path
    """A folder or a table file; a relative one starts at the grid file's folder."""
    format: str | None = None
    """The layout; recognised by default."""
    categories: tuple[str, ...] | None = None
    """Only these products."""


class MethodEntry(Section):
    """One line of the tables: a method with its options."""

    method: str
    """A name that `flawmap methods` lists."""
    name: str | None = None
    """What the tables call it; the method's own name by default."""
    encoder: str | None = None
    """The method's by default."""
    preset: str | None = None
    """The grid's by default."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Dotted names to values, as for --set."""

    @property
    def label(self) -> str:
        """The name in tables."""
        return self.name or self.method


class Grid(Section):
    """Everything that a benchmark runs."""

    data: dict[str, Annotated[DataEntry, BeforeValidator(_place)]] = Field(min_length=1)
    """Names to places."""
    methods: Annotated[
        list[Annotated[MethodEntry, BeforeValidator(_entry)]], BeforeValidator(_one_or_more)
    ] = Field(min_length=1)
    """Names of methods, or sections with options."""
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Named sets of options; every method is run with each of them."""
    settings: Annotated[list[Setting], BeforeValidator(_one_or_more)] = Field(
        default=["unified"], min_length=1
    )
    """unified: one model for all categories; separate: one per category."""
    seeds: Annotated[list[int], BeforeValidator(_one_or_more)] = Field(default=[0], min_length=1)
    preset: str = "cpu"
    metrics: Annotated[list[str], BeforeValidator(_one_or_more)] = Field(default_factory=list)
    """Metrics beyond the seven; see `flawmap evaluate --help`."""

    @field_validator("metrics")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        for name in names:
            info(name)
        return names


@dataclass(frozen=True)
class Cell:
    """One model to fit and to measure.

    Attributes:
        data: The data set's name in the grid.
        path: Where it lies.
        format: Its layout.
        fingerprint: Of the images that the cell sees.
        categories: The products that the model learns.
        setting: "unified" or "separate".
        label: What the tables call the method with its options.
        config: The whole configuration of the fit.
        metrics: Metrics beyond the seven.
        images: How many images the cell sees; for estimates only.
    """

    data: str
    path: str
    format: str
    fingerprint: str
    categories: tuple[str, ...]
    setting: Setting
    label: str
    config: Config
    metrics: tuple[str, ...] = ()
    images: int = 0

    @property
    def seed(self) -> int:
        """The seed of the fit and of the data's split."""
        return self.config.seed

    @property
    def key(self) -> str:
        """What decides the figures, as 32 hexadecimal digits."""
        tree = self.config.model_dump(mode="json")
        for name in UNKEYED:
            tree["training"].pop(name.removeprefix("training."))
        content = [tree, self.data, self.fingerprint, list(self.categories), self.setting]
        text = json.dumps([*content, sorted(self.metrics)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def __str__(self) -> str:
        name = self.data if self.setting == "unified" else f"{self.data}/{self.categories[0]}"
        return f"{self.label} on {name}, {self.setting}, seed {self.seed}"


def read_grid(path: Path, *, instead: Mapping[str, Any] | None = None) -> Grid:
    """A grid from a YAML file.

    Args:
        path: The file.
        instead: Entries that replace the file's own of the same name.

    Raises:
        ConfigError: The file cannot be read, or an entry is wrong.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            "the grid file does not exist",
            where=str(path),
            hint="name a YAML file, or describe the grid with --data and --method",
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"the grid file cannot be read: {error}", where=str(path)) from error
    if not isinstance(tree, dict):
        raise ConfigError(
            "the grid file must hold names and values",
            where=str(path),
            expected="for example 'data: {bottle: mvtec/bottle}' and 'methods: [patchcore]'",
        )
    return make_grid({**tree, **(instead or {})}, base=path.parent, where=str(path))


def make_grid(tree: Mapping[str, Any], *, base: Path = Path(), where: str = "the grid") -> Grid:
    """A grid from a plain tree.

    Args:
        tree: As in the YAML file.
        base: What relative paths of data start at.
        where: Named in errors.

    Raises:
        ConfigError: Names the entry, what was given and what is expected.
    """
    try:
        grid = Grid.model_validate(dict(tree))
    except ValidationError as error:
        found = explain(error, Grid, hint="see docs/commands/bench.md for the form of a grid")
        found.where = f"{where}: {found.where}"
        raise found from error
    places = {
        name: entry.model_copy(update={"path": base / entry.path.expanduser()})
        for name, entry in grid.data.items()
    }
    return grid.model_copy(update={"data": places})


def cells_of(grid: Grid) -> list[Cell]:
    """The cells of a grid, cheapest data first within a method, no cell twice.

    Every data set is listed, and every configuration is built: what is wrong with any of them shows
    before anything runs.

    Raises:
        ConfigError: A method, an option, a category or a metric is unknown.
        DataError: A data set cannot be listed, or has no test images.
    """
    tables: dict[tuple[str, int], SampleTable] = {}
    for name, place in grid.data.items():
        for seed in grid.seeds:
            tables[name, seed] = read_data(
                place.path, format=place.format, categories=place.categories, seed=seed
            )
    labels = [entry.label for entry in grid.methods]
    if doubled := sorted({name for name in labels if labels.count(name) > 1}):
        raise ConfigError(
            f"two methods of the grid are called {', '.join(doubled)}",
            where="methods",
            expected="different names, since the tables tell them apart by these",
            hint="give each a name of its own",
        )
    cells: dict[str, Cell] = {}
    for entry in grid.methods:
        for variant, options in (grid.options or {"": {}}).items():
            label = f"{entry.label}, {variant}" if variant else entry.label
            for seed in grid.seeds:
                config = _config(grid, entry, label, seed, options)
                for name in grid.data:
                    table = tables[name, seed]
                    for setting, categories in _parts(table.categories, grid.settings):
                        part = table.only(categories)
                        cell = Cell(
                            data=name,
                            path=str(grid.data[name].path.resolve()),
                            format=table.format,
                            fingerprint=part.fingerprint(),
                            categories=categories,
                            setting=setting,
                            label=label,
                            config=config,
                            metrics=tuple(grid.metrics),
                            images=len(part),
                        )
                        cells.setdefault(cell.key, cell)
    return list(cells.values())


def _config(
    grid: Grid, entry: MethodEntry, label: str, seed: int, options: Mapping[str, Any]
) -> Config:
    try:
        return configure(
            method=entry.method,
            encoder=entry.encoder,
            preset=entry.preset or grid.preset,
            seed=seed,
            options={**options, **entry.options},
        )
    except ConfigError as error:
        # The name of an option alone would not say which of the methods has it.
        error.where = f"the method '{label}' of the grid: {error.where}"
        raise


def _parts(
    categories: Sequence[str], settings: Sequence[Setting]
) -> list[tuple[Setting, tuple[str, ...]]]:
    """For each cell of a data set: its setting and its categories."""
    if len(categories) == 1:
        # Both settings are the same model then; it is fitted once.
        return [(settings[0], tuple(categories))]
    parts: list[tuple[Setting, tuple[str, ...]]] = []
    for setting in dict.fromkeys(settings):
        if setting == "unified":
            parts.append((setting, tuple(categories)))
        else:
            parts += [(setting, (category,)) for category in categories]
    return parts
