"""The end of the page: everything needed to know, and to repeat, how the figures came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from flawmap.progress import duration
from flawmap.report.charts import loss_chart
from flawmap.report.text import esc, name
from flawmap.types import EVERY
from flawmap.wording import counted, precision_word, shown

if TYPE_CHECKING:
    from flawmap.detector import Detector
    from flawmap.evaluation import Evaluation

_MOST_FILES = 200


def details(detector: Detector, evaluation: Evaluation) -> str:
    """Collapsible parts, in the order in which a reader doubts."""
    return "".join(
        [
            _skipped(detector.fitted.data.get("skipped", ()), "in the fit"),
            _skipped(evaluation.data.get("skipped", ()), "in the evaluation"),
            _data(detector, evaluation),
            _model(detector),
            _timings(detector, evaluation),
            _losses(detector.fitted.curves),
            _reconstructions(detector.fitted.curves),
            _config(detector),
        ]
    )


def _fold(title: str, body: str, *, opened: bool = False) -> str:
    if not body:
        return ""
    return (
        f"<details{' open' if opened else ''}><summary>{esc(title)}</summary>"
        f'<div class="fold">{body}</div></details>'
    )


def _rows(rows: Sequence[tuple[str, object]]) -> str:
    """Names and values; values that are empty are left out."""
    cells = "".join(
        f'<tr><th scope="row">{esc(label)}</th><td>{name(value)}</td></tr>'
        for label, value in rows
        if value not in ("", None)
    )
    return f'<table class="facts"><tbody>{cells}</tbody></table>' if cells else ""


def _items(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def notes_of(notes: Sequence[str]) -> str:
    return _fold("Notes", _items([esc(n) for n in notes]), opened=True) if notes else ""


def _skipped(skipped: Sequence[Sequence[str]], where: str) -> str:
    if not skipped:
        return ""
    lines = [f"{name(path)}: {esc(reason)}" for path, reason in skipped[:_MOST_FILES]]
    if len(skipped) > _MOST_FILES:
        lines.append(f"and {len(skipped) - _MOST_FILES:,} more")
    return _fold(f"{counted(len(skipped), 'file')} skipped {where}", _items(lines))


def _data(detector: Detector, evaluation: Evaluation) -> str:
    fit, test = detector.fitted.data, evaluation.data
    same = fit.get("fingerprint") == test.get("fingerprint")
    rows: list[tuple[str, object]] = [
        ("tested on", test.get("root")),
        ("layout", test.get("format")),
        ("fingerprint (SHA-256)", test.get("fingerprint")),
    ]
    if not same:
        rows += [
            ("fitted on", fit.get("root")),
            ("layout of the fit", fit.get("format")),
            ("fingerprint of the fit", fit.get("fingerprint")),
        ]
    rows += [
        ("contents of the good images", fit.get("content_fingerprint")),
        ("good images learnt", fit.get("learnt_images")),
        ("of these, held out to choose the weights", fit.get("validation_images") or None),
        ("good images held out for the threshold", fit.get("held_out_images")),
        *_calibrated_on(fit.get("calibrated_on") or {}),
    ]
    return _fold("Data and fingerprint", _rows(rows))


def _calibrated_on(found: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Where thresholds come from that were set after the fit."""
    if not found:
        return []
    images = ", ".join(f"{shown(name)}: {n}" for name, n in found["images"].items())
    return [
        ("thresholds set anew on", found["root"]),
        ("fingerprint of these images", found["fingerprint"]),
        ("good images of these", images),
        ("thresholds set anew at", found.get("date")),
    ]


def _model(detector: Detector) -> str:
    spec, fitted = detector.encoder.spec, detector.fitted
    levels = ", ".join(detector.encoder.levels)
    frozen = spec.family != "none"
    source = detector.source
    rows: list[tuple[str, object]] = [
        ("file", source and source.path),
        ("digest in its header", source and source.digest),
        ("fitted", fitted.finished),
        ("method", detector.config.method.name),
        ("models", "one per category" if detector.config.separate else "one for all categories"),
        ("encoder", spec.name),
        ("architecture (timm)", spec.timm_name),
        ("encoder levels", levels),
        ("encoder weights (SHA-256)", detector.encoder.fingerprint if frozen else ""),
        ("licence of the weights", (spec.licence or "not known") if frozen else ""),
        ("note on the weights", spec.note),
        ("seed", detector.config.seed),
        ("fitted on device", fitted.device),
        ("precision", precision_word(fitted.precision)),
    ]
    rows += [(f"version of {key}", value) for key, value in fitted.versions.items()]
    return _fold("Model, method, encoder and versions", _rows(rows))


def _timings(detector: Detector, evaluation: Evaluation) -> str:
    rows: list[tuple[str, object]] = [
        (f"fit: {stage}", duration(seconds)) for stage, seconds in detector.fitted.seconds.items()
    ]
    if evaluation.n_images and evaluation.seconds > 0:
        rate = evaluation.n_images / evaluation.seconds
        to = "map" if evaluation.mapped else "score"
        rows += [
            (f"test: {counted(evaluation.n_images, 'image')}", duration(evaluation.seconds)),
            (f"test: speed, from file to {to}", f"{rate:.3g} images/s, {1000 / rate:.3g} ms each"),
        ]
    return _fold("Timings", _rows(rows))


def _losses(curves: Mapping[str, Any]) -> str:
    parts = []
    for key, curve in curves.items():
        points = curve["losses"]
        if not points:
            continue
        chart = loss_chart([p[0] for p in points], [p[1] for p in points])
        parts.append(_figure(_title(key), _ended(curve), chart))
        if looks := curve.get("validation", {}).get("losses"):
            best = min(looks, key=lambda look: look[1])
            chart = loss_chart([p[0] for p in looks], [p[1] for p in looks])
            words = f"held-out images; the weights of iteration {best[0]:,} are kept"
            parts.append(_figure(_title(key), words, chart))
    return _fold("Loss curve", f'<div class="plots">{"".join(parts)}</div>' if parts else "")


def _title(key: str) -> str:
    return "all categories" if key == EVERY else key


def _figure(title: str, words: str, chart: str) -> str:
    return (
        f'<figure class="plot"><figcaption><b>{name(title)}</b> <span>{esc(words)}</span>'
        f"</figcaption>{chart}</figure>"
    )


def _ended(curve: Mapping[str, Any]) -> str:
    """How many iterations, and why not all."""
    steps, planned = curve["steps"], curve["planned"]
    words = counted(steps, "iteration")
    if kept := curve.get("kept"):
        words = f"{kept}: {words}"
    if steps == planned:
        return words
    stopped = curve.get("validation", {}).get("stopped", False)
    why = "held-out images gained no more" if stopped else "the time budget ended it"
    return f"{words} of {planned:,} planned; {why}"


def _reconstructions(curves: Mapping[str, Any]) -> str:
    """A held-out image of each model, and its reconstruction as it became better."""
    parts = []
    for key, curve in curves.items():
        seen = curve.get("validation", {})
        if not seen.get("reconstructions"):
            continue
        pictures = [("original", seen["original"])]
        pictures += [(f"iteration {step:,}", jpeg) for step, jpeg in seen["reconstructions"]]
        figures = "".join(
            f'<figure><img src="data:image/jpeg;base64,{esc(jpeg)}" alt="{esc(words)}">'
            f"<figcaption>{esc(words)}</figcaption></figure>"
            for words, jpeg in pictures
        )
        parts.append(f'<p><b>{name(_title(key))}</b></p><div class="steps">{figures}</div>')
    return _fold("Reconstruction of a held-out image", "".join(parts))


def _config(detector: Detector) -> str:
    tree = detector.config.model_dump(mode="json")
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return _fold("Configuration", f'<pre tabindex="0">{esc(text)}</pre>')
