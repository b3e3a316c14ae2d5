"""A frozen network that gives feature levels, and computes no block that nobody asked for.

Levels are named by their place in timm's network: `blocks.2` is the third block of a ViT or the
third stage of an EfficientNet, `layer2` the second stage of a ResNet. Batch normalisations are
folded into the convolutions before them, which changes features by rounding only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import timm
import torch
from timm.layers.format import Format
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from flawmap.config import EncoderConfig
from flawmap.encoders import weights as weight_files
from flawmap.encoders.table import EncoderSpec, find_spec
from flawmap.errors import ConfigError, WeightsError, nearest, unknown_name, wrong_size

_VITS = ("VisionTransformer", "VisionTransformerDistilled", "Eva", "Beit")
"""timm's classes of networks whose blocks all work on one grid of tokens."""


class Encoder(nn.Module):
    """Base of frozen encoders: images in [0, 1] to feature levels.

    Attributes:
        spec: What is known of the network.
        levels: Names of the levels given, in order.
        channels: Channels of each level.
        strides: Input px per feature px, of each level.
        prefix: Tokens before the patches (cls and registers); 0 for convolutional networks.
        has_cls: Whether the first of them is a cls token.
        fingerprint: SHA-256 over the weights in use, by name.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    prefix: int = 0
    has_cls: bool = False
    mean: Tensor
    std: Tensor

    def __init__(self, spec: EncoderSpec, levels: Sequence[str]) -> None:
        super().__init__()
        self.spec = spec
        self.levels = tuple(levels)
        self.fingerprint = ""
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    def grid(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(h, w) of each level for an input of `size` px."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Evaluation mode, no gradients, and the fingerprint of what is in use."""
        self.eval()
        self.requires_grad_(False)
        self.fingerprint = fingerprint(self.state_dict())

    def train(self, mode: bool = True) -> Encoder:
        """Stays in evaluation mode: the encoder is frozen."""
        return super().train(False)


class ViTEncoder(Encoder):
    """A timm vision transformer, cut after the last block that is asked for.

    Levels are the residual stream after their blocks; the final normalisation is not applied.
    """

    def __init__(self, spec: EncoderSpec, network: Any, levels: Sequence[str]) -> None:
        super().__init__(spec, levels)
        depth = len(network.blocks)
        self._taps = [_block_index(name, depth, spec.name) for name in levels]
        network.blocks = network.blocks[: max(self._taps) + 1]
        for name in ("norm", "fc_norm", "head", "head_drop"):
            if hasattr(network, name):
                setattr(network, name, nn.Identity())
        self.network = network
        self.prefix = int(network.num_prefix_tokens)
        self.has_cls = getattr(network, "cls_token", None) is not None
        self.channels = (int(network.embed_dim),) * len(self._taps)
        # Not its patch size: behind a convolutional stem that is 1.
        self.patch = int(network.patch_embed.feat_ratio())
        self.strides = (self.patch,) * len(self._taps)

    def grid(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        if size[0] % self.patch or size[1] % self.patch:
            height, width = (max(1, round(n / self.patch)) * self.patch for n in size)
            raise wrong_size(
                f"the encoder '{self.spec.name}' needs sizes that are multiples of {self.patch} px",
                size,
                (height, width),
            )
        return [(size[0] // self.patch, size[1] // self.patch)] * len(self._taps)

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Levels as sequences, (B, prefix + h * w, C) each.

        Args:
            images: (B, 3, H, W) float32, RGB in [0, 1].
        """
        network = self.network
        x = network.patch_embed((images - self.mean) / self.std)
        x = network.norm_pre(network.patch_drop(network._pos_embed(x)))
        found: dict[int, Tensor] = {}
        for index, block in enumerate(network.blocks):
            x = block(x)
            if index in self._taps:
                found[index] = x
        return [found[index] for index in self._taps]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Levels without their prefix tokens, (B, C, h, w) each."""
        h, w = images.shape[-2] // self.patch, images.shape[-1] // self.patch
        return [
            t[:, self.prefix :].transpose(1, 2).reshape(len(images), t.shape[-1], h, w)
            for t in self.tokens(images)
        ]


class TimmViTEncoder(ViTEncoder):
    """Vision transformers of other makes (EVA and with it DINOv3, BEiT, distilled DeiT), read
    through timm's own interface for intermediate layers."""

    def __init__(self, spec: EncoderSpec, network: Any, levels: Sequence[str]) -> None:
        super().__init__(spec, network, levels)
        # Relative positions are made for one size; others are interpolated to any.
        dynamic = getattr(network, "dynamic_img_size", False)
        self._fixed = None if dynamic else tuple(network.patch_embed.img_size)

    def grid(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        _require_size(self.spec, size, self._fixed)
        return super().grid(size)

    def tokens(self, images: Tensor) -> list[Tensor]:
        found = self.network.forward_intermediates(
            (images - self.mean) / self.std,
            indices=sorted(set(self._taps)),
            return_prefix_tokens=bool(self.prefix),
            norm=False,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        parts = [f if isinstance(f, tuple) else (f, f[:, :0]) for f in found]
        whole = [torch.cat([prefix, patches], dim=1) for patches, prefix in parts]
        return [whole[sorted(set(self._taps)).index(tap)] for tap in self._taps]


class EfficientNetEncoder(Encoder):
    """A timm EfficientNet, cut after the last stage that is asked for."""

    def __init__(self, spec: EncoderSpec, network: Any, levels: Sequence[str]) -> None:
        super().__init__(spec, levels)
        depth = len(network.blocks)
        self._taps = [_block_index(name, depth, spec.name) for name in levels]
        self.stem = nn.Sequential(network.conv_stem, network.bn1)
        self.blocks = nn.ModuleList(list(network.blocks)[: max(self._taps) + 1])
        _fold_batch_norm(self)
        self.to(memory_format=torch.channels_last)
        self.eval()
        with torch.no_grad():
            probe = self(torch.zeros(1, 3, 64, 64))
        self.channels = tuple(int(level.shape[1]) for level in probe)
        self.strides = tuple(64 // int(level.shape[2]) for level in probe)

    def grid(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        return [(-(-size[0] // s), -(-size[1] // s)) for s in self.strides]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Levels, (B, C, h, w) each."""
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        x = self.stem(x)
        found: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self._taps:
                found[index] = x
        return [found[index] for index in self._taps]


class FeaturesEncoder(Encoder):
    """Any other timm network, through its own table of feature levels.

    Raises:
        ConfigError: Its levels are no images of features.
    """

    def __init__(
        self, spec: EncoderSpec, network: Any, levels: Sequence[str], names: Sequence[str]
    ) -> None:
        super().__init__(spec, levels)
        self._channels_last = channels_last(spec, network)
        # Windows of a Swin are laid out for one size.
        embed: Any = getattr(network, "patch_embed", None)
        strict = getattr(embed, "strict_img_size", False) and embed.img_size is not None
        self._fixed = tuple(embed.img_size) if strict else None
        self._picks = [list(names).index(level) for level in levels]
        self.network = network
        info = network.feature_info
        channels, reductions = info.channels(), info.reduction()
        self.channels = tuple(channels[pick] for pick in self._picks)
        self.strides = tuple(reductions[pick] for pick in self._picks)
        self.to(memory_format=torch.channels_last)

    def grid(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        _require_size(self.spec, size, self._fixed)
        return [(-(-size[0] // s), -(-size[1] // s)) for s in self.strides]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Levels, (B, C, h, w) each."""
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return picked(self.network(x), self._picks, self._channels_last)


class NoEncoder(Encoder):
    """Stands where a method that learns from pixels has no encoder: no levels, no weights."""

    channels = ()
    strides = ()

    def grid(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        return []

    def forward(self, images: Tensor) -> list[Tensor]:
        """No levels."""
        return []


@cache
def resolve(name: str) -> EncoderSpec:
    """The spec of an encoder's name or of any timm name.

    Raises:
        ConfigError: Neither flawmap nor timm knows the name.
    """
    spec = find_spec(name)
    if spec is not None:
        return spec
    if not timm.is_model(name):
        from flawmap.encoders.table import ENCODERS

        error = unknown_name("encoder", name, ENCODERS, where="encoder.name")
        guess = nearest(name, [*ENCODERS, *timm.list_models()])
        error.expected = f"one of: {', '.join(sorted(ENCODERS))}, or any timm model name"
        error.hint = f"did you mean '{guess}'?" if guess else None
        raise error
    config: Any = timm.get_pretrained_cfg(name)
    with torch.device("meta"):
        network = timm.create_model(name)
    kind = type(network).__name__
    family = "vit" if kind in _VITS else "efficientnet" if kind == "EfficientNet" else "other"
    return EncoderSpec(
        name=name,
        timm_name=name,
        family=family,  # type: ignore[arg-type]
        mean=tuple(config.mean),
        std=tuple(config.std),
        parameters=sum(p.numel() for p in network.parameters()),
        depth=len(network.blocks) if family == "vit" else 12,  # type: ignore[arg-type]
        licence=config.license or "",
        note="any timm network; weights from a file or the hub",
    )


def build(
    config: EncoderConfig,
    levels: Sequence[str] | None = None,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> Encoder:
    """A frozen encoder with its weights.

    Args:
        config: Which network, and where its weights come from.
        levels: The levels wanted; the family's usual ones by default.
        state: Weights that a bundle carries; then no file is looked for.

    Raises:
        ConfigError: Unknown encoder or level.
        WeightsError: The weights are missing, or are not the ones asked for.
    """
    spec = resolve(config.name)
    if spec.family == "none":
        nothing = NoEncoder(spec, ())
        nothing.freeze()
        return nothing
    picked = tuple(levels) if levels else default_levels(spec)
    if state is not None:
        encoder = wrap(spec, create(spec, picked), picked)
        _load(encoder, state, "bundle")
    else:
        network = pretrained(spec, config, picked)
        encoder = wrap(spec, network, picked)
    encoder.freeze()
    return encoder


def middle_blocks(depth: int) -> tuple[str, ...]:
    """Eight blocks in the middle of a ViT, as Dinomaly's papers choose them; fewer of a small one.

    Example:
        >>> middle_blocks(12)[0], middle_blocks(12)[-1], middle_blocks(24)[1], middle_blocks(24)[-1]
        ('blocks.2', 'blocks.9', 'blocks.6', 'blocks.18')
    """
    return tuple(dict.fromkeys(f"blocks.{depth * i // 12}" for i in range(2, 10)))


def default_levels(spec: EncoderSpec) -> tuple[str, ...]:
    """The levels that a family is usually read at."""
    if spec.family == "none":
        return ()
    if spec.family == "efficientnet":
        return ("blocks.2", "blocks.4")
    if spec.family == "vit":
        return middle_blocks(spec.depth)
    return feature_names(spec)[-3:-1]


def pretrained(spec: EncoderSpec, config: EncoderConfig, levels: Sequence[str] = ()) -> Any:
    """timm's own network with pretrained weights, offline unless `config.download`.

    Raises:
        ConfigError: A checksum is given for weights that would be downloaded.
        WeightsError: The weights are missing, or are not the ones asked for.
    """
    network = create(spec, levels)
    file = weight_files.locate(spec, config.weights, config.sha256)
    if file is not None:
        state = weight_files.read(spec, file, network.state_dict())
        _load(network, state, str(file.path))
        return network
    if not config.download:
        raise weight_files.missing(spec)
    if config.sha256 is not None:
        raise ConfigError(
            "weights that timm fetches are not checked by their checksum",
            where="encoder.sha256",
            given=config.sha256,
            hint="fetch the file once and name it with encoder.weights, or leave the checksum out",
        )
    try:
        return create(spec, levels, fetch=True)
    except Exception as error:  # The hub's client raises many kinds of errors.
        raise weight_files.missing(spec, cause=error) from error


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values of a state dictionary."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu()
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.reshape(-1).clone().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def create(spec: EncoderSpec, levels: Sequence[str], *, fetch: bool = False) -> Any:
    """timm's own network, whole or up to the last level; with drawn weights unless `fetch`.

    Raises:
        ConfigError: A level of a network of the family "other" is unknown.
    """
    options: dict[str, Any] = {"pretrained": fetch}
    if spec.family == "vit":
        # BEiT's relative positions are made for one size.
        make = timm.model_entrypoint(spec.timm_name.partition(".")[0])
        if not make.__module__.endswith(".beit"):
            options["dynamic_img_size"] = True
        if spec.reader == "onnx-dinov2" or "dinov2" in spec.timm_name:
            options["img_size"] = 518
    elif spec.family == "other":
        names = feature_names(spec)
        unknown = [level for level in levels if level not in names]
        if unknown:
            raise unknown_name("level", unknown[0], names, where=f"encoder {spec.name}")
        options["features_only"] = True
        options["out_indices"] = tuple(range(max(names.index(v) for v in levels) + 1))
    return timm.create_model(spec.timm_name, **options).eval()


@cache
def feature_names(spec: EncoderSpec) -> tuple[str, ...]:
    """The levels of a convolutional network, finest first: the last one of each grid."""
    with torch.device("meta"):
        network: Any = timm.create_model(spec.timm_name, features_only=True)
    return tuple(str(name) for name in network.feature_info.module_name())


def channels_last(spec: EncoderSpec, network: Any) -> bool:
    """Whether the levels of a network of the family "other" are (B, h, w, C).

    Raises:
        ConfigError: They are no images of features.
    """
    form = Format(getattr(network, "output_fmt", Format.NCHW))
    if form not in (Format.NCHW, Format.NHWC):
        raise ConfigError(
            f"the levels of the encoder '{spec.name}' have no height and width",
            where="encoder.name",
            given=f"levels of the form {form.value}",
            expected=f"{Format.NCHW.value} or {Format.NHWC.value}",
            hint="use another encoder: 'flawmap encoders' lists some",
        )
    return form is Format.NHWC


def picked(found: Sequence[Tensor], picks: Sequence[int], last: bool) -> list[Tensor]:
    """Some of a network's levels, (B, C, h, w) each.

    Args:
        found: All levels that it gives.
        picks: Which of them.
        last: Whether they are (B, h, w, C).
    """
    levels = [found[pick] for pick in picks]
    return [level.permute(0, 3, 1, 2) for level in levels] if last else levels


def wrap(spec: EncoderSpec, network: Any, levels: Sequence[str]) -> Encoder:
    """An encoder around timm's own network, which it cuts after the last level; not yet frozen."""
    if spec.family == "vit":
        plain = type(network).__name__ == "VisionTransformer"
        return (ViTEncoder if plain else TimmViTEncoder)(spec, network, levels)
    if spec.family == "efficientnet":
        return EfficientNetEncoder(spec, network, levels)
    return FeaturesEncoder(spec, network, levels, feature_names(spec))


def _load(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    try:
        result = network.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise WeightsError(f"the weights do not fit the network: {error}", where=where) from error
    absent = [k for k in result.missing_keys if not k.endswith("num_batches_tracked")]
    if absent or result.unexpected_keys:
        raise WeightsError(
            "the weights do not fit the network",
            where=where,
            given=f"unexpected: {list(result.unexpected_keys)[:3]}, missing: {absent[:3]}",
        )


def _require_size(spec: EncoderSpec, size: tuple[int, int], fixed: tuple[int, ...] | None) -> None:
    """Refuses a size where the network takes one other alone."""
    if fixed is not None and tuple(size) != fixed:
        height, width = fixed
        message = f"the encoder '{spec.name}' takes images of one size only"
        raise wrong_size(message, size, (height, width))


def _block_index(name: str, depth: int, encoder: str) -> int:
    kind, _, number = name.partition(".")
    if kind != "blocks" or not number.isdecimal() or int(number) >= depth:
        raise unknown_name(
            "level", name, [f"blocks.{i}" for i in range(depth)], where=f"encoder {encoder}"
        )
    return int(number)


def _fold_batch_norm(module: nn.Module) -> None:
    """Fold every BatchNormAct2d into the convolution that stands just before it."""
    previous: tuple[nn.Module, str, nn.Conv2d] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            previous = (module, name, child)
        elif isinstance(child, BatchNormAct2d) and previous is not None:
            conv = previous[2]
            assert child.running_mean is not None
            assert child.running_var is not None
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight,
                conv.bias,
                child.running_mean,
                child.running_var,
                child.eps,
                child.weight,
                child.bias,
            )
            setattr(module, name, nn.Sequential(child.drop, child.act))
            previous = None
        else:
            previous = None
            _fold_batch_norm(child)
