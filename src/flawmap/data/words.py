"""The words for good and defective, in names of folders and in tables."""

from __future__ import annotations

import re
from typing import Literal

from flawmap.data.lister import canonical

Meaning = Literal["good", "defects", "reserved", "others"]

_GOOD = frozenset({"good", "ok", "normal", "normals", "pass", "passed", "io", "gut", "gute"})
_DEFECT = frozenset(
    {
        *("bad", "ng", "nok", "ko", "defect", "defects", "defective", "anomaly", "anomalies"),
        *("anomalous", "abnormal", "notok", "fail", "failed", "reject", "rejected", "rejects"),
        *("faulty", "broken", "damaged", "nio", "schlecht", "schlechte", "ausschuss", "defekt"),
        *("defekte", "fehler", "fehlerhaft", "beschädigt", "anomalie", "anomalien"),
    }
)
_RESERVED = frozenset(
    {
        *("train", "training", "test", "testing", "val", "valid", "validation"),
        *("annotations", "labels"),
    }
)
_KIND_OF_THING = frozenset(
    {
        *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures"),
        *("part", "parts", "sample", "samples", "bild", "bilder", "foto", "fotos"),
        *("teil", "teile", "only"),
    }
)
"""What may stand beside such a word without changing it: good_images, OK-Teile."""

_MASKS = ("mask", "masks", "maske", "masken", "groundtruth")

_NOTHING = frozenset(
    {
        *("none", "no", "nothing", "false", "null", "nil", "nan", "na", "n/a", "n.a"),
        *("no defect", "no defects", "nodefect", "kein", "keine", "keiner", "nein", "nichts"),
        *("kein fehler", "keine fehler", "kein defekt"),
    }
)
# Single letters are codes of defects perhaps.
_YES = frozenset({"yes", "true", "ja"})


def folded(word: str) -> str:
    """A word without regard to case, blanks, dots and the like.

    Example:
        >>> folded("n. i. O."), folded("Ground_Truth")
        ('nio', 'groundtruth')
    """
    return "".join(_parts(word))


def is_good(word: str) -> bool:
    """Whether a word means good images."""
    return _bare(word) in _GOOD


def is_defect(word: str) -> bool:
    """Whether a word means defects."""
    return _bare(word) in _DEFECT


def is_nothing(word: str) -> bool:
    """Whether a word, where a kind of defect could stand, says that there is none; so do dashes.

    Stricter than names of folders: whatever else it says is a defect, signs such as "?" included.
    """
    return _plain(word) in _NOTHING or bool(re.fullmatch(r"[-‐‑‒–—−]+", word.strip()))


def is_yes(word: str) -> bool:
    """Whether a word, where a kind of defect could stand, says that there is one, of no name."""
    return _plain(word) in _YES


def _plain(word: str) -> str:
    return " ".join(re.split(r"[\s_-]+", word.casefold().strip().rstrip(".")))


def is_masks(name: str) -> bool:
    """Whether a folder holds masks, by its name."""
    # "gt" only as a word of its own: many a word ends so, such as the German for damaged.
    return folded(name).endswith(_MASKS) or _parts(name)[-1:] == ["gt"]


def meaning(name: str) -> Meaning:
    """What lies in a folder, by its name.

    "reserved" is a split or masks: such a folder never holds plain good images.
    """
    if is_good(name):
        return "good"
    if is_defect(name):
        return "defects"
    return "reserved" if is_masks(name) or folded(name) in _RESERVED else "others"


def _bare(word: str) -> str:
    return "".join(part for part in _parts(word) if part not in _KIND_OF_THING)


def _parts(word: str) -> list[str]:
    return [part for part in re.split(r"[\W_]+", canonical(word).casefold()) if part]
