from __future__ import annotations

import os
import tracemalloc
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flawmap.data import UnreadableFilesError, list_images, read_data
from flawmap.data.lister import Lister, Problem
from flawmap.data.samples import SampleTable, training_part
from flawmap.data.unpacked import Listing
from flawmap.errors import ConfigError
from flawmap.types import Sample
from flawmap.wording import listed, shown


def table(*samples: Sample, root: str = "/data") -> SampleTable:
    return SampleTable(root, "folder", samples)


def test_only_images_are_listed_sorted_and_in_any_case_of_extension(tmp_path: Path) -> None:
    names = ["b.PNG", "a.jpeg", "sub/c.Tif", ".hidden.png", "Thumbs.db", "x.txt", "d.webp", "e.bmp"]
    names += ["__MACOSX/a.png", ".DS_Store", ".git/a.png", "A.JPG"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [os.path.relpath(p, tmp_path) for p in list_images(tmp_path)]
    assert found == ["A.JPG", "a.jpeg", "b.PNG", "d.webp", "e.bmp", "sub/c.Tif"]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "a.png").touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "b.png").touch()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "data" / "c.png").symlink_to(tmp_path / "outside" / "b.png")
    (tmp_path / "data" / "sub" / "up").symlink_to(tmp_path / "data")
    names = [os.path.relpath(p, tmp_path / "data") for p in list_images(tmp_path / "data")]
    assert names == ["a.png", "c.png", "link/b.png"]


def test_every_dangling_link_is_named(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "folder"):
        (tmp_path / name).symlink_to(tmp_path / f"gone-{name}")
    (tmp_path / "notes.txt").symlink_to(tmp_path / "gone")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    with pytest.raises(UnreadableFilesError, match="4 files or folders cannot be used") as caught:
        list_images(tmp_path)
    text = str(caught.value)
    assert f"a.png: a link to {tmp_path}/gone-a.png, which does not exist" in text
    assert all(name in text for name in ("b.jpg", "folder", "self.png"))
    assert "--skip-bad" in text
    assert len(caught.value.problems) == 4


def test_what_lies_in_a_folder_that_cannot_be_read_is_broken() -> None:
    listing = Listing(Lister(problems=[Problem("/data/closed", "no permission")]), Path("/gone"))
    assert listing.broken("/data/closed")
    assert listing.broken("/data/closed/sub/a.png")
    assert not listing.broken("/data/closed.png")
    assert not listing.broken("/data")
    assert not listing.broken("")


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UnreadableFilesError, match=r"a\.png: neither a file nor a folder"):
        list_images(tmp_path)


def test_a_folder_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").touch()
    scandir = os.scandir

    def refuse(path: str | Path) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        UnreadableFilesError, match="closed: no permission to read this folder"
    ) as caught:
        list_images(tmp_path)
    assert caught.value.problems[0].path == str(tmp_path / "closed")


@pytest.mark.parametrize(
    "name",
    ["a b.png", "a.b.c.png", "größe.png", "画像.png", "🔩.png", "-rf.png", "a\nb.png", "%41.png"],
)
def test_any_name_works(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "теïлë v1.2 (new)"
    folder.mkdir()
    (folder / name).touch()
    read = read_data(folder)
    assert [s.path for s in read.samples] == [str(folder / name)]
    assert read.categories == ("теïлë v1.2 (new)",)
    assert len(read.fingerprint()) == 64


def test_a_name_that_is_no_utf8_can_be_listed_printed_and_hashed(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff.png")
    (tmp_path / name).touch()
    read = read_data(tmp_path)
    assert shown(read.samples[0].path).endswith("a\ufffd.png")
    shown(read.samples[0].path).encode()
    assert len(read.fingerprint()) == 64


def test_the_split_is_seeded_and_independent_of_the_order() -> None:
    names = [f"{i:03}" for i in range(952)]
    first = training_part(names, seed=0)
    assert len(first) == 761
    assert first == training_part(names[::-1], seed=0)
    assert first != training_part(names, seed=1)
    # The split of a published figure must not move with a release.
    assert sorted(training_part(["c", "a", "b", "e", "d"], seed=0)) == ["a", "c", "d", "e"]


def test_select_and_only() -> None:
    samples = (
        Sample("/data/a/1.png", "a", "train", 0, "good"),
        Sample("/data/a/2.png", "a", "test", 1, "hole"),
        Sample("/data/b/3.png", "b", "train", 0, "good"),
    )
    whole = table(*samples)
    assert whole.categories == ("a", "b")
    assert whole.select(category="a", label=1) == samples[1:2]
    assert whole.select(split="train") == (samples[0], samples[2])
    assert whole.only(["b"]).samples == samples[2:]


def test_an_unknown_category_is_refused_with_the_nearest_name() -> None:
    whole = table(
        Sample("/data/1.png", "bottle", "train", 0), Sample("/data/2.png", "cable", "train", 0)
    )
    with pytest.raises(ConfigError, match="unknown category 'botle'") as caught:
        whole.only(["cable", "botle"])
    assert "did you mean 'bottle'?" in str(caught.value)
    assert "one of: bottle, cable" in str(caught.value)
    with pytest.raises(ConfigError):
        whole.select(category="cabel")


def test_the_fingerprint_follows_files_and_labels_not_the_place(tmp_path: Path) -> None:
    for place in ("one", "two"):
        folder = tmp_path / place / "screws"
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(b"123")
        (folder / "b.png").write_bytes(b"456")
    first = read_data(tmp_path / "one" / "screws").fingerprint()
    second = tmp_path / "two" / "screws"
    assert read_data(second).fingerprint() == first
    (second / "b.png").write_bytes(b"4567")
    assert read_data(second).fingerprint() != first
    (second / "b.png").write_bytes(b"456")
    assert read_data(second).fingerprint() == first
    (second / "b.png").rename(second / "c.png")
    assert read_data(second).fingerprint() != first


def test_the_fingerprint_sees_label_split_category_and_masks(tmp_path: Path) -> None:
    mask = tmp_path / "m.png"
    mask.write_bytes(b"1")
    base = Sample(str(tmp_path / "a.png"), "a", "test", 1, "hole", (str(mask),))
    root = str(tmp_path)
    variants = [
        base,
        Sample(base.path, "b", "test", 1, "hole", base.masks),
        Sample(base.path, "a", "train", 1, "hole", base.masks),
        Sample(base.path, "a", "test", 0, "hole", base.masks),
        Sample(base.path, "a", "test", 1, "dent", base.masks),
        Sample(base.path, "a", "test", 1, "hole"),
    ]
    prints = {table(v, root=root).fingerprint() for v in variants}
    mask.write_bytes(b"12")
    prints.add(table(base, root=root).fingerprint())
    assert len(prints) == 7


def test_the_fingerprint_ignores_the_unicode_form_of_a_name(tmp_path: Path) -> None:
    prints = set()
    for form in ("NFC", "NFD"):
        folder = tmp_path / form / "x"
        folder.mkdir(parents=True)
        (folder / unicodedata.normalize(form, "größe.png")).touch()
        prints.add(read_data(folder).fingerprint())
    assert len(prints) == 1


def test_long_lists_are_cut() -> None:
    text = listed([str(i) for i in range(25)])
    assert len(text.splitlines()) == 21
    assert text.endswith("... and 5 more")


@contextmanager
def measured_peak() -> Iterator[list[int]]:
    peak: list[int] = []
    tracemalloc.start()
    try:
        yield peak
    finally:
        peak.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()


@pytest.mark.slow
def test_a_hundred_thousand_files_are_listed_in_little_memory(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for i in range(100_000):
        os.close(os.open(folder / f"{i:06}.png", os.O_CREAT | os.O_WRONLY))
    with measured_peak() as peak:
        assert len(read_data(folder)) == 100_000
    assert peak[0] < 100 * 2**20
