"""Encoders against independent computations, and real photographs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flawmap.config import EncoderConfig
from flawmap.encoders.encoder import (
    build,
    create,
    default_levels,
    feature_names,
    pretrained,
    resolve,
    wrap,
)
from flawmap.encoders.table import ENCODERS
from flawmap.encoders.weights import find_packaged
from flawmap.errors import ConfigError, WeightsError

# Labels of ImageNet-1k that name what each photograph shows.
PHOTOGRAPHS = {
    "cat": {281, 282, 283, 284, 285},  # tabby, tiger cat, Persian, Siamese, Egyptian
    "coffee": {967, 968, 504},  # espresso, cup, coffee mug
    "rocket": {657, 744, 812},  # missile, projectile, space shuttle
}


@pytest.mark.parametrize("name", sorted(PHOTOGRAPHS))
def test_lite0_names_photographs(name: str) -> None:
    skdata = pytest.importorskip("skimage.data")
    from PIL import Image

    image = Image.fromarray(getattr(skdata, name)()).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((224, 224), 3)
    spec = resolve("lite0")
    network = pretrained(spec, EncoderConfig(name="lite0"))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    mean, std = torch.tensor(spec.mean).view(1, 3, 1, 1), torch.tensor(spec.std).view(1, 3, 1, 1)
    with torch.inference_mode():
        logits = network((pixels - mean) / std)
    assert int(logits.argmax()) in PHOTOGRAPHS[name]


@pytest.mark.parametrize("name", ["lite0", "lite1", "lite2"])
def test_the_cut_folded_network_gives_what_the_whole_one_gives(name: str) -> None:
    encoder = build(EncoderConfig(name=name), ["blocks.2", "blocks.4"])
    network = pretrained(resolve(name), EncoderConfig(name=name))
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        levels = encoder(images)
        x = network.bn1(network.conv_stem((images - encoder.mean) / encoder.std))
        expected = []
        for index, block in enumerate(network.blocks[:5]):
            x = block(x)
            if index in (2, 4):
                expected.append(x)
    for level, wanted in zip(levels, expected, strict=True):
        torch.testing.assert_close(level, wanted, rtol=1e-3, atol=2e-3)
    assert [tuple(v.shape[-2:]) for v in levels] == encoder.grid((96, 64)) == [(12, 8), (6, 4)]
    assert len(encoder.blocks) == 5


@pytest.mark.slow
def test_the_vit_gives_what_its_package_computes() -> None:
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    spec = ENCODERS["vit-s14"]
    path = find_packaged(spec)
    assert path is not None
    model = onnx.load(str(path))
    last = next(n for n in model.graph.node if n.name.startswith("/backbone/layernorm/")).input[0]
    embedded = "/backbone/embeddings/Add_output_0"
    for name in (embedded, last):
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    tokens, wanted = session.run([embedded, last], {session.get_inputs()[0].name: image})
    encoder = build(EncoderConfig(name="vit-s14"), [f"blocks.{i}" for i in range(12)])
    x = torch.from_numpy(tokens)
    with torch.inference_mode():
        for block in encoder.network.blocks:
            x = block(x)
    assert np.abs(x.numpy() - wanted).max() < 1e-3


def test_a_vit_computes_no_block_that_nobody_asked_for() -> None:
    encoder = build(EncoderConfig(name="vit-s14"), ["blocks.1", "blocks.3"])
    assert len(encoder.network.blocks) == 4
    images = torch.rand(1, 3, 56, 42, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        levels = encoder(images)
        tokens = encoder.tokens(images)
    assert [tuple(v.shape) for v in levels] == [(1, 384, 4, 3)] * 2
    assert tuple(tokens[0].shape) == (1, 1 + 12, 384)
    # The map's row-major order is the tokens' order.
    torch.testing.assert_close(levels[0][0, :, 1, 2], tokens[0][0, 1 + 1 * 3 + 2])


def test_a_size_that_does_not_fit_the_patches_is_refused() -> None:
    encoder = build(EncoderConfig(name="vit-s14"), ["blocks.0"])
    with pytest.raises(ConfigError, match="multiples of 14"):
        encoder.grid((256, 256))


def test_a_local_file_is_checked_by_its_sha256(tmp_path: Path) -> None:
    network = pretrained(resolve("lite0"), EncoderConfig(name="lite0"))
    path = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    encoder = build(EncoderConfig(name="lite0", weights=path, sha256=right), ["blocks.2"])
    assert encoder.fingerprint == build(EncoderConfig(name="lite0"), ["blocks.2"]).fingerprint
    with pytest.raises(WeightsError, match="not the expected one"):
        build(EncoderConfig(name="lite0", weights=path, sha256="0" * 64), ["blocks.2"])
    with pytest.raises(WeightsError, match="does not exist"):
        build(EncoderConfig(name="lite0", weights=tmp_path / "none.pth"), ["blocks.2"])


def test_a_package_is_checked_by_its_sha256() -> None:
    path = find_packaged(ENCODERS["lite0"])
    assert path is not None
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert build(EncoderConfig(name="lite0", sha256=right), ["blocks.0"]).channels == (16,)
    with pytest.raises(WeightsError, match="not the expected one"):
        build(EncoderConfig(name="lite0", sha256="0" * 64), ["blocks.0"])


def test_a_checksum_of_a_download_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.sha256"):
        build(EncoderConfig(name="resnet10t", sha256="0" * 64, download=True), ["layer1"])


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_any_timm_network_loads_a_file_of_the_whole_network(name: str, tmp_path: Path) -> None:
    import timm

    network = timm.create_model(name)
    path = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    encoder = build(EncoderConfig(name=name, weights=path))
    assert len(encoder.levels) == 2
    with torch.inference_mode():
        levels = encoder(torch.rand(1, 3, 64, 64))
    assert [tuple(v.shape[-2:]) for v in levels] == encoder.grid((64, 64))
    assert [v.shape[1] for v in levels] == list(encoder.channels)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "mambaout_femto"])
def test_levels_have_their_channels_first_also_where_the_network_has_them_last(name: str) -> None:
    spec = resolve(name)
    levels = feature_names(spec)[:2]
    network = create(spec, levels)
    encoder = wrap(spec, network, levels)
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = encoder(images)
        wanted = network((images - encoder.mean) / encoder.std)
    assert [v.shape[1] for v in found] == list(encoder.channels)
    assert [tuple(v.shape[-2:]) for v in found] == encoder.grid((224, 224)) == [(56, 56), (28, 28)]
    torch.testing.assert_close(found[1][0, 3], wanted[1][0, :, :, 3])
    if name.startswith("swin"):
        with pytest.raises(ConfigError, match="one size only") as caught:
            encoder.grid((256, 256))
        assert caught.value.expected == "(224, 224), the nearest that fits"
    else:
        assert encoder.grid((256, 256)) == [(64, 64), (32, 32)]


def test_a_network_whose_levels_are_sequences_is_refused() -> None:
    spec = resolve("resnet10t")
    network = create(spec, ["layer1"])
    network.output_fmt = "NLC"
    with pytest.raises(ConfigError, match="no height and width"):
        wrap(spec, network, ["layer1"])


def test_a_network_is_laid_out_once_to_know_its_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    made = []
    create_model = timm.create_model

    def counted(name: str, **options: object) -> object:
        made.append(name)
        return create_model(name, **options)

    monkeypatch.setattr(timm, "create_model", counted)
    resolve.cache_clear()
    feature_names.cache_clear()
    for _ in range(3):
        assert default_levels(resolve("resnet10t")) == ("layer2", "layer3")
    assert made == ["resnet10t"] * 2


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"something": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match="lack"):
        build(EncoderConfig(name="lite0", weights=path), ["blocks.2"])
    path.write_bytes(b"no weights at all")
    with pytest.raises(WeightsError, match="cannot be read"):
        build(EncoderConfig(name="lite0", weights=path), ["blocks.2"])


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "pwned",))  # type: ignore[return-value]

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="cannot be read"):
        build(EncoderConfig(name="lite0", weights=tmp_path / "evil.pth"), ["blocks.2"])
    assert not (tmp_path / "pwned").exists()


def test_missing_weights_say_how_to_get_them() -> None:
    with pytest.raises(WeightsError) as caught:
        build(EncoderConfig(name="dinov2-small"))
    text = str(caught.value)
    assert "vit_small_patch14_reg4_dinov2" in text
    assert "dinov2-small.safetensors" in text
    assert "encoder.download=true" in text


def test_a_folder_of_weights_has_them_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm
    from safetensors.torch import save_file
    from torch import nn

    monkeypatch.setenv("FLAWMAP_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match="FLAWMAP_WEIGHTS"):
        build(EncoderConfig(name="resnet18"), ["layer1"])
    network: nn.Module = timm.create_model("resnet18")
    save_file(network.state_dict(), tmp_path / "resnet18.safetensors")
    found = build(EncoderConfig(name="resnet18"), ["layer1"])
    torch.testing.assert_close(found.network.conv1.weight, network.conv1.weight)
    with pytest.raises(WeightsError, match="not the expected one"):
        build(EncoderConfig(name="resnet18", sha256="0" * 64), ["layer1"])
    # An encoder with a package of its own takes that.
    (tmp_path / "lite0.pth").write_bytes(b"no weights")
    build(EncoderConfig(name="lite0"), ["blocks.0"])
    monkeypatch.setenv("FLAWMAP_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(WeightsError, match="folder of weights does not exist"):
        build(EncoderConfig(name="resnet18"), ["layer1"])


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'lite0'"):
        build(EncoderConfig(name="lite00"))
    with pytest.raises(ConfigError, match=r"did you mean 'blocks\.2'"):
        build(EncoderConfig(name="lite0"), ["blocks.22"])


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_the_table_tells_the_truth_about_parameters(name: str) -> None:
    import timm

    spec = ENCODERS[name]
    with torch.device("meta"):
        network = timm.create_model(spec.timm_name)
    assert sum(p.numel() for p in network.parameters()) == spec.parameters


def test_the_fingerprint_changes_with_a_weight() -> None:
    encoder = build(EncoderConfig(name="lite0"), ["blocks.0"])
    from flawmap.encoders.encoder import fingerprint

    state = {k: v.clone() for k, v in encoder.state_dict().items()}
    assert fingerprint(state) == encoder.fingerprint
    name = next(iter(state))
    state[name] = state[name] * 1.000001
    assert fingerprint(state) != encoder.fingerprint


def test_no_encoder_has_no_levels_and_no_weights() -> None:
    encoder = build(EncoderConfig(name="none"))
    assert (encoder.levels, encoder.channels, encoder.grid((64, 64))) == ((), (), [])
    assert encoder(torch.zeros(1, 3, 64, 64)) == []
    assert dict(encoder.state_dict()) == {}
    # What a bundle without an encoder gives back.
    assert build(EncoderConfig(name="none"), (), state={}).fingerprint == encoder.fingerprint
