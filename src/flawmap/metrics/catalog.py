"""Every metric's name, titles and standing: official, or a variant that tables must mark.

Papers print figures of several definitions under one name. Each definition has a name of its own
here, and a table shows what is not the official one with a mark and a footnote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from flawmap.errors import ConfigError, unknown_name

ORIGINAL = "_original"
"""Ends the name of a pixel metric that is taken at the size of the source image."""

CROP = "_crop"
"""Ends the name of a pixel metric over the centre crop alone that the network sees."""

BY_KIND = "_by_kind"
"""Ends the name of the mean over the kinds of defects that a data set judges apart."""

KINDS = ("logical", "structural")
"""The kinds that have metrics of their own, such as `image_auroc_logical`."""

HEADLINE = (
    "image_auroc",
    "image_ap",
    "image_f1max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1max",
    "aupro",
)
"""The seven metrics of published tables, pixel metrics at 256 x 256."""

MARK = "*"
"""Stands behind the title of a metric that is not official."""


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """What is said of one metric.

    Attributes:
        name: As in results, JSON and `--metric`.
        title: For headings and prose.
        short: For the columns of a table.
        official: Whether a table may show it unmarked: the definition that published tables mean
            by the title, or a plain rate that has one definition only.
        per_pixel: Whether it judges pixels or regions; those need masks.
        original_size: Whether it is taken at 256 x 256 and the names with `_original` and `_crop`
            exist too.
        about: What it is, in one line.
        official_for: Data sets whose official metric it is, always at original size.
        in_place_of: The metric whose place it takes there. Pixel metrics need no such word: a data
            set with official ones of its own has no others.
    """

    name: str
    title: str
    short: str
    official: bool
    per_pixel: bool
    original_size: bool
    about: str
    official_for: tuple[str, ...] = ()
    in_place_of: str = ""

    def is_official(self, data_format: str = "") -> bool:
        """Whether it may stand unmarked in a table of this data.

        Args:
            data_format: The name of the data's reader, such as "mvtec-ad-2"; hyphens and case do
                not matter. "" for data of unknown kind. Of data sets that were joined, such as
                "mvtec-loco+mvtec", it must be official for each.
        """
        return not self.footnote([data_format])

    def footnote(self, data_formats: Iterable[str] = ("",)) -> str:
        """What a table says below it of this metric, or "" where it is official for all data.

        Args:
            data_formats: As for `is_official`, of all data in the table.
        """
        formats = [name for joined in data_formats for name in joined.split("+")]
        if self.official:
            displaced = dict.fromkeys(filter(None, map(self._displaced_in, formats)))
            if not displaced:
                return ""
            return f"not the official metric of {' and '.join(displaced)}: {self.about}"
        # One with a second form at original size is the form at 256 x 256, which is no data set's.
        own = () if self.original_size else tuple(map(_plain, self.official_for))
        if all(_plain(name) in own for name in formats):
            return ""
        text = f"not the official metric: {self.about}"
        if self.official_for:
            size = " at original size" if self.original_size else ""
            text += f" (official{size} for {', '.join(self.official_for)} only)"
        return text

    def _displaced_in(self, data_format: str) -> str:
        """The title of the data set if another metric is official for it in place of this one."""
        for metric in CATALOG.values():
            if metric.in_place_of == self.name or (metric.per_pixel and self.per_pixel):
                for title in metric.official_for:
                    if _plain(title) == _plain(data_format):
                        return title
        return ""


def _apart(
    name: str, title: str, short: str, *, per_pixel: bool, about: str
) -> tuple[MetricInfo, ...]:
    """A metric whose official form for MVTec LOCO judges the kinds of defects apart."""
    official_for = ("MVTec LOCO",)
    mean = MetricInfo(
        name + BY_KIND,
        f"{title}, by kind",
        f"{short} by kind",
        official=False,
        per_pixel=per_pixel,
        original_size=False,
        about=f"mean of the kinds of defects, each judged apart with all good images: {about}",
        official_for=official_for,
        in_place_of=name,
    )
    kinds = (
        MetricInfo(
            f"{name}_{kind}",
            f"{title}, {kind}",
            f"{short} {kind}",
            official=False,
            per_pixel=per_pixel,
            original_size=False,
            about=f"{kind} defects and all good images alone: {about}",
            official_for=official_for,
        )
        for kind in KINDS
    )
    return (mean, *kinds)


CATALOG: Mapping[str, MetricInfo] = MappingProxyType(
    {
        found.name: found
        for found in (
            MetricInfo(
                "image_auroc",
                "Image AUROC",
                "I-AUROC",
                official=True,
                per_pixel=False,
                original_size=False,
                about="chance that a defect scores above a good image, ties half",
            ),
            MetricInfo(
                "image_ap",
                "Image AP",
                "I-AP",
                official=True,
                per_pixel=False,
                original_size=False,
                about="average precision over images, in steps",
            ),
            MetricInfo(
                "image_f1max",
                "Image F1-max",
                "I-F1max",
                official=True,
                per_pixel=False,
                original_size=False,
                about="best F1 over all image thresholds, an oracle",
            ),
            MetricInfo(
                "pixel_auroc",
                "Pixel AUROC",
                "P-AUROC",
                official=True,
                per_pixel=True,
                original_size=True,
                about="AUROC over all pixels of a category",
            ),
            MetricInfo(
                "pixel_ap",
                "Pixel AP",
                "P-AP",
                official=True,
                per_pixel=True,
                original_size=True,
                about="average precision over all pixels of a category, in steps",
            ),
            MetricInfo(
                "pixel_f1max",
                "Pixel F1-max",
                "P-F1max",
                official=True,
                per_pixel=True,
                original_size=True,
                about="best F1 over all pixel thresholds, an oracle",
            ),
            MetricInfo(
                "aupro",
                "AUPRO",
                "AUPRO",
                official=True,
                per_pixel=True,
                original_size=True,
                about="area under the per-region overlap up to an FPR of 0.3, regions alike",
            ),
            MetricInfo(
                "f1",
                "F1 at the threshold",
                "F1",
                official=True,
                per_pixel=False,
                original_size=False,
                about="F1 of the verdicts at the calibrated threshold",
            ),
            MetricInfo(
                "false_reject_rate",
                "False-reject rate",
                "false reject",
                official=True,
                per_pixel=False,
                original_size=False,
                about="share of good images above the calibrated threshold",
            ),
            MetricInfo(
                "escape_rate",
                "Escape rate",
                "escape",
                official=True,
                per_pixel=False,
                original_size=False,
                about="share of defects that are not above the calibrated threshold",
            ),
            MetricInfo(
                "aupro_0.05",
                "AUPRO to 0.05",
                "AUPRO.05",
                official=False,
                per_pixel=True,
                original_size=True,
                about="AUPRO up to an FPR of 0.05 instead of 0.3",
                official_for=("MVTec AD 2",),
            ),
            MetricInfo(
                "pro_per_image",
                "PRO per image",
                "PRO/image",
                official=False,
                per_pixel=True,
                original_size=True,
                about="regions averaged within each image first, as in some older papers",
            ),
            MetricInfo(
                "pixel_ap_edge",
                "Pixel AP, edge",
                "P-AP edge",
                official=False,
                per_pixel=True,
                original_size=True,
                about="average precision over the pixels within 3 px of a defect's border",
            ),
            MetricInfo(
                "pixel_ap_centre",
                "Pixel AP, centre",
                "P-AP centre",
                official=False,
                per_pixel=True,
                original_size=True,
                about="average precision over the pixels that are not within 3 px of a defect's "
                "border",
            ),
            MetricInfo(
                "pixel_auroc_defects",
                "Pixel AUROC, defects",
                "P-AUROC defects",
                official=False,
                per_pixel=True,
                original_size=True,
                about="AUROC over the pixels of defective images alone, as in some papers",
            ),
            MetricInfo(
                "spro_0.05",
                "Saturated PRO to 0.05",
                "sPRO.05",
                official=False,
                per_pixel=True,
                original_size=False,
                about="all kinds of defects together; each mask file one region that may "
                "saturate, up to an FPR of 0.05, at original size",
            ),
            *_apart(
                "spro_0.05",
                "Saturated PRO to 0.05",
                "sPRO.05",
                per_pixel=True,
                about="saturated PRO up to an FPR of 0.05",
            ),
            *_apart(
                "image_auroc",
                "Image AUROC",
                "I-AUROC",
                per_pixel=False,
                about="image AUROC",
            ),
            MetricInfo(
                "sample_auroc",
                "Sample AUROC",
                "S-AUROC",
                official=False,
                per_pixel=False,
                original_size=False,
                about="AUROC over physical parts, each with the highest score of its views",
                official_for=("Real-IAD",),
            ),
            MetricInfo(
                "segf1",
                "SegF1",
                "SegF1",
                official=False,
                per_pixel=True,
                original_size=False,
                about="pixel F1 at the calibrated pixel threshold, at original size",
                official_for=("MVTec AD 2",),
            ),
        )
    }
)
"""Every metric under its name without `_original`, in the order of tables."""

ALWAYS = (
    *HEADLINE,
    *(name + ORIGINAL for name in HEADLINE if CATALOG[name].original_size),
    "f1",
    "false_reject_rate",
    "escape_rate",
)
"""What every evaluation gives; the others are optional."""


def names() -> tuple[str, ...]:
    """Every name that `info` knows, with all endings."""
    found = []
    for metric in CATALOG.values():
        found.append(metric.name)
        if metric.original_size:
            found += [metric.name + ORIGINAL, metric.name + CROP]
    return tuple(found)


def info(name: str) -> MetricInfo:
    """What is said of a metric; understands the endings `_original` and `_crop`.

    Args:
        name: Such as "aupro" or "aupro_original".

    Raises:
        ConfigError: The name is unknown; the nearest right one is given.

    Example:
        >>> info("aupro_original").title
        'AUPRO, original size'
    """
    if name in CATALOG:
        return CATALOG[name]
    ending = CROP if name.endswith(CROP) else ORIGINAL
    base = CATALOG.get(name.removesuffix(ending))
    if base is None:
        raise unknown_name("metric", name, names(), where="--metric")
    if not base.original_size:
        raise ConfigError(
            f"the metric '{base.name}' has no form with {ending}",
            where="--metric",
            given=name,
            expected=f"'{base.name}', which "
            + ("is taken at original size anyway" if base.per_pixel else "judges no pixels"),
            hint=f"did you mean '{base.name}'?",
        )
    if ending == CROP:
        return replace(
            base,
            name=name,
            title=f"{base.title}, crop",
            short=f"{base.short} crop",
            official=False,
            original_size=False,
            about=f"{base.about}, over the centre crop alone that the network sees",
            official_for=(),
        )
    return replace(
        base,
        name=name,
        title=f"{base.title}, original size",
        short=f"{base.short} orig.",
        original_size=False,
        about=f"{base.about}, at original size",
    )


def resolve(metrics: Iterable[str]) -> tuple[str, ...]:
    """The names, each once.

    Raises:
        ConfigError: A name is unknown; the nearest right one is given.
    """
    return tuple(dict.fromkeys(info(name).name for name in metrics))


def marks(metrics: Iterable[str], data_format: str = "") -> dict[str, str]:
    """The marks and footnotes that a table with these metrics needs.

    Args:
        metrics: Names of the table's columns.
        data_format: As for `MetricInfo.is_official`.

    Returns:
        A footnote for each metric that is not official, in order.

    Raises:
        ConfigError: A name is unknown.
    """
    notes = {name: info(name).footnote([data_format]) for name in metrics}
    return {name: note for name, note in notes.items() if note}


def _plain(data_format: str) -> str:
    return "".join(c for c in data_format.casefold() if c.isalnum())
