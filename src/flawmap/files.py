"""Writing files so that a crash leaves either the old one or the new one, never a half."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from flawmap.errors import ConfigError, FlawmapError


@contextmanager
def atomic_path(
    target: Path, *, error: type[FlawmapError], keep: Path | None = None
) -> Iterator[Path]:
    """A temporary path beside `target` that takes its place when the block ends well.

    Args:
        target: The file to be written.
        error: Raised, with the reason, when the disk is full or the folder cannot be written.
        keep: Where the file that was there goes; by default it is replaced.
    """
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _spare_beside(target)
        # Made with the rights of any other new file, and never over another one.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = temporary.stat().st_mode
        yield temporary
        # A writer may have put another file in its place, as safetensors does.
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if keep is not None and target.exists():
            _keep(target, keep)
        temporary.replace(target)
    except OSError as reason:
        full = reason.errno in (errno.ENOSPC, errno.EDQUOT)
        raise error(
            "the disk is full"
            if full
            else f"the file cannot be written: {reason.strerror or reason}",
            where=str(target),
            hint="free some space or choose another place; nothing that was there is lost",
        ) from reason
    finally:
        if temporary is not None:
            # It may have been what went wrong: the reason must not be hidden by another one.
            with suppress(OSError):
                temporary.unlink()


def _keep(path: Path, kept: Path) -> None:
    """Give a file a second name; another file of that name is replaced."""
    spare = _spare_beside(kept)
    try:
        try:
            spare.hardlink_to(path)
        except OSError:
            # Not every file system can give a file a second name.
            shutil.copy2(path, spare)
        spare.replace(kept)
    finally:
        with suppress(OSError):
            spare.unlink()


def _spare_beside(path: Path) -> Path:
    return path.parent / f".flawmap-{secrets.token_hex(4)}"


class FolderLock:
    """Holds a folder for this process and those that inherit the lock's file.

    The system lets go of it when the last of them ends, however that comes about. Where there are
    no such locks (Windows, some network drives), every process gets it.

    Args:
        folder: Must exist.
        name: Of the lock's file in it; those of different names do not know of each other.
    """

    def __init__(self, folder: Path, name: str = ".lock") -> None:
        self._path = folder / name
        self._file = self._path.open("ab")

    def acquire(self) -> bool:
        """Whether nobody else holds it."""
        try:
            import fcntl
        except ImportError:
            return True
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                return False
            except OSError:
                return True
            if self._in_place():
                return True
            # Its last holder has removed the file since it was opened here.
            self.close()
            self._file = self._path.open("ab")

    def _in_place(self) -> bool:
        """Whether others who open the path find this very file."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    @property
    def descriptor(self) -> int:
        """For children that are to hold it too."""
        return self._file.fileno()

    def close(self) -> None:
        """Let go, as far as this process is concerned."""
        self._file.close()

    def remove(self) -> None:
        """Take the lock's file away, and let go; for whoever holds it."""
        if os.name == "nt":
            # Windows keeps what is open; there nobody waits for this file.
            self.close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        self.close()


def write_tensors(
    save: Callable[[Path], None],
    target: Path,
    *,
    error: type[FlawmapError],
    keep: Path | None = None,
) -> None:
    """Write a safetensors file atomically.

    Args:
        save: Writes the tensors to the path it is given, as `safetensors` does.
        target: The file to be written.
        error: As for `atomic_path`.
        keep: As for `atomic_path`.
    """
    with atomic_path(target, error=error, keep=keep) as path:
        try:
            save(path)
        except SafetensorError as reason:
            full = "No space" in str(reason)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(reason)) from reason


def write_text(target: Path, text: str, *, error: type[FlawmapError]) -> None:
    """Write a UTF-8 text file atomically; what is no UTF-8 in the text becomes a question mark."""
    with atomic_path(target, error=error) as path:
        path.write_text(text, encoding="utf-8", errors="replace")


def as_path(path: str | os.PathLike[str]) -> Path:
    """A path that somebody gave; ~ is the home folder, and any other name stays what it is."""
    found = Path(path)
    try:
        return found.expanduser()
    except RuntimeError:
        # There is no home folder: then ~ is a name like any other.
        return found


def through_links(path: Path, option: str) -> Path:
    """The file that a link leads to, so that its other names see what is written; else the path.

    Raises:
        ConfigError: The links lead in a circle.
    """
    if not os.path.islink(path):  # noqa: PTH114
        return path
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise ConfigError("the output is a link to itself", where=option, given=path) from error


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is there, as far as this user may see; `Path.is_dir` may raise."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is there, as far as this user may see; `Path.is_file` may raise."""
    return os.path.isfile(path)  # noqa: PTH113


def is_page(path: Path) -> bool:
    """Whether a file is an HTML page."""
    with path.open("rb") as file:
        return file.read(64).lstrip().lower().startswith(b"<!doctype html")


def is_text(path: Path) -> bool:
    """Whether a file looks like text: no picture, no model, no database."""
    with path.open("rb") as file:
        return b"\0" not in file.read(4096)


def require_writable(path: Path, option: str, *, own: Callable[[Path], bool]) -> None:
    """Find out before long work, not after it, that its result can be written.

    Args:
        path: Where the result goes.
        option: Its name.
        own: Whether a file that is there is of the result's kind, so that nothing else is lost.

    Raises:
        ConfigError: It is a folder, or lies in one that cannot be made or written; or a file of
            another kind is there.
    """
    folder = path.parent
    if is_folder(path):
        raise ConfigError(
            "the output is a folder",
            where=option,
            given=path,
            expected="the name of a file, such as model.flawmap or report.html",
        )
    if os.path.exists(path) and not is_file(path):  # noqa: PTH110
        raise ConfigError(
            "the output is a device, or another thing that cannot be replaced",
            where=option,
            given=path,
            expected="the name of a file",
        )
    if is_file(path) and path.stat().st_size and not own(path):
        raise ConfigError(
            "a file of another kind is there, and would be lost",
            where=option,
            given=path,
            expected="a new name, or a file that the same command wrote",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the output's folder cannot be made: {error.strerror}", where=option, given=path
        ) from error
    if not os.access(folder, os.W_OK):
        raise ConfigError("the output's folder cannot be written", where=option, given=folder)
