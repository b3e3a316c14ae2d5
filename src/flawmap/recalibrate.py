"""Other thresholds for a bundle that is fitted already."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from flawmap import bundle as bundles
from flawmap.bundle import Bundle
from flawmap.data.check import unread_verdicts
from flawmap.data.detect import read_data
from flawmap.data.inputs import with_categories
from flawmap.data.lister import raise_unreadable
from flawmap.data.samples import SampleTable
from flawmap.data.verify import verify
from flawmap.errors import ConfigError, DataError, unknown_name
from flawmap.files import as_path, require_writable, through_links
from flawmap.progress import Progress, Silent
from flawmap.quantities import require_rate
from flawmap.resources import require_device
from flawmap.scoring.calibration import Calibration, Threshold
from flawmap.scoring.good_scores import GoodScores
from flawmap.types import EVERY, Sample, categories_of
from flawmap.wording import counted, shown

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Recalibration:
    """What a calibration changed.

    Attributes:
        bundle: The file that was written.
        old_rate: The false-reject rate asked for before.
        rate: The one asked for now.
        old: Thresholds before, by category.
        new: Thresholds now.
        skipped: Images that could not be read, with the reason.
        notes: What a reader should know.
    """

    bundle: Path
    old_rate: float
    rate: float
    old: Mapping[str, Threshold]
    new: Mapping[str, Threshold]
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "bundle": str(self.bundle),
            "false_reject_rate": {"old": self.old_rate, "new": self.rate},
            "categories": {
                name: {
                    "old": _described(self.old.get(name)),
                    "new": _described(self.new.get(name)),
                }
                for name in sorted({*self.old, *self.new})
            },
            "skipped": [{"path": path, "reason": reason} for path, reason in self.skipped],
            "notes": list(self.notes),
        }


def calibrate(
    bundle: PathLike,
    data: PathLike | SampleTable | None = None,
    *,
    false_reject_rate: float | None = None,
    output: PathLike | None = None,
    format: str | None = None,
    category: str | None = None,
    skip_bad: bool = False,
    device: str = "auto",
    encoder_weights: PathLike | None = None,
    progress: Progress | None = None,
) -> Recalibration:
    """Change the thresholds of a bundle; what it learnt stays.

    Without data the rate changes, and the thresholds follow from the good images' scores that the
    bundle keeps. With data they are set anew from its good images, which must not be from the fit:
    images that were learnt score too low, and the thresholds would promise too much. Of the very
    data set that was fitted, only good images that were not learnt are taken.

    Args:
        bundle: The file that a fit wrote.
        data: Good images; defects in it are never looked at.
        false_reject_rate: Share of good parts that may raise the alarm; unchanged by default.
        output: Where the bundle is written; in place by default. With data a bundle that is there
            is kept beside it, with `.old` behind its name.
        format: The layout of `data`; recognised by default.
        category: The product of `data`, when its folder has another name.
        skip_bad: Leave unreadable images out instead of refusing.
        device: Where `data` is scored: "auto", "cpu", "cuda" or "mps".
        encoder_weights: For a bundle that leaves its encoder out.
        progress: Where progress is shown; nowhere by default.

    Raises:
        ConfigError: The rate, the category or the device is wrong, or there is nothing to change.
        DataError: The data holds no good image that can be used.
        BundleError: The bundle cannot be read or written.
        FitError: Another process is writing it.
    """
    require_device(device)
    if false_reject_rate is None and data is None:
        raise ConfigError(
            "there is nothing to change",
            where="calibrate",
            expected="a false-reject rate, or a folder of good images, or both",
            hint="for example --false-reject-rate 0.005",
        )
    if false_reject_rate is not None:
        require_rate(false_reject_rate)
    path = as_path(bundle)
    bundles.require_file(path)
    target = through_links(path if output is None else as_path(output), "--output")
    require_writable(target, "--output", own=lambda p: p == path or bundles.is_bundle(p))
    # Held from before it is read: a fit that ends meanwhile would be written over.
    with bundles.alone(target):
        # A rate can be set back; scores that others take the place of, and another model, cannot.
        there = bundles.is_bundle(target)
        another = there and not (path.exists() and target.samefile(path))
        if keep := there and (data is not None or another):
            require_writable(bundles.older(target), "--output", own=bundles.is_bundle)
        found = bundles.read(path)
        old = found.calibration
        rate = old.rate if false_reject_rate is None else false_reject_rate
        if data is None:
            if not old.categories:
                raise ConfigError(
                    "the model keeps no scores of good images, so there is no threshold to move",
                    where=str(path),
                    hint="give a folder of good images that were not in the fit",
                )
            new = _New(old.at(rate))
        else:
            if not isinstance(data, SampleTable):
                data = read_data(data, format=format, seed=found.config["seed"], check=False)

            def measure(samples: list[Sample]) -> GoodScores:
                return _measure(found, path, samples, device, encoder_weights, progress or Silent())

            new = _measured_anew(found, data, rate, category, skip_bad, measure)
        bundles.write(_with(found, new.calibration, new.measured_on), target, keep_old=keep)
        kept = (f"the model that was there is kept: {bundles.older(target)}",) if keep else ()
    return Recalibration(
        bundle=target,
        old_rate=old.rate,
        rate=rate,
        old=old.thresholds(),
        new=new.calibration.thresholds(),
        skipped=new.skipped,
        notes=(*new.notes, *kept),
    )


@dataclass(frozen=True, slots=True)
class _New:
    """Thresholds, and how they came about."""

    calibration: Calibration
    measured_on: Mapping[str, Any] | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def _measured_anew(
    found: Bundle,
    data: SampleTable,
    rate: float,
    category: str | None,
    skip_bad: bool,
    measure: Callable[[list[Sample]], GoodScores],
) -> _New:
    """Thresholds from good images that are scored now."""
    if not skip_bad:
        raise_unreadable(data.problems, where=shown(data.root))
    notes: list[str] = []
    old = found.calibration
    fitted = found.info["fitted"]["data"]
    white = found.config["data"]["white_level"]
    for finding in unread_verdicts(data):
        raise DataError(finding.message, where=shown(data.root), hint=finding.hint)
    samples, unreadable = _good_images(data, fitted, category, white, skip_bad, notes)
    measured = measure(samples)
    categories = measured.categories()
    new = replace(old, rate=rate, categories={**old.categories, **categories})
    notes += _weaker(old, new)
    notes += new.cautions()
    if kept := sorted(set(old.categories) - set(categories)):
        notes.append(f"no images of {', '.join(kept)}: their good scores stay as they were")
    measured_on = {
        "root": shown(data.root),
        "fingerprint": data.fingerprint(),
        "images": {name: len(c.scores) for name, c in categories.items()},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    skipped = (*((p.path, p.reason) for p in data.problems), *unreadable)
    return _New(new, measured_on, skipped, tuple(notes))


def _weaker(old: Calibration, new: Calibration) -> list[str]:
    """A sentence for each category that is promised less than before, at the same rate."""
    notes = []
    for name, after in new.thresholds().items():
        before = old.at(new.rate).threshold(name) if name in old.categories else None
        if before is not None and after.bound > max(before.bound, after.asked):
            notes.append(
                f"'{name}': {counted(after.n, 'good image')} where there were {before.n}, so the "
                f"promise is weaker: {after.explain()}"
            )
    return notes


def _good_images(
    table: SampleTable,
    fitted: Mapping[str, Any],
    category: str | None,
    white_level: int | None,
    skip_bad: bool,
    notes: list[str],
) -> tuple[list[Sample], list[tuple[str, str]]]:
    """Good images that the detector has not learnt, and those that cannot be read."""
    good = [s for s in table.samples if s.label == 0]
    others = len(table.samples) - len(good)
    if others:
        one = others == 1
        what = "image that is a defect or has" if one else "images that are defects or have"
        notes.append(f"{others:,} {what} no label {'is' if one else 'are'} left out")
    checked = verify(replace(table, samples=tuple(good), problems=()), white_level=white_level)
    if not skip_bad:
        raise_unreadable(checked.problems, where=shown(table.root))
    if good and not checked.facts:
        raise DataError("none of the good images can be read", where=shown(table.root))
    # Pictures are compared, not names: a copy under another name was learnt as well.
    learnt = set(fitted.get("learnt_pictures", ()))
    unseen = {f.sample.path: f.pixels for f in checked.facts if f.pixels.hex() not in learnt}
    if left_out := len(checked.facts) - len(unseen):
        what = counted(left_out, "image that the detector has", "images that the detector has")
        notes.append(f"left out: {what} learnt, which would score too low")
    good = [f.sample for f in checked.facts if f.sample.path in unseen]
    if not good:
        raise DataError(
            "there is no good image to set a threshold from",
            where=shown(table.root),
            expected="good images that were not in the fit",
            hint="to change the rate only, leave the data out",
        )
    unreadable = [(p.path, p.reason) for p in checked.problems]
    named = _named(table, good, tuple(fitted.get("categories", ())), category)
    if others := len(good) - len(named):
        notes.append(f"left out: {counted(others, 'good image')} of other products")
    # A copy would count as one more independent image, and the threshold promise too much.
    distinct: dict[tuple[str, bytes], Sample] = {}
    for sample in named:
        distinct.setdefault((sample.category, unseen[sample.path]), sample)
    if copies := len(named) - len(distinct):
        what = counted(copies, "exact copy", "exact copies")
        notes.append(f"{what} of other good images {'is' if copies == 1 else 'are'} left out")
    if any(s.split == "test" for s in distinct.values()):
        notes.append(
            "images of the test split set the thresholds: an evaluation on that split is no longer "
            "independent of them"
        )
    return list(distinct.values()), unreadable


def _named(
    table: SampleTable, good: list[Sample], known: tuple[str, ...], category: str | None
) -> list[Sample]:
    """The images under the names of the detector's products."""
    if category is not None and known and category not in known:
        raise unknown_name("category", category, known, where="--category")
    present = categories_of(good)
    target = category or (known[0] if len(known) == 1 else None)
    if target is not None:
        if target in present:
            return [s for s in good if s.category == target]
        if len(present) > 1:
            raise ConfigError(
                f"the data shows several products, and none is called '{target}'",
                where=shown(table.root),
                given=", ".join(present),
                expected="images of one product",
            )
        return [replace(s, category=target) for s in good]
    named = with_categories(good, known)
    for before, after in zip(good, named, strict=True):
        if after.category == EVERY and known:
            error = unknown_name("category", before.category, known, where=shown(table.root))
            error.hint = "say which product the images show with --category NAME"
            raise error
    return named


def _measure(
    found: Bundle,
    path: Path,
    samples: list[Sample],
    device: str,
    encoder_weights: PathLike | None,
    progress: Progress,
) -> GoodScores:
    from flawmap.loading import detector_of

    detector = detector_of(found, path, device=device, encoder_weights=encoder_weights)
    scores = GoodScores()
    with progress.task("Scoring good images", len(samples)) as task:
        for done, (sample, geometry, raw) in enumerate(detector.raw_maps(samples), start=1):
            scores.add(sample, *detector.scorer.score(raw, geometry), exact=True)
            task.update(done)
    return scores


def _with(found: Bundle, calibration: Calibration, on: Mapping[str, Any] | None) -> Bundle:
    """The bundle with other thresholds, and with where they come from."""
    section = {**found.config.get("calibration", {}), "false_reject_rate": calibration.rate}
    fitted = found.info["fitted"]
    data = {**fitted["data"], "calibrated_on": on} if on else fitted["data"]
    return replace(
        found,
        calibration=calibration,
        config={**found.config, "calibration": section},
        info={**found.info, "fitted": {**fitted, "data": data}},
    )


def _described(threshold: Threshold | None) -> dict[str, Any] | None:
    return None if threshold is None else threshold.to_dict()
