"""Options of a fit that contradict its method, or that would do nothing."""

from __future__ import annotations

from flawmap.config import Config
from flawmap.data.transform import Transform
from flawmap.encoders.table import NO_ENCODER
from flawmap.errors import ConfigError
from flawmap.methods.base import Method, OnePassMethod


def require_encoder(cls: type[Method], config: Config) -> None:
    """An encoder for a method that needs one, and none for one that does not.

    Raises:
        ConfigError: It is the other way round, or there are weights without an encoder.
    """
    name, given = config.method.name, config.encoder.name
    if cls.needs_encoder == (given != NO_ENCODER.name):
        for option in () if cls.needs_encoder else ("weights", "sha256", "download"):
            if value := getattr(config.encoder, option):
                raise ConfigError(
                    f"{name} learns from pixels: weights of an encoder would do nothing",
                    where=f"encoder.{option}",
                    given=value,
                    hint="leave it out, or use a method with an encoder",
                )
        return
    raise ConfigError(
        f"{name} looks at images through an encoder"
        if cls.needs_encoder
        else f"{name} learns from pixels: an encoder would do nothing",
        where="encoder.name",
        given=given,
        expected="a name that 'flawmap encoders' lists" if cls.needs_encoder else NO_ENCODER.name,
        hint="leave it out: the method has a default",
    )


def require_options(cls: type[Method], config: Config, processes: int) -> None:
    """Options that this kind of method can follow.

    Args:
        cls: The method.
        config: The options.
        processes: How many learn together.

    Raises:
        ConfigError: An option would do nothing, or cannot be met.
        DataError: A file or folder that the method's options name cannot be used.
    """
    cls.check(config.method)
    # It refuses sizes that contradict each other.
    Transform.of(config.data)
    training, name = config.training, config.method.name
    if config.scoring.pooling == "method" and not cls.scores_images:
        raise ConfigError(
            f"{name} gives maps only: an image's score is taken from them",
            where="scoring.pooling",
            given="method",
            expected="max or top",
        )
    if issubclass(cls, OnePassMethod):
        idle = {
            "max_epochs": None,
            "augment": "off",
            "balance": False,
            "validation_fraction": 0.0,
            "patience": None,
        }
        for option, value in idle.items():
            if getattr(training, option) != value:
                raise ConfigError(
                    f"{name} sees every image once: this option would do nothing",
                    where=f"training.{option}",
                    given=getattr(training, option),
                    hint="leave it out, or use an iterative method",
                )
    elif training.patience is not None and not training.validation_fraction:
        raise ConfigError(
            "without held-out images there is no loss to be patient with",
            where="training.patience",
            given=training.patience,
            hint="set training.validation_fraction too, such as 0.1, or "
            "--set training.patience=null",
        )
    elif training.batch_size % processes:
        raise ConfigError(
            f"a batch must be shared by {processes} processes alike",
            where="training.batch_size",
            given=training.batch_size,
            expected=f"a multiple of {processes}",
        )
