"""A fitted method with its encoder, its thresholds and its history."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from flawmap import bundle as bundles
from flawmap.config import Config
from flawmap.data.images import read_image, to_rgb
from flawmap.data.inputs import images_below, with_categories
from flawmap.data.lister import raise_unreadable
from flawmap.data.loader import load_batches, stack
from flawmap.data.pictures import Pictures, Watch
from flawmap.data.pool import map_in_threads
from flawmap.data.transform import Transform
from flawmap.encoders.encoder import Encoder
from flawmap.errors import ConfigError, FitError, FlawmapWarning, unknown_name
from flawmap.files import as_path
from flawmap.methods.base import Method, OnePassMethod
from flawmap.resources import one_blas_thread
from flawmap.scoring import Calibration, Scorer
from flawmap.scoring.maps import Smoothing, resample
from flawmap.types import EVERY, Batch, FloatArray, Geometry, Prediction, RawMap, Sample
from flawmap.wording import shown

ImageLike = str | os.PathLike[str] | Image.Image | npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Fitted:
    """Where a detector comes from, in plain JSON values.

    Attributes:
        data: Fingerprints, categories, numbers of images, what was held out or skipped.
        seconds: Duration of each stage.
        curves: Loss curves of iterative methods, by category.
        versions: Of flawmap and the libraries that decide its numbers.
        device: What it was fitted on.
        precision: As Lightning Fabric names it.
        finished: When the fit ended, ISO 8601 in UTC.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    precision: str = ""
    finished: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """The file of a detector.

    Attributes:
        path: As it was given.
        digest: SHA-256 over what the file holds, as it stands in its header.
    """

    path: str
    digest: str


class Detector:
    """Scores images.

    Args:
        config: The configuration of the fit.
        encoder: Frozen, on the fabric's device.
        models: Fitted methods by category; the key "*" stands for all categories.
        fabric: Device and precision.
        calibration: Thresholds; none by default.
        fitted: Where it comes from.
        source: The file that it was read from.
    """

    def __init__(
        self,
        *,
        config: Config,
        encoder: Encoder,
        models: Mapping[str, Method],
        fabric: Fabric,
        calibration: Calibration | None = None,
        fitted: Fitted | None = None,
        source: Source | None = None,
    ) -> None:
        self.source = source
        self.config = config
        self.encoder = encoder
        self.models = dict(models)
        self.fabric = fabric
        self.scorer = Scorer(
            config.scoring, calibration or Calibration(config.calibration.false_reject_rate, {})
        )
        self.fitted = fitted or Fitted()
        self._transform = Transform.of(config.data)
        for method in self.models.values():
            method.eval()

    @property
    def categories(self) -> tuple[str, ...]:
        """The products it was fitted on."""
        return tuple(self.fitted.data.get("categories", ()))

    @property
    def calibration(self) -> Calibration:
        """The thresholds in force."""
        return self.scorer.calibration

    def with_calibration(self, calibration: Calibration) -> Detector:
        """The same detector with other thresholds; it is that of no file."""
        return Detector(
            config=self.config,
            encoder=self.encoder,
            models=self.models,
            fabric=self.fabric,
            calibration=calibration,
            fitted=self.fitted,
        )

    def predict(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        category: str | None = None,
        batch_size: int | None = None,
    ) -> Prediction | list[Prediction]:
        """Score one image or several.

        Args:
            images: A path, a folder, a PIL image or an array (H, W), (H, W, 1), (H, W, 3) or
                (H, W, 4) of bool, uint8, uint16 or floats in [0, 1]; or a sequence of these.
            category: The product shown; by default that of the nearest folder above a path that
                is named like one. A separate detector of several products needs it, a unified one
                takes the threshold over all of them without it.
            batch_size: Images at a time; the configuration's by default.

        Returns:
            One prediction for one image, a list in the given order for a sequence or a folder.

        Raises:
            DataError: An image cannot be read.
            ConfigError: The category is unknown, or needed and missing; or the batch size is not
                positive.

        Example:
            >>> detector = flawmap.load("model.flawmap")  # doctest: +SKIP
            >>> detector.predict("part.png").verdict  # doctest: +SKIP
            'defect'
        """
        if batch_size is not None and batch_size < 1:
            raise ConfigError("batch_size must be positive", where="batch_size", given=batch_size)
        if category is not None:
            self._category(category)
        single = not isinstance(images, list | tuple)
        given: Sequence[ImageLike] = [images] if single else images  # type: ignore[list-item,assignment]
        items = [_in_the_home(i) if isinstance(i, str | os.PathLike) else i for i in given]
        if single and isinstance(items[0], str | os.PathLike) and Path(items[0]).is_dir():
            items, single = list(_in_the_folder(items[0], self.categories)), False
        found = list(self._predict_items(items, category, batch_size))
        return found[0] if single else found

    def _predict_items(
        self, items: Sequence[ImageLike], category: str | None, batch_size: int | None
    ) -> Iterator[Prediction]:
        names = [self._product(item, category) for item in items]
        if all(isinstance(item, str | os.PathLike) for item in items):
            samples = [
                Sample(os.fspath(item), name, "test", None)  # type: ignore[arg-type]
                for item, name in zip(items, names, strict=True)
            ]
            yield from self.predict_samples(samples, batch_size=batch_size)
            return
        size = batch_size or self.config.training.batch_size
        for begin in range(0, len(items), size):
            loaded = []
            for item, name in zip(
                items[begin : begin + size], names[begin : begin + size], strict=True
            ):
                white = self.config.data.white_level
                if isinstance(item, str | os.PathLike):
                    path, array = os.fspath(item), read_image(item, white_level=white)
                else:
                    path, array = "", to_rgb(item, white_level=white)
                pixels, geometry = self._transform(array)
                loaded.append((pixels, geometry, Sample(path, name, "test", None)))
            for sample, geometry, raw in self._raw(stack(loaded), None):
                yield self.scorer.predict(raw, geometry, sample)

    def predict_samples(
        self, samples: Sequence[Sample], *, batch_size: int | None = None
    ) -> Iterator[Prediction]:
        """Score the images of a table, in its order, a batch in memory at a time."""

        def finish(item: tuple[Sample, Geometry, RawMap]) -> Prediction:
            sample, geometry, raw = item
            return self.scorer.predict(raw, geometry, sample)

        # Maps are finished in a thread while the encoder works on; few wait, they can be large.
        ahead = 4
        with closing(self.raw_maps(samples, batch_size=batch_size)) as raws:
            yield from map_in_threads(finish, raws, threads=1, ahead=ahead)

    def raw_maps(
        self,
        samples: Sequence[Sample],
        *,
        batch_size: int | None = None,
        numbers: Mapping[str, int] | None = None,
        watch: Watch | None = None,
        kept: Pictures | None = None,
    ) -> Generator[tuple[Sample, Geometry, RawMap], None, None]:
        """Raw maps of images, in their order.

        Args:
            samples: The images.
            batch_size: Images at a time; the configuration's by default.
            numbers: Numbers of images of the fit by path; each is then scored as if it had not
                been learnt.
            watch: As for `load_batches`.
            kept: As for `load_batches`.
        """
        with (
            closing(self._batches(samples, batch_size, watch, kept)) as batches,
            one_blas_thread(),
        ):
            for batch in batches:
                yield from self._raw(batch, numbers)

    @property
    def scores_alone(self) -> bool:
        """Whether `image_scores` works: the image score is the method's own, not one of the map."""
        return self.config.scoring.pooling == "method"

    def image_scores(
        self,
        samples: Sequence[Sample],
        *,
        batch_size: int | None = None,
        watch: Watch | None = None,
    ) -> Generator[tuple[Sample, float], None, None]:
        """Image scores without maps, which some methods give in less time; in the images' order.

        Args:
            samples: The images.
            batch_size: Images at a time; the configuration's by default.
            watch: As for `load_batches`.
        """
        assert self.scores_alone
        with closing(self._batches(samples, batch_size, watch)) as batches, one_blas_thread():
            for batch in batches:
                found: dict[int, float] = {}
                for name, rows in self._rows_by_model(batch.samples).items():
                    with torch.inference_mode(), self.fabric.autocast():
                        images = self._images(batch, rows)
                        scores = self.models[name].image_scores(images).float().tolist()
                    found.update(zip(rows, scores, strict=True))
                for row, sample in enumerate(batch.samples):
                    if not math.isfinite(found[row]):
                        raise _not_finite(sample)
                    yield sample, found[row]

    def _batches(
        self,
        samples: Sequence[Sample],
        batch_size: int | None,
        watch: Watch | None,
        kept: Pictures | None = None,
    ) -> Generator[Batch, None, None]:
        return load_batches(
            samples,
            self._transform,
            batch_size or self.config.training.batch_size,
            threads=self.config.training.threads or None,
            white_level=self.config.data.white_level,
            watch=watch,
            kept=kept,
        )

    def _images(self, batch: Batch, rows: list[int]) -> Tensor:
        """Some images of a batch, on the device."""
        whole = len(rows) == len(batch.samples)
        return (batch.images if whole else batch.images[rows]).to(self.fabric.device)

    def reconstruct(self, sample: Sample, size: tuple[int, int] | None = None) -> FloatArray | None:
        """What a good part would look like in place of an image.

        Args:
            sample: The image.
            size: (H, W) of the result in px; the source image's own by default.

        Returns:
            (H, W, 3) float32, RGB in [0, 1], or None: not every method has such a picture.
        """
        (name,) = self._rows_by_model([sample])
        method = self.models[name]
        if type(method).reconstruction is Method.reconstruction:
            return None
        white = self.config.data.white_level
        (batch,) = load_batches([sample], self._transform, 1, threads=1, white_level=white)
        with torch.inference_mode(), self.fabric.autocast(), one_blas_thread():
            found = method.reconstruction(method.extract(batch.images.to(self.fabric.device)))
        if found is None:
            return None
        (geometry,) = batch.geometries
        picture = found[0].float().clamp(0, 1).cpu().numpy()
        as_it_is = Smoothing()
        return np.stack([resample(c, geometry, as_it_is, size=size) for c in picture], axis=-1)

    def _raw(
        self, batch: Batch, numbers: Mapping[str, int] | None
    ) -> Iterator[tuple[Sample, Geometry, RawMap]]:
        raws: list[RawMap | None] = [None] * len(batch.samples)
        for name, rows in self._rows_by_model(batch.samples).items():
            method = self.models[name]
            with torch.inference_mode(), self.fabric.autocast():
                images = self._images(batch, rows)
                own: Tensor | None = None
                if numbers is None:
                    maps, own = method.scored_maps(images)
                else:
                    assert isinstance(method, OnePassMethod)
                    assert not method.scores_images
                    maps = method.anomaly_map_without(
                        method.extract(images), [numbers[batch.samples[row].path] for row in rows]
                    )
            scores = [None] * len(rows) if own is None else own.float().tolist()
            for row, raw, score in zip(rows, maps[:, 0].float().cpu().numpy(), scores, strict=True):
                if not np.isfinite(raw).all() or not math.isfinite(score or 0.0):
                    raise _not_finite(batch.samples[row])
                raws[row] = RawMap(raw, score)
        for sample, geometry, found in zip(batch.samples, batch.geometries, raws, strict=True):
            assert found is not None
            yield sample, geometry, found

    def _rows_by_model(self, samples: Iterable[Sample]) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, sample in enumerate(samples):
            name = EVERY if EVERY in self.models else sample.category
            if name not in self.models:
                if len(self.models) == 1:
                    name = next(iter(self.models))
                else:
                    raise self._unknown_category(sample.category)
            rows.setdefault(name, []).append(row)
        return rows

    def _product(self, item: ImageLike, category: str | None) -> str:
        """The product that an image shows, as far as its place tells."""
        if category is None and isinstance(item, str | os.PathLike):
            sample = Sample(os.fspath(item), "", "test", None)
            (found,) = with_categories([sample], self.categories, unified=EVERY in self.models)
            return found.category
        return self._category(category)

    def _category(self, category: str | None) -> str:
        known = self.categories
        if category is not None:
            if known and category not in known:
                raise self._unknown_category(category)
            return category
        if len(known) == 1:
            return known[0]
        if EVERY not in self.models:
            raise ConfigError(
                "this detector has one model per product, so the product must be named",
                where="--category",
                expected=f"one of: {', '.join(known)}",
            )
        return EVERY

    def _unknown_category(self, category: str) -> ConfigError:
        return unknown_name(
            "category", category, self.categories or self.models, where="the fitted detector"
        )

    def save(self, path: str | os.PathLike[str], *, keep_old: bool = False) -> None:
        """Write the bundle, atomically.

        Args:
            path: The file.
            keep_old: Leave a bundle that is there beside it, with `.old` behind its name.

        Raises:
            BundleError: The disk is full or the folder cannot be written.
        """
        embed = self.config.bundle.embed_encoder
        bundles.write(
            bundles.Bundle(
                config=self.config.model_dump(mode="json"),
                models={name: _arrays(m.state_dict()) for name, m in self.models.items()},
                encoder=_arrays(self.encoder.state_dict()) if embed else None,
                calibration=self.calibration,
                info={
                    "encoder": {
                        "name": self.encoder.spec.name,
                        "levels": list(self.encoder.levels),
                        "sha256": self.encoder.fingerprint,
                        "licence": self.encoder.spec.licence,
                        "note": self.encoder.spec.note,
                    },
                    "fitted": asdict(self.fitted),
                },
            ),
            as_path(path),
            keep_old=keep_old,
        )


def _in_the_home(path: str | os.PathLike[str]) -> str:
    """The path of an image, in which ~ is the home folder; any other stays as it was given."""
    text = os.fspath(path)
    return str(as_path(text)) if text.startswith("~") else text


def _in_the_folder(folder: str | os.PathLike[str], known: Sequence[str]) -> list[str]:
    """The paths of its images, as `images_below` chooses them; what it leaves out is said."""
    found = images_below(Path(folder), known)
    raise_unreadable(found.problems, where=shown(folder))
    for note in found.notes:
        warnings.warn(note, FlawmapWarning, stacklevel=3)
    return [sample.path for sample in found.samples]


def _not_finite(sample: Sample) -> FitError:
    """A score that is no number is above no threshold: it would pass as good."""
    return FitError(
        "the map or the score is not finite",
        where=sample.path or "an image from memory",
        hint="fit again with --set training.precision=float32",
    )


def _arrays(state: Mapping[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    return {
        name: np.ascontiguousarray(value.detach().cpu().numpy()) for name, value in state.items()
    }
