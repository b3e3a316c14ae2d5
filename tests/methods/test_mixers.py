"""Spatial mixers against sums written out."""

from __future__ import annotations

import math

import pytest
import torch

from flawmap.methods.layers.mixers import (
    Block,
    ConvMixer,
    LinearAttention,
    SoftmaxAttention,
    neighbour_mask,
)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def heads(layer: torch.nn.Module, x: torch.Tensor) -> list[list[list[list[float]]]]:
    """q, k and v of the first image, [which][head][token][channel]."""
    n = x.shape[1]
    parts = layer.qkv(x)[0].view(n, 3, layer.heads, 64).permute(1, 2, 0, 3)
    found: list[list[list[list[float]]]] = parts.tolist()
    return found


def written_out(layer: torch.nn.Module, x: torch.Tensor, seen: list[list[int]]) -> torch.Tensor:
    """Attention as plain loops over queries and keys."""
    linear = isinstance(layer, LinearAttention)
    q, k, v = heads(layer, x)
    n = len(seen)
    rows: list[list[float]] = [[] for _ in range(n)]

    def phi(value: float) -> float:
        return value + 1 if value > 0 else math.exp(value)

    for h in range(layer.heads):
        for i in range(n):
            if linear:
                weights = [
                    sum(phi(a) * phi(b) for a, b in zip(q[h][i], k[h][j], strict=True))
                    for j in range(n)
                ]
                weights = [w * s for w, s in zip(weights, seen[i], strict=True)]
                total = sum(weights) + 1e-6
                weights = [w / total for w in weights]
            else:
                dots = [
                    sum(a * b for a, b in zip(q[h][i], k[h][j], strict=True)) / 8 for j in range(n)
                ]
                exps = [math.exp(d - max(dots)) for d in dots]
                # Zeroed after the softmax: the others keep their weights.
                weights = [e / sum(exps) * s for e, s in zip(exps, seen[i], strict=True)]
            rows[i] += [sum(weights[j] * v[h][j][c] for j in range(n)) for c in range(64)]
    out: torch.Tensor = layer.proj(torch.tensor(rows, dtype=torch.float64))
    return out


@pytest.mark.parametrize("kind", [LinearAttention, SoftmaxAttention])
@pytest.mark.parametrize("hidden", [0, 1, 3])
def test_attention_equals_the_sum_over_visible_keys(kind: type, hidden: int) -> None:
    seen = neighbour_mask((3, 3), hidden, prefix=1) if hidden else None
    torch.manual_seed(0)
    layer = kind(128, seen).double()
    x = rand(1, 10, 128)
    rows = [[1] * 10 for _ in range(10)] if seen is None else seen.int().tolist()
    torch.testing.assert_close(layer(x)[0], written_out(layer, x, rows), rtol=1e-9, atol=1e-11)


def test_a_neighbourhood_on_a_grid_of_four_by_four() -> None:
    """Written out by hand: what each place, row by row, may not see (#)."""
    hidden = """
        ##.. ###. .### ..##  ##.. ###. .### ..##  .... .... .... ....  .... .... .... ....
        ##.. ###. .### ..##  ##.. ###. .### ..##  ##.. ###. .### ..##  .... .... .... ....
        .... .... .... ....  ##.. ###. .### ..##  ##.. ###. .### ..##  ##.. ###. .### ..##
        .... .... .... ....  .... .... .... ....  ##.. ###. .### ..##  ##.. ###. .### ..##
    """
    # A line for each row of places; in it, for each row of the grid, what its four places miss.
    cells = [line.split() for line in hidden.split("\n") if line.strip()]
    wanted = torch.zeros(16, 16, dtype=torch.bool)
    for place in range(16):
        row, column = divmod(place, 4)
        for seen_row in range(4):
            text = cells[row][4 * seen_row + column]
            wanted[place, 4 * seen_row : 4 * seen_row + 4] = torch.tensor([c == "#" for c in text])
    assert torch.equal(~neighbour_mask((4, 4), 3), wanted)
    assert torch.equal(~neighbour_mask((4, 4), 1), torch.eye(16, dtype=torch.bool))


def test_tokens_before_the_patches_see_and_are_seen() -> None:
    seen = neighbour_mask((4, 4), 3, prefix=5)
    assert seen.shape == (21, 21)
    assert seen[:5].all()
    assert seen[:, :5].all()
    assert torch.equal(seen[5:, 5:], neighbour_mask((4, 4), 3))


def test_a_hidden_place_has_no_influence() -> None:
    layer = LinearAttention(64, neighbour_mask((3, 3), 3)).double()
    x = rand(1, 9, 64)
    changed = x.clone()
    changed[0, 8] += 5  # the neighbour of 4, out of reach of 0
    with torch.no_grad():
        before, after = layer.mix(*_qkv(layer, x)), layer.mix(*_qkv(layer, changed))
    torch.testing.assert_close(before[:, :, 4], after[:, :, 4])
    assert not torch.allclose(before[:, :, 0], after[:, :, 0])


def _qkv(layer: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    batch, n, _ = x.shape
    # The query stays that of the unchanged place: only keys and values may differ.
    return tuple(layer.qkv(x).view(batch, n, 3, layer.heads, 64).permute(2, 0, 3, 1, 4))


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_the_convolution_is_depthwise_over_the_grid(kernel: int) -> None:
    torch.manual_seed(0)
    mixer = ConvMixer(8, (4, 6), kernel).double()
    x = rand(1, 24, 8)
    wide = torch.nn.functional.gelu(mixer.widen(x))[0].view(4, 6, 16)
    found = torch.zeros(4, 6, 16, dtype=torch.float64)
    reach = kernel // 2
    for r in range(4):
        for c in range(6):
            for dr in range(-reach, reach + 1):
                for dc in range(-reach, reach + 1):
                    if 0 <= r + dr < 4 and 0 <= c + dc < 6:
                        weight = mixer.depthwise.weight[:, 0, dr + reach, dc + reach]
                        found[r, c] += weight * wide[r + dr, c + dc]
    torch.testing.assert_close(mixer(x)[0], mixer.narrow(found.view(24, 16)))
    assert all(p.ndim > 1 for p in mixer.parameters())  # no biases


def test_a_block_adds_both_parts_to_its_input() -> None:
    block = Block(64, lambda: LinearAttention(64)).double()
    x = rand(1, 5, 64)
    y = x + block.attn(block.norm1(x))
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)))
    assert block.norm1.eps == 1e-8
