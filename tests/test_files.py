from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from flawmap.bundle import FORMAT, is_bundle
from flawmap.errors import BundleError, ConfigError
from flawmap.files import (
    FolderLock,
    as_path,
    atomic_path,
    is_page,
    require_writable,
    through_links,
    write_text,
)

fcntl = pytest.importorskip("fcntl")


def test_a_held_lock_is_not_given_twice(tmp_path: Path) -> None:
    first, second, third = (FolderLock(tmp_path) for _ in range(3))
    assert first.acquire()
    assert not second.acquire()
    first.close()
    assert third.acquire()
    third.close()


def test_a_lock_that_was_removed_is_not_held_beside_its_successor(tmp_path: Path) -> None:
    first, late, later = (FolderLock(tmp_path) for _ in range(3))
    assert first.acquire()
    first.remove()
    successor = FolderLock(tmp_path)
    assert successor.acquire()
    assert not late.acquire()
    successor.remove()
    assert later.acquire()
    assert not FolderLock(tmp_path).acquire()
    later.close()


@pytest.mark.parametrize("reason", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_where_there_are_no_locks_every_process_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = FolderLock(tmp_path)
    assert lock.acquire()
    assert lock.descriptor >= 0
    lock.close()


def test_a_long_name_in_letters_of_several_bytes(tmp_path: Path) -> None:
    target = tmp_path / ("ä" * 124 + ".html")
    write_text(target, "x", error=BundleError)
    assert target.read_text() == "x"
    assert list(tmp_path.iterdir()) == [target]


def test_a_name_that_is_too_long_is_explained(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be written: File name too long"):
        write_text(tmp_path / ("ä" * 200), "x", error=BundleError)
    assert list(tmp_path.iterdir()) == []


def test_the_reason_is_not_hidden_by_the_clearing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def stuck(*_: object, **__: object) -> None:
        raise PermissionError("no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        patch.setattr(Path, "unlink", stuck)
        with pytest.raises(BundleError, match="the disk is full"):
            write_text(tmp_path / "a", "x", error=BundleError)


def test_locks_of_different_names_do_not_know_of_each_other(tmp_path: Path) -> None:
    first, second, same = (FolderLock(tmp_path, name) for name in ("a", "b", "a"))
    assert first.acquire()
    assert second.acquire()
    assert not same.acquire()
    first.remove()
    second.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert as_path("~/m.flawmap") == tmp_path / "m.flawmap"
    assert as_path("a/~b") == Path("a/~b")


def test_a_result_replaces_no_file_of_another_kind(tmp_path: Path) -> None:
    def bundle(name: str, **metadata: str) -> Path:
        save_file({"x": np.zeros(1)}, tmp_path / name, metadata=metadata)
        return tmp_path / name

    photo, page, empty = (tmp_path / name for name in ("photo.png", "page.html", "empty"))
    photo.write_bytes(b"\x89PNG and more")
    page.write_text("\n<!doctype HTML><html>")
    empty.touch()
    model, weights = bundle("x.flawmap", format=FORMAT), bundle("x.safetensors", format="pt")
    kinds = {is_bundle: {model}, is_page: {page}}
    for own, mine in kinds.items():
        for path in (photo, page, model, weights):
            if path in mine:
                require_writable(path, "--output", own=own)
                continue
            with pytest.raises(ConfigError, match="another kind is there, and would be lost"):
                require_writable(path, "--output", own=own)
        for path in (empty, tmp_path / "new"):
            require_writable(path, "--output", own=own)
    (tmp_path / "half").write_bytes(model.read_bytes()[:20])
    assert not is_bundle(tmp_path / "half")


@pytest.mark.parametrize("links", [True, False])
def test_what_is_replaced_may_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def no_links(self: Path, target: Path) -> None:
        raise OSError

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)
    target, kept = tmp_path / "a", tmp_path / "a.old"
    for text in ("one", "two", "three"):
        with atomic_path(target, error=ConfigError, keep=kept) as path:
            path.write_text(text)
    assert (target.read_text(), kept.read_text()) == ("three", "two")
    with pytest.raises(RuntimeError), atomic_path(target, error=ConfigError, keep=kept) as path:
        raise RuntimeError
    assert (target.read_text(), kept.read_text()) == ("three", "two")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "a.old"]


def test_a_link_leads_to_what_is_written(tmp_path: Path) -> None:
    target, link, round_about = (tmp_path / name for name in ("v7", "current", "circle"))
    link.symlink_to(target)
    round_about.symlink_to(round_about)
    # Also before there is something.
    assert through_links(link, "--output") == target
    assert through_links(target, "--output") == target
    with pytest.raises(ConfigError, match="a link to itself"):
        through_links(round_about, "--output")


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="cannot be replaced"):
        require_writable(tmp_path / "pipe", "--output", own=lambda path: True)
