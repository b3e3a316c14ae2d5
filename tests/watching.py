"""Progress that tests look at."""

from __future__ import annotations

from flawmap.progress import Silent


class Notes(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)
