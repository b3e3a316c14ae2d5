"""Which finished cells make one line of a table, and what is missing from it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flawmap.bench.grid import UNKEYED
from flawmap.bench.store import StoredCell

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Group:
    """All finished cells of one line.

    Attributes:
        data: The data set's name.
        setting: "unified" or "separate".
        label: What the table calls the method with its options.
        cells: One per seed, or per seed and category.
        categories: All that were measured on this data by any line.
        seeds: Likewise.
    """

    data: str
    setting: str
    label: str
    cells: tuple[StoredCell, ...]
    categories: tuple[str, ...]
    seeds: tuple[int, ...]

    def by_seed(self) -> dict[int, dict[str, Figures]]:
        """For each seed, the defined figures by category."""
        found: dict[int, dict[str, Figures]] = {}
        for cell in self.cells:
            for category, figures in cell.figures.items():
                defined = {k: v for k, v in figures.items() if v is not None}
                found.setdefault(cell.seed, {})[category] = defined
        return found

    def counted_seeds(self) -> dict[int, dict[str, Figures]]:
        """The seeds that have every category; where none has, those that have the most."""
        seeds = self.by_seed()
        most = max(len(figures) for figures in seeds.values())
        return {s: figures for s, figures in seeds.items() if len(figures) == most}

    @property
    def complete(self) -> bool:
        """Whether every seed has every category: only then lines can be compared."""
        counted = self.counted_seeds()
        return set(counted) >= set(self.seeds) and all(
            set(figures) >= set(self.categories) for figures in counted.values()
        )

    def marks(self) -> tuple[str, ...]:
        """What a reader must know of this line."""
        counted = self.counted_seeds()
        most = max(len(figures) for figures in counted.values())
        found = []
        if most < len(self.categories):
            found.append(f"incomplete: {most} of {len(self.categories)} categories")
        elif len(counted) < len(self.seeds):
            found.append(f"{len(counted)} of {len(self.seeds)} seeds")
        if any(c.cost.get("fit_resumed") for c in self.cells):
            found.append("a fit was stopped and resumed: its seconds are those of the last part")
        if any(c.environment.get("jobs", 1) > 1 for c in self.cells):
            found.append("times were taken while other cells ran on the same machine")
        for key, what in (("device", "devices"), ("precision", "precisions")):
            several = sorted({str(c.environment[key]) for c in self.cells if key in c.environment})
            if len(several) > 1:
                found.append(f"several {what}: {', '.join(several)}")
        if any(
            0 < (figures.get("n_defects_with_mask") or 0) < (figures.get("n_defect") or 0)
            for cell in self.cells
            for figures in cell.figures.values()
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
        """Mean over seeds for each category in which the metric is defined."""
        values: dict[str, list[float]] = {}
        for figures in self.counted_seeds().values():
            for category, found in figures.items():
                if metric in found:
                    values.setdefault(category, []).append(found[metric])
        return {category: statistics.fmean(v) for category, v in values.items()}


def groups_of(done: Sequence[StoredCell]) -> tuple[list[Group], list[str]]:
    """The lines of a table, and what was left out.

    What has the same name but other options, or a unified model of other categories, is another
    line. Of several measurements of one cell (on data that was changed, or with other metrics) the
    last one counts.

    Args:
        done: Finished cells with figures, the oldest first.
    """
    latest = {(c.data, c.seed, c.categories): c.fingerprint for c in done}
    kept = [c for c in done if latest[c.data, c.seed, c.categories] == c.fingerprint]
    notes = []
    if old := len(done) - len(kept):
        notes.append(f"{old} cells are left out: they were measured on data that has changed since")
    members: dict[tuple[str, ...], dict[tuple[object, ...], StoredCell]] = {}
    for cell in kept:
        members.setdefault(_identity(cell), {})[cell.seed, cell.categories] = cell
    groups = []
    for cells in members.values():
        some = tuple(cells.values())
        on_data = [c for c in kept if c.data == some[0].data]
        groups.append(
            Group(
                data=some[0].data,
                setting=some[0].setting,
                # A cell may have been asked for under several names: the last one counts.
                label=some[-1].label,
                cells=some,
                categories=tuple(sorted({name for c in on_data for name in c.figures})),
                seeds=tuple(sorted({c.seed for c in on_data})),
            )
        )
    return _told_apart(groups), notes


def _identity(cell: StoredCell) -> tuple[str, ...]:
    together = cell.categories if cell.setting == "unified" else ()
    return (cell.data, cell.setting, json.dumps(_options(cell.config)), *together)


def _told_apart(groups: Sequence[Group]) -> list[Group]:
    """The same groups; where names are equal, with what differs."""
    result = []
    for group in groups:
        place = (group.data, group.setting, group.label)
        same = [g for g in groups if (g.data, g.setting, g.label) == place]
        options = [_options(g.cells[0].config) for g in same]
        mine = _options(group.cells[0].config)
        differing = [f"{k}={v}" for k, v in mine.items() if any(o.get(k) != v for o in options)]
        if len(same) > 1 and not differing:
            differing = [f"{len(group.cells[0].categories)} categories"]
        name = f"{group.label} ({', '.join(differing)})" if differing else group.label
        result.append(replace(group, label=name))
    return result


def _options(tree: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """A configuration as dotted names with values, without the seed and what decides no figure."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            found.update(_options(value, f"{name}."))
        elif name not in UNKEYED and name != "seed":
            found[name] = json.dumps(value)
    return found
