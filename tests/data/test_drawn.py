from __future__ import annotations

from pathlib import Path

from flawmap.data.drawn import drawn_before, drawn_folders


def test_the_records_name_what_was_drawn(tmp_path: Path) -> None:
    # Some take U+2028 for the end of a line.
    lines = ['{"map": "maps/a\u2028b.png"}', '{"map": "/x.png", "overlay": "overlays/c.jpg"}']
    text = "\n".join([*lines, "[1]", '{"map": "maps/half'])
    (tmp_path / "predictions.jsonl").write_text(text, encoding="utf-8")
    assert drawn_before(tmp_path) == [
        tmp_path / "maps" / "a\u2028b.png",
        tmp_path / "overlays" / "c.jpg",
    ]
    assert drawn_before(tmp_path / "gone") == []


def test_a_folder_counts_as_drawn_if_the_records_name_it(tmp_path: Path) -> None:
    names = ("maps", "overlays", "good")
    assert drawn_folders(tmp_path, names) == frozenset()
    records = tmp_path / "predictions.jsonl"
    records.write_text('{"path": "a.png"}\n')
    assert drawn_folders(tmp_path, names) == frozenset()
    records.write_text('{"path": "a.png", "overlay": "overlays/a.jpg"}\n')
    assert drawn_folders(tmp_path, names) == {"overlays"}
    assert drawn_folders(tmp_path, ("good",)) == frozenset()
