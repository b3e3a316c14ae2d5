from __future__ import annotations

import unicodedata

import pytest

from flawmap.data.words import Meaning, folded, is_masks, is_nothing, is_yes, meaning


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("good", "OK", "i.O.", "i. O.", "GUT", "_normal_", "Pass", "good images"), "good"),
        (("OK-Teile", "gute_Bilder", "img_ok"), "good"),
        (("NG", "n.i.O.", "NIO", "SCHLECHT", "Ausschuß", "Rejected"), "defects"),
        (("bad_images", "Defekte Teile", "beschädigt", "Not OK"), "defects"),
        (("Train", "ground truth", "Ground-Truth", "gt", "Bad_mask", "good masks"), "reserved"),
        (("badmasks", "Masken", "scratch_gt", "scratch GroundTruth"), "reserved"),
        (("scratch", "bolt", "images", "masked", "n_o", "..."), "others"),
    ],
)
def test_meaning(names: tuple[str, ...], expected: Meaning) -> None:
    assert {name: meaning(name) for name in names} == dict.fromkeys(names, expected)


def test_folding_knows_both_unicode_forms() -> None:
    forms = [unicodedata.normalize(form, "Größe_ä") for form in ("NFC", "NFD")]
    assert [folded(form) for form in forms] == ["grösseä", "grösseä"]
    assert folded("a\udcffb") == "ab"


def test_masks_are_told_from_splits() -> None:
    assert all(map(is_masks, ("ground truth", "Bad_mask", "gt", "Masken")))
    assert not any(map(is_masks, ("train", "test", "labels", "masked", "scratch")))


def test_words_for_no_kind_of_defect() -> None:
    assert all(map(is_nothing, ("none", "NO", "False", "-", "–", "n/a", "N.A.", "None.")))
    assert all(map(is_nothing, ("null", "kein", "no defect", "kein Fehler", "nothing")))
    assert all(map(is_nothing, ("NO_DEFECT", "no-defect", " None ", "--", "—")))
    assert not any(map(is_nothing, ("", "0", "N", "n_o", "good", "--a", "no weld", "_", ".")))
    assert not any(map(is_nothing, ("?", "+", "✗", "*", "!", "...", "N/O", "N.O.", "no?", "-?")))
    assert all(map(is_yes, ("True", "YES", "ja")))
    assert not any(map(is_yes, ("", "1", "T", "Y", "defect")))
