"""MKD's parts against hand computations, finite differences and loops over single images."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import flawmap
from flawmap.config import EncoderConfig
from flawmap.data import read_data
from flawmap.encoders.encoder import Encoder, FeaturesEncoder, build, create, resolve, wrap
from flawmap.errors import ConfigError
from flawmap.evaluation import Evaluation, ImageResult
from flawmap.methods.layers.cloner import Cloner, Stage, plan_cloner, relu
from flawmap.methods.mkd import MKD, MKDConfig, distances
from flawmap.metrics.catalog import info


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


VGG16 = ((128, 256, 512, 512), (4, 8, 16, 32))
"""Channels and strides of the last four pools."""


@pytest.fixture(scope="module")
def conv() -> Encoder:
    return build(EncoderConfig(name="lite0"), ["blocks.1", "blocks.2", "blocks.4"])


@pytest.fixture(scope="module")
def vgg() -> Encoder:
    """A VGG of 11 layers with drawn weights."""
    spec = resolve("vgg11")
    levels = MKD.default_levels(spec)
    with torch.device("meta"):
        network = create(spec, levels)
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1, generator=generator)
        else:
            nn.init.kaiming_normal_(parameter, generator=generator)
    encoder = wrap(spec, network, levels)
    encoder.freeze()
    return encoder


def make(encoder: Encoder, size: int = 64, **options: object) -> MKD:
    config = MKDConfig.model_validate(
        {
            **{"name": "mkd", "terms": "both", "value_weight": 0.5, "score": "whole"},
            **{"attribution": "gradients", **options},
        }
    )
    method = MKD.build(config, encoder, (size, size), torch.Generator().manual_seed(0)).train()
    with torch.no_grad():
        for seed in range(20):
            # Means and variances as after some training: fresh ones would let activations die out.
            method._clone(rand(2, 3, size, size, seed=seed))
    return method.eval()


def stages(*, equal: bool = False) -> tuple[Stage, ...]:
    return plan_cloner(*VGG16, 16, equal=equal)[1]


def test_the_smaller_cloner_of_vgg16_is_the_published_one() -> None:
    found = stages()
    assert [s.widths for s in found] == [
        *((16, 16), (16, 128), (16, 16, 256), (16, 16, 512), (16, 16, 512))
    ]
    assert all(s.pool for s in found)
    assert [s.critical for s in found] == [False, True, True, True, True]
    cloner = Cloner(found, (True,) * 4)
    assert sum(p.numel() for p in cloner.parameters()) == 343_984
    kinds = [type(layer).__name__ for stage in cloner.stages for layer in stage]
    inner, last = ["Conv2d", "BatchNorm2d", "ReLU"], ["Conv2d", "ReLU", "MaxPool2d"]
    assert kinds == 2 * (inner + last) + 3 * (inner + inner + last)


def test_of_a_vgg16_that_cloner_is_built_by_default() -> None:
    spec = resolve("vgg16")
    levels = MKD.default_levels(spec)
    assert levels == ("features.8", "features.15", "features.22", "features.29")
    # Its structure alone: no weight is looked at.
    with torch.device("meta"):
        network = create(spec, levels)
    encoder = wrap(spec, network, levels)
    method = MKD.build(MKDConfig(), encoder, (128, 128), torch.Generator().manual_seed(0))
    assert (method.pools, method.scale) == ((True,) * 4, 1)
    assert sum(p.numel() for p in method.parameters()) == 343_984
    assert [c.shape[1:] for c in method._clone(rand(2, 3, 128, 128))] == [
        *((128, 32, 32), (256, 16, 16), (512, 8, 8), (512, 4, 4))
    ]


def test_the_preset_paper_is_the_published_form() -> None:
    config = flawmap.configure(method="mkd", preset="paper")
    assert (config.encoder.name, config.data.size) == ("vgg16", (128, 128))
    training = config.training
    assert (training.max_epochs, training.batch_size, training.augment) == (601, 64, "off")
    assert training.iterations * 64 > 601 * 10_000
    assert (config.scoring.sigma, config.scoring.opening) == (4.0, 3)
    assert (config.scoring.pooling, config.calibration.strategy) == ("method", "off")
    published = {
        **{"terms": "both", "value_weight": 0.5, "learning_rate": 1e-3},
        **{"cloner": "smaller", "width": 16, "levels": None},
        # Four layers teach, the last three of them score.
        **{"critical_layers": None, "scored_layers": 3},
        **{"normalise_input": False, "attribution": "gradients", "map_scale": "image"},
        "score": "whole",
    }
    found = config.method.model_dump()
    assert {name: found[name] for name in published} == published


def test_the_equal_cloner_has_vgg16_s_own_widths() -> None:
    found = stages(equal=True)
    widths = [width for stage in found for width in stage.widths]
    assert widths == [64, 64, 128, 128, *[256] * 3, *[512] * 6]
    cloner = Cloner(found, (True,) * 4)
    # VGG16's convolutions without biases, and a scale and a shift for each inner channel.
    assert sum(p.numel() for p in cloner.parameters()) == 14_710_464 + 2 * 2752


def test_of_an_efficientnet_no_layer_is_narrower_than_the_smaller_cloner_s() -> None:
    _, found = plan_cloner((40, 112, 192, 320), (8, 16, 16, 32), 16, equal=True)
    assert [s.widths for s in found] == [
        *((16, 16), (20, 20), (40, 40, 40), (112, 112, 112), (192, 192, 192), (320, 320, 320))
    ]


def test_a_level_with_negative_values_is_copied_behind_its_pool() -> None:
    found = plan_cloner((24, 40), (4, 8), 16)[1]
    kinds = [
        [type(layer).__name__ for layer in stage]
        for stage in Cloner(found, (False, True), published=False).stages
    ]
    inner = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds == [
        # The first convolution takes every second px.
        [*inner, "Conv2d", "ReLU"],
        [*inner, "MaxPool2d", "Conv2d"],
        [*inner, *inner, "Conv2d", "ReLU", "MaxPool2d"],
    ]


def test_normalisations_are_part_of_the_convolutions_in_evaluation(conv: Encoder) -> None:
    method = make(conv)
    for module in method.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(1))
            nn.init.normal_(module.bias, generator=torch.Generator().manual_seed(2))
    x, wanted = rand(2, 3, 64, 64), []
    found = method.cloner(x)
    with torch.no_grad():
        for stage in method.cloner.stages:
            x = stage(x)
            wanted.append(x)
    critical = [w for w, c in zip(wanted, method.cloner.critical, strict=True) if c]
    for a, b in zip(found, critical, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cloner", ["smaller", "equal"])
def test_no_convolution_has_a_bias(conv: Encoder, cloner: str) -> None:
    convolutions = [m for m in make(conv, cloner=cloner).modules() if isinstance(m, nn.Conv2d)]
    assert convolutions
    assert all(m.bias is None and m.kernel_size == (3, 3) for m in convolutions)


def test_the_cloner_copies_widths_and_grids(conv: Encoder) -> None:
    method = make(conv, size=72)
    images = rand(2, 3, 72, 72)
    clones = method._clone(images)
    assert [c.shape for c in clones] == [s.shape for s in conv(images)]
    # Levels of an EfficientNet are no outputs of a ReLU.
    assert all(float(c.detach().min()) < 0 for c in clones)


def test_a_vit_s_levels_lie_on_one_grid() -> None:
    levels = ["blocks.1", "blocks.3"]
    vit = build(EncoderConfig(name="vit-s14"), levels)
    method = make(vit, size=56)
    assert method.scale == 16 / 14
    clones = method._clone(rand(1, 3, 56, 56))
    assert [c.shape for c in clones] == [s.shape for s in vit(rand(1, 3, 56, 56))]
    assert [s.pool for s in plan_cloner((8, 8), (14, 14), 16)[1]] == [True] * 4 + [False]


def test_a_vgg_is_copied_at_its_last_four_pools(vgg: Encoder) -> None:
    assert vgg.levels == ("features.4", "features.9", "features.14", "features.19")
    method = make(vgg)
    images = rand(2, 3, 64, 64)
    assert isinstance(vgg, FeaturesEncoder)
    x, pools = (images - vgg.mean) / vgg.std, []
    with torch.no_grad():
        for layer in vgg.network.children():
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                pools.append(x.clone())
        # timm cuts off what follows the last level asked for, the last pool among it.
        pools.append(nn.functional.max_pool2d(x, 2))
        found = method._source(images)
    assert len(pools) == 5
    for level, pool in zip(found, pools[1:], strict=True):
        torch.testing.assert_close(level, pool)
    assert [c.shape for c in method._clone(images)] == [p.shape for p in pools[1:]]
    assert all(float(c.detach().min()) == 0 for c in method._clone(images))


def test_published_inputs_are_not_normalised(vgg: Encoder) -> None:
    seen: list[torch.Tensor] = []
    hook = vgg.network.get_submodule("features_0").register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    method, images = make(vgg, normalise_input=False), rand(1, 3, 64, 64)
    cloned = method.cloner.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    method._source(images)
    method._clone(images)
    hook.remove()
    cloned.remove()
    for given in seen:
        torch.testing.assert_close(given, images, atol=1e-6, rtol=0)


@pytest.mark.parametrize("terms", ["both", "value", "direction"])
def test_the_loss_against_a_hand_computation(conv: Encoder, terms: str) -> None:
    method = make(conv, terms=terms, value_weight=0.3)
    images = rand(3, 3, 64, 64)
    with torch.no_grad():
        found = float(method.loss(method.extract(images), 7))
        source, clones = conv(images), method._clone(images)
    direction = value = 0.0
    for a, b in zip(source, clones, strict=True):
        for x, y in zip(a.double().flatten(1).numpy(), b.double().flatten(1).numpy(), strict=True):
            direction += (1 - x @ y / np.sqrt((x @ x) * (y @ y))) / 3
            value += np.mean((x - y) ** 2) / 3
    wanted = {"both": direction + 0.3 * value, "value": value, "direction": direction}[terms]
    assert found == pytest.approx(wanted, rel=1e-5)


def test_the_direction_ignores_lengths_and_the_value_does_not() -> None:
    a = rand(2, 3, 4, 4)
    direction, value = distances([a], [3 * a])
    torch.testing.assert_close(direction, torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(value, (2 * a).square().mean(dim=(1, 2, 3)))


def test_an_encoder_that_rounds_sizes_down_is_compared_where_both_have_px(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    network = timm.create_model("convnext_atto")
    path = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    spec = resolve("convnext_atto")
    encoder = build(EncoderConfig(name="convnext_atto", weights=path), MKD.default_levels(spec))
    method = make(encoder, size=75)
    images = rand(2, 3, 75, 75)
    source, clones = method._source(images), method._clone(images)
    assert [x.shape[-1] for x in source] == [18, 9, 4, 2]
    assert [x.shape[-1] for x in clones] == [19, 10, 5, 3]
    cut = [c[..., :n, :n] for c, n in zip(clones, (18, 9, 4, 2), strict=True)]
    for found, wanted in zip(distances(source, clones), distances(source, cut), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert method.scored_maps(images)[0].shape == (2, 1, 75, 75)


def test_auto_weighs_both_terms_alike_before_any_learning(conv: Encoder) -> None:
    method = make(conv, value_weight="auto").train()
    features = method.extract(rand(4, 3, 64, 64))
    assert float(method.value_weight) == 0
    untrained = copy.deepcopy(method)
    loss = float(method.loss(features, 0).detach())
    with torch.no_grad():
        direction, value = distances(features[1:], untrained._clone(features[0]))
    assert float(method.value_weight * value.mean()) == pytest.approx(float(direction.mean()))
    assert loss == pytest.approx(2 * float(direction.mean()), rel=1e-5)
    kept = float(method.value_weight)
    # Neither a later step nor going on from what was learnt changes it.
    method.loss(method.extract(rand(4, 3, 64, 64, seed=5)), 1)
    method.loss(method.extract(rand(4, 3, 64, 64, seed=6)), 0)
    assert float(method.value_weight) == kept


def test_auto_is_one_weight_for_all_processes(
    conv: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each process has its own share of the batch, and normalises by that alone.
    start = make(conv, value_weight="auto").train()
    features = start.extract(rand(4, 3, 64, 64))
    shares = [tuple(f[part] for f in features) for part in (slice(2), slice(2, 4))]
    with torch.no_grad():
        terms = [
            torch.stack(distances(s[1:], copy.deepcopy(start)._clone(s[0])), dim=1) for s in shares
        ]
    asked: list[torch.Tensor] = []

    def gathered(own: torch.Tensor) -> torch.Tensor:
        asked.append(own)
        return torch.cat(terms)

    monkeypatch.setattr("flawmap.methods.mkd.gathered", gathered)
    weights = []
    for share in shares:
        method = copy.deepcopy(start)
        method.loss(share, 0)
        weights.append(float(method.value_weight))
    for own, term in zip(asked, terms, strict=True):
        torch.testing.assert_close(own, term)
    direction, value = torch.cat(terms).mean(dim=0).tolist()
    assert weights == pytest.approx([direction / value] * 2)


def test_places_are_compared_on_standardised_channels(conv: Encoder) -> None:
    method = make(conv, compared="places", terms="both", value_weight=0.5, score="whole").train()
    features = method.extract(rand(4, 3, 64, 64))
    untrained = copy.deepcopy(method)
    loss = method.loss(features, 0)
    kept = method.channel_mean.clone()
    with torch.no_grad():
        clones = untrained._clone(features[0])
    means, wanted = [], torch.zeros(4)
    for level, clone in zip(features[1:], clones, strict=True):
        mean, deviation = level.mean((0, 2, 3)), level.std((0, 2, 3), correction=0)
        means.append(mean)
        deviation = deviation.clamp(min=0.1 * float(deviation.mean()))
        target = (level - mean[:, None, None]) / deviation[:, None, None]
        angle = 1 - torch.cosine_similarity(target, clone, dim=1)
        wanted += angle.mean((1, 2)) + 0.5 * (target - clone).square().mean((1, 2, 3))
    torch.testing.assert_close(kept, torch.cat(means), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, wanted.mean(), rtol=1e-4, atol=1e-5)
    # Later steps, and going on from what was learnt, change no channel's mean.
    method.loss(method.extract(rand(4, 3, 64, 64, seed=5)), 0)
    assert torch.equal(method.channel_mean, kept)
    # Its score is that loss, over the last three levels, here all.
    method.eval()
    images = features[0].float()
    with torch.no_grad():
        apart = distances(
            method._standardised(features[1:]), method._clone(features[0]), places=True
        )
        scores = apart[0] + 0.5 * apart[1]
    torch.testing.assert_close(method.image_scores(images), scores, rtol=1e-3, atol=1e-4)


def test_a_channel_that_never_moved_does_not_outweigh_the_others(conv: Encoder) -> None:
    method = make(conv, compared="places").train()
    features = method.extract(rand(4, 3, 64, 64))
    features[1][:, 3] = 0.25
    method.loss(features, 0)
    width = features[1].shape[1]
    deviation = method.channel_deviation[:width]
    assert float(deviation[3]) == pytest.approx(0.1 * float(deviation.mean()), rel=0.1)


@pytest.mark.parametrize(("critical", "scored"), [(1, 3), (2, 1), (3, 2), (None, 3)])
def test_the_last_layers_are_compared_and_scored(
    conv: Encoder, critical: int | None, scored: int
) -> None:
    method = make(conv, critical_layers=critical, scored_layers=scored, terms="direction")
    images = rand(2, 3, 64, 64).half().float()
    with torch.no_grad():
        pairs = list(zip(conv(images), method._clone(images), strict=True))
        each = [distances([a], [b])[0] for a, b in pairs]
        features = method.extract(images)
        assert len(features) == 1 + (critical or 3)
        wanted = torch.stack(each[-(critical or 3) :]).sum(dim=0)
        torch.testing.assert_close(method.loss(features, 3), wanted.mean())
        wanted = torch.stack(each[-min(scored, critical or 3) :]).sum(dim=0)
        torch.testing.assert_close(method.image_scores(images), wanted)


def enlarged(values: np.ndarray, n: int) -> np.ndarray:
    """The columns of values brought to n rows, linearly between the middles of px."""
    rows = (np.arange(n) + 0.5) * len(values) / n - 0.5
    return np.stack([np.interp(rows, np.arange(len(values)), v) for v in values.T], axis=1)


def test_the_peak_is_the_highest_distance_at_one_place(conv: Encoder) -> None:
    layers = {"critical_layers": 2, "scored_layers": 1}
    method = make(conv, score="peak", **layers)
    images = rand(2, 3, 64, 64)
    maps, scores = method.scored_maps(images)
    torch.testing.assert_close(method.image_scores(images), scores)
    # The map stays that of the loss.
    torch.testing.assert_close(maps, make(conv, **layers).scored_maps(images)[0])
    shown = make(conv, score="peak", attribution="distances", **layers)
    distant, same = shown.scored_maps(images)
    torch.testing.assert_close(same, scores)
    torch.testing.assert_close(shown.image_scores(images), scores)
    with torch.no_grad():
        pairs = list(zip(conv(images), method._clone(images), strict=True))[-2:]
    for i, score in enumerate(scores.tolist()):
        # On the finer one's 8 x 8 grid; the coarser one's is half of it.
        total = np.zeros((8, 8))
        for a, b in pairs:
            x, y = a[i].double(), b[i].double()
            cosine = (x * y).sum(dim=0) / (x.norm(dim=0) * y.norm(dim=0))
            found = 1 - cosine + 0.5 * (x - y).square().mean(dim=0)
            total += enlarged(enlarged(found.numpy(), 8).T, 8).T
        assert score == pytest.approx(total.max(), rel=1e-4)
        np.testing.assert_allclose(distant[i, 0].numpy(), total, rtol=1e-4, atol=1e-6)


def test_distances_need_one_forward_pass_and_leave_a_whole_score_alone(conv: Encoder) -> None:
    method = make(conv, attribution="distances")
    images = rand(2, 3, 64, 64)
    with torch.inference_mode(), FlopCounterMode(display=False) as forward:
        scores = method.image_scores(images)
    with torch.inference_mode(), FlopCounterMode(display=False) as both:
        _, same = method.scored_maps(images)
    assert both.get_total_flops() == forward.get_total_flops() > 0
    torch.testing.assert_close(same, scores)
    torch.testing.assert_close(same, make(conv).scored_maps(images)[1])


def test_more_layers_than_levels_are_refused(conv: Encoder) -> None:
    with pytest.raises(ConfigError, match="more layers"):
        make(conv, critical_layers=4)
    with pytest.raises(ConfigError, match="smaller than a px"):
        make(conv, size=8)
    turned = build(EncoderConfig(name="lite0"), ["blocks.4", "blocks.2"])
    with pytest.raises(ConfigError, match="one after the other"):
        make(turned)


def test_gradients_reach_the_cloner_and_never_the_source(conv: Encoder) -> None:
    method = make(conv).train()
    before = {k: v.clone() for k, v in conv.state_dict().items()}
    optimizer = method.optimizer()
    method.loss(method.extract(rand(4, 3, 64, 64)), 0).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name
    optimizer.step()
    optimizer.zero_grad()
    method.eval().scored_maps(rand(2, 3, 64, 64))
    assert all(p.grad is None for p in (*conv.parameters(), *method.parameters()))
    assert all(torch.equal(before[k], v) for k, v in conv.state_dict().items())


def test_the_map_is_the_gradient_of_the_score(conv: Encoder) -> None:
    """Through both networks: against differences of the score, in double precision."""
    method = copy.deepcopy(make(conv)).double()
    method.encoder.double()
    image = rand(1, 3, 64, 64).double()
    (found,), _ = method.scored_maps(image)
    step = 1e-6
    for y, x in ((0, 0), (20, 33), (63, 40)):
        total = 0.0
        for channel in range(3):
            scores = []
            for sign in (1, -1):
                moved = image.clone()
                moved[0, channel, y, x] += sign * step
                with torch.no_grad():
                    scores.append(_in_double(method, moved))
            total += abs(scores[0] - scores[1]) / (2 * step)
        assert float(found[0, y, x]) == pytest.approx(total, rel=1e-3)


def _in_double(method: MKD, images: torch.Tensor) -> float:
    score = torch.zeros((), dtype=torch.float64)
    pairs = list(zip(method._source(images), method._clone(images), strict=True))
    for a, b in pairs[-3:]:
        score += 1 - torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)
        score += float(method.value_weight) * (a - b).square().mean()
    return float(score)


@pytest.mark.parametrize("attribution", ["gradients", "guided", "smoothgrad", "distances"])
def test_a_batch_in_one_pass_equals_a_loop_over_images(conv: Encoder, attribution: str) -> None:
    method = make(conv, attribution=attribution, noisy_copies=3)
    images = rand(6, 3, 64, 64).half().float()
    maps, scores = method.scored_maps(images)
    side = 16 if attribution == "distances" else 64
    assert maps.shape == (6, 1, side, side)
    scale = float(maps.abs().max())
    for i in range(6):
        alone, score = method.scored_maps(images[i : i + 1])
        torch.testing.assert_close(alone[0], maps[i], rtol=1e-3, atol=1e-4 * scale)
        torch.testing.assert_close(score[0], scores[i])
    torch.testing.assert_close(method.anomaly_map(method.extract(images)), maps)


def test_large_batches_are_localised_in_parts(conv: Encoder) -> None:
    images = rand(7, 3, 64, 64)
    whole, scores = make(conv, images_at_once=7).scored_maps(images)
    method = make(conv, images_at_once=3)
    seen: list[int] = []
    method.cloner.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    maps, parts = method.scored_maps(images)
    assert seen == [3, 3, 1]
    torch.testing.assert_close(parts, scores)
    torch.testing.assert_close(maps, whole, rtol=1e-3, atol=1e-4 * float(whole.max()))


def test_maps_come_in_inference_mode_too(conv: Encoder) -> None:
    method = make(conv)
    with torch.inference_mode():
        found, scores = method.scored_maps(rand(2, 3, 64, 64))
    wanted, expected = method.scored_maps(rand(2, 3, 64, 64))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(scores, expected)


def test_operations_of_both_passes_can_be_counted(conv: Encoder) -> None:
    """As benchmarks do."""
    method = make(conv)
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        method.image_scores(rand(1, 3, 64, 64))
    with torch.inference_mode(), FlopCounterMode(display=False) as both:
        method.scored_maps(rand(1, 3, 64, 64))
    # The gradient of the px costs as much again; that of the weights is not computed.
    assert both.get_total_flops() == pytest.approx(2 * forward.get_total_flops(), rel=0.1)


def test_a_guided_relu_passes_positive_gradients_of_positive_inputs() -> None:
    upstream = torch.tensor([2.0, -3.0, 4.0, -5.0])
    for guided, wanted in ((False, [2.0, -3.0, 0.0, 0.0]), (True, [2.0, 0.0, 0.0, 0.0])):
        x = torch.tensor([1.0, 1.0, -1.0, -1.0], requires_grad=True)
        (relu(x * 1, guided=guided) * upstream).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == wanted


def test_guided_backprop_changes_the_map_and_not_the_score(conv: Encoder) -> None:
    images = rand(2, 3, 64, 64)
    plain, scores = make(conv).scored_maps(images)
    method = make(conv, attribution="guided")
    guided, same = method.scored_maps(images)
    torch.testing.assert_close(same, scores)
    assert float((guided - plain).abs().max()) > 0.01 * float(plain.max())


def test_smoothgrad_is_the_mean_gradient_of_noisy_copies(conv: Encoder) -> None:
    method = make(conv, attribution="smoothgrad", noisy_copies=4, noise=0.2)
    images = rand(2, 3, 64, 64)
    images[1] *= 0.5
    found, scores = method.scored_maps(images)
    copies = list(method._noisy(images))
    noise = torch.stack(copies) - images
    spread = images.amax((1, 2, 3)) - images.amin((1, 2, 3))
    torch.testing.assert_close(noise.std(dim=(0, 2, 3, 4)), 0.2 * spread, rtol=0.02, atol=0)
    plain = make(conv)
    gradients = [plain._gradient(c.clone())[2] for c in copies]
    wanted = torch.stack(gradients).mean(dim=0).abs().sum(dim=1, keepdim=True)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scores, plain.scored_maps(images)[1])


def test_a_map_on_its_own_scale(conv: Encoder) -> None:
    images = rand(3, 3, 64, 64)
    raw = make(conv).scored_maps(images)[0].numpy()
    found = make(conv, map_scale="image").scored_maps(images)[0].numpy()
    for plain, scaled in zip(raw, found, strict=True):
        low, high = plain.min(), np.percentile(plain, 99)
        np.testing.assert_allclose(
            scaled, np.clip((plain - low) / (high - low), 0, 1), rtol=1e-4, atol=1e-6
        )
    constant = MKD._scaled(torch.full((1, 1, 8, 8), 3.0))
    assert not constant.any()


def test_images_are_kept_finer_than_their_8_bits(conv: Encoder) -> None:
    images = rand(2, 3, 64, 64)
    kept = make(conv).extract(images)[0]
    assert kept.dtype == torch.float16
    assert (kept.float() - images).abs().max() <= 2**-12


GOLDEN = {
    "published": ({}, [103.5869, 103.0392, 102.5018], 584.3966, 104.8557, 0.348602),
    "default": (
        {"terms": "direction", "score": "peak", "attribution": "distances"},
        *([2.824698, 2.694582, 2.571061], 584.3546, 3.148738, 2.417229),
    ),
}


@pytest.mark.parametrize("form", GOLDEN)
def test_golden_values(conv: Encoder, form: str) -> None:
    """A tiny configuration: losses of three steps, the sum of all weights, a score, a map."""
    options, *wanted = GOLDEN[form]
    method = make(conv, width=4, **options).train()
    features = method.extract(rand(4, 3, 64, 64))
    optimizer = method.optimizer()
    losses = []
    for step in range(3):
        loss = method.loss(features, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    maps, scores = method.eval().scored_maps(rand(1, 3, 64, 64, seed=1))
    weights = sum(float(p.detach().abs().sum()) for p in method.cloner.parameters())
    assert losses == pytest.approx(wanted[0], rel=1e-3)
    assert weights == pytest.approx(wanted[1], rel=1e-3)
    assert float(scores) == pytest.approx(wanted[2], rel=1e-3)
    assert float(maps.mean()) == pytest.approx(wanted[3], rel=1e-2)


def test_it_learns_what_good_images_look_like(conv: Encoder) -> None:
    method = make(conv, terms="direction").train()
    features = method.extract(rand(4, 3, 64, 64))
    optimizer = method.optimizer()
    losses = []
    for step in range(60):
        loss = method.loss(features, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


OPTIONS: dict[str, Any] = {
    "method.terms": "both",
    "data.size": 64,
    "method.levels": ["blocks.1", "blocks.2"],
    "training.iterations": 24,
    "training.batch_size": 4,
    "training.device": "cpu",
    "training.threads": 1,
}


def test_the_score_is_the_loss_everywhere(rings: Path) -> None:
    """Predictions, thresholds and evaluation take the method's score, not one of the map."""
    detector = flawmap.fit(rings, method="mkd", options=OPTIONS)
    paths = sorted((rings / "test" / "stain").iterdir())
    found = [p.score for p in detector.predict(paths)]
    from flawmap.data.loader import load_batches
    from flawmap.types import Sample

    samples = [Sample(str(p), "rings", "test", None) for p in paths]
    (batch,) = load_batches(samples, detector._transform, 8, threads=1)
    method = detector.models["*"]
    assert isinstance(method, MKD)
    with torch.no_grad():
        wanted = method.image_scores(batch.images)
    assert found == pytest.approx(wanted.tolist(), rel=1e-4)
    evaluation = flawmap.evaluate(detector, rings)
    by_path = {r.sample.path: r.score for c in evaluation.categories.values() for r in c.images}
    for path, score in zip(paths, found, strict=True):
        assert by_path[str(path)] == pytest.approx(score, rel=1e-4)
    pooled = flawmap.fit(rings, method="mkd", options={**OPTIONS, "scoring.pooling": "max"})
    prediction = pooled.predict(paths[0])
    assert prediction.score != pytest.approx(found[0], rel=0.01)


def test_without_masks_an_evaluation_asks_for_scores_alone(
    rings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "method.attribution": "gradients"}
    detector = flawmap.fit(rings, method="mkd", options=options)
    pooled = flawmap.fit(rings, method="mkd", options={**options, "scoring.pooling": "max"})
    table = read_data(rings)
    bare = replace(table, samples=tuple(replace(s, masks=()) for s in table.samples))
    both = flawmap.evaluate(detector, table)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a backward pass")

    monkeypatch.setattr(torch.autograd, "backward", refuse)
    alone = flawmap.evaluate(detector, bare, metrics=["segf1", "pixel_ap_edge", "aupro_0.05"])
    assert (both.mapped, alone.mapped) == (True, False)
    for with_maps, without in zip(images_of(both), images_of(alone), strict=True):
        assert without.score == pytest.approx(with_maps.score, rel=1e-5)
        assert without.sample.path == with_maps.sample.path
        assert without.threshold == with_maps.threshold
    for name, value in alone.mean.items():
        if info(name).per_pixel:
            assert math.isnan(value), name
        else:
            assert value == pytest.approx(both.mean[name], nan_ok=True), name
    # Masks need maps, and so does a score that is one of the map.
    with pytest.raises(AssertionError, match="a backward pass"):
        flawmap.evaluate(detector, table)
    with pytest.raises(AssertionError, match="a backward pass"):
        flawmap.evaluate(pooled, bare)


def images_of(evaluation: Evaluation) -> list[ImageResult]:
    return [image for part in evaluation.categories.values() for image in part.images]


def test_looking_at_held_out_images_teaches_nothing(conv: Encoder) -> None:
    method = make(conv, terms="both")
    before = {k: v.clone() for k, v in method.state_dict().items()}
    features = method.extract(rand(2, 3, 64, 64))
    with torch.no_grad():
        method.eval().validation_loss(features)
    for name, value in method.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    method.train().loss(features, 0)
    assert float(method.value_weight) > 0


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("lite0", ("blocks.2", "blocks.4", "blocks.5", "blocks.6")),
        ("tf_efficientnetv2_b0", ("blocks.2", "blocks.4", "blocks.5")),
    ],
)
def test_the_default_levels_of_an_efficientnet_end_with_its_last_block(
    name: str, levels: tuple[str, ...]
) -> None:
    assert MKD.default_levels(resolve(name)) == levels


def test_a_source_with_relus_is_copied_where_it_stands() -> None:
    spec = resolve("resnet18")
    levels = MKD.default_levels(spec)
    encoder = wrap(spec, create(spec, levels), levels)
    encoder.freeze()
    method = make(encoder)
    assert method._rectified((64, 64)) == (True,) * 4
    encoder.to("meta")
    # It fails where values are asked for, not because the picture lies elsewhere.
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
        method._rectified((64, 64))


def test_a_source_that_takes_images_of_one_size_is_copied() -> None:
    """With its channels last, too, as they are in a Swin."""
    spec = resolve("swin_tiny_patch4_window7_224")
    levels = MKD.default_levels(spec)
    encoder = wrap(spec, create(spec, levels), levels)
    encoder.freeze()
    config = MKDConfig(value_weight=0.5, terms="both", attribution="gradients")
    method = MKD.build(config, encoder, (224, 224), torch.Generator().manual_seed(0)).eval()
    assert method._rectified((224, 224)) == (False,) * 4
    images = rand(1, 3, 224, 224)
    sizes = [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7)]
    assert [tuple(x.shape[1:]) for x in method._source(images)] == sizes
    assert [tuple(x.shape[1:]) for x in method._clone(images)] == sizes
    maps, scores = method.scored_maps(images)
    assert maps.shape == (1, 1, 224, 224)
    assert float(maps.max()) > 0
    torch.testing.assert_close(method.image_scores(images), scores)
