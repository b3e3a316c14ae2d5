"""Which finished cells make one line of a table, and what is missing from it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from flawmap.bench.grid import deciding, dotted
from flawmap.bench.results import StoredCell
from flawmap.config import Config, Section

Figures = Mapping[str, float]

SHARED = "times were taken while other cells ran on the same machine"
RESUMED = "a fit was stopped and resumed: its seconds and memory are not counted"
"""What must be known of a line's costs."""

_OF_A_FIT = ("fit_seconds", "fit_peak_memory_mib", "fit_peak_gpu_memory_mib")


@dataclass(frozen=True)
class Group:
    """All finished cells of one line.

    Attributes:
        data: The data set's name.
        setting: "unified" or "separate".
        label: What the table calls the method with its options.
        cells: One per seed, or per seed and category; several where one model was measured again
            with other metrics, the oldest first.
        categories: All that were measured on this data by any line.
        seeds: Likewise.
    """

    data: str
    setting: str
    label: str
    cells: tuple[StoredCell, ...]
    categories: tuple[str, ...]
    seeds: tuple[int, ...]

    @cached_property
    def by_seed(self) -> dict[int, dict[str, Figures]]:
        """For each seed, the defined figures by category; of one measured twice the last counts."""
        found: dict[int, dict[str, dict[str, float | None]]] = {}
        for cell in self.cells:
            for category, figures in cell.figures.items():
                found.setdefault(cell.seed, {}).setdefault(category, {}).update(figures)
        return {
            seed: {
                category: {k: v for k, v in figures.items() if v is not None}
                for category, figures in categories.items()
            }
            for seed, categories in found.items()
        }

    def costs(self, seed: int, categories: Collection[str]) -> list[dict[str, Any]]:
        """What each model of a seed cost that has any of these categories.

        Of a fit that was stopped and resumed only the last part is known, which is no cost of it.
        """
        found: dict[tuple[str, ...], dict[str, Any]] = {}
        for cell in self.cells:
            if cell.seed == seed and set(cell.categories) & set(categories):
                lost = _OF_A_FIT if cell.cost.get("fit_resumed") else ()
                cost = {name: value for name, value in cell.cost.items() if name not in lost}
                found.setdefault(cell.categories, {}).update(cost)
        return list(found.values())

    @cached_property
    def counted_seeds(self) -> dict[int, dict[str, Figures]]:
        """The seeds that have every category; where none has, those that have the most."""
        seeds = self.by_seed
        most = max(len(figures) for figures in seeds.values())
        return {s: figures for s, figures in seeds.items() if len(figures) == most}

    @property
    def complete(self) -> bool:
        """Whether every seed has every category: only then lines can be compared."""
        counted = self.counted_seeds
        return set(counted) >= set(self.seeds) and all(
            set(figures) >= set(self.categories) for figures in counted.values()
        )

    def marks(self, part: Collection[str]) -> tuple[str, ...]:
        """What a reader must know of the line of some of the categories."""
        cells = [c for c in self.cells if set(c.categories) & set(part)]
        counted = self.counted_seeds
        most = max(len(figures) for figures in counted.values())
        found = []
        if most < len(self.categories):
            found.append(f"incomplete: {most} of {len(self.categories)} categories")
        elif len(counted) < len(self.seeds):
            found.append(f"{len(counted)} of {len(self.seeds)} seeds")
        if any(c.cost.get("fit_resumed") for c in cells):
            found.append(RESUMED)
        if any(c.environment.get("jobs", 1) > 1 for c in cells):
            found.append(SHARED)
        chosen = any(c.config.get("chosen") for c in cells)
        for key in ("device",) if chosen else ("device", "precision"):
            several = sorted({str(c.environment[key]) for c in cells if key in c.environment})
            if len(several) > 1:
                found.append(f"several {key}s: {'; '.join(several)}")
        weights = {c.environment.get("encoder_sha256") for c in cells} - {None}
        if len(weights) > 1 and not chosen:
            found.append("several weights of the encoder")
        if any(
            0 < (figures.get("n_defects_with_mask") or 0) < (figures.get("n_defect") or 0)
            for cell in cells
            for category, figures in cell.figures.items()
            if category in part
        ):
            found.append("some defects have no mask: pixel metrics are over the others")
        return tuple(found)

    def test_images(self) -> dict[str, int]:
        """How many test images each category has."""
        return {
            category: int((figures.get("n_good") or 0) + (figures.get("n_defect") or 0))
            for cell in self.cells
            for category, figures in cell.figures.items()
        }

    def mean_by_category(self, metric: str) -> dict[str, float]:
        """Mean over seeds for each category in which all seeds that count have the metric."""
        values: dict[str, list[float]] = {}
        seeds = self.counted_seeds
        for figures in seeds.values():
            for category, found in figures.items():
                if metric in found:
                    values.setdefault(category, []).append(found[metric])
        return {c: statistics.fmean(v) for c, v in values.items() if len(v) == len(seeds)}


def groups_of(done: Sequence[StoredCell]) -> tuple[list[Group], list[str]]:
    """The lines of a table, and what was left out.

    What has the same name but other options, or a unified model of other categories, is another
    line. Cells of data that has changed since are left out, see `current`.

    Args:
        done: Finished cells with figures, the oldest first.
    """
    same = _of_present_data(done)
    notes = []
    if old := len(done) - len(same):
        notes.append(f"{old} cells are left out: they were measured on data that has changed since")
    kept = _last_choices(same)
    members: dict[tuple[str, ...], list[StoredCell]] = {}
    for cell in kept:
        members.setdefault(_identity(cell), []).append(cell)
    groups = []
    for cells in members.values():
        on_data = [c for c in kept if c.data == cells[0].data]
        groups.append(
            Group(
                data=cells[0].data,
                setting=cells[0].setting,
                # A cell may have been asked for under several names: the last one counts.
                label=cells[-1].label,
                cells=tuple(cells),
                categories=tuple(sorted({name for c in on_data for name in c.figures})),
                seeds=tuple(sorted({c.seed for c in on_data})),
            )
        )
    return _told_apart(groups), notes


def current(done: Sequence[StoredCell]) -> list[StoredCell]:
    """The cells of data as it is now, and of what `auto` chooses now.

    Args:
        done: Finished cells with figures, the oldest first.
    """
    return _last_choices(_of_present_data(done))


def _last_choices(cells: Sequence[StoredCell]) -> list[StoredCell]:
    """Of lines of `auto` the cells of the last choice for each model; others as they are."""

    def model(cell: StoredCell) -> tuple[object, ...]:
        return (*_identity(cell), cell.seed, cell.categories)

    chosen = [c for c in cells if c.config.get("chosen") and "named" in c.environment]
    last = {model(c): deciding(c.config) for c in chosen}
    earlier = {c.key for c in chosen if deciding(c.config) != last[model(c)]}
    return [c for c in cells if c.key not in earlier]


def _of_present_data(done: Sequence[StoredCell]) -> list[StoredCell]:
    """The cells of data as it is now.

    A category's images are those that the last cell saw, with any seed. Where a cell does not say
    which these are, as older ones do not, it is judged by the last cell of its own seed.

    Args:
        done: Finished cells with figures, the oldest first.
    """
    prints = {(c.data, c.seed, c.categories): c.fingerprint for c in done}
    versions = {
        (c.data, category): version for c in done for category, version in c.data_versions.items()
    }
    return [
        c
        for c in done
        if prints[c.data, c.seed, c.categories] == c.fingerprint
        and all(versions[c.data, name] == version for name, version in c.data_versions.items())
    ]


def _identity(cell: StoredCell) -> tuple[str, ...]:
    together = cell.categories if cell.setting == "unified" else ()
    options = json.dumps(_options(cell), sort_keys=True)
    return (cell.data, cell.setting, options, *together)


def _told_apart(groups: Sequence[Group]) -> list[Group]:
    """The same groups; where names are equal, with what differs."""
    result = []
    for group in groups:
        place = (group.data, group.setting, group.label)
        same = [g for g in groups if (g.data, g.setting, g.label) == place]
        options = [_options(g.cells[0]) for g in same]
        mine = _options(group.cells[0])
        differing = [f"{k}={v}" for k, v in mine.items() if any(o.get(k) != v for o in options)]
        together = {g.cells[0].categories for g in same}
        if len(together) > 1 and not differing and group.setting == "unified":
            differing = [f"{len(group.cells[0].categories)} categories"]
        name = f"{group.label} ({', '.join(differing)})" if differing else group.label
        result.append(replace(group, label=name))
    return result


@lru_cache(maxsize=1)
def _defaults() -> dict[str, dict[str, Any]]:
    sections = {name: field.default for name, field in Config.model_fields.items()}
    return {
        name: default.model_dump(mode="json")
        for name, default in sections.items()
        if isinstance(default, Section)
    }


def _completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """With the options that are new since it was stored: their defaults leave everything as it was.

    Those of methods excepted: they cannot be known without loading torch.
    """
    more = {name: {**values, **config.get(name, {})} for name, values in _defaults().items()}
    return {**config, **more}


def _options(cell: StoredCell) -> dict[str, str]:
    """A configuration as dotted names with values, without the seed and what decides no figure.

    Of a line of `auto` only what was named: what it chose may differ from category to category.
    What was named is not known of older cells: of these the method's options are left out.
    """
    named = cell.environment.get("named") if cell.config.get("chosen") else None
    if named is not None:
        return {"chosen": "true", **dotted(named)}
    found = dotted(deciding(_completed(cell.config)))
    free = ("seed", "method.") if "chosen" in found else ("seed",)
    return {name: text for name, text in found.items() if not name.startswith(free)}
