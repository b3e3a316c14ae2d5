"""What stands below a table in sentences: significance, failures, where the figures come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flawmap.bench.groups import Group
from flawmap.bench.results import StoredCell
from flawmap.bench.significance import MIN_PAIRS, compare_with_best
from flawmap.wording import counted


def significance(groups: Sequence[Group], metrics: Mapping[str, str]) -> list[str]:
    """Comparisons within each setting, over the categories of all data sets that lines share.

    Args:
        groups: The lines; those that are not complete are left out.
        metrics: Names of metrics of which a higher one is better, and what the table calls them.
    """
    compared: dict[str, dict[str, dict[str, float]]] = {}
    several = False
    for setting in dict.fromkeys(g.setting for g in groups):
        mine = [g for g in groups if g.setting == setting and g.complete]
        labels = list(dict.fromkeys(g.label for g in mine))
        several = several or len(labels) > 1
        for name, title in metrics.items():
            lines = compared.setdefault(f"{setting}, {title}", {label: {} for label in labels})
            for group in mine:
                for category, value in group.mean_by_category(name).items():
                    lines[group.label][_picture(group, category)] = value
    found = compare_with_best(compared)
    if found:
        tests = counted(found[0].tests, "pair")
        last = f"{found[-1]} (Wilcoxon signed-rank; Holm over {tests} of lines)"
        return [*map(str, found[:-1]), last]
    if several:
        return [
            f"the lines share fewer than {MIN_PAIRS} categories: no test over categories can tell "
            "a difference from chance"
        ]
    return []


def _picture(group: Group, category: str) -> str:
    """A name for a category's images: the same data under two names must count once."""
    cells = [c for c in group.cells if category in c.categories]
    prints = sorted({c.fingerprint for c in cells}) if group.setting == "separate" else [group.data]
    return f"{' '.join(prints)}/{category}"


def failures(cells: Sequence[StoredCell]) -> list[str]:
    """The cells that failed, and why."""
    return [
        f"failed: {cell}: {' '.join(str((cell.error or {}).get('message')).split())}"
        for cell in cells
        if cell.status == "failed"
    ]


def about(cells: Sequence[StoredCell]) -> list[str]:
    """Hardware, versions and commits: a figure without them is worth little."""
    notes = []
    for key, title in (("device", "Hardware"), ("commit", "Commit"), ("date", "Date")):
        if found := said(cells, key):
            notes.append(f"{title}: {'; '.join(found)}.")
    known = [c.environment["versions"] for c in cells if c.environment.get("versions")]
    versions = sorted({", ".join(f"{k} {n}" for k, n in sorted(v.items())) for v in known})
    if versions:
        notes.append(f"Versions: {'; '.join(versions)}.")
    seeds = sorted({c.seed for c in cells})
    notes.append(
        f"Seeds: {', '.join(map(str, seeds))}; mean ± sample standard deviation over them. "
        "Metrics in percent, pixel metrics at 256 x 256 unless named otherwise."
    )
    return notes


def said(cells: Sequence[StoredCell], key: str) -> list[str]:
    """What cells say of something in their environment, each value once, sorted."""
    return sorted({str(c.environment[key]) for c in cells if c.environment.get(key)})
