from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flawmap.data import UnreadableFilesError, read_data, verify_data
from flawmap.data.pool import Share, map_in_threads
from flawmap.data.verify import Verification
from flawmap.errors import DataError

WriteImage = Callable[..., Path]


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_find_together_what_one_finds(mvtec: Path, processes: int) -> None:
    (mvtec / "train" / "good" / "000.png").write_bytes(b"no image")
    table = read_data(mvtec)
    alone = verify_data(table, threads=1)
    assert len(alone.problems) == 1
    meeting = threading.Barrier(processes)
    parts: list[list[Any]] = [[] for _ in range(processes)]

    def one(rank: int) -> Verification:
        def gather(mine: list[Any]) -> list[list[Any]]:
            parts[rank] = mine
            meeting.wait(10)
            return parts

        return verify_data(table, threads=1, share=Share(rank, processes, gather))

    assert (
        list(map_in_threads(one, range(processes), threads=processes, ahead=processes))
        == [alone] * processes
    )
    assert sorted(map(len, parts)) in ([3, 3], [1, 1, 2, 2])


def test_a_sound_data_set_passes_whole(mvtec: Path) -> None:
    table = read_data(mvtec)
    steps: list[tuple[int, int]] = []
    result = verify_data(table, threads=2, on_progress=lambda a, b: steps.append((a, b)))
    assert result.problems == ()
    assert result.table == table
    assert result.require() == table
    assert steps == [(i, 6) for i in range(1, 7)]
    assert result.sizes == ((8, 10),) * 6
    fractions = [f.mask_fraction for f in result.facts if f.sample.label == 1]
    assert fractions == [1 / 80, 1 / 80]


def test_every_unreadable_file_is_named_at_once(mvtec: Path, write_mask: WriteImage) -> None:
    (mvtec / "train" / "good" / "000.png").write_bytes(b"no")
    path = mvtec / "train" / "good" / "001.png"
    path.write_bytes(path.read_bytes()[:40])
    write_mask(mvtec / "ground_truth" / "hole" / "000_mask.png", size=(4, 4))
    (mvtec / "ground_truth" / "hole" / "001_mask.png").write_bytes(b"")
    result = verify_data(read_data(mvtec))
    assert len(result.problems) == 4
    with pytest.raises(UnreadableFilesError, match="4 files or folders cannot be used") as caught:
        result.require()
    text = str(caught.value)
    assert "good/000.png: it is no PNG, JPEG, BMP, TIFF or WebP file" in text
    assert "good/001.png: it is " in text
    assert "000_mask.png: the mask and its image differ in size (a mask of 4 x 4 px" in text
    assert "001_mask.png: the file is empty" in text
    assert "--skip-bad" in text
    assert caught.value.problems == result.problems


def test_bad_files_can_be_left_out(mvtec: Path) -> None:
    (mvtec / "train" / "good" / "000.png").write_bytes(b"no")
    clean = verify_data(read_data(mvtec)).require(skip_bad=True)
    assert len(clean) == 5
    assert len(clean.select(split="train")) == 2


def test_leaving_out_everything_is_refused(mvtec: Path) -> None:
    for path in (mvtec / "train" / "good").iterdir():
        path.write_bytes(b"no")
    with pytest.raises(DataError, match="no good training images in category 'bottle'"):
        verify_data(read_data(mvtec)).require(skip_bad=True)


def test_a_long_list_is_cut_but_kept(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i:02}.png").write_bytes(b"no")
    found = verify_data(read_data(tmp_path))
    with pytest.raises(UnreadableFilesError, match="30 files") as caught:
        found.require()
    assert "19.png" in str(caught.value)
    assert "20.png" not in str(caught.value)
    assert "... and 10 more" in str(caught.value)
    assert len(caught.value.problems) == 30


def test_links_that_dangle_are_among_the_problems(mvtec: Path) -> None:
    (mvtec / "train" / "good" / "x.png").symlink_to(mvtec / "gone")
    result = verify_data(read_data(mvtec, skip_bad=True))
    assert [Path(p.path).name for p in result.problems] == ["x.png"]
    assert len(result.require(skip_bad=True)) == 6
    with pytest.raises(UnreadableFilesError, match=r"x\.png: a link to"):
        result.require()


def test_the_content_fingerprint_sees_what_sizes_do_not(mvtec: Path) -> None:
    table = read_data(mvtec)
    path = mvtec / "train" / "good" / "000.png"
    Image.fromarray(np.zeros((8, 10, 3), dtype=np.uint8)).save(path.with_suffix(".bmp"))
    path.unlink()
    table = read_data(mvtec)
    sizes, content = table.fingerprint(), verify_data(table).content_fingerprint
    Image.fromarray(np.ones((8, 10, 3), dtype=np.uint8)).save(path.with_suffix(".bmp"))
    assert table.fingerprint() == sizes
    assert verify_data(table).content_fingerprint != content
    assert verify_data(table, threads=1).content_fingerprint == (
        verify_data(table, threads=3).content_fingerprint
    )


def test_pixels_decide_what_is_a_duplicate(tmp_path: Path) -> None:
    values = np.arange(240, dtype=np.uint8).reshape(8, 10, 3)
    for name in ("a.png", "b.bmp"):
        Image.fromarray(values).save(tmp_path / name)
    Image.fromarray(values.reshape(10, 8, 3)).save(tmp_path / "c.png")
    a, b, c = verify_data(read_data(tmp_path)).facts
    assert a.pixels == b.pixels != c.pixels


class TestPool:
    def test_results_keep_the_order_and_are_bounded(self) -> None:
        lock = threading.Lock()
        running = begun = 0
        highest = 0

        def work(i: int) -> int:
            nonlocal running, highest
            with lock:
                running += 1
                highest = max(highest, running)
            with lock:
                running -= 1
            return i * i

        def items() -> object:
            nonlocal begun
            for i in range(100):
                begun += 1
                yield i

        results = map_in_threads(work, items(), threads=3, ahead=5)  # type: ignore[arg-type]
        assert next(results) == 0
        assert begun == 5
        assert list(results) == [i * i for i in range(1, 100)]
        assert highest <= 3

    def test_closing_early_ends_the_threads(self) -> None:
        before = threading.active_count()
        results = map_in_threads(abs, range(1000), threads=4, ahead=8)
        next(results)
        assert threading.active_count() > before
        results.close()
        assert threading.active_count() == before

    def test_an_error_comes_in_its_turn_and_ends_the_threads(self) -> None:
        before = threading.active_count()
        results = map_in_threads(lambda i: 1 // i, [1, 0, 1, 1], threads=2, ahead=2)
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert threading.active_count() == before

    def test_after_an_error_no_new_item_begins(self) -> None:
        begun: list[int] = []
        failed = threading.Event()

        def work(i: int) -> int:
            begun.append(i)
            if i == 0:
                failed.set()
                raise ValueError
            failed.wait()
            time.sleep(0.05)
            return i

        with pytest.raises(ValueError):  # noqa: PT011
            next(map_in_threads(work, range(100), threads=2, ahead=50))
        assert len(begun) < 10

    def test_memory_does_not_grow_with_the_items(self) -> None:
        tracemalloc.start()
        for _ in map_in_threads(lambda i: bytes(2**20), range(100), threads=2, ahead=4):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 12 * 2**20
