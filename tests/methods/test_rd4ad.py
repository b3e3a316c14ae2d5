"""RD4AD's parts against plain computations."""

from __future__ import annotations

import pytest
import torch

import flawmap
from flawmap.config import EncoderConfig
from flawmap.encoders.encoder import Encoder, build, create, resolve, wrap
from flawmap.errors import ConfigError
from flawmap.methods.layers.pyramid import distance_maps
from flawmap.methods.layers.residual import Residual
from flawmap.methods.rd4ad import RD4AD, RD4ADConfig, whole_cosine


@pytest.fixture(scope="module")
def lite() -> Encoder:
    return build(EncoderConfig(name="lite0"), ["blocks.1", "blocks.2", "blocks.4"])


def make(encoder: Encoder, **options: object) -> RD4AD:
    small = {"embedding_blocks": 1, "decoder_blocks": (1, 1, 1)}
    config = RD4ADConfig.model_validate({**small, **options})
    return RD4AD.build(config, encoder, (64, 64), torch.Generator().manual_seed(0))


def unweighted(name: str) -> Encoder:
    spec = resolve(name)
    levels = RD4AD.default_levels(spec)
    encoder = wrap(spec, create(spec, levels), levels)
    encoder.freeze()
    return encoder


def images(n: int = 2, size: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_is_the_cosine_of_whole_levels() -> None:
    targets = [rand(3, 4, 8, 8), rand(3, 6, 4, 4, seed=1)]
    outputs = [rand(3, 4, 8, 8, seed=2), rand(3, 6, 4, 4, seed=3)]
    wanted = 0.0
    for target, output in zip(targets, outputs, strict=True):
        for t, o in zip(target, output, strict=True):
            wanted += (1 - float((t * o).sum() / (t.norm() * o.norm()))) / 3
    assert float(whole_cosine(targets, outputs)) == pytest.approx(wanted, rel=1e-6)


def test_distances_are_cosines_over_the_channels() -> None:
    targets, outputs = [rand(1, 5, 4, 4)], [rand(1, 5, 4, 4, seed=1)]
    found = distance_maps(targets, outputs)
    a, b = targets[0][0, :, 2, 3], outputs[0][0, :, 2, 3]
    assert found.shape == (1, 1, 4, 4)
    assert float(found[0, 0, 2, 3]) == pytest.approx(
        1 - float(a @ b / (a.norm() * b.norm())), rel=1e-5
    )
    # A coarser level comes to the finest grid.
    both = distance_maps([rand(1, 5, 4, 4), rand(1, 3, 2, 2)], [rand(1, 5, 4, 4), rand(1, 3, 2, 2)])
    assert both.shape == (1, 2, 4, 4)
    assert float(both.abs().max()) < 1e-6


@pytest.mark.parametrize("size", [64, 72, 100])
def test_the_levels_come_back_in_their_shapes(lite: Encoder, size: int) -> None:
    method = make(lite)
    features = method.extract(images(size=size))
    restored = method.decoded(features)
    assert [r.shape for r in restored] == [f.shape for f in features]
    assert method.anomaly_map(features).shape == (2, 1, *features[0].shape[-2:])


def test_an_encoder_that_rounds_sizes_down() -> None:
    """The finer levels come to one px more than the coarsest, and are restored from one px less."""
    method = make(unweighted("convnext_atto"))
    features = method.extract(images(size=62))
    assert [f.shape[-1] for f in features] == [15, 7, 3]
    restored = method.decoded(features)
    assert [r.shape for r in restored] == [f.shape for f in features]
    assert method.anomaly_map(features).shape == (2, 1, 15, 15)
    method.loss(features, 0).backward()


@pytest.mark.slow
def test_the_paper_s_form() -> None:
    """Joined at 16 px with 3072 channels, embedded at 32 px with 2048."""
    method = RD4AD.build(
        RD4ADConfig(), unweighted("wide_resnet50_2"), (64, 64), torch.Generator().manual_seed(0)
    ).eval()
    with torch.no_grad():
        features = method.extract(images(1))
        ways = [way(x) for way, x in zip(method.embedding.ways, features, strict=True)]
        embedded = method.embedding(features)
    assert [f.shape[1] for f in features] == [256, 512, 1024]
    assert sum(w.shape[1] for w in ways) == 3072
    assert embedded.shape == (1, 2048, 2, 2)
    convolutions = [m for m in method.embedding.ways.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.stride[0]) for c in convolutions] == [
        (256, 512, 2),
        (512, 1024, 2),
        (512, 1024, 2),
    ]
    assert all(isinstance(head, torch.nn.Identity) for head in method.decoder.heads)
    assert [len(stage) for stage in method.decoder.stages] == [3, 4, 6]


def test_a_block_that_doubles_the_grid_undoes_one_that_halves_it() -> None:
    x = torch.randn(1, 8, 6, 10)
    assert Residual(8, 16, "basic", 2)(x).shape == (1, 16, 3, 5)
    assert Residual(16, 8, "bottleneck", -2)(torch.randn(1, 16, 3, 5)).shape == x.shape


def test_gradients_reach_all_that_learns_and_nothing_else(lite: Encoder) -> None:
    method = make(lite).train()
    method.loss(method.extract(images()), 0).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert all(p.grad is None and not p.requires_grad for p in lite.parameters())


def test_adam_learns_all_of_it_at_one_rate(lite: Encoder) -> None:
    method = make(lite)
    optimizer = method.optimizer()
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert (group["betas"], group["lr"]) == ((0.5, 0.999), 5e-3)
    assert {id(p) for p in group["params"]} == {id(p) for p in method.parameters()}
    assert method.learning_rate(0, 100) == method.learning_rate(99, 100) == 5e-3


def test_the_paper_s_preset() -> None:
    config = flawmap.configure(method="rd4ad", preset="paper")
    assert config.encoder.name == "wide_resnet50_2"
    assert config.calibration.strategy == "off"
    assert config.data.size == (256, 256)
    # 200 epochs, however many images there are.
    assert (config.training.max_epochs, config.training.batch_size) == (200, 16)
    assert config.training.iterations * 16 > 200 * 1_000_000 / 20
    assert (config.scoring.sigma, config.scoring.pooling) == (4, "max")
    method = config.method
    assert isinstance(method, RD4ADConfig)
    assert (method.embedding_blocks, method.decoder_blocks) == (3, (3, 4, 6))
    assert (method.learning_rate, method.schedule) == (5e-3, "constant")


@pytest.mark.slow
def test_it_learns_one_image_by_heart(lite: Encoder) -> None:
    method = make(lite).train()
    features = method.extract(images())
    optimizer = method.optimizer()
    losses = []
    for step in range(40):
        loss = method.loss(features, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 2.5
    assert losses[-1] < 0.3


def test_levels_that_are_no_pyramid_are_refused() -> None:
    encoder = build(EncoderConfig(name="lite0"), ["blocks.2", "blocks.3", "blocks.4"])
    with pytest.raises(ConfigError, match="half as fine"):
        make(encoder)
    vit = build(EncoderConfig(name="vit-s14"), RD4AD.default_levels(resolve("vit-s14")))
    with pytest.raises(ConfigError, match="convolutional encoder"):
        make(vit)


def test_one_image_with_an_embedding_of_one_px_is_refused() -> None:
    encoder = build(EncoderConfig(name="lite0"), ["blocks.2", "blocks.4", "blocks.6"])
    method = make(encoder).train()
    with pytest.raises(ConfigError, match="an embedding of one px"):
        method.loss(method.extract(images(1)), 0)
    assert float(method.loss(method.extract(images(2)), 0).detach()) > 0
    assert float(method.loss(method.extract(images(1, size=96)), 0).detach()) > 0
    # Scoring normalises nothing.
    assert method.eval().anomaly_map(method.extract(images(1))).shape == (1, 1, 8, 8)


def test_golden_values(lite: Encoder) -> None:
    """What this version computes, so that no change of it goes unseen."""
    method = make(lite).eval()
    with torch.no_grad():
        features = method.extract(images())
        loss, found = float(method.loss(features, 0)), method.anomaly_map(features)
    assert loss == pytest.approx(3.075882, rel=1e-4)
    assert float(found.mean()) == pytest.approx(3.080131, rel=1e-4)
    assert float(found[1, 0, 3, 5]) == pytest.approx(3.265311, rel=1e-4)
