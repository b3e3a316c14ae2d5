"""The bundle refuses everything but what was written."""

from __future__ import annotations

import json
import os
import stat
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from flawmap.bundle import Bundle, _digest, read, write
from flawmap.errors import BundleError
from flawmap.scoring.calibration import Calibration, CategoryCalibration


@pytest.fixture
def bundle() -> Bundle:
    part = CategoryCalibration(np.arange(4.0), np.arange(4.0) + 1, True, ("a/3.png", "ü/2.png"))
    return Bundle(
        config={"seed": 1},
        models={"schraube/mutter ü": {"bank": np.arange(12, dtype=np.float32).reshape(3, 4)}},
        encoder={"stem.weight": np.ones((2, 2), np.float32)},
        calibration=Calibration(0.02, {"schraube/mutter ü": part}),
        info={"encoder": {"name": "x"}},
    )


def header(path: Path) -> tuple[dict[str, object], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rewrite(path: Path, head: dict[str, object], rest: bytes) -> None:
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)


def test_round_trip(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "a b.flawmap"
    write(bundle, path)
    found = read(path)
    name = "schraube/mutter ü"
    np.testing.assert_array_equal(found.models[name]["bank"], bundle.models[name]["bank"])
    np.testing.assert_array_equal(found.encoder["stem.weight"], np.ones((2, 2)))
    np.testing.assert_array_equal(found.calibration.categories[name].peaks, [1, 2, 3, 4])
    assert found.calibration.categories[name].highest == ("a/3.png", "ü/2.png")
    assert found.calibration.rate == 0.02
    assert found.config == {"seed": 1}
    write(replace(bundle, encoder=None), path)
    assert read(path).encoder is None


def test_a_bundle_that_names_no_images(bundle: Bundle, tmp_path: Path) -> None:
    """As those of before did."""
    path = tmp_path / "a.flawmap"
    write(bundle, path)
    head, rest = header(path)
    metadata = head["__metadata__"]
    assert isinstance(metadata, dict)
    manifest = json.loads(metadata["manifest"])
    for category in manifest["calibration"]["categories"]:
        del category["highest"]
    metadata["manifest"] = json.dumps(manifest, sort_keys=True)
    metadata["digest"] = _digest(metadata["manifest"], load_file(path))
    rewrite(path, head, rest)
    assert read(path).calibration.categories["schraube/mutter ü"].highest == ()


def test_a_name_that_is_not_utf8(bundle: Bundle, tmp_path: Path) -> None:
    name = os.fsdecode(b"gr\xf6sse")
    part = bundle.calibration.categories["schraube/mutter ü"]
    odd = replace(
        bundle, calibration=Calibration(0.02, {name: part}), info={"skipped": [[name, "empty"]]}
    )
    write(odd, tmp_path / "a.flawmap")
    found = read(tmp_path / "a.flawmap")
    assert list(found.calibration.categories) == [name]
    assert found.info == odd.info


@pytest.mark.skipif(os.name != "posix", reason="rights of files are POSIX's")
def test_others_may_read_it_as_any_new_file(bundle: Bundle, tmp_path: Path) -> None:
    write(bundle, tmp_path / "a.flawmap")
    (tmp_path / "any").write_text("x")
    rights = [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("a.flawmap", "any")]
    assert rights[0] == rights[1]


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated(bundle: Bundle, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.flawmap"
    write(bundle, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BundleError, match=r"truncated|beginning is damaged"):
        read(path)


def test_a_changed_weight_is_noticed(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "a.flawmap"
    write(bundle, path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BundleError, match="altered"):
        read(path)


def test_a_changed_threshold_is_noticed(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "a.flawmap"
    write(bundle, path)
    head, rest = header(path)
    meta = head["__metadata__"]
    meta["manifest"] = meta["manifest"].replace("0.02", "0.5")
    rewrite(path, head, rest)
    with pytest.raises(BundleError, match="altered"):
        read(path)


def test_a_newer_version_is_named(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "a.flawmap"
    write(bundle, path)
    head, rest = header(path)
    head["__metadata__"]["version"] = "7"
    rewrite(path, head, rest)
    with pytest.raises(BundleError, match="newer flawmap") as caught:
        read(path)
    assert "version 7" in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    other = tmp_path / "other.safetensors"
    save_file({"x": np.zeros(3)}, other)
    pickle_file = tmp_path / "model.pkl"
    pickle_file.write_bytes(b"\x80\x04\x95" + b"0" * 100)
    for path in (other, pickle_file):
        with pytest.raises(BundleError, match="no flawmap model"):
            read(path)
    with pytest.raises(BundleError, match="cannot be opened"):
        read(tmp_path / "none.flawmap")


def test_a_failed_write_leaves_the_old_file(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.flawmap"
    write(bundle, path)
    before = path.read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flawmap.bundle.save_file", full)
    with pytest.raises(BundleError, match="disk is full"):
        write(bundle, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
