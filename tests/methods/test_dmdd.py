"""DMDD's parts against plain computations."""

from __future__ import annotations

import math

import pytest
import torch

from flawmap.config import EncoderConfig
from flawmap.encoders.encoder import Encoder, build, resolve
from flawmap.encoders.unlearnt import Unlearnt
from flawmap.errors import ConfigError, DataError
from flawmap.methods.dmdd import DMDD, Branches, DMDDConfig, branch_losses, distance
from flawmap.methods.layers.segmentation import ChannelAttention, SpatialAttention, focal

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
    bad, good, seen, teacher = (rand(*shape, seed=i) for i in range(4))
    masks = torch.zeros(2, 1, 4, 4)
    # One px of the image lies in the first cell of the level: the whole cell is corrupted.
    masks[0, 0, 1, 0] = 1
    normal = abnormal = 0.0
    for image in range(2):
        for y in range(2):
            for x in range(2):
                at = (image, slice(None), y, x)
                kept = cosine_distance(good[at], teacher[at])
                normal += (cosine_distance(bad[at], teacher[at]) + kept) / 8
                wanted = 1.0 if (image, y, x) == (0, 0, 0) else 0.0
                abnormal += (abs(cosine_distance(bad[at], seen[at]) - wanted) + kept) / 8
    for branch, total in (("normality", normal), ("abnormality", abnormal)):
        (found,) = branch_losses(branch, [bad], [good], [seen], [teacher], masks)
        assert float(found) == pytest.approx(total, rel=1e-5)


def test_no_gradient_flows_into_the_teacher() -> None:
    output, target = rand(1, 4, 2, 2).requires_grad_(), rand(1, 4, 2, 2, seed=1).requires_grad_()
    distance(output, target).sum().backward()
    assert output.grad is not None
    assert target.grad is None


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
    branches = Branches(6, "both").eval()
    x = torch.randn(1, 6, 4, 4)
    wide = branches.widen(x)
    assert wide.shape == (1, 12, 4, 4)
    normal, abnormal = branches(x)
    torch.testing.assert_close(normal, branches.parts[0](wide[:, :6]))
    torch.testing.assert_close(abnormal, branches.parts[1](wide[:, 6:]))
    assert len(Branches(6, "normality")(x)) == 1


@pytest.mark.parametrize("student", ["encoder", "reverse"])
def test_the_student_has_the_teacher_s_shapes_and_has_learnt_nothing(
    lite: Encoder, student: str
) -> None:
    method = make(lite, student=student).eval()
    features = method.extract(images())
    both = method.branch_levels(features[0].float(), features[1:])
    assert [[x.shape for x in levels] for levels in both] == [[f.shape for f in features[1:]]] * 2
    if student == "encoder":
        own = Unlearnt(lite)
        assert own.channels == lite.channels
        assert all(p.requires_grad for p in own.parameters())


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


@pytest.mark.parametrize("branches", ["both", "normality", "abnormality"])
@pytest.mark.parametrize("segmentation", [True, False])
def test_gradients_reach_what_they_should(lite: Encoder, branches: str, segmentation: bool) -> None:
    method = make(lite, branches=branches, segmentation=segmentation).train()
    torch.manual_seed(0)
    method.loss(method.extract(images()), 0).backward()
    assert all(p.grad is not None for p in method.parameters())
    assert all(p.grad is None for p in lite.parameters())
    if segmentation:
        # The student learns the same with and without the segmentation.
        alone = make(lite, branches=branches, segmentation=False).train()
        alone.load_state_dict(
            {k: v for k, v in method.state_dict().items() if not k.startswith("segment")}
        )
        fresh = make(lite, branches=branches, segmentation=True).train()
        alone.load_state_dict(
            {k: v for k, v in fresh.state_dict().items() if not k.startswith("segment")}
        )
        for each in (alone, fresh):
            torch.manual_seed(0)
            each.loss(each.extract(images()), 0).backward()
        grads = dict(fresh.named_parameters())
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(parameter.grad, grads[name].grad)


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


def test_it_learns_and_its_map_is_0_on_good_px_and_1_on_drawn_defects(lite: Encoder) -> None:
    method, losses = taught(lite)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    with torch.no_grad():
        features = method.extract(images(4))
        method.finalise(iter([features]))
        drawn, masks = method.corrupted(features[0].float(), 0)
        found = method.anomaly_map((drawn.half(), *lite(drawn)))
    inside = torch.nn.functional.adaptive_max_pool2d(masks, found.shape[-2:]) > 0
    # The images are kept as float16.
    assert float(found[~inside].mean()) == pytest.approx(0, abs=5e-3)
    assert float(found[inside].mean()) == pytest.approx(1, abs=5e-3)


def test_a_map_that_tells_nothing_has_no_say(lite: Encoder) -> None:
    method = make(lite).eval()
    features = method.extract(images())
    with torch.no_grad():
        distance = method.maps(features)[0]
        method.scales.copy_(torch.tensor([[0.5, 1.5], [0.3, 0.2]]))
        torch.testing.assert_close(method.anomaly_map(features), (distance - 0.5) / 2)
        method.scales.fill_(0.4)
        assert not method.anomaly_map(features).any()


def test_what_the_map_is(lite: Encoder) -> None:
    features = make(lite).eval().extract(images())
    with torch.no_grad():
        for kind in ("distance", "segmentation"):
            method = make(lite, map=kind).eval()
            found, parts = method.anomaly_map(features), method.maps(features)
            torch.testing.assert_close(found, parts[kind == "segmentation"])
        only = make(lite, segmentation=False).eval()
        assert only.maps(features)[1] is None
        torch.testing.assert_close(only.anomaly_map(features), only.maps(features)[0])


def test_the_default_levels_are_those_at_4_8_and_16_px() -> None:
    assert DMDD.default_levels(resolve("lite0")) == LEVELS


def test_golden_values(lite: Encoder) -> None:
    """What this version computes, so that no change of it goes unseen."""
    method = make(lite).eval()
    features = method.extract(images())
    with torch.no_grad():
        torch.manual_seed(0)
        loss, found = float(method.loss(features, 0)), method.anomaly_map(features)
    assert loss == pytest.approx(11.27709, rel=1e-3)
    assert float(found.mean()) == pytest.approx(1.711112, rel=1e-3)
    assert float(found[1, 0, 3, 5]) == pytest.approx(1.715823, rel=1e-3)
