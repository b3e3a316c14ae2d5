"""Options that a user names and that would do nothing beside the others are refused.

Defaults, presets and stored configurations may hold such options: nobody expects anything of them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal

from flawmap.errors import ConfigError

if TYPE_CHECKING:
    from flawmap.config import Config

Kind = Literal["iterative", "one-pass"]

_ONE_PASS = frozenset(
    {
        *("batch_size", "images_per_category", "device", "precision", "threads"),
        # What auto plans by.
        "time_budget_seconds",
    }
)
"""Options of the training that one-pass methods follow."""


def require_effect(
    config: Config,
    kind: Kind,
    given: Iterable[tuple[str, Any]],
    excused: Container[str] = (),
) -> None:
    """Every option that somebody named does something.

    Args:
        config: The whole configuration.
        kind: Of its method.
        given: Dotted names and values, which may be sections. Where null, false or off stands,
            nothing is asked for.
        excused: Names that may do nothing.

    Raises:
        ConfigError: One does nothing beside the others.
    """
    needs = idle(config, kind)
    for name in leaves(given):
        if name not in needs or name in excused:
            continue
        value: Any = reduce(getattr, name.split("."), config)
        if value not in (None, False, "off"):
            raise ConfigError(
                f"in this fit with {config.method.name} the option does nothing: it needs "
                f"{needs[name]}",
                where=name,
                given=value,
                hint=f"leave it out, or fit with {needs[name]}",
            )


def leaves(pairs: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """The dotted names of options, those inside sections too."""
    for name, value in pairs:
        if isinstance(value, Mapping):
            yield from leaves((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            yield name


def idle(config: Config, kind: Kind) -> dict[str, str]:
    """Options without effect, by their dotted names, and what would give them one."""
    training, scoring = config.training, config.scoring
    found = {f"method.{n}": why for n, why in config.method.idle(config.encoder.name).items()}
    if kind == "one-pass":
        others = sorted(type(training).model_fields.keys() - _ONE_PASS)
        found |= {f"training.{name}": "an iterative method" for name in others}
    else:
        if not training.validation_fraction:
            for name in ("validation_images", "validate_every"):
                found[f"training.{name}"] = "training.validation_fraction above 0"
        if training.augment != "off":
            for name in ("cache", "cache_memory_mib", "cache_disk_mib"):
                found[f"training.{name}"] = "training.augment=off"
        else:
            for name, other in (("memory", "disk"), ("disk", "memory")):
                if training.cache in ("off", other):
                    found[f"training.cache_{name}_mib"] = f"training.cache=auto or {name}"
    if scoring.pooling != "top":
        found["scoring.top_fraction"] = "scoring.pooling=top"
    if not scoring.sigma:
        found["scoring.reach"] = "scoring.sigma above 0"
    if config.calibration.strategy in ("off", "leave-one-out"):
        found["calibration.fraction"] = "calibration.strategy=auto or holdout"
    return found
