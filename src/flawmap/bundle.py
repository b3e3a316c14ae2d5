"""The file that a fit writes: safetensors with a JSON manifest, and a digest over both.

No pickle is written or read. Layout: tensors `model/<i>/...` (what the method learnt; <i> counts
the models: one for a unified fit, one per category for a separate one), `encoder/...` (weights in
use, unless left out), `calibration/<i>/{scores,peaks}` (good images' scores). The manifest in the
header's metadata says what they mean.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from flawmap.errors import BundleError, FitError
from flawmap.files import FolderLock, write_tensors
from flawmap.scoring.calibration import Calibration, CategoryCalibration

FORMAT = "flawmap-bundle"
VERSION = 1

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a file holds.

    Attributes:
        config: The configuration's tree.
        models: State of each model, by category; the key "*" stands for all categories.
        encoder: Weights in use, or None when the bundle leaves them out.
        calibration: Thresholds and the scores they come from.
        info: Encoder identity, data fingerprint, versions, timings: plain JSON values.
        digest: SHA-256 over all of these, of a file that was read.
    """

    config: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Array]]
    encoder: Mapping[str, Array] | None
    calibration: Calibration
    info: Mapping[str, Any]
    digest: str = ""


def older(path: Path) -> Path:
    """Where the bundle goes that another one takes the place of."""
    return path.with_name(path.name + ".old")


def write(bundle: Bundle, path: Path, *, keep_old: bool = False) -> None:
    """Write a bundle atomically.

    Args:
        bundle: What is written.
        path: The file.
        keep_old: Leave a bundle that is there under the name that `older` gives.

    Raises:
        BundleError: The disk is full or the folder cannot be written.
    """
    tensors: dict[str, Array] = {}
    names = list(bundle.models)
    for index, name in enumerate(names):
        for key, value in bundle.models[name].items():
            tensors[f"model/{index}/{key}"] = np.ascontiguousarray(value)
    for key, value in (bundle.encoder or {}).items():
        tensors[f"encoder/{key}"] = np.ascontiguousarray(value)
    for index, part in enumerate(bundle.calibration.categories.values()):
        tensors[f"calibration/{index}/scores"] = part.scores
        tensors[f"calibration/{index}/peaks"] = part.peaks
    manifest = {
        "config": bundle.config,
        "info": bundle.info,
        "models": names,
        "has_encoder": bundle.encoder is not None,
        "calibration": {
            "rate": bundle.calibration.rate,
            "categories": [
                {"name": name, "exact": part.exact, "highest": part.highest}
                for name, part in bundle.calibration.categories.items()
            ],
        },
    }
    # In ASCII: a name of a folder may hold bytes that are no UTF-8.
    text = json.dumps(manifest, sort_keys=True, default=str)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "manifest": text,
        "digest": _digest(text, tensors),
    }
    write_tensors(
        lambda p: save_file(tensors, p, metadata=metadata),
        path,
        error=BundleError,
        keep=older(path) if keep_old and is_bundle(path) else None,
    )


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a bundle that is to be written, from before its first reading on.

    Two fits of one would spoil each other's runs; new thresholds, set meanwhile, would bring back
    the old weights.

    Raises:
        FitError: Another process holds it.
    """
    # As torch tells it; clusters set RANK too.
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0":
        # Of the processes that torchrun starts, the first one writes.
        yield
        return
    try:
        lock = FolderLock(path.parent, f".{path.name}.lock")
    except OSError as error:
        raise FitError(
            f"the model cannot be held: {error.strerror or error}",
            where=str(path.parent / f".{path.name}.lock"),
            hint="remove this file if nothing else writes the model, or write to another --output",
        ) from error
    if not lock.acquire():
        raise FitError(
            "another process is writing this model",
            where=str(path),
            hint="wait until it ends, stop it, or write to another --output",
        )
    try:
        yield
    finally:
        lock.remove()


def is_bundle(path: Path) -> bool:
    """Whether a file is a bundle, of whatever version, whole or damaged behind its header."""
    try:
        with path.open("rb") as file:
            return _header(file, path.stat().st_size) is not None
    except OSError:
        return False


def require_file(path: Path) -> None:
    """Say at once that there is no such file, before anything heavy is loaded.

    Raises:
        BundleError: It is missing, a folder, or may not be read.
    """
    try:
        with path.open("rb"):
            pass
    except IsADirectoryError as error:
        raise BundleError(
            "the model is a folder",
            where=str(path),
            expected="the file that 'flawmap fit --output' wrote",
            hint="the model comes first, then the images",
        ) from error
    except OSError as error:
        raise _unopened(path, error) from error


def read(path: Path) -> Bundle:
    """Read and check a bundle.

    Raises:
        BundleError: Missing, truncated, altered, of a newer version, or not a bundle.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unopened(path, error) from error
    metadata = _metadata(data, path)
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise BundleError(
            f"the model is truncated or damaged: {error}",
            where=str(path),
            given=f"{len(data)} bytes",
            hint="copy the file again, or fit again",
        ) from error
    del data
    text = metadata["manifest"]
    digest = _digest(text, tensors)
    if digest != metadata.get("digest"):
        raise BundleError(
            "the model was altered after it was written: its digest does not match",
            where=str(path),
            hint="use the original file; do not trust this one",
        )
    manifest = json.loads(text)
    calibration = Calibration(
        rate=manifest["calibration"]["rate"],
        categories={
            entry["name"]: CategoryCalibration(
                scores=tensors[f"calibration/{index}/scores"],
                peaks=tensors[f"calibration/{index}/peaks"],
                exact=entry["exact"],
                # Models of before have none.
                highest=tuple(entry.get("highest", ())),
            )
            for index, entry in enumerate(manifest["calibration"]["categories"])
        },
        fitted=tuple(manifest["info"].get("fitted", {}).get("data", {}).get("categories", ())),
    )
    return Bundle(
        config=manifest["config"],
        models={
            name: _part(tensors, f"model/{index}/") for index, name in enumerate(manifest["models"])
        },
        encoder=_part(tensors, "encoder/") if manifest["has_encoder"] else None,
        calibration=calibration,
        info=manifest["info"],
        digest=digest,
    )


def _unopened(path: Path, error: OSError) -> BundleError:
    return BundleError(
        f"the model cannot be opened: {error.strerror}",
        where=str(path),
        hint="give the file that 'flawmap fit --output' wrote",
    )


def _metadata(data: bytes, path: Path) -> dict[str, str]:
    """The header's metadata, read before anything else so that the version is judged first."""
    problem = BundleError(
        "the file is no flawmap model, or its beginning is damaged",
        where=str(path),
        expected="a file that 'flawmap fit --output' wrote",
    )
    metadata = _header(BytesIO(data), len(data))
    if metadata is None or not str(metadata.get("version", "")).isdecimal():
        raise problem
    if int(metadata["version"]) > VERSION:
        raise BundleError(
            "the model was written by a newer flawmap",
            where=str(path),
            given=f"model version {metadata['version']}",
            expected=f"version {VERSION} or older",
            hint="update flawmap",
        )
    if "manifest" not in metadata:
        raise problem
    return {str(k): str(v) for k, v in metadata.items()}


def _header(file: IO[bytes], size: int) -> dict[str, Any] | None:
    """The metadata at the beginning of a bundle, or None of any other file.

    Args:
        file: Open at its beginning.
        size: Its bytes.
    """
    if size < 8:
        return None
    (length,) = struct.unpack("<Q", file.read(8))
    if length > size - 8:
        return None
    try:
        metadata = json.loads(file.read(length))["__metadata__"]
    except (ValueError, KeyError, TypeError):
        return None
    ours = isinstance(metadata, dict) and metadata.get("format") == FORMAT
    return metadata if ours else None


def _part(tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _digest(manifest: str, tensors: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(manifest.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}{value.shape}{value.dtype.str}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()
