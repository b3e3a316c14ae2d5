"""DMDD's parts against plain computations."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

import flawmap
from flawmap.config import EncoderConfig
from flawmap.data.pool import map_in_threads
from flawmap.data.synthesis import SynthesisConfig
from flawmap.encoders.encoder import Encoder, build, create, resolve, wrap
from flawmap.encoders.unlearnt import Unlearnt
from flawmap.errors import ConfigError, DataError
from flawmap.methods.dmdd import DMDD, Branches, DMDDConfig, branch_losses, join
from flawmap.methods.layers.cosine import at_places
from flawmap.methods.layers.pyramid import distance_maps
from flawmap.methods.layers.segmentation import ChannelAttention, SpatialAttention, focal
from flawmap.scoring.maps import pool

LEVELS = ("blocks.1", "blocks.2", "blocks.4")


@pytest.fixture(scope="module")
def lite() -> Encoder:
    return build(EncoderConfig(name="lite0"), LEVELS)


def make(encoder: Encoder, **options: object) -> DMDD:
    config = DMDDConfig.model_validate({"width": 16, "student": "reverse", **options})
    return DMDD.build(config, encoder, (64, 64), torch.Generator().manual_seed(0))


def images(n: int = 2, size: int = 64) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return 1 - float(a @ b / (a.norm() * b.norm()))


def test_what_each_branch_is_taught() -> None:
    shape = (2, 5, 2, 2)
    own, seen, teacher = (rand(*shape, seed=i) for i in range(3))
    masks = torch.zeros(2, 1, 4, 4)
    # A quarter of one cell of the level is corrupted, and the whole of another one.
    masks[0, 0, 1, 0] = 1
    masks[1, 0, 2:, 2:] = 1
    shares = {(0, 0, 0): 0.25, (1, 1, 1): 1.0}
    normal = abnormal = 0.0
    for image in range(2):
        for y in range(2):
            for x in range(2):
                at = (image, slice(None), y, x)
                normal += cosine_distance(own[at], teacher[at]) / 8
                wanted = shares.get((image, y, x), 0.0)
                abnormal += abs(cosine_distance(own[at], seen[at]) - wanted) / 8
    for branch, total in (("normality", normal), ("abnormality", abnormal)):
        (found,) = branch_losses(branch, [own], [seen], [teacher], masks)
        assert float(found) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("clean_pass", [True, False])
def test_the_whole_loss_by_hand(
    lite: Encoder, monkeypatch: pytest.MonkeyPatch, clean_pass: bool
) -> None:
    """The branches' losses over copies and good images, the focal loss and L1, with equal weights;
    the segmentation sees the distances of what the student saw."""
    method = make(lite, clean_pass=clean_pass).eval()
    clean = images()
    drawn, masks = clean.clone(), torch.zeros(2, 1, 64, 64)
    drawn[:, :, 8:30, 20:40], masks[:, :, 8:30, 20:40] = 0.9, 1.0
    monkeypatch.setattr(method, "corrupted", lambda images, seed: (drawn, masks))
    features = method.extract(clean)
    total, distances, wanted = 0.0, [], []
    with torch.no_grad():
        good = lite(features[0].float())
        for shown, mask in [(drawn, masks), (clean.half().float(), 0 * masks)][: 1 + clean_pass]:
            seen = lite(shown)
            both = method.branch_levels(shown, seen)
            share = [torch.nn.functional.avg_pool2d(mask, 64 // t.shape[-1])[:, 0] for t in seen]
            for k in range(3):
                total += float(at_places(both[0][k], good[k]).mean())
                total += float((at_places(both[1][k], seen[k]) - share[k]).abs().mean())
            distances.append(torch.cat([distance_maps(seen, levels) for levels in both], dim=1))
            wanted.append(share[0][:, None])
        assert method.segment is not None
        p = method.segment(torch.cat(distances)).sigmoid().double()
        y = torch.cat(wanted).double()
        entropy = -(y * p.log() + (1 - y) * (1 - p).log())
        total += float(((p - y).abs() ** 4 * entropy).mean() + (p - y).abs().mean())
        found = float(method.loss(features, 0))
    assert found == pytest.approx(total, rel=1e-4)


def test_no_gradient_flows_into_the_teacher() -> None:
    output, seen, good = (rand(1, 4, 2, 2, seed=seed).requires_grad_() for seed in range(3))
    for branch in ("normality", "abnormality"):
        output.grad = None
        (loss,) = branch_losses(branch, [output], [seen], [good], torch.zeros(1, 1, 4, 4))
        loss.backward()
        assert output.grad is not None
        assert seen.grad is None
        assert good.grad is None


def test_the_focal_loss_by_the_definition() -> None:
    logits, target = torch.tensor([2.0, -1.0, 0.3]), torch.tensor([1.0, 0.0, 0.0])
    total = 0.0
    for z, y in zip(logits.tolist(), target.tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        right = p if y else 1 - p
        total += -((1 - right) ** 4) * math.log(right)
    assert float(focal(logits, target)) == pytest.approx(total / 3, rel=1e-5)


def test_attention_by_the_definition() -> None:
    x = torch.randn(1, 32, 3, 3)
    layer = ChannelAttention(32)
    first, second = layer.mlp[0].weight[:, :, 0, 0], layer.mlp[2].weight[:, :, 0, 0]
    mlp = [second @ (first @ v).relu() for v in (x[0].mean((1, 2)), x[0].amax((1, 2)))]
    wanted = x * (mlp[0] + mlp[1]).sigmoid().view(1, -1, 1, 1)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)
    place = SpatialAttention()
    both = torch.stack([x[0].mean(0), x[0].amax(0)])[None]
    torch.testing.assert_close(
        place(x), x * torch.conv2d(both, place.mix.weight, padding=3).sigmoid()
    )


def test_a_level_is_widened_and_split() -> None:
    branches = Branches(9, 6, "both").eval()
    x = torch.randn(1, 9, 4, 4)
    wide = branches.widen(x)
    assert wide.shape == (1, 12, 4, 4)
    normal, abnormal = branches(x)
    torch.testing.assert_close(normal, branches.parts[0](wide[:, :6]))
    torch.testing.assert_close(abnormal, branches.parts[1](wide[:, 6:]))
    assert len(Branches(9, 6, "normality")(x)) == 1


@pytest.mark.parametrize("student", ["encoder", "reverse"])
def test_the_student_has_the_teacher_s_shapes_and_has_learnt_nothing(
    lite: Encoder, student: str
) -> None:
    method = make(lite, student=student).eval()
    features = method.extract(images())
    both = method.branch_levels(features[0].float(), features[1:])
    assert [[x.shape for x in levels] for levels in both] == [[f.shape for f in features[1:]]] * 2
    if student == "encoder":
        assert all(p.requires_grad for p in Unlearnt(lite).parameters())


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("lite0", ("blocks.1", "blocks.2", "blocks.3")),
        ("resnet18", ("layer1", "layer2", "layer3")),
        ("resnet18", ("layer2", "layer1")),
    ],
)
def test_an_unlearnt_network_has_the_levels_asked_for_and_nothing_after_them(
    name: str, levels: tuple[str, ...]
) -> None:
    spec = resolve(name)
    teacher = wrap(spec, create(spec, levels), levels)
    student = Unlearnt(teacher).train()
    found, wanted = student(images()), teacher(images())
    assert [f.shape for f in found] == [w.shape for w in wanted]
    sum(f.sum() for f in found).backward()
    assert all(p.grad is not None for p in student.parameters())


def unweighted(name: str) -> Encoder:
    spec = resolve(name)
    levels = DMDD.default_levels(spec)
    encoder = wrap(spec, create(spec, levels), levels)
    encoder.freeze()
    return encoder


@pytest.mark.parametrize("student", ["encoder", "reverse"])
@pytest.mark.parametrize(
    ("name", "grids"), [("convnext_atto", (15, 7, 3)), ("mambaout_femto", (16, 8, 4))]
)
def test_encoders_that_round_sizes_down_or_have_channels_last(
    name: str, grids: tuple[int, ...], student: str
) -> None:
    method = make(unweighted(name), student=student).train()
    features = method.extract(images(size=62))
    assert [f.shape[-2:] for f in features[1:]] == [(n, n) for n in grids]
    both = method.branch_levels(features[0].float(), features[1:])
    assert [[x.shape for x in levels] for levels in both] == [[f.shape for f in features[1:]]] * 2
    torch.manual_seed(0)
    method.loss(features, 0).backward()
    assert all(p.grad is not None for p in method.student.parameters())
    assert method.eval().anomaly_map(features).shape == (2, 1, grids[0], grids[0])


@pytest.mark.parametrize(
    "name",
    ["mambaout_femto", pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow)],
)
def test_a_student_s_weights_follow_the_generator_alone(name: str) -> None:
    encoder = unweighted(name)
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        states.append(make(encoder, student="encoder").state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    other = DMDD.build(
        DMDDConfig(width=16, student="encoder"),
        encoder,
        (64, 64),
        torch.Generator().manual_seed(1),
    ).state_dict()
    layers = [
        key
        for key, value in states[0].items()
        if key.startswith("student") and key.endswith("weight") and value.ndim == 2
    ]
    assert layers
    assert not any(torch.equal(states[0][key], other[key]) for key in layers)


def test_a_vit_has_no_such_student() -> None:
    vit = build(EncoderConfig(name="vit-s14"), ["blocks.3"])
    with pytest.raises(ConfigError, match="convolutional encoder"):
        Unlearnt(vit)


def test_defects_are_drawn_from_the_seed(lite: Encoder) -> None:
    method = make(lite)
    clean = images(4)
    found, masks = method.corrupted(clean, 3)
    again, _ = method.corrupted(clean, 3)
    other, _ = method.corrupted(clean, 4)
    torch.testing.assert_close(found, again, rtol=0, atol=0)
    assert not torch.equal(found, other)
    assert masks.flatten(1).amax(dim=1).tolist() == [1.0] * 4
    changed = (found != clean).any(dim=1, keepdim=True)
    assert not (changed & (masks == 0)).any()


def test_a_fitted_model_needs_no_folder_of_textures(lite: Encoder) -> None:
    synthesis = {"textures": ["folder"], "texture_folder": "/nowhere"}
    method = make(lite, synthesis=synthesis).eval()
    assert method.anomaly_map(method.extract(images())).shape == (2, 1, 16, 16)
    with pytest.raises(DataError, match="nowhere"):
        method.corrupted(images(), 0)


FIT = {
    "data.size": 64,
    "method.width": 16,
    "training.iterations": 2,
    "training.batch_size": 4,
    "training.device": "cpu",
}


def test_a_folder_without_textures_is_named_before_any_image_is_read(
    rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawmap.training.fit.verify", None)
    for folder in (tmp_path / "nowhere", tmp_path):
        folders = {
            "method.synthesis.textures": ["folder"],
            "method.synthesis.texture_folder": str(folder),
        }
        with pytest.raises(DataError, match=re.escape(str(folder))):
            flawmap.fit(rings, method="dmdd", options={**FIT, **folders})


def test_defects_are_drawn_with_the_threads_of_the_fit(
    rings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(*args: Any, threads: int, **options: Any) -> Any:
        seen.append(threads)
        return map_in_threads(*args, threads=threads, **options)

    monkeypatch.setattr("flawmap.methods.dmdd.map_in_threads", spy)
    flawmap.fit(rings, method="dmdd", options={**FIT, "training.threads": 3})
    # Two steps, and batches that tell how to join the maps.
    assert len(seen) > 2
    assert set(seen) == {3}


@pytest.mark.parametrize("student", ["reverse", "encoder"])
@pytest.mark.parametrize("branches", ["both", "normality", "abnormality"])
@pytest.mark.parametrize("segmentation", [True, False])
def test_gradients_reach_what_they_should(
    lite: Encoder, student: str, branches: str, segmentation: bool
) -> None:
    options = {"student": student, "branches": branches}
    method = make(lite, **options, segmentation=segmentation).train()
    torch.manual_seed(0)
    method.loss(method.extract(images()), 0).backward()
    dead = [
        name
        for name, p in method.named_parameters()
        # A convolution's bias before a batch normalisation has none, but for rounding.
        if p.grad is None or not float(p.grad.abs().sum()) > 0
    ]
    assert dead == []
    assert all(p.grad is None for p in lite.parameters())
    if segmentation:
        # The student learns the same with and without the segmentation.
        alone = make(lite, **options, segmentation=False).train()
        alone.load_state_dict(
            {
                k: v
                for k, v in make(lite, **options).state_dict().items()
                if not k.startswith("segment")
            }
        )
        torch.manual_seed(0)
        alone.loss(alone.extract(images()), 0).backward()
        grads = dict(method.named_parameters())
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(parameter.grad, grads[name].grad)


def test_the_segmentation_begins_where_it_can_learn(lite: Encoder) -> None:
    method = make(lite, width=64).train()
    assert method.segment is not None
    logits = method.segment(torch.rand(4, 6, 32, 32)).detach()
    assert float(logits.std()) < 0.5
    assert -3 < float(logits.mean()) < -1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert method.segment(torch.rand(2, 6, 8, 8)).dtype == torch.float32


def taught(lite: Encoder) -> tuple[DMDD, list[float]]:
    """A model after some steps on four images, and its losses."""
    method = make(lite).train()
    features = method.extract(images(4))
    optimizer = method.optimizer()
    losses = []
    for step in range(120):
        torch.manual_seed(step)
        loss = method.loss(features, step)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * group.get("lr_scale", 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return method.eval(), losses


@pytest.mark.slow
def test_it_learns_and_its_map_is_0_on_good_px_and_1_on_drawn_defects(lite: Encoder) -> None:
    method, losses = taught(lite)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    with torch.no_grad():
        features = method.extract(images(4))
        method.finalise(iter([features]))
        drawn, masks = method.corrupted(features[0].float(), 0)
        found = method.anomaly_map((drawn.half(), *lite(drawn)))
        # Defects that it has not seen, nor weighed its maps by.
        drawn, other = method.corrupted(features[0].float(), 1234)
        unseen = method.anomaly_map((drawn.half(), *lite(drawn)))
    share = torch.nn.functional.avg_pool2d(masks, 4)
    # The images are kept as float16.
    assert float((found * (1 - share)).sum() / (1 - share).sum()) == pytest.approx(0, abs=5e-3)
    assert float((found * share).sum() / share.sum()) == pytest.approx(1, abs=5e-3)
    share = torch.nn.functional.avg_pool2d(other, 4)
    assert roc_auc_score(share.flatten() > 0.5, unseen.flatten()) > 0.75


def sums(*maps: tuple[tuple[float, float], tuple[float, float]]) -> torch.Tensor:
    """As `join` takes them, of means and variances over 900 good px and 100 of defects."""
    return torch.tensor(
        [
            [
                [n, n * mean, n * (var + mean**2)]
                for n, (mean, var) in zip((900, 100), each, strict=True)
            ]
            for each in maps
        ],
        dtype=torch.float64,
    )


def test_a_map_weighs_as_much_as_it_tells_defects_from_good_px() -> None:
    equal = join(sums(((0.5, 0.1), (1.5, 0.1)), ((5.0, 10.0), (15.0, 10.0))))
    # Ten times the unit, a tenth of the factor.
    torch.testing.assert_close(equal[:, 0], torch.tensor([0.5, 5.0], dtype=torch.float64))
    torch.testing.assert_close(equal[:, 1], torch.tensor([0.5, 0.05], dtype=torch.float64))
    # One that hardly tells them apart, and is mostly noise, has little say.
    noisy = join(sums(((0.5, 0.1), (1.5, 0.1)), ((0.30, 0.1), (0.32, 0.1))))[:, 1]
    assert float(noisy[1] / noisy[0]) == pytest.approx(0.02)
    # One that is higher on good px has none; without any, the first is left as it is.
    assert join(sums(((0.5, 0.1), (1.5, 0.1)), ((0.3, 0.1), (0.2, 0.1))))[1, 1] == 0
    nothing = join(sums(((0.5, 0.1), (0.5, 0.1)), ((0.3, 0.1), (0.2, 0.1))))
    assert nothing.tolist() == [[0.0, 1.0], [0.0, 0.0]]


def test_the_normalised_mean_takes_its_constants_from_good_px(lite: Encoder) -> None:
    method = make(lite, map="mean").eval()
    assert method.final_images == 64
    batches = [method.extract(images(2)), method.extract(images(3) * 0.8)]
    with torch.no_grad():
        parts = [method.maps(features) for features in batches]
        method.finalise(iter(batches))
        found = method.anomaly_map(batches[0])
    wanted = torch.zeros(2, 1, 16, 16, dtype=torch.float64)
    for index in range(2):
        good = torch.cat([maps[index].flatten() for maps in parts]).double()
        assert len(good) == 5 * 16 * 16
        wanted += (parts[0][index] - good.mean()) / good.std(unbiased=False) / 2
    torch.testing.assert_close(found, wanted.float(), rtol=1e-3, atol=1e-4)


def test_every_image_gets_a_defect_by_which_maps_are_joined(
    lite: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where training leaves nearly all images as they are."""
    constants = []
    for share in (0.0, 0.999):
        method = make(lite, synthesis={"none_share": share}).eval()
        with torch.no_grad():
            method.finalise(iter([method.extract(images())]))
        constants.append(method.joining.clone())
    assert not method.corrupted(images(), 0)[1].any()
    assert method.corrupted(images(), 0, always=True)[1].flatten(1).any(dim=1).all()
    torch.testing.assert_close(constants[1], constants[0], rtol=0, atol=0)


def test_a_segmentation_that_is_not_there_cannot_be_the_map() -> None:
    wanted = {"method.map": "segmentation", "method.segmentation": False}
    with pytest.raises(ConfigError, match="it must be both, mean or distance") as caught:
        flawmap.configure(method="dmdd", options=wanted)
    assert caught.value.where == "method.map"


def test_the_image_score_is_the_mean_of_100_px_at_256_px() -> None:
    scoring = flawmap.configure(method="dmdd").scoring
    assert scoring.pooling == "top"
    smoothed = np.zeros((256, 256), dtype=np.float32)
    smoothed.flat[:100] = 1
    assert pool(smoothed, top_fraction=scoring.top_fraction) == 1
    smoothed.flat[99] = 0
    assert pool(smoothed, top_fraction=scoring.top_fraction) == pytest.approx(0.99)


def test_what_the_map_is(lite: Encoder) -> None:
    features = make(lite).eval().extract(images())
    with torch.no_grad():
        for kind in ("distance", "segmentation"):
            method = make(lite, map=kind).eval()
            found, parts = method.anomaly_map(features), method.maps(features)
            torch.testing.assert_close(found, parts[kind == "segmentation"])
        for segmentation in (True, False):
            # Without a segmentation the second branch is joined with the first.
            both = make(lite, segmentation=segmentation).eval()
            both.joining.copy_(torch.tensor([[0.5, 2.0], [0.1, 0.3]]))
            first, second = both.maps(features)
            wanted = 2 * (first - 0.5) + 0.3 * (second - 0.1)
            torch.testing.assert_close(both.anomaly_map(features), wanted)
        only = make(lite, segmentation=False, branches="abnormality").eval()
        (found,) = only.maps(features)
        torch.testing.assert_close(only.anomaly_map(features), found)


def test_what_adam_learns_and_how_fast(lite: Encoder) -> None:
    method = make(lite, student="encoder", learning_rate=4e-3, segmentation_learning_rate=1e-3)
    assert method.segment is not None
    optimizer = method.optimizer()
    assert type(optimizer) is torch.optim.Adam
    student, segmentation = optimizer.param_groups
    assert student["betas"] == segmentation["betas"] == (0.5, 0.999)
    rate = method.learning_rate(10, 100)
    assert rate == 4e-3
    # The loop multiplies each group's rate by its scale.
    assert "lr_scale" not in student
    assert rate * segmentation["lr_scale"] == pytest.approx(1e-3)
    assert {id(p) for p in segmentation["params"]} == {id(p) for p in method.segment.parameters()}
    every = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(every) == sorted(id(p) for p in method.parameters())
    assert len(make(lite, segmentation=False).optimizer().param_groups) == 1


def test_the_paper_s_preset() -> None:
    config = flawmap.configure(method="dmdd", preset="paper")
    assert config.encoder.name == "wide_resnet50_2"
    assert config.calibration.strategy == "off"
    assert config.data.size == (256, 256)
    assert (config.training.iterations, config.training.batch_size) == (5000, 16)
    assert config.scoring.sigma == 4
    method = config.method
    assert isinstance(method, DMDDConfig)
    assert (method.student, method.branches, method.attention) == ("encoder", "both", "both")
    assert (method.segmentation, method.map, method.width) == (True, "mean", 64)
    assert (method.clean_pass, method.synthesis.none_share) == (True, 0)
    assert (method.learning_rate, method.segmentation_learning_rate) == (5e-3, 1e-3)
    assert method.schedule == "constant"


@pytest.mark.parametrize("student", ["encoder", "reverse"])
def test_a_wide_resnet_teaches_from_its_levels_at_4_8_and_16_px(student: str) -> None:
    config = DMDDConfig(student=student, clean_pass=False)
    teacher = unweighted("wide_resnet50_2")
    method = DMDD.build(config, teacher, (64, 64), torch.Generator().manual_seed(0))
    features = method.extract(images())
    assert [f.shape[1:] for f in features[1:]] == [(256, 16, 16), (512, 8, 8), (1024, 4, 4)]
    for levels in method.branch_levels(features[0].float(), features[1:]):
        assert [x.shape for x in levels] == [f.shape for f in features[1:]]
    assert torch.isfinite(method.train().loss(features, 0))


def test_pictures_of_textures_are_let_go_when_the_fit_ends(lite: Encoder, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "red.png")
    synthesis = SynthesisConfig(textures=("folder",), texture_folder=tmp_path)
    method = make(lite, synthesis=synthesis)
    method.corrupted(images(), 0)
    assert "synthesis" in vars(method)
    method.release()
    assert "synthesis" not in vars(method)


def test_the_default_levels_leave_the_narrow_one_of_an_efficientnet_out() -> None:
    assert DMDD.default_levels(resolve("lite0")) == ("blocks.2", "blocks.4", "blocks.6")
    # With six blocks instead of seven.
    assert unweighted("tf_efficientnetv2_b0").strides == (8, 16, 32)
    assert DMDD.default_levels(resolve("wide_resnet50_2")) == ("layer1", "layer2", "layer3")


def test_golden_values(lite: Encoder) -> None:
    """What this version computes, so that no change of it goes unseen."""
    method = make(lite).eval()
    features = method.extract(images())
    with torch.no_grad():
        torch.manual_seed(0)
        loss, found = float(method.loss(features, 0)), method.anomaly_map(features)
    assert loss == pytest.approx(11.91887, rel=1e-3)
    assert float(found.mean()) == pytest.approx(1.540207, rel=1e-3)
    assert float(found[1, 0, 3, 5]) == pytest.approx(1.591250, rel=1e-3)
