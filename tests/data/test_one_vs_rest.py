"""Data sets of classes, in files of the exact formats of MNIST and CIFAR-10."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flawmap.data import read_data, read_image
from flawmap.data.check import check_table
from flawmap.data.cifar10 import CLASSES, read_pickled
from flawmap.data.idx import FashionMnist, Mnist
from flawmap.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def idx(values: np.ndarray) -> bytes:
    head = struct.pack(">BBBB", 0, 0, 8, values.ndim)
    return head + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_idx(
    folder: Path, train: np.ndarray, test: np.ndarray, *, zipped: bool, mark: str = "-"
) -> dict[str, np.ndarray]:
    """Four files with noise for pictures; the pixels by part."""
    folder.mkdir(parents=True)
    pixels = {}
    for part, labels in (("train", train), ("t10k", test)):
        pixels[part] = RNG.integers(0, 256, (len(labels), 5, 7)).astype(np.uint8)
        for content, values in (("images-idx3", pixels[part]), ("labels-idx1", labels)):
            name = f"{part}-{content.replace('-', mark)}-ubyte"
            data = idx(values.astype(np.uint8))
            path = folder / (name + ".gz" * zipped)
            path.write_bytes(gzip.compress(data) if zipped else data)
    return pixels


TRAIN, TEST = np.array([0, 2, 1, 1, 2, 2]), np.array([2, 0, 1, 2])


@pytest.mark.parametrize(("zipped", "inside", "mark"), [(True, "", "-"), (False, "raw", ".")])
def test_each_class_is_a_category(tmp_path: Path, zipped: bool, inside: str, mark: str) -> None:
    root = tmp_path / "digits"
    pixels = write_idx(root / inside, TRAIN, TEST, zipped=zipped, mark=mark)
    table = read_data(root)
    assert (table.format, table.categories) == ("idx", ("0", "1", "2"))
    with pytest.raises(ConfigError, match="every defect") as caught:
        table.require_apart(False)
    assert "--separate" in str(caught.value)
    table.require_apart(True)
    two = table.only(["2"])
    two.require_apart(False)
    train = two.select(split="train")
    assert [s.label for s in train] == [0, 0, 0]
    for sample, index in zip(train, (1, 4, 5), strict=True):
        np.testing.assert_array_equal(read_image(sample.path)[..., 0], pixels["train"][index])
    test = {Path(s.path).stem: s for s in two.select(split="test")}
    assert [test[f"{i:05d}"].label for i in range(4)] == [0, 1, 1, 0]
    assert [test[f"{i:05d}"].defect for i in range(4)] == ["good", "0", "1", "good"]
    for i in range(4):
        np.testing.assert_array_equal(read_image(test[f"{i:05d}"].path)[..., 1], pixels["t10k"][i])
    assert not [f for f in check_table(table) if f.severity == "error"]


def test_a_class_without_training_images_is_left_out_and_said(tmp_path: Path) -> None:
    write_idx(tmp_path / "gap", np.array([0, 3, 3]), np.array([0, 1, 3]), zipped=False)
    table = read_data(tmp_path / "gap")
    assert table.categories == ("0", "3")
    assert table.notes[-2:] == (
        "'1' has no training image: left out",
        "'2' has no training image: left out",
    )
    # Its test images are still defects of the others.
    assert {s.defect for s in table.only(["3"]).select(split="test")} == {"0", "1", "good"}


def test_images_are_unpacked_once_and_anew_when_the_files_change(tmp_path: Path) -> None:
    root = tmp_path / "digits"
    write_idx(root, TRAIN, TEST, zipped=True)
    first = read_data(root)
    unpacked = Path(first.samples[0].path)
    times = unpacked.stat().st_mtime_ns
    assert read_data(root) == first
    assert unpacked.stat().st_mtime_ns == times
    path = root / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.zeros((6, 5, 7), np.uint8))))
    os.utime(path, ns=(0, times + 10**9))
    train = read_data(root).select(split="train")
    assert not any(read_image(s.path).any() for s in train)
    assert not list(root.glob(".flawmap-images.*"))


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "digits"
    write_idx(root, TRAIN, TEST, zipped=False)
    before = read_data(root).fingerprint()
    real = Path.mkdir

    def refuse(self: Path, *args: Any, **options: Any) -> None:
        if self.parent == root:
            raise PermissionError(13, "Permission denied")
        real(self, *args, **options)

    for entry in sorted((root / ".flawmap-images").rglob("*"), reverse=True):
        entry.rmdir() if entry.is_dir() else entry.unlink()
    monkeypatch.setattr(Path, "mkdir", refuse)
    table = read_data(root)
    assert table.samples[0].path.startswith(str(tmp_path / "cache" / "flawmap"))
    assert table.fingerprint() == before


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda data: data[:-1], "less than"),
        (lambda data: data + b"x", "more than"),
        (lambda data: b"\0\0\x0d" + data[3:], "does not begin"),
        (lambda data: data[:3], "does not begin"),
        (lambda data: data[:4] + b"\xff" * 8 + data[12:], "does not begin"),
        (lambda data: idx(np.zeros((5, 5, 7), np.uint8)), "5 images and 6 labels"),
    ],
)
def test_broken_idx_files(tmp_path: Path, harm: Callable[[bytes], bytes], words: str) -> None:
    write_idx(tmp_path / "d", TRAIN, TEST, zipped=False)
    path = tmp_path / "d" / "train-images-idx3-ubyte"
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(DataError, match=words):
        read_data(tmp_path / "d")


def test_a_broken_gzip_file_is_named(tmp_path: Path) -> None:
    write_idx(tmp_path / "d", TRAIN, TEST, zipped=True)
    path = tmp_path / "d" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="cannot be read") as caught:
        read_data(tmp_path / "d")
    assert path.name in str(caught.value)


@pytest.mark.slow
def test_mnist_and_fashion_mnist_are_told_apart(tmp_path: Path) -> None:
    counts = {
        "mnist": (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
        "fashion-mnist": (1000,) * 10,
    }
    for name, of_class in counts.items():
        test = np.repeat(np.arange(10), of_class)
        assert len(test) == 10_000
        write_idx(tmp_path / name, np.arange(10), test, zipped=True)
        (found,) = [r.name for r in (Mnist(), FashionMnist()) if r.matches(tmp_path / name)]
        assert found == name
    # Others have as many of each class: they are not called so by their folder.
    write_idx(tmp_path / "kana", np.arange(10), test, zipped=True)
    assert not any(r.matches(tmp_path / "kana") for r in (Mnist(), FashionMnist()))
    assert read_data(tmp_path / "kana", check=False).format == "idx"


def test_fashion_mnist_names_its_classes(tmp_path: Path) -> None:
    labels = np.array([0, 8, 9, 9, 8])
    write_idx(tmp_path / "clothes", labels, labels, zipped=True)
    table = read_data(tmp_path / "clothes", format="fashion-mnist", check=False)
    bag = table.only(["bag"])
    assert [s.defect for s in bag.select(split="test", label=1)] == [
        *("ankle-boot", "ankle-boot", "t-shirt")
    ]
    assert len(bag.select(split="train")) == len(bag.select(split="test", label=0)) == 2
    write_idx(tmp_path / "more", np.array([10]), labels, zipped=True)
    with pytest.raises(DataError, match="a class that this data set does not have"):
        read_data(tmp_path / "more", format="mnist")


def test_what_could_be_fashion_mnist_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the folder's name alone it is known; its layout has others too."""
    monkeypatch.setattr("flawmap.data.idx._FASHION_TEST", (2,) * 10)
    labels = np.repeat(np.arange(10), 2)
    for folder in ("FashionMNIST/raw", "clothes", "Fashion"):
        write_idx(tmp_path / folder, labels, labels, zipped=False)
    known = {name: read_data(tmp_path / name) for name in ("FashionMNIST", "Fashion", "clothes")}
    assert [t.format for t in known.values()] == ["fashion-mnist", "fashion-mnist", "idx"]
    said = [[n for n in t.notes if "--format fashion-mnist" in n] for t in known.values()]
    assert [len(notes) for notes in said] == [0, 0, 1]
    named = read_data(tmp_path / "clothes", format="fashion-mnist")
    assert not any("--format" in note for note in named.notes)
    write_idx(tmp_path / "digits", labels, labels[1:], zipped=False)
    assert not any("--format" in note for note in read_data(tmp_path / "digits").notes)


def cifar_rows(n: int) -> tuple[np.ndarray, list[int]]:
    rows = RNG.integers(0, 256, (n, 3072)).astype(np.uint8)
    return rows, [int(v) for v in RNG.integers(0, 10, n)]


def python2_pickle(rows: np.ndarray, labels: list[int]) -> bytes:
    """What cPickle of Python 2 writes, as the archive has it: texts of bytes, numpy's old names."""
    content = rows.tobytes()
    shape = b"K%cM%s\x86" % (len(rows), struct.pack("<H", rows.shape[1]))
    return b"".join(
        [
            b"\x80\x02}q\x01(U\x0bbatch_labelU\x01xU\x06labels](",
            b"".join(b"K%c" % label for label in labels),
            b"eU\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01" + shape,
            b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN",
            b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + struct.pack("<i", len(content)) + content + b"tbu.",
        ]
    )


WRITERS: dict[str, Callable[[np.ndarray, list[int]], bytes]] = {
    "binary": lambda rows, labels: b"".join(
        bytes([label]) + row.tobytes() for row, label in zip(rows, labels, strict=True)
    ),
    "python 2": python2_pickle,
    "protocol 2": lambda r, v: pickle.dumps({b"data": r, b"labels": v}, protocol=2),
    "protocol 4": lambda r, v: pickle.dumps({"data": np.asfortranarray(r), "labels": v}, 4),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_cifar_10_in_both_versions(tmp_path: Path, kind: str) -> None:
    ending = ".bin" if kind == "binary" else ""
    folder = tmp_path / ("cifar-10-batches-bin" if ending else "cifar-10-batches-py")
    folder.mkdir()
    rows, labels = [], []
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        r, v = cifar_rows(12)
        (folder / (name + ending)).write_bytes(WRITERS[kind](r, v))
        rows.append(r)
        labels.append(v)
    table = read_data(tmp_path, check=False)
    assert table.format == "cifar-10"
    assert set(table.categories) <= set(CLASSES)
    samples = {Path(s.path).stem: s for s in table.samples if s.split == "train"}
    assert len(samples) == 60
    for index in (0, 13, 59):
        batch, row = divmod(index, 12)
        sample = samples[f"{index:05d}"]
        assert sample.category == CLASSES[labels[batch][row]]
        planes = rows[batch][row].reshape(3, 32, 32)
        # Channel by channel in the file, px by px in an image.
        wanted = np.stack([planes[0], planes[1], planes[2]], axis=-1)
        np.testing.assert_array_equal(read_image(sample.path), wanted)
    car = [s for s in table.samples if s.category == "automobile" and s.split == "test"]
    assert [s.label for s in sorted(car, key=lambda s: Path(s.path).stem)] == [
        int(v != 1) for v in labels[-1]
    ]


class Harm:
    """Its pickle would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (lambda path: {"data": Harm(path), "labels": []}, "system, which no array needs"),
        (lambda path: {"data": np.array([[Harm(path)]], object)}, "no array needs"),
        (lambda path: {"data": np.zeros((1, 3072)), "labels": [1]}, "not of bytes"),
        (lambda path: {"data": np.zeros((1, 9), np.uint8), "labels": [1]}, "other shapes"),
        (lambda path: {"data": np.zeros((1, 3072), np.uint8), "labels": ["a"]}, "other shapes"),
        (lambda path: {"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, "a class beyond"),
        (lambda path: {"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "1 labels"),
        (lambda path: {"labels": [1]}, "it has no data"),
        (lambda path: {"fine_labels": [1]}, "it has no data and no labels"),
        (lambda path: [1, 2], "no attribute"),
        (lambda path: print, "no array needs"),
    ],
)
def test_a_pickle_runs_nothing_and_holds_bytes_only(
    tmp_path: Path, tree: Callable[[Path], Any], words: str
) -> None:
    trace = tmp_path / "it-ran"
    batch = tmp_path / "data_batch_1"
    batch.write_bytes(pickle.dumps(tree(trace), protocol=2))
    with pytest.raises(DataError, match=words):
        read_pickled(batch)
    assert not trace.exists()


def test_a_cut_off_batch_is_named(tmp_path: Path) -> None:
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (tmp_path / f"{name}.bin").write_bytes(bytes(3073))
    (tmp_path / "data_batch_4.bin").write_bytes(bytes(3000))
    with pytest.raises(DataError, match="no multiple of 3073") as caught:
        read_data(tmp_path)
    assert "data_batch_4.bin" in str(caught.value)
