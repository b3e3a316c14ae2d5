"""Words for people."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from flawmap import wording
from flawmap.wording import at_most


def test_a_bound_is_never_shown_below_itself() -> None:
    rng = np.random.default_rng(0)
    for share in [*rng.uniform(0, 1, 500), *(10 ** rng.uniform(-6, 0, 500))]:
        shown = float(at_most(share).removesuffix("%"))
        assert 100 * share * (1 - 1e-8) <= shown <= 100 * share * 1.011


@pytest.mark.parametrize(
    ("n", "words"),
    [(9, "10%"), (10, "9.1%"), (24, "4%"), (99, "1%"), (999, "0.1%"), (290, "0.344%")],
)
def test_a_bound_that_is_round_stays_so(n: int, words: str) -> None:
    assert at_most(1 - n / (n + 1)) == at_most(1 / (n + 1)) == words


def test_examples() -> None:
    found = doctest.testmod(wording)
    assert found.attempted > 0
    assert found.failed == 0
