"""Vision transformers that no offline package carries: their structure, with drawn weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from flawmap.config import EncoderConfig
from flawmap.encoders.encoder import Encoder, build
from flawmap.errors import ConfigError

LEVELS = ("blocks.1", "blocks.3")


def drawn(name: str, folder: Path) -> EncoderConfig:
    torch.manual_seed(0)
    path = folder / f"{name}.safetensors"
    state = timm.create_model(name).state_dict()
    save_file({key: value.contiguous().clone() for key, value in state.items()}, path)
    return EncoderConfig(name=name, weights=path)


def levels(encoder: Encoder, size: int) -> list[torch.Tensor]:
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return encoder.tokens(images)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "prefix", "patch", "size"),
    [
        ("vit_small_patch16_dinov3", 5, 16, 96),
        ("deit_small_distilled_patch16_224", 2, 16, 96),
        ("deit_tiny_patch16_224", 1, 16, 96),
        ("beit_base_patch16_224", 1, 16, 224),
        # Its patches are single px of what a convolutional stem gives.
        ("vit_tiny_r_s16_p8_224", 1, 32, 96),
    ],
)
def test_every_make_gives_the_stream_after_its_blocks(
    name: str, prefix: int, patch: int, size: int, tmp_path: Path
) -> None:
    config = drawn(name, tmp_path)
    encoder = build(config, LEVELS)
    assert encoder.prefix == prefix
    found = levels(encoder, size)
    places = (size // patch) ** 2
    assert [f.shape[1] for f in found] == [prefix + places] * 2
    assert len(encoder.network.blocks) == 4  # type: ignore[union-attr, arg-type]
    # The same blocks of timm's own network, watched as they work.
    options = {} if "beit" in name else {"dynamic_img_size": True}
    network = timm.create_model(name, **options).eval()
    network.load_state_dict(_state(config))
    seen: dict[int, torch.Tensor] = {}
    for index in (1, 3):
        network.blocks[index].register_forward_hook(
            lambda _m, _i, out, index=index: seen.__setitem__(index, out)
        )
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        network((images - encoder.mean) / encoder.std)
    for level, index in zip(found, (1, 3), strict=True):
        torch.testing.assert_close(level, seen[index], rtol=1e-4, atol=1e-4)


def _state(config: EncoderConfig) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    assert config.weights is not None
    return load_file(config.weights)


@pytest.mark.slow
def test_a_network_of_one_size_says_which(tmp_path: Path) -> None:
    encoder = build(drawn("beit_base_patch16_224", tmp_path), LEVELS)
    assert encoder.grid((224, 224)) == [(14, 14)] * 2
    with pytest.raises(ConfigError, match="images of one size only"):
        encoder.grid((256, 256))
