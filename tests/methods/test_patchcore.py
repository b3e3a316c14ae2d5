"""PatchCore's distances and its bounded memory."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from flawmap.config import EncoderConfig, make_config
from flawmap.encoders.encoder import Encoder, build
from flawmap.errors import FitError
from flawmap.methods.coreset import greedy_coreset
from flawmap.methods.patchcore import PatchCore, PatchCoreConfig


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build(EncoderConfig(name="lite0"), ["blocks.1", "blocks.2"])


def make(encoder: Encoder, **options: object) -> PatchCore:
    config = PatchCoreConfig.model_validate({"name": "patchcore", "min_bank": 1, **options})
    return PatchCore.build(config, encoder, (32, 32), torch.Generator())


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def fitted(encoder: Encoder, n: int = 6, **options: object) -> PatchCore:
    method = make(encoder, **options)
    for i in range(n):
        method.observe(method.extract(images(1, i)), [i])
    method.finalise(torch.Generator().manual_seed(0))
    return method


def test_the_map_is_the_distance_to_the_nearest_patch(encoder: Encoder) -> None:
    method = fitted(encoder, search="exact")
    with torch.inference_mode():
        (queries,) = method.extract(images(2, 99))
        found = method.anomaly_map((queries,))
    wanted = torch.cdist(queries.double(), method.bank.double()[None]).amin(dim=-1)
    torch.testing.assert_close(found.flatten(1).double(), wanted, rtol=1e-4, atol=1e-3)
    assert found.shape == (2, 1, 8, 8)


def test_the_mean_of_several_neighbours(encoder: Encoder) -> None:
    method = fitted(encoder, neighbours=3)
    with torch.inference_mode():
        (queries,) = method.extract(images(1, 99))
        found = method.anomaly_map((queries,))
    distances = torch.cdist(queries.double(), method.bank.double()[None])
    wanted = distances.topk(3, largest=False).values.mean(dim=-1)
    torch.testing.assert_close(found.flatten(1).double(), wanted, rtol=1e-4, atol=1e-3)


def test_leaving_an_image_out_ignores_its_own_patches(encoder: Encoder) -> None:
    method = fitted(encoder, coreset_ratio=1.0, search="exact")
    features = method.extract(images(1, 2))
    assert method.anomaly_map(features).max() < 0.05
    found = method.anomaly_map_without(features, [2])
    others = method.bank[method._owners != 2]
    wanted = torch.cdist(features[0].double(), others.double()[None]).amin(dim=-1)
    torch.testing.assert_close(found.flatten(1).double(), wanted, rtol=1e-3, atol=1e-2)


def test_every_level_has_its_share_of_the_length(encoder: Encoder) -> None:
    (patches,) = make(encoder, neighbourhood=1, normalise="level").extract(images(1))
    first, second = encoder.channels
    # The first level is the finer one, so no interpolation has changed its lengths.
    lengths = patches[..., :first].norm(dim=-1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, first**0.5))
    assert patches.shape == (1, 64, first + second)


@pytest.mark.parametrize(("border", "counted"), [("zero", 9), ("inside", 4)])
def test_neighbourhood_pooling_at_the_border(encoder: Encoder, border: str, counted: int) -> None:
    plain = make(encoder, neighbourhood=1).extract(images(1))[0]
    pooled = make(encoder, neighbourhood=3, border=border).extract(images(1))[0]
    n = encoder.channels[0]
    grid = plain[0, :, :n].view(8, 8, n)
    torch.testing.assert_close(
        pooled[0, 0, :n], grid[:2, :2].sum(dim=(0, 1)) / counted, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        pooled[0].view(8, 8, -1)[4, 5, :n], grid[3:6, 4:7].mean(dim=(0, 1)), rtol=1e-4, atol=1e-4
    )


def test_memory_stays_bounded_for_any_number_of_images(encoder: Encoder) -> None:
    method = make(encoder, max_bank=50, memory_mib=16)
    method._limit = 300
    most = 0
    for i in range(40):
        method.observe(method.extract(images(1, i)), [i])
        most = max(most, method._held)
    assert most <= 300
    method.finalise(torch.Generator().manual_seed(0))
    assert method.bank.shape[0] == 50
    # Every image still finds patches like its own: the reduced set covers the whole stream.
    near = max(float(method(images(1, i)).max()) for i in (0, 20, 39))
    far = float(method(torch.zeros(1, 3, 32, 32)).max())
    assert near < far


def test_the_bank_has_the_share_asked_for(encoder: Encoder) -> None:
    assert fitted(encoder, coreset_ratio=0.25).bank.shape[0] == 6 * 64 // 4
    assert fitted(encoder, coreset_ratio=0.25, max_bank=10).bank.shape[0] == 10


def test_a_small_bank_keeps_everything(encoder: Encoder) -> None:
    assert fitted(encoder, coreset_ratio=0.25, min_bank=100).bank.shape[0] == 100
    assert fitted(encoder, coreset_ratio=0.25, min_bank=1000).bank.shape[0] == 6 * 64


def test_a_bank_that_keeps_everything_is_not_searched_for_what_to_keep(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are the same as those of the selection's order."""
    method = fitted(encoder, coreset_ratio=1.0, search="exact")
    order = greedy_coreset(method.bank, len(method.bank), start=5)
    sorted_ = fitted(encoder, coreset_ratio=1.0, search="exact")
    sorted_.restore({**sorted_.state_dict(), "bank": sorted_.bank[order]})
    sorted_._owners = sorted_._owners[order]
    features = method.extract(images(1, 2))
    for got, wanted in (
        (method.anomaly_map(features), sorted_.anomaly_map(features)),
        (method.anomaly_map_without(features, [2]), sorted_.anomaly_map_without(features, [2])),
    ):
        torch.testing.assert_close(got.square(), wanted.square(), rtol=1e-5, atol=1e-3)

    def untouched(*args: object, **kwargs: object) -> torch.Tensor:
        raise AssertionError("there is nothing to choose")

    monkeypatch.setattr("flawmap.methods.patchcore.greedy_coreset", untouched)
    again = fitted(encoder, coreset_ratio=1.0, search="exact")
    assert torch.equal(again.bank, method.bank)


def test_a_bank_for_several_neighbours_is_not_split(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawmap.methods.patchcore._LEAST_GROUPED", 10)
    assert len(fitted(encoder).centers)
    assert not len(fitted(encoder, neighbours=3).centers)


def test_the_farthest_patches_are_compared_with_the_whole_bank(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawmap.methods.patchcore._LEAST_GROUPED", 10)
    monkeypatch.setattr("flawmap.methods.nearest._LEAST_CANDIDATES", 4)
    grouped = fitted(encoder, coreset_ratio=1.0, probed_share=0.01)
    whole = fitted(encoder, coreset_ratio=1.0, search="exact")
    others = grouped._owners == 2
    for probed, found, wanted in (
        (
            grouped._searcher()(grouped.extract(images(4, 99))[0].flatten(0, 1)).view(4, 64),
            grouped.anomaly_map(grouped.extract(images(4, 99))).flatten(1),
            whole.anomaly_map(whole.extract(images(4, 99))).flatten(1),
        ),
        (
            grouped._searcher()(grouped.extract(images(1, 2))[0][0], ignored=others)[None],
            grouped.anomaly_map_without(grouped.extract(images(1, 2)), [2]).flatten(1),
            whole.anomaly_map_without(whole.extract(images(1, 2)), [2]).flatten(1),
        ),
    ):
        farthest = probed.topk(2, dim=1).indices
        missed = probed.gather(1, farthest) - wanted.gather(1, farthest)
        assert float(missed.max()) > 0.1
        torch.testing.assert_close(
            found.gather(1, farthest), wanted.gather(1, farthest), rtol=1e-4, atol=1e-3
        )
        kept = torch.ones_like(probed, dtype=torch.bool).scatter_(1, farthest, False)
        assert torch.equal(found[kept], probed[kept])


def test_memory_bounds_the_bank_of_a_wide_encoder(encoder: Encoder) -> None:
    method = make(encoder, max_bank=10**6, memory_mib=16)
    width = sum(encoder.channels)
    assert method._limit * width * 4 * 3 <= 16 * 2**20
    assert 2 * method._most <= method._limit


def test_an_even_neighbourhood_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ValidationError, match="must be odd"):
        make(encoder, neighbourhood=4)


def test_a_vision_transformer_brings_its_own_size() -> None:
    assert make_config(method="patchcore").data.size == (256, 256)
    vit = make_config(method="patchcore", overrides=["encoder.name=vit-s14"])
    assert vit.data.size == (392, 392)
    given = make_config(method="patchcore", overrides=["encoder.name=vit-s14", "data.size=280"])
    assert given.data.size == (280, 280)


def test_nothing_observed_is_an_error(encoder: Encoder) -> None:
    with pytest.raises(FitError, match="no good image"):
        make(encoder).finalise(torch.Generator())
