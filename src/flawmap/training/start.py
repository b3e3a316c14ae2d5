"""Going on from a fitted detector instead of from drawn weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from flawmap.config import Config
from flawmap.encoders.encoder import Encoder, fingerprint
from flawmap.errors import ConfigError
from flawmap.methods.base import IterativeMethod, Method
from flawmap.types import EVERY


class Learnt(Protocol):
    """What a detector to begin with must have."""

    config: Config
    encoder: Encoder

    @property
    def models(self) -> Mapping[str, Method]:
        """Fitted methods by category; the key "*" stands for all."""


def require_start(start: Learnt, cls: type[Method], config: Config, encoder: Encoder) -> None:
    """A detector to begin with must compute the same thing.

    Raises:
        ConfigError: It is of another kind, or was fitted with options that decide what is learnt.
    """
    if not issubclass(cls, IterativeMethod):
        raise ConfigError(
            f"{config.method.name} learns in one pass: there is nothing to go on from",
            where="--start",
            hint="leave it out, and fit all products again",
        )
    if config.separate or EVERY not in start.models:
        raise ConfigError(
            "only one model for all products can learn another one",
            where="--start",
            hint="leave --separate out, or fit the new product alone",
        )
    old, new = start.config, config
    pairs = {
        "method": (old.method.name, new.method.name),
        "encoder": (start.encoder.fingerprint, encoder.fingerprint),
        "target levels": (start.encoder.levels, encoder.levels),
        "data.size": (old.data.size, new.data.size),
        "data.resize": (old.data.resize, new.data.resize),
        "data.crop_from": (old.data.crop_from, new.data.crop_from),
        "data.white_level": (old.data.white_level, new.data.white_level),
    }
    before, after = old.method.model_dump(), new.method.model_dump()
    for name in before.keys() & after.keys() - cls.free_on_start - {"name", "levels"}:
        pairs[f"method.{name}"] = (before[name], after[name])
    for what, (was, now) in pairs.items():
        if was != now:
            raise ConfigError(
                f"the detector to begin with has another {what}",
                where="--start",
                given=str(now),
                expected=str(was),
                hint="fit with the same options as that detector",
            )


def weights_of(start: Learnt) -> str:
    """A digest of what was learnt."""
    return fingerprint(start.models[EVERY].state_dict())
