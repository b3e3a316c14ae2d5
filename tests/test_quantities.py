from __future__ import annotations

import pytest

from flawmap.errors import ConfigError
from flawmap.quantities import rate_of, require_rate, seconds


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("5m", 300), ("90 S", 90), ("1.5h", 5400), (30, 30), (0.5, 0.5), (1e-5, 1e-5)],
)
def test_durations(text: str | int, wanted: float) -> None:
    assert seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "soon", "-5m", "0s", "5 days", "5", 0, -1])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(ConfigError, match="no duration"):
        seconds(text)


@pytest.mark.parametrize(("text", "wanted"), [("0.01", 0.01), ("1%", 0.01), (" 6.3 % ", 0.063)])
def test_rates(text: str, wanted: float) -> None:
    assert rate_of(text) == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize("text", ["5", "0", "100%", "-1%", "1%%", "few", "", "%", "nan"])
def test_wrong_rates(text: str) -> None:
    with pytest.raises(ConfigError, match="must lie between 0 and 1") as error:
        rate_of(text)
    assert error.value.given == text


def test_a_wrong_number_is_shown() -> None:
    with pytest.raises(ConfigError, match="must lie between 0 and 1") as error:
        require_rate(2)
    assert error.value.given == 2
