"""InTra's parts against direct computations, and a fit from pixels alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from scipy.ndimage import correlate, gaussian_filter, uniform_filter
from skimage.metrics import structural_similarity
from torch import nn

import flawmap
from flawmap.config import EncoderConfig
from flawmap.data import read_data
from flawmap.encoders.encoder import build
from flawmap.errors import ConfigError
from flawmap.methods import intra
from flawmap.methods.intra import InTra, InTraConfig
from flawmap.methods.layers.mfsa import WindowAttention, WindowBlock, attended
from flawmap.methods.layers.similarity import (
    at_two_scales,
    colour_difference,
    gms,
    gradient_magnitude,
    ssim,
)
from flawmap.methods.layers.smoothing import smoothed
from flawmap.methods.layers.windows import waves, window_starts
from flawmap.training.interrupt import Interrupted
from watching import Notes, StopAt

TINY: dict[str, Any] = {"width": 32, "depth": 3, "heads": 2, "patch": 8, "window": 3, "windows": 6}
FIT: dict[str, Any] = {
    **{f"method.{name}": value for name, value in TINY.items()},
    "method.mean_filter": 5,
    "data.size": 64,
    "training.iterations": 40,
    "training.batch_size": 4,
    "training.validate_every": 10,
    "training.precision": "float32",
    "training.device": "cpu",
    "training.threads": 1,
}


def make(size: tuple[int, int] = (40, 48), seed: int = 0, **options: object) -> InTra:
    config = InTraConfig.model_validate({**TINY, **options})
    generator = torch.Generator().manual_seed(seed)
    return InTra.build(config, build(EncoderConfig(name="none")), size, generator).eval()


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_each_patch_has_the_window_in_which_it_lies_most_central() -> None:
    n, m, side = 10, 12, 7
    starts, places = window_starts((n, m), side)
    for t in range(n):
        for u in range(m):
            best = min(
                ((r, s) for r in range(n - side + 1) for s in range(m - side + 1)
                 if r <= t < r + side and s <= u < s + side),
                key=lambda w: abs(w[0] + 3 - t) + abs(w[1] + 3 - u),
            )  # fmt: skip
            assert divmod(int(starts[t * m + u]), m) == best
            assert divmod(int(places[t * m + u]), side) == (t - best[0], u - best[1])


@pytest.mark.parametrize("mfsa", [True, False])
def test_attention_equals_the_explicit_sum(mfsa: bool) -> None:
    torch.manual_seed(0)
    layer = WindowAttention(64, 4, mfsa).double()
    x = torch.randn(2, 9, 64, dtype=torch.float64)
    q, k, v = layer.query(x), layer.key(x), layer.value(x)
    inner = 32 if mfsa else 64
    assert q.shape == k.shape == (2, 9, inner)
    mixed = torch.zeros_like(v)
    each = inner // 4
    for h in range(4):
        for i in range(9):
            dots = (q[:, i, h * each : (h + 1) * each, None] * k[
                :, :, h * each : (h + 1) * each
            ].transpose(1, 2)).sum(dim=1)  # fmt: skip
            weights = (dots / each**0.5).softmax(dim=-1)
            mixed[:, i, h * 16 : (h + 1) * 16] = (
                weights[..., None] * v[:, :, h * 16 : (h + 1) * 16]
            ).sum(dim=1)
    torch.testing.assert_close(layer(x, x), layer.out(mixed))


def test_both_forms_of_attention_are_one() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, 4, n, d, dtype=torch.float64, generator=generator)
        for n, d in ((1, 8), (9, 8), (9, 16))
    )
    torch.testing.assert_close(attended(q, k, v, fused=True), attended(q, k, v, fused=False))


@pytest.mark.parametrize("mfsa", [True, False])
def test_one_token_of_a_block_alone_is_the_same_as_among_all(mfsa: bool) -> None:
    torch.manual_seed(0)
    block = WindowBlock(64, 4, mfsa).double()
    x = torch.randn(3, 9, 64, dtype=torch.float64)
    place = torch.tensor([8, 0, 4])
    torch.testing.assert_close(block(x, place)[:, 0], block(x)[torch.arange(3), place])


def test_the_published_size() -> None:
    with torch.device("meta"):
        method = InTra(InTraConfig(), build(EncoderConfig(name="none")), (256, 256))
    query = method.blocks[0].attention.query
    assert [tuple(layer.weight.shape) for layer in (query[0], query[2])] == [
        (1024, 512),
        (256, 1024),
    ]
    block = 2 * (512 * 1024 + 1024 + 1024 * 256 + 256)  # queries and keys
    block += 2 * (512 * 512 + 512)  # values and output
    block += 512 * 2048 + 2048 + 2048 * 512 + 512 + 4 * 512  # MLP and normalisations
    ends = (768 * 512 + 512) + (512 * 768 + 768) + 2 * 512 + 512 + 256 * 512
    count = sum(p.numel() for p in method.parameters())
    assert count == 13 * block + ends
    assert count / 1e6 == pytest.approx(55.5, abs=0.1)


class Scale(nn.Module):
    """A block that multiplies by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor, only: torch.Tensor | None = None) -> torch.Tensor:
        x = x if only is None else x[torch.arange(len(x)), only, None]
        return x * self.factor


@pytest.mark.parametrize(
    ("depth", "pairs"),
    [
        (13, {8: 6, 9: 5, 10: 4, 11: 3, 12: 2, 13: 1}),
        (6, {5: 2, 6: 1}),
        (2, {}),
    ],
)
def test_outputs_of_the_first_half_enter_the_second_in_reverse(
    depth: int, pairs: dict[int, int]
) -> None:
    method = make(depth=depth)
    method.blocks = nn.ModuleList(Scale(1 + 0.1 * i) for i in range(1, depth + 1))
    method.norm, method.head = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    x = rand(2, 9, 32)
    place = torch.tensor([4, 0])
    outputs = {0: x}
    for i in range(1, depth + 1):
        given = outputs[i - 1] + (outputs[pairs[i]] if i in pairs else 0)
        outputs[i] = given * (1 + 0.1 * i)
    torch.testing.assert_close(method.paint(x, place), outputs[depth].mean(dim=1))
    method.config = method.config.model_copy(update={"head": "token"})
    wanted = torch.stack([outputs[depth][0, 4], outputs[depth][1, 0]])
    torch.testing.assert_close(method.paint(x, place), wanted)
    method.config = method.config.model_copy(update={"long_residuals": False, "head": "mean"})
    plain = x * np.prod([1 + 0.1 * i for i in range(1, depth + 1)])
    torch.testing.assert_close(method.paint(x, place), plain.mean(dim=1).float())


@pytest.mark.parametrize("position", ["global", "local"])
def test_patches_embedded_once_give_what_cut_windows_give(position: str) -> None:
    method = make(position=position)
    images = rand(2, 3, 40, 48)  # 5 x 6 patches
    starts, places = window_starts((5, 6), 3)
    embedded = []
    watched = method.embed.register_forward_hook(lambda _, given, out: embedded.append(out.shape))
    with torch.no_grad():
        painted = method.inpaint(images)
        watched.remove()
        assert embedded == [(2, 30, method.config.width)]
        for b in range(2):
            for t in range(30):
                top, left = divmod(int(starts[t]), 6)
                sequence = []
                for i in range(9):
                    r, s = top + i // 3, left + i % 3
                    position_ = method.positions[i if position == "local" else r * 6 + s]
                    if i == places[t]:
                        sequence.append(method.hidden + position_)
                        continue
                    pixels = images[b, :, 8 * r : 8 * r + 8, 8 * s : 8 * s + 8].flatten()
                    sequence.append(method.embed(pixels) + position_)
                wanted = method.paint(torch.stack(sequence)[None], places[t : t + 1])
                torch.testing.assert_close(painted[b, t], wanted[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(256, 256), (320, 320), (512, 512), (256, 320)])
def test_published_sizes_are_painted_patch_by_patch(size: tuple[int, int]) -> None:
    method = make(size, width=16, depth=1, patch=16, window=7)
    image = rand(1, 3, *size)
    with torch.no_grad():
        painted = method.reconstruction((image,))
        assert painted.shape == image.shape
        assert method.anomaly_map((image,)).shape == (1, 1, *size)
        # The last patch stands where it was painted.
        last = method.inpaint(image)[0, -1].view(3, 16, 16)
    torch.testing.assert_close(painted[0, :, -16:, -16:], last)
    starts, places = window_starts(method.grid, 7)
    assert int(places[-1]) == 48
    assert int(starts[-1]) == (method.grid[0] - 7) * method.grid[1] + method.grid[1] - 7


def test_a_patch_is_painted_without_being_seen() -> None:
    method = make()
    images = rand(1, 3, 40, 48)
    changed = images.clone()
    changed[:, :, 16:24, 24:32] = 1  # patch (2, 3) of 5 x 6
    with torch.no_grad():
        before, after = method.inpaint(images), method.inpaint(changed)
    moved = ((before - after).abs().amax(dim=-1) > 0).view(5, 6)
    assert not moved[2, 3]
    # Windows of 3 x 3 that do not hold it stay too; those of its neighbours hold it.
    assert moved[1:4, 2:5].sum() == 8
    assert not moved[:, 0].any()


@pytest.mark.parametrize("start", ["image", "neighbours"])
def test_of_a_covered_patch_only_its_share_of_the_mean_colour_is_seen(start: str) -> None:
    method = make(start=start)
    # At first it paints nothing but the start.
    torch.nn.init.normal_(method.head.weight, generator=torch.Generator().manual_seed(0))
    images = rand(1, 3, 40, 48)
    changed = images.clone()
    patch = changed[:, :, 16:24, 24:32]  # patch (2, 3) of 5 x 6
    # Other px of the same mean: nothing of them is seen.
    patch.copy_(patch.flatten(2).flip(-1).view_as(patch))
    with torch.no_grad():
        before, after = method.inpaint(images), method.inpaint(changed)
    torch.testing.assert_close(before[0, 15], after[0, 15])
    assert not torch.allclose(before[0, 14], after[0, 14])


def test_images_survive_being_cut() -> None:
    method = make()
    images = rand(2, 3, 40, 48)
    patches = method.to_patches(images)
    torch.testing.assert_close(patches[1, 7], images[1, :, 8:16, 8:16].flatten())
    assert torch.equal(method.to_images(patches), images)


def prewitt(image: np.ndarray) -> np.ndarray:
    kernel = np.array([[-1, 0, 1]] * 3) / 3
    gx, gy = (correlate(image, k, mode="nearest") for k in (kernel, kernel.T))
    return np.hypot(gx, gy)


def test_gradients_and_their_similarity_against_a_direct_computation() -> None:
    a, b = (rand(1, 3, 20, 24, seed=s).double() for s in (0, 1))
    maps = []
    for x, y in zip(a[0].numpy(), b[0].numpy(), strict=True):
        g, h = prewitt(x), prewitt(y)
        maps.append((2 * g * h + 0.0026) / (g**2 + h**2 + 0.0026))
    np.testing.assert_allclose(gradient_magnitude(a)[0, 1], prewitt(a[0, 1].numpy()), rtol=1e-6)
    np.testing.assert_allclose(gms(a, b)[0, 0], np.mean(maps, axis=0), rtol=1e-6)
    assert torch.equal(gms(a, a), torch.ones(1, 1, 20, 24, dtype=torch.float64))


def test_structural_similarity_against_scikit_image() -> None:
    a, b = (rand(2, 3, 16, 19, seed=s).double() for s in (0, 1))
    b = 0.7 * a + 0.3 * b
    for x, y in zip(a.numpy(), b.numpy(), strict=True):
        wanted = structural_similarity(
            x, y, channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )  # fmt: skip
        found = ssim(torch.from_numpy(x)[None], torch.from_numpy(y)[None])
        assert found.shape == (1, 3, 6, 9)
        assert float(found.mean()) == pytest.approx(wanted, rel=1e-9)
    assert ssim(a[..., :8, :8], a[..., :8, :8]).shape == (2, 3, 2, 2)


def test_a_flat_patch_gives_a_finite_gradient() -> None:
    flat = torch.full((1, 3, 16, 16), 0.5, requires_grad=True)
    (1 - gms(flat, torch.full_like(flat, 0.5)).mean()).backward()
    assert torch.isfinite(flat.grad).all()


@pytest.mark.parametrize(
    ("l2", "of_gms", "of_ssim"), [(1.0, 0.01, 0.01), (0.5, 0.0, 0.2), (0.0, 1.0, 0.0)]
)
def test_the_loss_is_the_weighted_sum(l2: float, of_gms: float, of_ssim: float) -> None:
    method = make(l2_weight=l2, gms_weight=of_gms, ssim_weight=of_ssim)
    a, b = rand(5, 192), rand(5, 192, seed=1)
    x, y = a.view(5, 3, 8, 8), b.view(5, 3, 8, 8)
    wanted = l2 * (a - b).square().mean()
    wanted = wanted + of_gms * (1 - gms(x, y).mean()) + of_ssim * (1 - ssim(x, y).mean())
    torch.testing.assert_close(method._patch_loss(a, b), wanted)


def test_the_loss_compares_the_covered_patch_of_windows_drawn_from_the_seed() -> None:
    method = make(windows=2)
    images = rand(2, 3, 40, 48).half()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    method._patch_loss = lambda painted, wanted: seen.append((painted, wanted))  # type: ignore[assignment,func-returns-value]
    torch.manual_seed(5)
    method.loss((images,), 0)
    painted, wanted = seen[0]
    torch.manual_seed(5)
    top, left, place = (torch.randint(n, (4,)) for n in (5 - 3 + 1, 6 - 3 + 1, 9))
    for w in range(4):
        r, s = int(top[w] + place[w] // 3), int(left[w] + place[w] % 3)
        patch = images[w // 2, :, 8 * r : 8 * r + 8, 8 * s : 8 * s + 8].float().flatten()
        torch.testing.assert_close(wanted[w], patch)
    assert painted.shape == (4, 192)


def test_every_window_and_place_is_drawn_alike() -> None:
    method = make(windows=2000)
    counts = np.zeros((3, 4, 9))
    inner = method.in_window

    def spy(corners: torch.Tensor) -> torch.Tensor:
        drawn.append(corners)
        return inner(corners)

    drawn: list[torch.Tensor] = []
    places: list[torch.Tensor] = []
    method.in_window = spy  # type: ignore[method-assign]
    method.paint = lambda x, place: (places.append(place), x[:, 0, :1].repeat(1, 192))[1]  # type: ignore[method-assign,func-returns-value]
    torch.manual_seed(0)
    method.loss((rand(5, 3, 40, 48),), 0)
    for corner, place in zip(drawn[0].tolist(), places[0].tolist(), strict=True):
        counts[corner // 6, corner % 6, place] += 1
    assert counts.sum() == 10_000
    # 108 cells with 93 expected in each: five standard deviations.
    assert np.abs(counts - 10_000 / 108).max() < 5 * (10_000 / 108) ** 0.5


def test_windows_are_drawn_as_they_are_scored() -> None:
    method = make(draw="scored")
    torch.manual_seed(0)
    corners, places = method._drawn(3000)
    starts, covered = window_starts((5, 6), 3)
    top, left = corners // 6 + places // 3, corners % 6 + places % 3
    at = top * 6 + left
    assert torch.equal(starts[at], corners)
    assert torch.equal(covered[at], places)
    counts = torch.bincount(at, minlength=30)
    # 100 expected of each patch: five standard deviations.
    assert float((counts - 100).abs().max()) < 50


def test_validation_paints_every_patch_and_draws_nothing() -> None:
    method = make()
    images = rand(2, 3, 40, 48)
    state = torch.random.get_rng_state()
    with torch.no_grad():
        found = method.validation_loss((images,))
        painted = method.inpaint(images)
    assert torch.equal(torch.random.get_rng_state(), state)
    wanted = method._patch_loss(painted.flatten(0, 1), method.to_patches(images).flatten(0, 1))
    torch.testing.assert_close(found, wanted)


def test_a_step_sees_images_turned_and_mirrored_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def turns(images: torch.Tensor, **options: bool) -> torch.Tensor:
        asked.append(options)
        return images

    monkeypatch.setattr(intra, "random_turns", turns)
    images = rand(1, 3, 40, 48)
    method = make(flips=True).train()
    method.loss((images,), 0)
    method.eval().loss((images,), 0)
    assert asked == [{"rotations": False, "flips": True}]


def test_gradients_reach_all_that_learns() -> None:
    for options in ({}, {"position": "local", "head": "token", "attention": "plain"}):
        method = make(**options).train()
        method.loss((rand(2, 3, 40, 48).half(),), 0).backward()
        for name, parameter in method.named_parameters():
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().sum()) > 0, name


def test_the_map_against_a_direct_computation() -> None:
    method = make(size=(64, 64), mean_filter=7, sigma=1.5)
    images = rand(1, 3, 64, 64).half().float()
    with torch.no_grad():
        found = method.difference((images,))[0, 0].double().numpy()
        painted = method.reconstruction((images,))
    total = np.zeros((64, 64))
    for scale in (2, 4):
        small = [
            x[0].double().reshape(3, 64 // scale, scale, 64 // scale, scale).mean((2, 4)).numpy()
            for x in (images, painted)
        ]
        maps = []
        for x, y in zip(*small, strict=True):
            g, h = prewitt(x), prewitt(y)
            maps.append(1 - (2 * g * h + 0.0026) / (g**2 + h**2 + 0.0026))
        # Linear interpolation between the centres of px, constant beyond the outermost.
        at = np.clip((np.arange(64) + 0.5) / scale - 0.5, 0, 64 // scale - 1)
        grid = np.arange(64 // scale)
        up = np.array([[np.interp(p, grid, np.eye(len(grid))[j]) for j in grid] for p in at])
        total += up @ np.mean(maps, axis=0) @ up.T / 2
    inside = np.ones_like(total)

    def smooth(values: np.ndarray) -> np.ndarray:
        mean = uniform_filter(values, 7, mode="constant") / uniform_filter(
            inside, 7, mode="constant"
        )
        options = {"sigma": 1.5, "mode": "constant", "truncate": 4.0}
        return gaussian_filter(mean, **options) / gaussian_filter(inside, **options)

    np.testing.assert_allclose(found, smooth(total), rtol=1e-4, atol=1e-6)


def test_the_border_shows_no_seam() -> None:
    method = make(size=(64, 64))
    # Filters make nothing of what is the same everywhere.
    level = torch.full((1, 1, 64, 64), 0.3)
    torch.testing.assert_close(smoothed(level, 21, 2.0), level)
    # A perfect reconstruction has an empty map, at the border too; a flaw shows there as inside.
    clean = rand(1, 3, 64, 64)
    means = []
    for corner in (0, 24):
        flawed = clean.clone()
        flawed[..., corner : corner + 16, corner : corner + 16] = 1
        method.reconstruction = lambda features: clean  # type: ignore[method-assign]
        with torch.no_grad():
            assert float(method.difference((clean,)).abs().max()) == 0
            found = method.difference((flawed,))[0, 0]
        means.append(float(found[corner : corner + 16, corner : corner + 16].mean()))
        assert float(found[48:, 48:].max()) < 0.5 * means[-1]
    # Fewer px around it count in a corner.
    assert 0.8 < means[0] / means[1] < 1.5


def test_the_mean_of_the_training_images_is_subtracted_and_the_rest_squared() -> None:
    method = make(size=(64, 64), mean_filter=5)
    batches = [(rand(2, 3, 64, 64),), (rand(1, 3, 64, 64, seed=1),)]
    with torch.no_grad():
        method.finalise(iter(batches))
        each = torch.cat([method.difference(b) for b in batches])
        torch.testing.assert_close(method.mean_difference, each.mean(dim=0))
        wanted = (each[2:] - each.mean(dim=0)).square()
        torch.testing.assert_close(method.anomaly_map(batches[1]), wanted)
        plain = make(size=(64, 64), mean_filter=5, map="difference")
        torch.testing.assert_close(plain.anomaly_map(batches[1]), each[2:])
    assert (method.final_images, plain.final_images) == (None, 0)


def test_a_px_that_differs_among_good_images_counts_less() -> None:
    method = make(size=(64, 64), mean_filter=5, map="standardised")
    batches = [(rand(2, 3, 64, 64),), (rand(1, 3, 64, 64, seed=1),)]
    with torch.no_grad():
        method.finalise(iter(batches))
        each = torch.cat([method.difference(b) for b in batches])
        spread = each.std(dim=0, correction=0)
        wanted = (each[:2] - each.mean(dim=0)) / (spread + 0.5 * spread.mean())
        torch.testing.assert_close(method.anomaly_map(batches[0]), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["image", "neighbours"])
def test_a_network_that_begins_with_a_colour_paints_what_is_brighter_as_much_brighter(
    start: str,
) -> None:
    images = 0.5 * rand(2, 3, 40, 48)
    brighter = images + torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    method = make(start=start)
    with torch.no_grad():
        colours = method.inpaint(images).view(2, 30, 3, 64)
        method.head.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        shift = (method.inpaint(brighter) - method.inpaint(images)).view(2, 30, 3, 64)
        wanted = torch.tensor([0.1, 0.2, 0.3])[:, None].expand_as(shift)
        torch.testing.assert_close(shift, wanted, rtol=1e-4, atol=1e-5)
    # Before it has learnt anything it paints the mean of the image, or of the patches around.
    each = images.unfold(2, 8, 8).unfold(3, 8, 8).mean((4, 5))  # (2, 3, 5, 6)
    corner, middle = each[:, :, :2, :2].sum((2, 3)), each[:, :, 1:4, 2:5].sum((2, 3))
    around = {
        0: (corner - each[:, :, 0, 0]) / 3,
        2 * 6 + 3: (middle - each[:, :, 2, 3]) / 8,
    }
    for at, colour in around.items():
        if start == "image":
            colour = images.mean((2, 3))
        torch.testing.assert_close(colours[:, at], colour[:, :, None].expand(2, 3, 64))


@pytest.mark.parametrize("start", ["grey", "image", "neighbours"])
def test_the_loss_compares_pixels_as_they_are(monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    method, images = make(start=start, draw="scored"), rand(2, 3, 40, 48)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    monkeypatch.setattr(method, "_patch_loss", lambda *given: seen.append(given))
    torch.manual_seed(3)
    with torch.no_grad():
        nn.init.normal_(method.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
        method.loss((images,), 0)
        painted = method.inpaint(images)
    torch.manual_seed(3)
    at = torch.randint(30, (12,))
    image = torch.arange(2).repeat_interleave(6)
    torch.testing.assert_close(seen[0][0], painted[image, at], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[0][1], method.to_patches(images)[image, at])


def test_places_begin_as_waves_that_tell_them_apart() -> None:
    found = waves((7, 7), 192)
    assert found.shape == (49, 192)
    apart = torch.cdist(found, found)
    # The next patch is nearer than any that is farther away on the same axis.
    assert bool((apart[24, 25] < apart[24, 26:28]).all())
    assert float((apart + torch.eye(49) * 99).min()) > 1
    assert waves((3, 5), 18).shape == (15, 18)


def test_memory_of_scoring_is_bounded_by_windows_at_once() -> None:
    images = rand(3, 3, 40, 48)
    sizes: list[int] = []
    with torch.no_grad():
        wanted = make().inpaint(images)
        method = make(windows_at_once=7)
        method.blocks[0].register_forward_hook(lambda *a: sizes.append(len(a[2])))
        torch.testing.assert_close(method.inpaint(images), wanted, rtol=1e-4, atol=1e-5)
    assert max(sizes) == 7
    assert sum(sizes) == 90


@pytest.mark.parametrize("form", ["published", "small"])
def test_golden_values(form: str) -> None:
    """Of a tiny configuration, from the seed on: they change only when the method does."""
    method = make(size=(64, 64), mean_filter=5, **FORMS[form])
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    image = (0.5 + 0.4 * torch.sin(x / 5) * torch.cos(y / 7)).expand(1, 3, 64, 64).half()
    optimizer = method.train().optimizer()
    torch.manual_seed(0)
    for _ in range(5):
        loss = method.loss((image,), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    method.eval()
    with torch.no_grad():
        found = method.anomaly_map((image,))
        held = method.validation_loss((image,))
    numbers = [float(loss.detach()), float(held), float(found.mean()), float(found[0, 0, 20, 30])]
    assert numbers == pytest.approx(GOLDEN[form], rel=2e-4)


FORMS: dict[str, dict[str, Any]] = {
    "published": {},
    "small": {
        **{"position": "local", "head": "token", "draw": "scored", "start": "image"},
        **{"map": "difference", "learning_rate": 1e-3},
    },
}

GOLDEN = {
    "published": [0.0519945, 0.0571265, 0.482216, 0.641596],
    "small": [0.0381561, 0.0490474, 0.729037, 0.831695],
}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["published", "small"])
def test_it_paints_an_unseen_piece_of_a_texture_better_than_the_mean_of_the_neighbours(
    form: str,
) -> None:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")

    def piece(down: int, right: int) -> torch.Tensor:
        wave = 0.5 + 0.4 * torch.sin((x + right) / 4) * torch.cos((y + down) / 5)
        return wave.expand(1, 3, 64, 64)

    images = torch.cat([piece(7 * i, 11 * i) for i in range(4)])
    options = {**FORMS[form], "position": "local"}
    method = make(size=(64, 64), windows=16, **options).train()
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(150):
        optimizer.zero_grad()
        method.loss((images,), 0).backward()
        optimizer.step()
    method.eval()
    image = piece(40, 50)
    with torch.no_grad():
        painted = method.inpaint(image)[0]
    patches = method.to_patches(image)[0]
    grid = patches.view(8, 8, -1)
    errors = []
    for t in range(8):
        for u in range(8):
            near = [
                grid[r, s]
                for r in range(max(0, t - 1), min(8, t + 2))
                for s in range(max(0, u - 1), min(8, u + 2))
                if (r, s) != (t, u)
            ]
            errors.append((torch.stack(near).mean(dim=0) - grid[t, u]).square().mean())
    own = (painted - patches).square().mean(dim=1).view(8, 8)
    gain = 10 * torch.log10(torch.stack(errors).mean() / own.mean())
    assert float(gain) > 3
    # Windows at the border are shifted inwards; what they paint there is no mere guess either.
    border = torch.ones(8, 8, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert float(torch.stack(errors).view(8, 8)[border].mean() / own[border].mean()) > 2


def test_sizes_that_cannot_be_cut_are_refused() -> None:
    for size, fit in (((100, 64), "(96, 64)"), ((64, 16), "(64, 24)")):
        with pytest.raises(ConfigError, match="cut into patches of 8 px") as caught:
            make(size=size)
        assert fit in str(caught.value)
    with pytest.raises(ConfigError, match="multiple of 12"):
        InTra.check(InTraConfig(width=32, heads=6))
    with pytest.raises(ConfigError, match="learns nothing"):
        InTra.check(InTraConfig(l2_weight=0, gms_weight=0, ssim_weight=0))
    with pytest.raises(ConfigError, match="must be odd"):
        flawmap.configure(method="intra", options={"method.mean_filter": 4})


def test_an_encoder_is_refused(rings: Path) -> None:
    with pytest.raises(ConfigError, match="an encoder would do nothing"):
        flawmap.fit(rings, method="intra", encoder="lite0", options=FIT)
    with pytest.raises(ConfigError, match="weights of an encoder would do nothing"):
        flawmap.fit(rings, method="intra", options={**FIT, "encoder.weights": "lite0.pth"})


@pytest.fixture(scope="module")
def detector(rings: Path) -> flawmap.Detector:
    return flawmap.fit(rings, method="intra", options=FIT)


def test_the_bundle_holds_no_encoder(detector: flawmap.Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "x.flawmap")
    with safe_open(tmp_path / "x.flawmap", framework="pt") as file:
        assert not [name for name in file.keys() if name.startswith("encoder")]  # noqa: SIM118
    learnt = sum(v.numel() * 4 for v in detector.models["*"].state_dict().values())
    assert (tmp_path / "x.flawmap").stat().st_size < learnt + 100_000


def test_a_stopped_fit_goes_on_to_the_same_weights(
    detector: flawmap.Detector, rings: Path, tmp_path: Path
) -> None:
    output = tmp_path / "x.flawmap"
    with pytest.raises(Interrupted):
        flawmap.fit(rings, output=output, method="intra", options=FIT, progress=StopAt(20))
    resumed = flawmap.fit(rings, output=output, method="intra", options=FIT, resume=True)
    wanted = detector.models["*"].state_dict()
    for name, value in resumed.models["*"].state_dict().items():
        assert torch.equal(value, wanted[name]), name
    found, whole = (d.fitted.curves["*"]["validation"] for d in (resumed, detector))
    assert found == whole
    assert len(found["losses"]) == 4
    assert found["reconstructions"]


@pytest.fixture(scope="module")
def published(rings: Path) -> flawmap.Detector:
    options = {k: v for k, v in FIT.items() if k != "training.validate_every"}
    options |= {"training.iterations": 100, "training.batch_size": 8, "method.windows": 24}
    return flawmap.fit(rings, method="intra", preset="paper", options=options)


def test_the_published_form_is_fitted_as_a_whole(
    published: flawmap.Detector, rings: Path, tmp_path: Path
) -> None:
    method, config = published.models["*"], published.config
    assert isinstance(method, InTra)
    options = config.method.model_dump()
    form = ("position", "head", "draw", "start", "schedule", "map")
    assert [options[name] for name in form] == [
        *("global", "mean", "uniform", "grey", "constant", "squared")
    ]
    assert len(method.positions) == 64
    # Looks come once an epoch of 600 windows an image, 192 a step, and at the end.
    taught = len(read_data(rings).select(split="train", label=0)) - 1
    epoch = round(600 * taught / 192)
    steps = [step for step, _ in published.fitted.curves["*"]["validation"]["losses"]]
    assert epoch < 50
    assert steps == [*range(epoch, 101, epoch), *([] if 100 % epoch == 0 else [100])]
    assert float(method.mean_difference.min()) >= 0 < float(method.mean_difference.max())
    (sample, *_) = read_data(rings).select(split="test")
    (found,) = published.predict_samples([sample])
    published.save(tmp_path / "x.flawmap")
    (again,) = flawmap.load(tmp_path / "x.flawmap").predict_samples([sample])
    np.testing.assert_array_equal(found.anomaly_map, again.anomaly_map)


def test_an_epoch_is_600_windows_of_every_image() -> None:
    assert make(windows=16).epoch(images=213, batch_size=16) == 499
    assert make(windows=8).epoch(images=1, batch_size=64) == 1


def test_a_report_shows_image_painting_and_map(
    detector: flawmap.Detector, rings: Path, tmp_path: Path
) -> None:
    flawmap.evaluate(detector, rings, report=tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    cards = page.split('class="pair three"')[1:]
    assert cards
    for card in cards:
        whats = re.findall(r'alt="(\w+)[^"]*".*?class="what">([^<]+)<', card.split("</figure>")[0])
        assert whats == [
            ("Picture", "image"),
            ("Reconstruction", "reconstruction"),
            ("Heat", "heat map"),
        ]
    steps = [step for step, _ in detector.fitted.curves["*"]["validation"]["reconstructions"]]
    assert steps
    for step in steps:
        assert f"iteration {step}" in page


def test_the_weights_are_those_of_the_lowest_validation_loss(
    rings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, seen = InTra.validation_loss, []

    def spy(self: InTra, features: Any) -> torch.Tensor:
        found = loss(self, features)
        # As if it had learnt too long.
        seen.append((features, len(seen)))
        return found + (1 if len(seen) == 4 else 0)

    monkeypatch.setattr(InTra, "validation_loss", spy)
    fitted = flawmap.fit(rings, method="intra", options=FIT)
    losses = [loss for _, loss in fitted.fitted.curves["*"]["validation"]["losses"]]
    assert len(losses) == len(seen) == 4
    assert losses[3] > 1 > losses[0] > min(losses)
    method = fitted.models["*"]
    assert isinstance(method, InTra)
    with torch.no_grad():
        assert float(loss(method, seen[0][0])) == pytest.approx(min(losses), rel=1e-5)


def test_a_reconstruction_has_the_size_of_the_image(
    detector: flawmap.Detector, rings: Path
) -> None:
    (sample, *_) = read_data(rings).select(split="test")
    with Image.open(sample.path) as image:
        size = image.size[::-1]
    whole = detector.reconstruct(sample)
    assert whole is not None
    assert whole.shape == (*size, 3)
    assert 0 <= whole.min() < whole.max() <= 1
    small = detector.reconstruct(sample, (20, 30))
    assert small is not None
    assert small.shape == (20, 30, 3)


def test_auto_keeps_the_position_with_the_lower_loss(
    rings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = InTra.validation_loss

    def biased(self: InTra, features: Any) -> torch.Tensor:
        return loss(self, features) + (0 if self.local else 1)

    options = {**FIT, "method.position": "auto", "training.iterations": 20}
    monkeypatch.setattr(InTra, "validation_loss", biased)
    notes = Notes()
    chosen = flawmap.fit(
        rings, output=tmp_path / "x.flawmap", method="intra", options=options, progress=notes
    )
    assert any(
        re.search(r"position=global 1\.\d+, position=local 0\.\d+; position=local is kept", text)
        for text in notes.texts
    )
    assert chosen.models["*"].local  # type: ignore[union-attr]
    assert chosen.fitted.curves["*"]["kept"] == "position=local"
    monkeypatch.undo()
    alone = flawmap.fit(rings, method="intra", options={**options, "method.position": "local"})
    for name, value in alone.models["*"].state_dict().items():
        assert torch.equal(value, chosen.models["*"].state_dict()[name]), name
    loaded = flawmap.load(tmp_path / "x.flawmap", device="cpu")
    image = next((rings / "test" / "stain").iterdir())
    np.testing.assert_array_equal(
        loaded.predict(image).anomaly_map, chosen.predict(image).anomaly_map
    )


@pytest.mark.slow
def test_auto_goes_on_in_the_candidate_in_which_it_was_stopped(rings: Path, tmp_path: Path) -> None:
    options = {**FIT, "method.position": "auto", "training.iterations": 20}
    whole = flawmap.fit(rings, method="intra", options=options)
    output = tmp_path / "x.flawmap"
    stop = StopAt(10)
    begin = stop.task

    def task(name: str, total: int, **more: Any) -> Any:
        # The first training runs to its end.
        return begin("Learning" if name == "Learning, position=local" else "", total, **more)

    stop.task = task  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        flawmap.fit(rings, output=output, method="intra", options=options, progress=stop)
    resumed = flawmap.fit(rings, output=output, method="intra", options=options, resume=True)
    for name, value in resumed.models["*"].state_dict().items():
        assert torch.equal(value, whole.models["*"].state_dict()[name]), name


def test_another_fit_goes_on_with_the_position_that_was_kept(
    rings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**FIT, "method.position": "auto", "training.iterations": 10}
    loss = InTra.validation_loss
    monkeypatch.setattr(InTra, "validation_loss", lambda s, f: loss(s, f) + (not s.local))
    old = flawmap.fit(rings, method="intra", options=options)
    slow = {**options, "method.learning_rate": 1e-9, "training.iterations": 2}
    new = flawmap.fit(rings, method="intra", options=slow, start=old)
    for name, value in old.models["*"].state_dict().items():
        torch.testing.assert_close(new.models["*"].state_dict()[name], value, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_bfloat16_maps_are_near_those_of_float32(rings: Path) -> None:
    image = next((rings / "test" / "stain").iterdir())
    maps = []
    for precision in ("float32", "bfloat16"):
        options = {**FIT, "training.precision": precision, "calibration.strategy": "off"}
        maps.append(flawmap.fit(rings, method="intra", options=options).predict(image).anomaly_map)
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.98


def test_restoring_keeps_the_parameters_that_an_optimiser_knows() -> None:
    method = make(position="auto")
    optimizer = method.optimizer()
    method.restore({k: v + 1 for k, v in method.state_dict().items()})
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in method.parameters()} == known


def test_px_beyond_the_last_four_count_too() -> None:
    """Of 42 px the last two are half a px of the quarter scale."""
    a = torch.zeros(1, 3, 42, 42)
    b = a.clone()
    b[..., 40:] = 1
    found = at_two_scales(colour_difference, a, b)
    assert found.shape == (1, 1, 42, 42)
    # At half the scale 1; at a quarter 1 in px 10 and 0 in px 9, and px 41 lies at 9.875.
    torch.testing.assert_close(found[0, 0, :, 41], torch.full((42,), (1 + 0.875) / 2))


def test_colours_are_compared_if_asked() -> None:
    """Gradients tell nothing of a picture that is darker as a whole."""
    method = make(size=(64, 64), compared="colour", map="difference")
    images = 0.5 + 0.5 * rand(1, 3, 64, 64)
    painted = images - torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    method.reconstruction = lambda features: painted  # type: ignore[method-assign]
    found = method.anomaly_map((images,))
    torch.testing.assert_close(found, torch.full((1, 1, 64, 64), 0.2))
