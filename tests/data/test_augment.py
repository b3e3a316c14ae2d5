from __future__ import annotations

import torch

from flawmap.data.augment import random_turns, random_views


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_views_follow_from_the_generator_and_differ_within_a_batch() -> None:
    image = torch.rand(3, 32, 48, generator=draw(0))
    batch = image.expand(6, 3, 32, 48).clone()
    first, again, other = (random_views(batch, draw(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.05)
    assert not torch.allclose(first[0], first[1], atol=0.05)
    assert first.shape == batch.shape
    assert 0 <= float(first.min()) <= float(first.max()) <= 1


def test_a_view_shows_so_much_of_the_image() -> None:
    """On a ramp from left to right the slope of a view is its share of the width."""
    ramp = torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64)
    shares = []
    for seed in range(200):
        (view,) = random_views(ramp, draw(seed))
        middle = view[0, 32]
        steps = (middle[1:] - middle[:-1]).abs().median()
        shares.append(float(steps * 63 / 0.6))
    found = torch.tensor(shares)
    # sqrt(0.6) to sqrt(1.1), each times brightness and contrast of 0.9 to 1.1.
    assert 0.775 * 0.9**2 <= float(found.min()) < 0.8
    assert 1.0 < float(found.max()) <= 1.049 * 1.1**2


def test_half_of_the_views_are_mirrored() -> None:
    ramp = torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64)
    rising = [
        bool((v := random_views(ramp, draw(s)))[0, 0, 32, 10] < v[0, 0, 32, 50]) for s in range(200)
    ]
    assert 70 < sum(rising) < 130


def test_grey_stays_grey_and_small_changes_stay_small() -> None:
    flat = torch.full((8, 3, 16, 16), 0.5)
    views = random_views(flat, draw(0))
    assert float((views - views[:, :1]).abs().max()) < 1e-6
    assert 0.44 < float(views.min()) < float(views.max()) < 0.56


def test_images_are_turned_and_mirrored_as_a_whole() -> None:
    image = torch.rand(1, 3, 40, 40, generator=draw(0))
    every = [i.rot90(q, (2, 3)) for i in (image, image.flip(3)) for q in range(4)]
    torch.manual_seed(0)
    seen = set()
    for view in random_turns(image.repeat(64, 1, 1, 1), rotations=True, flips=True):
        (which,) = [n for n, e in enumerate(every) if torch.equal(e[0], view)]
        seen.add(which)
    assert seen == set(range(8))
    wide = torch.rand(1, 3, 40, 48, generator=draw(0))
    views = random_turns(wide.repeat(32, 1, 1, 1), rotations=True, flips=False)
    turned = wide.rot90(2, (2, 3))[0]
    assert 4 < sum(torch.equal(v, turned) for v in views) < 28
    assert random_turns(image, rotations=False, flips=False) is image
