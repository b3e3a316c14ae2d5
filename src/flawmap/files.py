"""Writing files so that a crash leaves either the old one or the new one, never a half."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flawmap.errors import FlawmapError


@contextmanager
def atomic_path(target: Path, *, error: type[FlawmapError]) -> Iterator[Path]:
    """A temporary path beside `target` that takes its place when the block ends well.

    Args:
        target: The file to be written.
        error: Raised, with the reason, when the disk is full or the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes private files; a result gets the rights of any other new file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    except OSError as reason:
        full = reason.errno in (errno.ENOSPC, errno.EDQUOT)
        raise error(
            "the disk is full" if full else f"the file cannot be written: {reason.strerror}",
            where=str(target),
            hint="free some space or choose another place; nothing that was there is lost",
        ) from reason
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str, *, error: type[FlawmapError]) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(target, error=error) as path:
        path.write_text(text, encoding="utf-8")
