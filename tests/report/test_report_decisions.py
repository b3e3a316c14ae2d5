"""Every image on the wrong side of the threshold by name, and what other thresholds would do."""

from typing import Any

import numpy as np

from flawmap.report.decisions import mistakes, other_thresholds
from flawmap.report.page import render
from flawmap.scoring import Calibration, CategoryCalibration


def test_all_mistakes_are_named(make: Any, promise: Any) -> None:
    images = [make.image(s, 1, written=False) for s in (0.3, 0.1, 0.9)]
    images += [make.image(s, 0, written=False) for s in (0.6, 0.2, 0.8)]
    images += [make.image(0.2, 1, file="a <b>.png", written=False)]
    text = mistakes(make.result(images, promise), str(make.folder))
    missed, rejected = text.split("</details>")[:2]
    assert "3 missed defects, by name" in missed
    order = [missed.index(f">{s}<") for s in ("0.1", "0.2", "0.3")]
    assert order == sorted(order)
    assert "a &lt;b&gt;.png" in missed
    assert "0.9" not in missed
    assert "2 rejected good images, by name" in rejected
    assert rejected.index("0.8") < rejected.index("0.6")
    right = [make.image(0.9, 1, written=False), make.image(0.1, 0, written=False)]
    assert mistakes(make.result(right, promise), "") == ""
    many = [make.image(0.1 + i / 1e4, 1, file=f"{i}.png", written=False) for i in range(250)]
    text = mistakes(make.result(many, promise), str(make.folder))
    assert "250 missed defects, by name" in text
    assert text.count("<tr>") == 1 + 200
    assert "and 50 more" in text


def test_what_other_thresholds_would_decide(make: Any, promise: Any) -> None:
    images = [make.image(s, 1, written=False) for s in (0.3, 0.45, 0.9)]
    images += [make.image(s, 0, written=False) for s in (0.35, 0.2, 0.1)]
    good = np.append(np.linspace(0, 0.4, 23), 0.5)
    part = {"part": CategoryCalibration(good, good, True)}
    text = other_thresholds(Calibration(promise.asked, part), "part", make.result(images, promise))
    rows = [row.split("</tr>")[0] for row in text.split("<tr")[2:]]
    assert [">0.5<" in row for row in rows].count(True) == 1
    assert 'class="now"' in next(row for row in rows if ">0.5<" in row)
    # One good image of 24 above: the highest but one is 0.4.
    row = next(row for row in rows if ">0.4<" in row)
    assert ">10%<" in row
    assert "at most 8%" in row
    assert "0 of 3" in row
    assert "1 of 3" in row
    # Too few for less than 4%: said, whatever is asked for.
    assert "at most 4%" in next(row for row in rows if ">0.5<" in row)
    no_threshold = make.result(images, None)
    assert other_thresholds(Calibration(0.01, part), "part", no_threshold) == ""


def test_they_stand_in_the_page(detector: Any, make: Any, promise: Any) -> None:
    images = [make.image(0.3, 1), make.image(0.9, 1), make.image(0.1, 0)]
    text = render(detector, make.evaluation(part=make.result(images, promise)))
    assert "1 missed defect, by name" in text
