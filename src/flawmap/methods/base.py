"""The contract of a method.

A method turns a batch of images into raw anomaly maps. The frozen encoder's part is split off in
`extract`, so that the loop may keep its results between epochs; everything learnt stands after it.

* An **iterative** method gives a loss for a batch of features.
* A **one-pass** method observes the features of each good image once, then finalises.

The encoder's weights are not part of a method's `state_dict`; a bundle stores them apart.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from flawmap.config import MethodConfig
from flawmap.encoders.encoder import Encoder, default_levels
from flawmap.encoders.table import EncoderSpec

Features = tuple[Tensor, ...]
"""What a method keeps of the frozen encoder, or of the images: tensors whose first dimension is the
batch. The loop may keep float32 tensors as bfloat16; other types stay as they are."""


class Method(nn.Module, abc.ABC):
    """Base of all methods.

    Class attributes:
        Config: The method's options.
        kind: "iterative" or "one-pass".
        summary: One line for people.
        source: Paper and licence of the reference code.
        defaults: Options of the whole run (dotted names) that this method needs by default.
        defaults_by_encoder: Further ones for encoders whose name fits a pattern such as "vit-*".
        presets: Further options per preset; every method has "cpu" and "gpu".
        scores_images: Whether `scored_maps` gives image scores of the method's own.
        needs_encoder: Whether it looks at images through an encoder. A method that learns from
            pixels says False and has the default "encoder.name": "none".
        one_product: Whether a model of several products is worse than one for each by its form.
        free_on_start: Options that may change when a fit goes on from a fitted detector: they say
            how something is learnt, not what.

    Args:
        encoder: Frozen, with the levels that are read.
    """

    Config: ClassVar[type[MethodConfig]]
    kind: ClassVar[Literal["iterative", "one-pass"]]
    summary: ClassVar[str]
    source: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}
    defaults_by_encoder: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    scores_images: ClassVar[bool] = False
    needs_encoder: ClassVar[bool] = True
    one_product: ClassVar[bool] = False
    free_on_start: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        # A tuple hides the encoder from nn.Module: its weights are not part of the state.
        self._encoder = (encoder,)

    @property
    def encoder(self) -> Encoder:
        """The frozen encoder."""
        return self._encoder[0]

    @classmethod
    def default_levels(cls, spec: EncoderSpec) -> tuple[str, ...]:
        """The encoder levels that the method reads when none are named."""
        return default_levels(spec)

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse, before any image is read, what a fit would fail at only later, such as a folder
        that is not there.

        Args:
            config: An instance of `Config`.

        Raises:
            ConfigError: Options contradict each other.
            DataError: A file or folder that they name cannot be used.
        """

    @classmethod
    @abc.abstractmethod
    def build(
        cls,
        config: Any,
        encoder: Encoder,
        input_size: tuple[int, int],
        generator: torch.Generator,
    ) -> Method:
        """A method that has learnt nothing yet.

        Args:
            config: An instance of `Config`.
            encoder: A frozen encoder with the levels that `config.levels` or `default_levels` name.
            input_size: (H, W) of the network input in px.
            generator: Draws the initial weights and all else that is random in construction.

        Raises:
            ConfigError: The options, the encoder and the size do not go together.
        """

    @abc.abstractmethod
    def extract(self, images: Tensor) -> Features:
        """The frozen part.

        Args:
            images: (B, 3, H, W) float32, RGB in [0, 1].
        """

    @abc.abstractmethod
    def anomaly_map(self, features: Features) -> Tensor:
        """Raw maps, (B, 1, h, w) float32, higher = more anomalous."""

    def scored_maps(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Raw maps of images, and the method's own image scores where it has them.

        A method overrides this when its image score is no maximum or mean of its map, or when its
        map needs the images themselves; `scoring.pooling=method` then takes its scores.

        Args:
            images: (B, 3, H, W) float32, RGB in [0, 1].

        Returns:
            Maps, (B, 1, h, w) float32, and scores, (B,) float32, or None: pooled from the maps.
        """
        return self.anomaly_map(self.extract(images)), None

    def image_scores(self, images: Tensor) -> Tensor:
        """The scores of `scored_maps` alone, (B,) float32, where nobody asks for a map.

        Only of a method that `scores_images`, which overrides this where its maps are what costs.

        Args:
            images: (B, 3, H, W) float32, RGB in [0, 1].
        """
        scores = self.scored_maps(images)[1]
        assert scores is not None, f"{type(self).__name__} gives no scores of its own"
        return scores

    def forward(self, images: Tensor) -> Tensor:
        """Raw maps of images."""
        return self.scored_maps(images)[0]

    def reconstruction(self, features: Features) -> Tensor | None:
        """What a good part would look like in place of each image, for methods that have such a
        picture: (B, 3, H, W) float32, RGB around [0, 1]. The report shows it."""
        return None

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state_dict` gave, also when learnt tensors change size with the data."""
        self.load_state_dict(dict(state))


class AsTheyAre:
    """Features that Fabric hands on untouched.

    Of several processes in bfloat16 it would turn pixels, kept in float16, into bfloat16, which has
    fewer than 8 bits for them.
    """

    def __init__(self, features: Features) -> None:
        self.features = features


class IterativeMethod(Method):
    """A method that learns step by step from batches of features."""

    kind = "iterative"

    @abc.abstractmethod
    def loss(self, features: Features, step: int) -> Tensor:
        """The training loss of a batch, a scalar.

        Random numbers come from torch's own generator, which the loop seeds for every step.
        """

    def loss_of(self, held: AsTheyAre, step: int) -> Tensor:
        """What a step calls for `loss`."""
        return self.loss(held.features, step)

    @abc.abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimiser over the learnt parameters."""

    @abc.abstractmethod
    def learning_rate(self, step: int, total: int) -> float:
        """The learning rate of a step, 0 <= step < total."""

    def validation_loss(self, features: Features) -> Tensor:
        """The loss of held-out images, by which weights are chosen, a scalar; without gradient."""
        return self.loss(features, 0)

    def epoch(self, images: int, batch_size: int) -> int:
        """Iterations that the method counts as one round over so many images."""
        return max(1, round(images / batch_size))

    @classmethod
    def candidates(cls, config: Any) -> tuple[Any, ...]:
        """Configurations to train in place of one, of which the model with the lowest loss of
        held-out images is kept; the first, where none is held out."""
        return (config,)

    final_images: int | None = 0
    """Images of the training that `finalise` sees, evenly chosen: 0 = it is not called, None = all.
    """

    def finalise(self, batches: Iterator[Features]) -> None:
        """End the fit with the weights that it has: in evaluation mode, without gradients.

        Args:
            batches: Features of images of the training.
        """
        raise AssertionError(f"{type(self).__name__} has nothing to finalise")

    def release(self) -> None:
        """Let go of what only learning needed, when the fit of this model ends."""

    threads: int = 1
    """For work beside torch's, such as drawing defects; a fit sets its own number."""

    clip_norm: float | None = None
    """Longer gradients, over all parameters, are shortened to this length; None = never."""


class OnePassMethod(Method):
    """A method that sees each good image once."""

    kind = "one-pass"
    can_leave_out: ClassVar[bool] = False
    """Whether `anomaly_map_without` works."""

    @abc.abstractmethod
    def observe(
        self,
        features: Features,
        images: Sequence[int],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Take in a batch of good images.

        Args:
            features: What `extract` gave.
            images: A number for each picture; copies of a picture share one.
            on_progress: As for `finalise`, where taking in is long work at times.
        """

    @abc.abstractmethod
    def finalise(
        self, generator: torch.Generator, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """End the fit.

        Args:
            generator: Draws all that is random.
            on_progress: Called now and then with (done, total); it may raise to stop the fit.
        """

    def anomaly_map_without(self, features: Features, images: Sequence[int]) -> Tensor:
        """Raw maps of images of the fit, as if each had not been learnt."""
        raise AssertionError(f"{type(self).__name__} cannot leave images out")
