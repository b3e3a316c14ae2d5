"""Detectors from the files that fits wrote."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import Tensor

import flawmap
from flawmap import bundle as bundles
from flawmap.config import EncoderConfig, validate
from flawmap.detector import Detector, Fitted, Source
from flawmap.encoders.encoder import build as build_encoder
from flawmap.errors import BundleError, ConfigError, FlawmapWarning
from flawmap.files import as_path
from flawmap.methods.base import Method
from flawmap.registry import METHODS
from flawmap.resources import require_device
from flawmap.training.device import make_fabric, precision_of


def load(
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    encoder_weights: str | os.PathLike[str] | None = None,
) -> Detector:
    """Load a bundle.

    Args:
        path: The file that a fit wrote.
        device: "auto", "cpu", "cuda" or "mps".
        encoder_weights: The encoder's weights, for a bundle without them whose encoder is not in
            an installed package.

    Raises:
        BundleError: The file is missing, truncated, altered or too new, or the encoder's weights
            on this machine are not the ones of the fit.
        WeightsError: The bundle leaves the encoder out and its weights are not on this machine.
        ConfigError: The device is unknown or not there, or weights are given for a bundle that
            carries its encoder.
    """
    require_device(device)
    path = as_path(path)
    return detector_of(bundles.read(path), path, device=device, encoder_weights=encoder_weights)


def detector_of(
    found: bundles.Bundle,
    path: Path,
    *,
    device: str,
    encoder_weights: str | os.PathLike[str] | None = None,
) -> Detector:
    """The detector of a bundle that is read already, whose arrays it may share.

    Args:
        found: What the file held.
        path: The file, for messages.
        device: As for `load`.
        encoder_weights: As for `load`.

    Raises:
        BundleError: As `load`.
        WeightsError: As `load`.
        ConfigError: As `load`.
    """
    tree = {**found.config, "training": {**found.config["training"], "device": device}}
    fitted = found.info["fitted"]
    try:
        config = validate(tree)
    except ConfigError as error:
        raise BundleError(
            f"the detector has options that this flawmap does not take: {error.message}",
            where=str(path),
            given=f"written by flawmap {fitted.get('versions', {}).get('flawmap', 'unknown')}",
            expected=f"flawmap {flawmap.__version__}",
            hint="upgrade flawmap, or fit again with this one",
        ) from error
    encoder_config = config.encoder
    if encoder_weights is not None:
        if found.encoder is not None:
            raise ConfigError(
                "the model carries its encoder: other weights would do nothing",
                where="--encoder-weights",
                given=str(encoder_weights),
                hint="leave them out",
            )
        encoder_config = EncoderConfig(name=config.encoder.name, weights=as_path(encoder_weights))
    info = found.info["encoder"]
    state = None if found.encoder is None else _tensors(found.encoder)
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(encoder_config, info["levels"], state=state)
    if encoder.fingerprint != info["sha256"]:
        raise BundleError(
            "the encoder's weights are not the ones the detector was fitted with",
            where=str(path),
            given=f"sha256 {encoder.fingerprint}",
            expected=f"sha256 {info['sha256']}",
            hint="install the same weights, or fit again",
        )
    fabric = make_fabric(config.training)
    _compare_precision(fitted.get("precision"), fabric, path)
    encoder.to(fabric.device)
    cls = METHODS.load(config.method.name)
    models: dict[str, Method] = {}
    for name, arrays in found.models.items():
        with torch.random.fork_rng(devices=[]):
            method = cls.build(config.method, encoder, config.data.size, torch.Generator())
        method.restore(_tensors(arrays))
        models[name] = method.to(fabric.device)
    return Detector(
        config=config,
        encoder=encoder,
        models=models,
        fabric=fabric,
        calibration=found.calibration,
        # Other versions may have written more.
        fitted=Fitted(**{f.name: fitted[f.name] for f in fields(Fitted) if f.name in fitted}),
        source=Source(str(path), found.digest),
    )


def _compare_precision(fitted: str | None, fabric: Fabric, path: Path) -> None:
    here = precision_of(fabric)
    if fitted and fitted != here:
        warnings.warn(
            f"{path} was fitted with precision {fitted}; here {here} is used, so scores may differ "
            "a little from those that set the threshold. If it matters, run 'flawmap calibrate' "
            "with good images on this machine.",
            FlawmapWarning,
            stacklevel=3,
        )


def _tensors(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    # Weights are large: copied only where torch could not take them as they are.
    return {
        name: torch.from_numpy(value if value.flags.writeable else value.copy())
        for name, value in arrays.items()
    }
