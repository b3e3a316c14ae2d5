from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from flawmap.bench.grid import cells_of, make_grid, read_grid
from flawmap.errors import ConfigError, DataError

GRIDS = Path(__file__).parents[2] / "benchmarks" / "grids"


def test_a_grid_is_the_product_of_its_parts(two_products: Path) -> None:
    grid = make_grid(
        {
            "data": {"two": str(two_products)},
            "methods": ["patchcore", {"method": "dinomaly", "name": "small", "encoder": "lite0"}],
            "options": {"128 px": {"data.size": 128}, "256 px": {"data.size": 256}},
            "settings": ["unified", "separate"],
            "seeds": [0, 3],
        }
    )
    cells = cells_of(grid)
    # 2 methods x 2 options x 2 seeds x (one unified and two separate)
    assert len(cells) == len({c.key for c in cells}) == 24
    assert {c.label for c in cells} == {
        *("patchcore, 128 px", "patchcore, 256 px", "small, 128 px", "small, 256 px"),
    }
    assert {(c.setting, c.categories) for c in cells} == {
        ("unified", ("bolt", "nut")),
        ("separate", ("bolt",)),
        ("separate", ("nut",)),
    }
    assert {c.seed for c in cells} == {0, 3}
    assert {c.config.data.size for c in cells if "128" in c.label} == {(128, 128)}
    assert {c.config.encoder.name for c in cells} == {"lite0"}


def test_one_category_is_one_model_whatever_the_settings(rings: Path) -> None:
    keys = set()
    for settings in (["unified", "separate"], ["separate", "unified"], ["unified"], ["separate"]):
        tree = {"data": {"rings": str(rings)}, "methods": "patchcore", "settings": settings}
        (cell,) = cells_of(make_grid(tree))
        assert (cell.setting, cell.categories) == ("separate", ("rings",))
        keys.add(cell.key)
    assert len(keys) == 1


def test_the_version_of_the_data_is_the_same_for_every_split(tmp_path: Path) -> None:
    good = tmp_path / "MT_Free" / "Imgs"
    for kind in ("Free", "Blowhole", "Break", "Crack", "Fray", "Uneven"):
        folder = tmp_path / f"MT_{kind}" / "Imgs"
        folder.mkdir(parents=True)
        for i in range(10):
            (folder / f"{i}.jpg").touch()
            (folder / f"{i}.png").touch()
    tree = {"data": {"tiles": str(tmp_path)}, "methods": "patchcore", "seeds": [1, 2]}
    one, two = cells_of(make_grid(tree))
    assert one.fingerprint != two.fingerprint
    assert one.data_versions == two.data_versions
    assert set(one.data_versions) == {"magnetic_tile"}
    (good / "7.jpg").write_bytes(b"another")
    for old, new in zip((one, two), cells_of(make_grid(tree)), strict=True):
        assert new.data_versions != old.data_versions


def test_no_file_is_asked_for_its_size_twice(
    two_products: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()
    stat = Path.stat

    def counted(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        asked[str(path)] += path.suffix == ".png"
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", counted)
    settings = ["unified", "separate"]
    tree = {"data": {"two": str(two_products)}, "methods": "patchcore"}
    cells_of(make_grid({**tree, "seeds": [0, 1], "settings": settings}))
    assert set(asked.values()) == {0, 1}


def test_the_version_of_a_category_does_not_depend_on_the_others(two_products: Path) -> None:
    def versions(**more: object) -> dict[str, str]:
        tree = {"data": {"two": {"path": str(two_products), **more}}, "methods": "patchcore"}
        (cell,) = cells_of(make_grid(tree))
        return dict(cell.data_versions)

    both = versions()
    assert set(both) == {"bolt", "nut"}
    assert both["bolt"] != both["nut"]
    assert versions(categories=["nut"]) == {"nut": both["nut"]}


def test_the_key_is_what_decides_figures(rings: Path) -> None:
    def key(**more: object) -> str:
        tree = {"data": {"rings": str(rings)}, "methods": ["patchcore"], **more}
        (cell,) = cells_of(make_grid(tree))
        return cell.key

    assert key() == key()
    assert key() == key(methods=[{"method": "patchcore", "name": "another name"}])
    assert key() == key(methods=[{"method": "patchcore", "options": {"training.threads": 7}}])
    assert key() != key(seeds=[1])
    assert key() != key(metrics=["aupro_0.05"])
    assert key() != key(methods=[{"method": "patchcore", "options": {"data.size": 320}}])


def test_the_key_changes_with_the_data(rings: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "rings"
    shutil.copytree(rings, copy)
    tree = {"data": {"rings": str(copy)}, "methods": ["patchcore"]}
    before = cells_of(make_grid(tree))[0].key
    next((copy / "train" / "good").iterdir()).unlink()
    assert cells_of(make_grid(tree))[0].key != before


def test_a_file_starts_relative_paths_at_its_own_folder(rings: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(rings)
    file = tmp_path / "grid.yaml"
    file.write_text("data: {rings: {path: data, format: mvtec}}\nmethods: patchcore\n")
    grid = read_grid(file)
    assert grid.data["rings"].path == [tmp_path / "data"]
    assert len(cells_of(read_grid(file, instead={"seeds": [4, 5]}))) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methds": ["patchcore"]}, "did you mean 'methods'"),
        ({"methods": ["patchcor"]}, "did you mean 'patchcore'"),
        ({"methods": [{"method": "patchcore", "nme": "x"}]}, "did you mean 'methods.0.name'"),
        ({"methods": ["patchcore", "patchcore"]}, "two methods of the grid are called patchcore"),
        ({"settings": ["unifed"]}, "'unified' or 'separate'"),
        ({"metrics": ["aupr"]}, "did you mean 'aupro'"),
        ({"options": {"big": {"data.sze": 3}}}, "the method 'patchcore, big' of the grid"),
        ({"data": {}}, "at least 1 item"),
        ({"options": {"x": {"seed": 3}}}, "use 'seeds' of the grid"),
        ({"options": {"x": {"separate": True}}}, "use 'settings' of the grid"),
        ({"options": {"x": {"training.device": "cpu"}}}, "use --device"),
        (
            {
                "methods": [{"method": "patchcore", "options": {"data.size": 64}}],
                "options": {"x": {"data.size": 128}},
            },
            "name the same thing",
        ),
        ({"options": {"x": {}, "y": {"scoring.sigma": 4.0}}}, "are the same: 'patchcore, x'"),
        ({"options": {"x": {}, "y": {"training.threads": 3}}}, "leave one of them out"),
    ],
)
def test_what_is_wrong_is_named(rings: Path, change: dict[str, object], words: str) -> None:
    tree = {"data": {"rings": str(rings)}, "methods": ["patchcore"], **change}
    with pytest.raises(ConfigError) as caught:
        cells_of(make_grid(tree))
    assert words in str(caught.value)


def test_missing_data_shows_before_anything_runs(tmp_path: Path) -> None:
    grid = make_grid({"data": {"x": str(tmp_path / "nowhere")}, "methods": ["patchcore"]})
    with pytest.raises(DataError, match="does not exist"):
        cells_of(grid)


def test_data_without_test_images_shows_before_anything_runs(tmp_path: Path, rings: Path) -> None:
    import shutil

    shutil.copytree(rings / "train" / "good", tmp_path / "photos")
    grid = make_grid({"data": {"x": str(tmp_path / "photos")}, "methods": ["patchcore"]})
    with pytest.raises(DataError, match="no labelled test image"):
        cells_of(grid)


def test_what_a_reader_says_is_passed_on(two_products: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "products"
    shutil.copytree(two_products, root)
    (root / "papers").mkdir()
    (root / "papers" / "x.png").touch()
    told: list[str] = []
    tree = {"data": {"two": str(root)}, "methods": ["patchcore"], "seeds": [0, 1]}
    cells_of(make_grid(tree), told.append)
    assert len([text for text in told if "papers" in text]) == 1


def test_several_places_are_one_data_set(rings: Path, two_products: Path) -> None:
    tree = {"data": {"all": [str(rings), str(two_products)]}, "methods": ["patchcore"]}
    (cell,) = cells_of(make_grid(tree))
    assert cell.categories == ("bolt", "nut", "rings")
    assert cell.path == (str(rings), str(two_products))
    assert cell.images == 20 + 16 + 16
    twice = {"data": {"all": [str(rings), str(rings)]}, "methods": ["patchcore"]}
    with pytest.raises(DataError, match="two data sets have a category 'rings'"):
        cells_of(make_grid(twice))


@pytest.mark.parametrize("text", ["- a", "data: [", "\xff"])
def test_a_file_that_is_no_grid(tmp_path: Path, text: str) -> None:
    file = tmp_path / "grid.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="grid file"):
        read_grid(file)
    with pytest.raises(ConfigError, match="does not exist"):
        read_grid(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted(GRIDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_grid_that_comes_with_flawmap_has_options_that_fit(path: Path) -> None:
    grid = read_grid(path, instead={"data": {"none": "nowhere"}})
    # Options are looked at before data.
    with pytest.raises(DataError, match="does not exist"):
        cells_of(grid)


def test_an_option_for_every_line_may_do_nothing_in_some(rings: Path) -> None:
    shared = {"training.iterations": 7}
    tree: dict[str, object] = {"data": {"rings": str(rings)}}
    plain = make_grid({**tree, "methods": ["patchcore", "rd4ad"]})
    grids = (
        make_grid({**tree, "methods": ["patchcore", "rd4ad"], "options": {"": shared}}),
        plain.with_options(None, shared),
    )
    for grid in grids:
        assert [c.config.training.iterations for c in cells_of(grid)] == [7, 7]
    own = {"method": "patchcore", "options": shared}
    for methods, options in (([own, "rd4ad"], {}), (["patchcore"], {"": shared})):
        grid = make_grid({**tree, "methods": methods, "options": options})
        with pytest.raises(ConfigError, match="the option does nothing") as caught:
            cells_of(grid)
        assert "'patchcore'" in str(caught.value.where)


def test_options_of_the_command_line_hold_for_every_line(rings: Path) -> None:
    tree = {
        "data": {"rings": str(rings)},
        "methods": [
            "patchcore",
            {"method": "patchcore", "name": "b", "options": {"method.max_bank": 90}},
        ],
        "options": {"small": {"data.size": 64, "scoring.sigma": 1}, "large": {"data.size": 128}},
    }
    plain = make_grid(tree)
    assert plain.with_options(None, {}) == plain
    cells = cells_of(plain.with_options("lite2", {"scoring.sigma": 3}))
    assert [
        (c.label, c.config.encoder.name, c.config.data.size[0], c.config.scoring.sigma)
        for c in cells
    ] == [
        ("patchcore, small", "lite2", 64, 3),
        ("patchcore, large", "lite2", 128, 3),
        ("b, small", "lite2", 64, 3),
        ("b, large", "lite2", 128, 3),
    ]
