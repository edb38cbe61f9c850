"""A streamed answer as one text that grows: whatever is streamed again appears once. Pure."""

from __future__ import annotations

from collections.abc import Callable

from oxydra.types import Json

AGAIN = ("retry", "fallback", "resumed")  # kinds of progress after which a model call is repeated


class Answer:
    """Writes what the model calls of a turn say, with a line break between two of them."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._shown: list[str] = []  # of the current model call
        self._repeated: str | None = None  # what an attempt at repeating it has streamed
        self._again = False  # the next model call repeats the one that was cut off
        self.ends_line = True

    def delta(self, text: str) -> None:
        if self._repeated is None:
            self._shown.append(text)
            self._put(text)
            return
        self._repeated += text
        shown = "".join(self._shown)
        if self._repeated.startswith(shown):
            self._put(self._repeated[len(shown) :])
            self._shown, self._repeated = [self._repeated], None
        # else: another attempt that still repeats, or departs from, what stands there

    def progress(self, payload: Json) -> None:
        """A `turn_progress` frame: another model call begins, or the current one is void."""
        kind = payload["progress"]["kind"].get("kind")
        if kind in AGAIN:
            self._again = True
            self._repeated = ""
        elif kind == "provider_call":
            self._next_call()

    def _next_call(self) -> None:
        if self._again:
            self._again = False
            return
        if not self.ends_line:
            self._put("\n")
        self._shown, self._repeated = [], None

    def finish(self, content: str) -> None:
        """The last call's whole text: write what is missing of it."""
        shown = "".join(self._shown)
        if content.startswith(shown):
            self._put(content[len(shown) :])
        else:  # it came out differently the second time: what counts is the last
            self._put(f"\n\n{content}")

    def _put(self, text: str) -> None:
        if text:
            self._write(text)
            self.ends_line = text.endswith("\n")
