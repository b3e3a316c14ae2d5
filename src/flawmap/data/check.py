"""What is wrong with a table of images before a single one is decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from flawmap.data.lister import raise_unreadable
from flawmap.data.samples import SampleTable
from flawmap.errors import DataError
from flawmap.types import Sample, Split
from flawmap.wording import counted, few, listed, shown

Severity = Literal["error", "warning", "note"]

_FEW_GOOD = 20
_FEW_FOR_ONE_PERCENT = 99
_UNBALANCED = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a user should know about a data set.

    Attributes:
        severity: "error": fitting or evaluating would fail. "warning": results would suffer.
            "note": worth knowing.
        message: What was found, in one sentence.
        hint: What to do; "" when there is nothing to do.
        paths: The files concerned, all of them.
    """

    severity: Severity
    message: str
    hint: str = ""
    paths: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "severity": self.severity,
            "message": self.message,
            "hint": self.hint,
            "paths": [shown(p) for p in self.paths],
        }


def check_table(table: SampleTable) -> tuple[Finding, ...]:
    """Everything that the table alone tells, errors first."""
    found = [*_errors(table), *_warnings(table)]
    found += [Finding("note", note) for note in table.notes]
    return by_severity(found)


def of_known_parts(table: SampleTable) -> list[Sample]:
    """Images outside the training split that show a part which training images show too."""
    taught = {(s.category, s.group) for s in table.samples if s.group and s.split == "train"}
    return [s for s in table.samples if s.split != "train" and (s.category, s.group) in taught]


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then warnings, then notes; otherwise in their order."""
    order = get_args(Severity)
    return tuple(sorted(findings, key=lambda f: order.index(f.severity)))


def training_findings(table: SampleTable) -> Iterable[Finding]:
    """What whoever fits a table should know of its images to learn, worst first."""
    yield from _training_warnings(table)
    for note in table.notes:
        yield Finding("note", note)


def require_sound(table: SampleTable, *, skip_bad: bool = False, training: bool = True) -> None:
    """Raise what would make a fit or an evaluation fail.

    Args:
        table: The images.
        skip_bad: Do without the files and folders that cannot be read.
        training: Whether the table is to be fitted; an evaluation needs no training images.

    Raises:
        UnreadableFilesError: Files or folders cannot be listed.
        DataError: The table has errors; all of them are in the message.
    """
    if not skip_bad:
        raise_unreadable(table.problems, where=shown(table.root))
    errors = list(_errors(table, training=training))
    if not errors:
        return
    if len(errors) == 1:
        message, hint = errors[0].message, errors[0].hint
    else:
        message = f"{len(errors)} things are wrong with the data:\n" + listed(
            [f"{e.message} -> {e.hint}" for e in errors]
        )
        hint = "`flawmap inspect` shows the whole data set"
    raise DataError(message, where=shown(table.root), hint=hint)


def unread_verdicts(table: SampleTable) -> Iterable[Finding]:
    """An error if a column that is not read seems to tell good images from others."""
    if table.unread_verdict:
        yield Finding(
            "error",
            "no image has a label, so all would be taken as good; but a column seems to tell good "
            f"from defective: {table.unread_verdict}",
            "rename the column to 'label', with the values good and defect; one that means "
            "something else, rename otherwise or drop",
        )


def _errors(table: SampleTable, *, training: bool = True) -> Iterable[Finding]:
    if not table.samples:
        yield Finding(
            "error",
            "there are no images",
            "check the path; `.png`, `.jpg`, `.bmp`, `.tif` and `.webp` files are read",
        )
        return
    taught = _kept(table, "train")
    without = [c for c in table.categories if not taught[c]]
    if without and training:
        names = few([f"'{shown(c)}'" for c in without])
        noun = "category" if len(without) == 1 else "categories"
        yield Finding(
            "error",
            f"no good training images in {noun} {names}",
            "add good images to the training split, or leave the category out",
        )
    wrong = [s.path for s in table.samples if s.split != "test" and s.label == 1]
    if wrong:
        count = counted(len(wrong), "defect image")
        yield Finding(
            "error",
            f"{count} in the training or validation split: {table.few(wrong)}",
            "only good images train and calibrate: move these to the test split",
            tuple(wrong),
        )
    unknown = [s.path for s in table.samples if s.split != "test" and s.label is None]
    if unknown and not table.unsorted_training:
        yield Finding(
            "error",
            f"{len(unknown)} images without a label in the training or validation split: "
            f"{table.few(unknown)}",
            "say that they are good, or move them to the test split",
            tuple(unknown),
        )
    if training and any(taught.values()):
        yield from unread_verdicts(table)
    if table.orphan_masks:
        count = counted(len(table.orphan_masks), "mask has", "masks have")
        yield Finding(
            "error",
            f"{count} no image: {table.few(table.orphan_masks)}",
            "a mask is named like its image (with _mask in the MVTec layout) and lies in the "
            "folder of the same defect: add the image, rename the mask or remove it",
            table.orphan_masks,
        )
    splits: dict[str, set[str]] = {}
    for sample in table.samples:
        splits.setdefault(sample.path, set()).add(sample.split)
    twice = [path for path, of in splits.items() if len(of) > 1]
    if twice:
        yield Finding(
            "error",
            f"{len(twice)} images are in more than one split: {table.few(twice)}",
            "keep each in one split; a test on training images says nothing",
            tuple(twice),
        )


def _warnings(table: SampleTable) -> Iterable[Finding]:
    yield from _training_warnings(table)
    if seen := of_known_parts(table):
        yield Finding(
            "warning",
            f"{counted(len(seen), 'image')} outside the training split "
            f"{'shows a part' if len(seen) == 1 else 'show parts'} that other images teach: "
            f"{table.few([s.path for s in seen])}",
            "keep all images of a part in one split, or what is measured is too good",
            tuple(s.path for s in seen),
        )
    train, held = _kept(table, "train"), _kept(table, "validation")
    for category in table.categories:
        if 0 < train[category] + held[category] < _FEW_FOR_ONE_PERCENT:
            yield Finding(
                "note",
                f"category '{shown(category)}' has {train[category] + held[category]} good images "
                f"to train and calibrate with: a false-reject rate of 1% needs at least "
                f"{_FEW_FOR_ONE_PERCENT}",
                "accept a higher false-reject rate or add good images",
            )
    yield from _test_notes(table)
    masked = [s.path for s in table.samples if s.masks and s.label != 1]
    if masked:
        yield Finding(
            "warning",
            f"{len(masked)} images have a mask but are not labelled as defects: "
            f"{table.few(masked)}",
            "label them as defects or drop the masks",
            tuple(masked),
        )


def _training_warnings(table: SampleTable) -> Iterable[Finding]:
    if table.unsorted_training:
        yield Finding(
            "warning",
            "the training images were not sorted: defects are learnt as if they were good",
            "this is the task of the data set; a threshold set on such images keeps no promise",
        )
    train = _kept(table, "train")
    for category in table.categories:
        if 0 < train[category] < _FEW_GOOD:
            yield Finding(
                "warning",
                f"category '{shown(category)}' has only {train[category]} good training images",
                f"add more, {_FEW_GOOD} at the least: what they do not show is taken for a flaw",
            )
    counts = sorted((n, c) for c, n in train.items())
    if len(counts) > 1 and counts[-1][0] > _UNBALANCED * counts[0][0]:
        (low, small), (high, large) = counts[0], counts[-1]
        yield Finding(
            "warning",
            f"category '{shown(large)}' has {high} good training images and '{shown(small)}' "
            f"has {low}",
            "one model over both would learn the small one badly: add images or fit it apart",
        )


def _kept(table: SampleTable, split: Split) -> Counter[str]:
    """The number of images of each category that a fit may use from a split."""
    labels = (0, None) if table.unsorted_training else (0,)
    return Counter(s.category for s in table.samples if s.split == split and s.label in labels)


def _test_notes(table: SampleTable) -> Iterable[Finding]:
    test = [s for s in table.samples if s.split == "test"]
    if not test:
        yield Finding(
            "note",
            "there are no test images: a fit is possible, a measurement is not",
            "lay them out as train/good, test/good and test/<defect>, or list them in a table: "
            "docs/your-own-data.md",
        )
        return
    for category in table.categories:
        here = [s for s in test if s.category == category]
        if not here:
            yield Finding(
                "note",
                f"category '{shown(category)}' has no test images: it cannot be measured",
                "add its test split",
            )
            continue
        good = sum(s.label == 0 for s in here)
        defects = [s for s in here if s.label == 1]
        if not (good and defects):
            kind = "good" if not good else "defect"
            yield Finding(
                "note",
                f"category '{shown(category)}' has no {kind} test images: AUROC and the other "
                "metrics need both",
                "flawmap split keeps some good images for the test"
                if not good
                else "add defects to the test split (layout mvtec, or a table)",
            )
        bare = [s.path for s in defects if not s.masks]
        if bare and len(bare) == len(defects):
            yield Finding(
                "note",
                f"category '{shown(category)}' has no masks: only image metrics can be measured",
            )
        elif bare:
            yield Finding(
                "warning",
                f"category '{shown(category)}': {len(bare)} of {len(defects)} defect images have "
                f"no mask: {table.few(bare)}",
                "add the masks, or pixel metrics leave these images out",
                tuple(bare),
            )
