"""The verbs of the command line, in Python."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flawmap.auto import AUTO, choose, decides, situation, within_budget
from flawmap.bundle import alone, is_bundle, older
from flawmap.config import (
    DEFAULT_METHOD,
    Config,
    make_config,
    named_encoder,
    read_file,
    read_pairs,
)
from flawmap.data.check import require_sound
from flawmap.data.detect import existing, read_data
from flawmap.data.lister import raise_unreadable
from flawmap.data.samples import SampleTable
from flawmap.data.verify import verify
from flawmap.errors import ConfigError, DataError, unknown_name
from flawmap.files import as_path, is_page, require_writable, through_links
from flawmap.progress import Progress
from flawmap.quantities import seconds
from flawmap.registry import METHODS
from flawmap.wording import shown

if TYPE_CHECKING:
    from flawmap.detector import Detector
    from flawmap.evaluation import Evaluation

PathLike = str | os.PathLike[str]


def fit(
    data: PathLike | SampleTable,
    *,
    output: PathLike | None = None,
    method: str | None = None,
    encoder: str | None = None,
    preset: str | None = None,
    format: str | None = None,
    categories: Sequence[str] | None = None,
    separate: bool = False,
    seed: int | None = None,
    time_budget: str | float | None = None,
    false_reject_rate: float | None = None,
    config_file: PathLike | None = None,
    options: Mapping[str, Any] | Sequence[str] = (),
    config: Config | None = None,
    resume: bool = False,
    start: Detector | PathLike | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Detector:
    """Learn from good images, set the threshold, and write a bundle if `output` is given.

    Args:
        data: A folder or table file, or a table that was read already.
        output: Where the bundle is written; one that is there is kept beside it, with `.old` behind
            its name.
        method: A name that `flawmap methods` lists, or "auto", the default: it chooses the method
            and what goes with it by the images, the device, the time and the other options; see
            `flawmap.auto`.
        encoder: A name that `flawmap encoders` lists, or a timm name; the method's by default.
        preset: "cpu", "gpu", or another that the method names; "cpu" by default, or what "auto"
            chooses.
        format: The layout of `data`; recognised by default.
        categories: Fit only these products.
        separate: One model per product instead of one for all.
        seed: Decides everything random; 0 by default.
        time_budget: Seconds, or text such as "5m": the fit is planned to end in this time.
        false_reject_rate: Share of good parts that may raise the alarm; 0.01 by default.
        config_file: A YAML file with options.
        options: Dotted names to values, or "a.b=c" texts; they win over everything else.
        config: A whole configuration; then the options above that shape one must be left out.
        resume: Go on with a fit that was stopped (needs the same `output`).
        start: Begin with what this detector, or the one of this bundle, has learnt: to add a
            product to it. `data` should hold the images of the old products too.
        skip_bad: Leave unreadable images out instead of refusing.
        progress: Where progress is shown; by default nowhere, and what you must know, such as a
            product without a threshold, is a `FlawmapWarning`.

    Returns:
        The fitted detector. Of several processes that `torchrun` started, the first one's is
        calibrated and written; the others' are not.

    Raises:
        ConfigError, DataError, WeightsError, FitError, BundleError: See `flawmap.errors`.

    Example:
        >>> detector = flawmap.fit("photos/good", output="part.flawmap")  # doctest: +SKIP
    """
    if not isinstance(data, SampleTable):
        # Before torch is loaded: a wrong path is said at once.
        existing(data)
    from flawmap.detector import Detector
    from flawmap.loading import load
    from flawmap.training.fit import fit_table, run_folder_of

    if start is not None and not isinstance(start, Detector):
        start = load(start, device="cpu")
    shaping: dict[str, Any] = {
        "method": method,
        "encoder": encoder,
        "separate": separate,
        "seed": seed,
        "time_budget": time_budget,
        "false_reject_rate": false_reject_rate,
        "config_file": config_file,
        "options": options,
        "preset": preset,
    }
    choosing = False
    if config is None:
        config = configure(start=start, **shaping)
        choosing = bool(config.chosen)
    elif given := [name for name, value in shaping.items() if _is_given(name, value)]:
        raise ConfigError(
            "a whole configuration leaves no room for single options",
            where="config",
            given=", ".join(given),
            hint="give either config, or the options",
        )
    if resume and output is None:
        raise ConfigError(
            "a fit can be resumed only if it writes a model", where="resume", hint="give output"
        )
    if not isinstance(data, SampleTable):
        data = _to_learn(
            read_data(data, format=format, categories=categories, seed=config.seed, check=False),
            skip_bad,
        )
    elif categories is not None:
        data = data.only(categories)
    if choosing:
        # What was made above, to know what is wrong before anything is read, saw no images.
        config = configure(data=data, start=start, **shaping)
    if output is not None:
        path = through_links(as_path(output), "--output")
        require_writable(path, "--output", own=is_bundle)
        if replaces := is_bundle(path):
            require_writable(older(path), "--output", own=is_bundle)
        with alone(path):
            detector = fit_table(
                data,
                config,
                run_folder=run_folder_of(path),
                resume=resume,
                start=start,
                skip_bad=skip_bad,
                progress=progress,
            )
            if not detector.fabric.is_global_zero:
                # One of the processes that torchrun started: the first one has all that is kept.
                return detector
            detector.save(path, keep_old=True)
            if replaces and progress is not None:
                progress.note(f"the model that was there is kept: {older(path)}")
            # Only now: had the disk been full, --resume would not have to learn again.
            shutil.rmtree(run_folder_of(path), ignore_errors=True)
            return detector
    with tempfile.TemporaryDirectory(prefix="flawmap-") as folder:
        return fit_table(
            data,
            config,
            run_folder=Path(folder) / "run",
            start=start,
            skip_bad=skip_bad,
            progress=progress,
        )


def configure(
    *,
    method: str | None = None,
    encoder: str | None = None,
    preset: str | None = None,
    separate: bool = False,
    seed: int | None = None,
    time_budget: str | float | None = None,
    false_reject_rate: float | None = None,
    config_file: PathLike | None = None,
    options: Mapping[str, Any] | Sequence[str] = (),
    data: SampleTable | None = None,
    start: Detector | None = None,
    device: str | None = None,
    idle: Container[str] = (),
) -> Config:
    """The configuration that `fit` would use with these arguments.

    Args:
        data: The images that "auto" chooses by; without them it supposes that there are few.
        start: The detector that the fit begins with; "auto" takes its method and encoder.
        device: Where it will be computed, if another place than the options decides that.
        idle: Names of options that may do nothing, since they hold for other fits too.

    Raises:
        ConfigError: A name or a value is wrong, or would do nothing.
    """
    named: dict[str, Any] = {}
    if seed is not None:
        named["seed"] = seed
    if encoder is not None:
        named["encoder.name"] = encoder
    if separate:
        named["separate"] = True
    if time_budget is not None:
        named["training.time_budget_seconds"] = seconds(time_budget)
    if false_reject_rate is not None:
        named["calibration.false_reject_rate"] = false_reject_rate
    file = {"method": {}} if config_file is None else read_file(as_path(config_file))
    if file["method"].get("name") == AUTO:
        del file["method"]["name"]
    if method not in (None, AUTO, *METHODS):
        raise unknown_name("method", str(method), [AUTO, *METHODS], where="method")
    if method not in (None, AUTO) or (method is None and "name" in file["method"]):
        return make_config(
            method=method,
            preset=preset or "cpu",
            file=file,
            named=named,
            overrides=options,
            idle=idle,
        )
    if method == AUTO and "name" in file["method"]:
        # Its options belong to the method that it names.
        file["method"] = {}
    # Whatever the method, this holds: where it is computed, and for how long.
    pairs = [pair for pair in read_pairs(options) if pair[0].partition(".")[0] != "method"]
    if device is not None:
        pairs.append(("training.device", device))
    common = make_config(
        method=DEFAULT_METHOD,
        file={**file, "method": {}},
        named=named,
        overrides=dict(pairs),
        idle=None,
    )
    every = [*file.items(), *named.items(), *read_pairs(options)]
    own = preset not in (None, "cpu") or decides(every)
    given = situation(data, common, named_encoder(file, [*named.items(), *pairs]), own=own)
    choice = choose(given, None if start is None else start.config)

    def made(chosen: Mapping[str, Any]) -> Config:
        return make_config(
            method=choice.method,
            preset=preset or choice.preset,
            chosen=chosen,
            file=file,
            named=named,
            overrides=options,
            # With the images another method may be chosen, which follows other options.
            idle=None if data is None else idle,
        )

    try:
        config = made(choice.options)
        less, why = within_budget(given, config)
        smaller = made({**choice.options, **less}) if less else config
        if less and smaller.method.model_dump()["max_bank"] != less["method.max_bank"]:
            smaller, why = config, "the time budget is not followed: method.max_bank is named"
    except ConfigError as error:
        if error.hint is None:
            error.hint = f"'{choice.method}' was chosen; --method names another"
        raise
    return smaller.model_copy(update={"chosen": (*choice.reasons, *([why] if why else []))})


def evaluate(
    detector: Detector | PathLike,
    data: PathLike | SampleTable,
    *,
    format: str | None = None,
    categories: Sequence[str] | None = None,
    metrics: Sequence[str] = (),
    report: PathLike | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Score the test split of a data set, and write a report if asked.

    Args:
        detector: A fitted detector, or the path of a bundle.
        data: A folder or table file, or a table that was read already.
        format: The layout of `data`; recognised by default.
        categories: Evaluate only these products; the detector's by default.
        metrics: Optional metrics beside the seven, such as "aupro_0.05"; the names stand in
            `flawmap.metrics.catalog`.
        report: Where a self-contained HTML report is written.
        skip_bad: Leave unreadable images out instead of refusing.
        progress: Where progress is shown; nowhere by default.

    Raises:
        ConfigError, DataError, BundleError: See `flawmap.errors`.
    """
    from flawmap.detector import Detector
    from flawmap.evaluation import evaluate_table
    from flawmap.loading import load
    from flawmap.metrics.catalog import resolve

    metrics = resolve(metrics)
    if report is not None:
        report = as_path(report)
        require_writable(report, "--report", own=is_page)
    if not isinstance(detector, Detector):
        detector = load(detector)
    if not isinstance(data, SampleTable):
        # The seed of the fit gives layouts without a split of their own the same split again.
        data = read_data(
            data,
            format=format,
            categories=categories,
            seed=detector.config.seed,
            skip_bad=skip_bad,
            training=False,
        )
    elif categories is not None:
        data = data.only(categories)
    known = [c for c in data.categories if c in detector.categories]
    if known and categories is None:
        others = [c for c in data.categories if c not in known]
        data = data.only(known)
        if others:
            note = f"left out, since the detector was not fitted on them: {', '.join(others)}"
            data = replace(data, notes=(*data.notes, note))
    strange = [c for c in data.categories if c not in detector.categories]
    if strange and len(detector.categories) > 1:
        note = (
            f"the detector was not fitted on {', '.join(strange)}: judged by the threshold over "
            f"all that it was fitted on, {', '.join(detector.categories)}"
        )
        data = replace(data, notes=(*data.notes, note))
    if skip_bad:
        test = data.select(split="test")
        checked = verify(
            replace(data, samples=test),
            threads=detector.config.training.threads or None,
            white_level=detector.config.data.white_level,
        )
        bad = {s.path for s in test} - {s.path for s in checked.table.samples}
        kept = tuple(s for s in data.samples if s.path not in bad)
        data = replace(data, samples=kept, problems=checked.problems)
    result = evaluate_table(detector, data, metrics=metrics, progress=progress)
    if report is not None:
        from flawmap.report import write_report

        write_report(detector, result, report, progress=progress)
    return result


def _to_learn(table: SampleTable, skip_bad: bool) -> SampleTable:
    """A table that can be learnt.

    Raises:
        DataError: It cannot, perhaps because of what cannot be listed: that is named first.
    """
    try:
        # What cannot be listed is named by the fit, together with what cannot be decoded.
        require_sound(table, skip_bad=True)
    except DataError:
        if not skip_bad:
            raise_unreadable(table.problems, where=shown(table.root))
        raise
    return table


def _is_given(name: str, value: object) -> bool:
    """Whether somebody gave this option of a fit; 0 is something, too."""
    return bool(value) if name == "options" else value is not None and value is not False
