"""A grid: methods x options x data x categories x seeds, and the cells that it makes.

A cell is one model that is fitted and measured. With the setting "unified" a cell fits all
categories of a data set in one model; with "separate" there is a cell for each category. A cell is
known by what decides its figures (the whole configuration, the data's name and fingerprint, the
categories, the metrics), so the same cell is never run twice, whichever grid asks for it; `known`
tells which cells a results file has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator

from flawmap.api import configure
from flawmap.bench.published import MAIN_TABLES, require_table
from flawmap.config import Config, Section
from flawmap.data.detect import read_joined
from flawmap.data.samples import SampleTable
from flawmap.errors import ConfigError
from flawmap.explain import explain
from flawmap.files import as_path
from flawmap.metrics.catalog import info
from flawmap.resources import require_device

if TYPE_CHECKING:
    from flawmap.bench.results import StoredCell

Setting = Literal["unified", "separate"]

UNKEYED = frozenset(
    f"training.{name}"
    for name in (
        *("device", "threads", "checkpoint_seconds"),
        *("cache", "cache_memory_mib", "cache_disk_mib"),
    )
)
"""Options that change how fast a figure comes, and the figure hardly: a card may compute in
bfloat16 where a CPU does not, and compares PatchCore's patches with the whole bank."""

_OWN = {
    "seed": "'seeds' of the grid",
    "separate": "'settings' of the grid",
    "method": "'methods' of the grid",
    "method.name": "'methods' of the grid",
    "encoder.name": "'encoder' of the grid",
    "chosen": "the method auto",
    "training.device": "--device, which holds for all cells of a run",
}
"""Options that are no option of a method here, and what stands in their place."""


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str | int | Mapping) else value


def _place(value: Any) -> Any:
    return {"path": value} if isinstance(value, str | Path | list) else value


def _paths(value: Any) -> Any:
    return [value] if isinstance(value, str | Path) else value


def _entry(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


class DataEntry(Section):
    """One data set of a grid."""

    path: Annotated[list[Path], BeforeValidator(_paths)] = Field(min_length=1)
    """A folder or a table file; a relative one starts at the grid file's folder. Several together
    are one data set."""
    format: str | None = None
    """The layout; recognised by default."""
    categories: tuple[str, ...] | None = None
    """Only these products."""


class MethodEntry(Section):
    """One line of the tables: a method with its options."""

    method: str
    """A name that `flawmap methods` lists, or auto, which chooses one."""
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
    preset: str | None = None
    """cpu by default, or what the method auto chooses."""
    metrics: Annotated[list[str], BeforeValidator(_one_or_more)] = Field(default_factory=list)
    """Metrics beyond the seven; see `flawmap evaluate --help`."""
    published_from: Annotated[list[str], BeforeValidator(_one_or_more)] = Field(
        default_factory=lambda: list(MAIN_TABLES)
    )
    """The tables of papers whose figures stand beside those of the grid when it ends."""

    def with_options(self, encoder: str | None, options: Mapping[str, Any]) -> Grid:
        """With an encoder and options for every line, which win over the grid's own.

        Args:
            encoder: None leaves each line its own.
            options: Dotted names to values.
        """
        methods = [
            entry.model_copy(
                update={
                    "encoder": encoder or entry.encoder,
                    "options": {k: v for k, v in entry.options.items() if k not in options},
                }
            )
            for entry in self.methods
        ]
        sets = {name: {**own, **options} for name, own in (self.options or {"": {}}).items()}
        return self.model_copy(update={"methods": methods, "options": sets})

    @field_validator("published_from")
    @classmethod
    def _known_tables(cls, names: list[str]) -> list[str]:
        for name in names:
            require_table(name, where="published_from")
        return names

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
        path: Where its parts lie.
        format: Its layout, as the tables know it.
        fingerprint: Of the images that the cell sees.
        categories: The products that the model learns.
        setting: "unified" or "separate"; see `setting_of`.
        label: What the tables call the method with its options.
        config: The whole configuration of the fit.
        metrics: Metrics beyond the seven.
        images: How many images the cell sees; for estimates only.
        reader: The layout that the grid names; None recognises it.
        data_versions: For each category, what its images are whatever the seed's split.
        named: The options that the grid names for a line of the method auto, without those that
            decide no figure.
    """

    data: str
    path: tuple[str, ...]
    format: str
    fingerprint: str
    categories: tuple[str, ...]
    setting: Setting
    label: str
    config: Config
    metrics: tuple[str, ...] = ()
    images: int = 0
    reader: str | None = None
    data_versions: Mapping[str, str] = field(default_factory=dict)
    named: Mapping[str, Any] = field(default_factory=dict)

    @property
    def about(self) -> dict[str, Any]:
        """What is stored with the cell's environment."""
        chosen = {"named": dict(self.named)} if self.config.chosen else {}
        return {"data_versions": self.data_versions, **chosen}

    @property
    def seed(self) -> int:
        """The seed of the fit and of the data's split."""
        return self.config.seed

    @property
    def key(self) -> str:
        """What decides the figures, as 32 hexadecimal digits."""
        options = deciding(self.config.model_dump(mode="json"))
        content = [options, self.data, self.fingerprint, list(self.categories), self.setting]
        if "chosen" in options and self.named:
            content.append(dict(self.named))
        text = json.dumps([*content, sorted(self.metrics)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def __str__(self) -> str:
        return name_of(self)


def name_of(cell: Cell | StoredCell) -> str:
    """A cell in one line, for people."""
    data = cell.data if cell.setting == "unified" else f"{cell.data}/{cell.categories[0]}"
    return f"{cell.label} on {data}, {cell.setting}, seed {cell.seed}"


def deciding(options: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, as plain values, without the options that decide no figure."""
    tree = deepcopy(dict(options))
    for name in UNKEYED:
        tree.get("training", {}).pop(name.removeprefix("training."), None)
    # That it was chosen counts, not how the reason is worded.
    if not tree.pop("chosen", ()):
        return tree
    return tree | {"chosen": True}


def dotted(tree: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """A tree of plain values as dotted names with JSON texts.

    Example:
        >>> dotted({"data": {"size": [64, 64]}, "seed": 0})
        {'data.size': '[64, 64]', 'seed': '0'}
    """
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found.update(dotted(value, f"{above}{key}."))
        else:
            found[f"{above}{key}"] = json.dumps(value)
    return found


def setting_of(categories: Sequence[str]) -> Setting:
    """The setting of a model: one of a single category is separate, whatever it was asked for as.

    So it is one model in every grid, and stands beside published models of one category each.
    """
    return "separate" if len(categories) == 1 else "unified"


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
        name: entry.model_copy(update={"path": [base / as_path(p) for p in entry.path]})
        for name, entry in grid.data.items()
    }
    return grid.model_copy(update={"data": places})


def cells_of(
    grid: Grid, note: Callable[[str], None] | None = None, *, device: str = "auto"
) -> list[Cell]:
    """The cells of a grid, no cell twice.

    Every data set is listed, and every configuration is built: what is wrong with any of them shows
    before anything runs.

    Args:
        grid: The grid.
        note: Told what the readers left out or assumed.
        device: Where they will be computed: the method auto chooses by it.

    Raises:
        ConfigError: A method, an option, a category, a metric or the device is unknown; or two
            lines are the same.
        DataError: A data set cannot be listed, or has no test images.
    """
    require_device(device)
    labels = [entry.label for entry in grid.methods]
    if doubled := sorted({name for name in labels if labels.count(name) > 1}):
        raise ConfigError(
            f"two methods of the grid are called {', '.join(doubled)}",
            where="methods",
            expected="different names, since the tables tell them apart by these",
            hint="give each a name of its own",
        )
    lines = [
        (entry, label, seed, options)
        for entry in grid.methods
        for variant, options in (grid.options or {"": {}}).items()
        for label in [f"{entry.label}, {variant}" if variant else entry.label]
        for seed in grid.seeds
    ]
    for line in lines:
        # What is wrong with an option shows before data is listed.
        _config(grid, *line)
    parts = _parts(grid, note or (lambda text: None))
    cells: dict[str, Cell] = {}
    for entry, label, seed, options in lines:
        for part in parts:
            if part.seed != seed:
                continue
            cell = Cell(
                data=part.data,
                path=tuple(str(path.resolve()) for path in grid.data[part.data].path),
                format=part.format,
                fingerprint=part.fingerprint,
                categories=part.categories,
                setting=part.setting,
                label=label,
                config=_config(grid, entry, label, seed, options, part.table, device),
                metrics=tuple(grid.metrics),
                images=len(part.table),
                reader=grid.data[part.data].format,
                data_versions=part.versions,
                named=_named(grid, entry, options),
            )
            other = cells.setdefault(cell.key, cell)
            if other.label != label:
                raise ConfigError(
                    f"two lines of the grid are the same: '{other.label}' and '{label}'",
                    where="methods and options",
                    expected="options that differ",
                    hint="leave one of them out; options that change only how fast a figure comes, "
                    "such as training.cache, make no other line",
                )
    return list(cells.values())


def _named(grid: Grid, entry: MethodEntry, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a line that the grid names, as JSON has them."""
    found = {"encoder.name": entry.encoder, "preset": entry.preset or grid.preset}
    found |= {**options, **entry.options}
    kept = {k: v for k, v in found.items() if v is not None and k not in UNKEYED}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


@dataclass(frozen=True)
class _Part:
    """The images that a cell sees, whatever its method."""

    data: str
    seed: int
    format: str
    setting: Setting
    categories: tuple[str, ...]
    fingerprint: str
    table: SampleTable
    versions: Mapping[str, str]


def _parts(grid: Grid, note: Callable[[str], None]) -> list[_Part]:
    """For each data set, seed and setting, what is fitted together."""
    parts = []
    for name, place in grid.data.items():
        told: set[str] = set()
        sizes: dict[str, int] = {}
        tables = {seed: _listed(place, seed, sizes) for seed in {0, *grid.seeds}}
        versions = _versions(tables[0])
        for seed in grid.seeds:
            table = tables[seed]
            for text in table.notes:
                if text not in told:
                    note(f"{name}: {text}")
                    told.add(text)
            for setting, categories in _together(table.categories, grid.settings):
                part = table.only(categories)
                part.require_apart(setting == "separate")
                part.require_tested()
                parts.append(
                    _Part(
                        data=name,
                        seed=seed,
                        format=table.format,
                        setting=setting,
                        categories=categories,
                        fingerprint=part.fingerprint(),
                        table=part,
                        versions={category: versions[category] for category in categories},
                    )
                )
    return parts


def _listed(place: DataEntry, seed: int, sizes: dict[str, int]) -> SampleTable:
    """A data set with the sizes of its files that are known from other seeds."""
    table = read_joined(place.path, format=place.format, categories=place.categories, seed=seed)
    return replace(table, sizes=sizes)


def _versions(table: SampleTable) -> dict[str, str]:
    """For each category what its images are, comparable between seeds where that is the seed 0."""
    return {name: table.only([name]).fingerprint()[:16] for name in table.categories}


def _config(
    grid: Grid,
    entry: MethodEntry,
    label: str,
    seed: int,
    options: Mapping[str, Any],
    table: SampleTable | None = None,
    device: str = "auto",
) -> Config:
    try:
        for name in {**options, **entry.options}:
            if name in _OWN:
                raise ConfigError(
                    f"'{name}' cannot be an option of a grid",
                    where=name,
                    hint=f"use {_OWN[name]}",
                )
        if doubled := sorted(set(options) & set(entry.options)):
            raise ConfigError(
                "the grid's options and the method's own name the same thing",
                where=", ".join(doubled),
                hint="name it in one place",
            )
        return configure(
            method=entry.method,
            encoder=entry.encoder,
            preset=entry.preset or grid.preset,
            seed=seed,
            options={**options, **entry.options},
            data=table,
            device=device,
            # What holds for every line may do something in those of another method.
            idle=() if len({e.method for e in grid.methods}) == 1 else options,
        )
    except ConfigError as error:
        # The name of an option alone would not say which of the methods has it.
        error.where = f"the method '{label}' of the grid: {error.where}"
        raise


def _together(
    categories: Sequence[str], settings: Sequence[Setting]
) -> list[tuple[Setting, tuple[str, ...]]]:
    """For each cell of a data set: its setting and its categories."""
    together: dict[Setting, list[tuple[str, ...]]] = {
        "unified": [tuple(categories)],
        "separate": [(category,) for category in categories],
    }
    # Of a single category both settings are the same model; it is fitted once.
    parts = dict.fromkeys(part for setting in settings for part in together[setting])
    return [(setting_of(part), part) for part in parts]
