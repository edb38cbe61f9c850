"""Frames of streamed text, which can be merged until they are sent. Pure.

A model's text comes in many small parts, each a numbered frame. For a reader that is slow, or was
away, some that follow each other are as good as one: its text is theirs together, and it carries
the numbers of the first and the last (PROTOCOL: `first_seq`, `seq`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from oxydra.frames import Streamed
from oxydra.gateway.connection import Mergeable, frame_text

MAX_MERGED = 32 << 10  # bytes of text, beyond which another frame begins
OVERHEAD = 200  # bytes that one takes in memory beside its text


class Delta(Mergeable):
    """The frames `first` to `last` of a session, which are all of `stream`; `text` is what stands
    in the JSON string.
    """

    __slots__ = ("_data", "first", "last", "stream", "text")

    def __init__(self, stream: Streamed, first: int, last: int, text: bytes) -> None:
        self.stream = stream
        self.first = first
        self.last = last
        self.text = text
        self._data = b""

    @property
    def data(self) -> bytes:
        """The WebSocket frame, made once for all who get it."""
        if not self._data:
            self._data = frame_text(self.stream.encode(self.first, self.last, self.text))
        return self._data

    def fits(self, after: Mergeable) -> bool:
        """Whether that one can be merged into this one."""
        return (
            isinstance(after, Delta)
            and after.stream is self.stream
            and after.first == self.last + 1
            and len(self.text) + len(after.text) <= MAX_MERGED
        )

    def merged(self, after: Mergeable) -> Delta | None:
        if not isinstance(after, Delta) or not self.fits(after):
            return None
        return Delta(self.stream, self.first, after.last, self.text + after.text)


def merge(frames: Iterable[bytes | Delta]) -> Iterator[bytes | Delta]:
    """The same frames, those of them merged that can be."""
    run: list[Delta] = []
    size = 0
    for frame in frames:
        if isinstance(frame, Delta):
            if run and not (run[-1].fits(frame) and size + len(frame.text) <= MAX_MERGED):
                yield _joined(run)
                run, size = [], 0
            run.append(frame)
            size += len(frame.text)
        else:
            if run:
                yield _joined(run)
                run, size = [], 0
            yield frame
    if run:
        yield _joined(run)


def _joined(run: Sequence[Delta]) -> Delta:
    text = b"".join(frame.text for frame in run)
    return Delta(run[0].stream, run[0].first, run[-1].last, text)
