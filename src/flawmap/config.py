"""The configuration of a run: one frozen tree, every default in one place.

Order of precedence, lowest first: the defaults here, the method's own defaults, the preset, what
`auto` chose, a YAML file, then single options (`--seed`, `--set a.b=c`). Unknown names are refused
with the nearest right one.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from copy import deepcopy
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
)

from flawmap.errors import ConfigError, nearest
from flawmap.explain import explain
from flawmap.files import as_path
from flawmap.idle import require_effect
from flawmap.quantities import rate_of
from flawmap.registry import METHODS
from flawmap.resources import DeviceName

Tree = dict[str, Any]

DEFAULT_METHOD = "patchcore"
"""The method of a configuration that is made without images to choose by."""

_PATCH = re.compile(r"_patch(\d+)")
"""In the name of a vision transformer of timm: its inputs are multiples of it."""


class Section(BaseModel):
    """Base of every configuration section: frozen, and unknown options are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class MethodConfig(Section):
    """Base of the options of a method; `name` is its name in the registry."""

    name: str

    def idle(self, encoder: str) -> dict[str, str]:
        """Options that do nothing beside the others.

        Args:
            encoder: Its name.

        Returns:
            Names to what would give them an effect, such as "method.mixer=conv".
        """
        return {}


def _method(value: Any) -> Any:
    if isinstance(value, MethodConfig):
        return value
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or "name" not in value:
        raise ConfigError("the method needs a name", where="method", given=value)
    cls = METHODS.load(str(value["name"]))
    try:
        return cls.Config.model_validate(dict(value))
    except ValidationError as error:
        raise explain(error, cls.Config, prefix="method.") from error


def _size(value: Any) -> Any:
    if isinstance(value, int):
        return (value, value)
    return value


def _off(value: Any) -> Any:
    # YAML reads the bare word off as false.
    return "off" if value is False else value


def _odd(value: int) -> int:
    if value and value % 2 == 0:
        raise ValueError(f"it must be odd, got {value}")
    return value


OFF = BeforeValidator(_off)
"""For options that take the word off."""

Odd = Annotated[int, AfterValidator(_odd)]
"""An odd number, or 0 where the option allows it."""


def _in_range(value: tuple[int, int]) -> tuple[int, int]:
    if not all(16 <= n <= 8192 for n in value):
        raise ValueError(f"height and width must lie in 16..8192 px, got {value}")
    return value


UserPath = Annotated[Path, AfterValidator(as_path)]

Size = Annotated[tuple[int, int], BeforeValidator(_size), AfterValidator(_in_range)]


class EncoderConfig(Section):
    """Which frozen network sees the images, and where its weights come from."""

    name: str = "lite0"
    """A name that `flawmap encoders` lists, any timm model name, or "none" for methods that learn
    from pixels."""
    weights: UserPath | None = None
    """A local .safetensors or .pth file, for encoders that no offline package carries."""
    sha256: str | None = None
    """Expected SHA-256 of the file that the weights are read from."""
    download: bool = False
    """Let timm fetch missing weights from the hub."""


class DataConfig(Section):
    """How an image becomes a network input."""

    size: Size = (256, 256)
    """Input (height, width) in px; one number means a square."""
    resize: Literal["stretch", "letterbox", "crop"] = "stretch"
    """stretch: ignore the aspect; letterbox: keep it and pad; crop: cut out the centre
    of `crop_from`, which hides the border."""
    crop_from: Size | None = None
    """With resize=crop: the size before the centre crop."""
    white_level: int | None = Field(default=None, ge=1, le=65535)
    """The value of white in 16-bit images (4095 for 12-bit cameras); None = 65535."""


class TrainingConfig(Section):
    """The loop. One-pass methods use the batch size, the number of images, the device, precision
    and threads, and refuse what else is named; by the time budget `--method auto` chooses what they
    keep."""

    iterations: int = Field(default=1000, ge=1)
    """Steps of an iterative method."""
    max_epochs: int | None = Field(default=None, ge=1)
    """Fewer steps where there are so few images that each would be learnt more often than this, on
    average; None = never."""
    batch_size: int = Field(default=16, ge=1)
    """Images a step, and images at a time when scoring."""
    device: DeviceName = "auto"
    """auto: a CUDA device if there is one, else the CPU."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the device computes it natively, else float32."""
    images_per_category: int | None = Field(default=None, ge=1)
    """Learn only so many good images of each category, chosen by the seed; None learns all."""
    augment: Annotated[Literal["off", "views"], OFF] = "off"
    """views: random crops, flips and colours in every step, for fits on a few images. Features are
    not kept then."""
    balance: bool = False
    """Show all categories equally often, however many images each has."""
    validation_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the images to learn that is held out to choose the best weights; 0 = none."""
    validation_images: int = Field(default=20, ge=1)
    """Never hold out more than this for a model."""
    validate_every: int | None = Field(default=500, ge=1)
    """Iterations between looks at the held-out images; None = what the method counts as an
    epoch."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many looks without a lower loss; None = never."""
    cache: Annotated[Literal["auto", "memory", "disk", "off"], OFF] = "auto"
    """Keep the frozen encoder's features between epochs: in memory if they fit, else on disk."""
    cache_memory_mib: int = Field(default=4096, ge=0)
    """The most that a cache in memory may take, in MiB."""
    cache_disk_mib: int = Field(default=32768, ge=0)
    """The most that a cache on disk may take, in MiB."""
    checkpoint_seconds: float = Field(default=60.0, gt=0)
    """Seconds between checkpoints."""
    time_budget_seconds: float | None = Field(default=None, gt=0)
    """Plan the number of iterations so that fitting ends in this time."""
    threads: int = Field(default=0, ge=0)
    """Threads that decode images and draw defects; 0 = one per core, at most 8."""


class ScoringConfig(Section):
    """From raw maps to image scores."""

    sigma: float = Field(default=4.0, ge=0)
    """Standard deviation of the Gaussian that smooths maps, in px of the network input."""
    map_size: Size | None = None
    """Bring maps to this size (height, width) before they are smoothed, as published protocols do;
    sigma, reach and opening are then in px of it. None = the size of the network input."""
    reach: int | None = Field(default=None, ge=1)
    """Cut that Gaussian off beyond so many px, as some published protocols do; None = where it is
    next to nothing."""
    borders: Literal["renormalised", "published"] = "renormalised"
    """published: upsample with aligned corners, and let the Gaussian take zeros beyond the border,
    as published code does; maps are then darker there."""
    opening: Odd = Field(default=0, ge=0, le=31)
    """Remove bright spots narrower than so many px of the network input from smoothed maps, by a
    grey opening with a disc (odd); 0 = none."""
    pooling: Literal["max", "top", "method"] = "max"
    """Image score: the map's maximum, the mean of its highest `top_fraction`, or the score that the
    method itself gives, where it gives one."""
    top_fraction: float = Field(default=0.01, gt=0, le=1)
    """With pooling=top: the share of the map's px that is averaged."""
    min_area: int = Field(default=1, ge=1)
    """Regions with fewer px of the source image are not reported."""


def _percent(value: Any) -> Any:
    return rate_of(value) if isinstance(value, str) and "%" in value else value


class CalibrationConfig(Section):
    """How the threshold is set, from good images alone."""

    false_reject_rate: Annotated[float, BeforeValidator(_percent)] = Field(default=0.01, gt=0, lt=1)
    """Share of good parts that may raise the alarm; 1% is 0.01."""
    strategy: Annotated[Literal["auto", "holdout", "leave-one-out", "off"], OFF] = "auto"
    """holdout: keep `fraction` of the good images out of the fit; the guarantee is exact.
    leave-one-out: score every good image as if it had not been learnt (where the method can).
    auto: holdout if it leaves enough images for the rate asked, else leave-one-out if possible."""
    fraction: float = Field(default=0.2, gt=0, lt=1)
    """With holdout: the share of each product's good images kept for the threshold."""


class BundleConfig(Section):
    """What the file carries."""

    embed_encoder: bool = True
    """Carry the encoder's used weights, so that the file alone scores images anywhere."""


class Config(Section):
    """Everything that decides what a fit does."""

    method: Annotated[SerializeAsAny[MethodConfig], BeforeValidator(_method)]
    encoder: EncoderConfig = EncoderConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    scoring: ScoringConfig = ScoringConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    bundle: BundleConfig = BundleConfig()
    separate: bool = False
    """One model per category instead of one for all."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    chosen: tuple[str, ...] = ()
    """Why `--method auto` chose the method and what goes with it; empty if the user named it."""


def make_config(
    *,
    method: str | None = None,
    preset: str = "cpu",
    chosen: Mapping[str, Any] | None = None,
    file: Path | Tree | None = None,
    named: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    idle: Container[str] | None = (),
) -> Config:
    """Build a configuration from all its sources.

    Args:
        method: A registered method; the file's, else the default one, when none is named.
        preset: "cpu" or "gpu", or another that the method names.
        chosen: Dotted names to values that win over the preset alone.
        file: A YAML file with the tree, or a part of it; or what `read_file` made of one.
        named: Dotted names to values, from options that have a name of their own.
        overrides: Dotted names to values, or strings "a.b=c" as in `--set`.
        idle: Names that may do nothing in this fit; None = all.

    Raises:
        ConfigError: A name or a value is wrong, or would do nothing.
    """
    tree: Tree = {}
    from_file = read_file(file) if isinstance(file, Path) else deepcopy(file or {"method": {}})
    name = method or from_file["method"].get("name", DEFAULT_METHOD)
    if name != from_file["method"].get("name", name):
        # The named method wins; the file's options belong to another one.
        del from_file["method"]
    cls = METHODS.load(name)
    if preset not in cls.presets:
        guess = nearest(preset, cls.presets)
        raise ConfigError(
            f"the method '{name}' has no preset '{preset}'",
            where="--preset",
            given=preset,
            expected=f"one of: {', '.join(sorted(cls.presets))}",
            hint=f"did you mean '{guess}'?" if guess else None,
        )
    _set(tree, "method.name", name)
    pairs = [*(named or {}).items(), *read_pairs(overrides)]
    presets = {**cls.presets[preset], **(chosen or {})}
    encoder = named_encoder(from_file, pairs) or presets.get("encoder.name")
    encoder = str(encoder or cls.defaults.get("encoder.name", ""))
    fitting = [d for p, d in cls.defaults_by_encoder.items() if fnmatch(encoder, p)]
    for source in (cls.defaults, *fitting, cls.presets[preset], chosen or {}):
        for key, value in source.items():
            _set(tree, key, value)
    if found := _PATCH.search(encoder):
        # Methods name sizes for their own encoder.
        patch = int(found[1])
        sizes = _size(tree.get("data", {}).get("size", DataConfig().size))
        _set(tree, "data.size", [max(1, round(n / patch)) * patch for n in sizes])
    training = from_file.get("training") or {}
    if "iterations" in training or any(key == "training.iterations" for key, _ in pairs):
        # Iterations that somebody names are wanted, however few the images are.
        tree.get("training", {}).pop("max_epochs", None)
    _merge(tree, from_file)
    if "chosen" in from_file or any(key.partition(".")[0] == "chosen" for key, _ in pairs):
        raise ConfigError(
            "why a method was chosen is no option", where="chosen", hint="leave it out"
        )
    for key, value in pairs:
        if key in ("method", "method.name") and value != name:
            raise ConfigError(
                "the method cannot be changed by an option: its defaults would be another's",
                where="--set",
                given=f"{key}={value}",
                hint=f"use --method {value}",
            )
        _set(tree, key, name if key == "method.name" else value)
    config = validate(tree)
    if idle is not None:
        require_effect(config, cls.kind, [*from_file.items(), *pairs], idle)
    return config


def read_file(path: Path) -> Tree:
    """The tree of a YAML file; its method is a section, with or without a name.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    tree = _read_yaml(path)
    if isinstance(tree.get("method"), str):
        tree["method"] = {"name": tree["method"]}
    if not isinstance(tree.setdefault("method", {}), dict):
        raise ConfigError(
            "the method must be a name or a section",
            where=str(path),
            given=tree["method"],
            expected="for example 'method: dinomaly'",
        )
    defaults = {n: f.get_default(call_default_factory=True) for n, f in Config.model_fields.items()}
    sections = [name for name, default in defaults.items() if isinstance(default, Section)]
    for name, value in tree.items():
        if name in sections and not isinstance(value, dict | None):
            raise ConfigError(
                f"'{name}' must be a section of options",
                where=str(path),
                given=value,
                expected=f"for example '{name}: {{...}}', see 'flawmap methods --options'",
            )
    if not isinstance(tree["method"].get("name", ""), str):
        raise ConfigError(
            "the method's name must be a word",
            where=str(path),
            given=tree["method"]["name"],
            expected="for example 'method: dinomaly'",
        )
    return tree


def named_encoder(from_file: Tree, pairs: Sequence[tuple[str, Any]]) -> str | None:
    """The encoder that a user names, in a file or by an option; the last one wins."""
    section = from_file.get("encoder")
    in_file = section.get("name") if isinstance(section, dict) else None
    given = [in_file, *(value for key, value in pairs if key == "encoder.name")]
    return next((str(name) for name in reversed(given) if name is not None), None)


def validate(tree: Mapping[str, Any]) -> Config:
    """A configuration from a plain tree, as it comes from YAML or JSON.

    Raises:
        ConfigError: Names the option, what was given and what is expected.
    """
    try:
        return Config.model_validate(dict(tree))
    except ValidationError as error:
        raise explain(error, Config) from error


def _read_yaml(path: Path) -> Tree:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("the configuration file does not exist", where=str(path)) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"the configuration file cannot be read: {error}", where=str(path)
        ) from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(
            "the configuration file must hold names and values",
            where=str(path),
            given=type(tree).__name__,
            expected="a mapping such as 'training: {iterations: 500}'",
        )
    return tree


def read_pairs(overrides: Mapping[str, Any] | Sequence[str]) -> list[tuple[str, Any]]:
    """Dotted names with values, from a mapping or from texts "a.b=c" as in `--set`.

    Raises:
        ConfigError: A text has another form.
    """
    if isinstance(overrides, Mapping):
        return list(overrides.items())
    pairs = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                "an option must have the form name=value",
                where="--set",
                given=text,
                expected="for example --set training.iterations=500",
            )
        try:
            pairs.append((key.strip(), yaml.safe_load(value)))
        except yaml.YAMLError as error:
            raise ConfigError(
                f"the value of '{key.strip()}' cannot be read", where="--set", given=text
            ) from error
    return pairs


def _set(tree: Tree, dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"'{parent}' is a value, not a section", where="--set", given=dotted)
        tree = child
    tree[last] = value


def _merge(tree: Tree, other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value
