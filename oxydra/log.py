"""Standard logging, set up once per process: one line per record, made printable, with the turn it
is about.

`fields` puts the session and the turn into the records of a thread; they are context variables and
so do not cross into a thread that was not started through them. What is logged is scrubbed of known
secrets.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from oxydra.scrub import printable

_fields: contextvars.ContextVar[str] = contextvars.ContextVar("oxydra_log_fields", default="")


@contextlib.contextmanager
def fields(**values: str) -> Iterator[None]:
    """Mark every record of this thread inside the block with `name=value`."""
    marks = " ".join(f"{name}={value}" for name, value in values.items())
    reset = _fields.set(f"{_fields.get()} {marks}".strip())
    try:
        yield
    finally:
        _fields.reset(reset)


class _Formatter(logging.Formatter):
    def __init__(self, process: str, scrub: Callable[[str], str]) -> None:
        super().__init__("%(asctime)s %(levelname)s " + process + " %(name)s%(marks)s: %(message)s")
        self._scrub = scrub

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{seconds}.{record.msecs:03.0f}Z"

    def format(self, record: logging.LogRecord) -> str:
        marks = _fields.get()
        record.marks = f" [{marks}]" if marks else ""
        return printable(self._scrub(super().format(record)))


_attached: dict[logging.Handler, Callable[[str], str]] = {}


@contextlib.contextmanager
def attached(process: str, stream: TextIO, scrub: Callable[[str], str]) -> Iterator[None]:
    """Inside the block this package's records go to `stream`, and to nothing else: for a process
    whose logging is its own. Of several that are attached each is scrubbed of all secrets.
    """
    handler = logging.StreamHandler(stream)

    def scrubbed(text: str) -> str:
        for one in list(_attached.values()):
            text = one(text)
        return text

    handler.setFormatter(_Formatter(process, scrubbed))
    logger = logging.getLogger(__name__.partition(".")[0])
    _attached[handler] = scrub
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        del _attached[handler]
        logger.propagate = not _attached


def setup(
    process: str,
    stream: TextIO,
    *,
    level: int = logging.INFO,
    scrub: Callable[[str], str] = lambda text: text,
) -> None:
    """Send this process's records to `stream`. `process` names it; `scrub` removes known
    secrets.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Formatter(process, scrub))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    logging.raiseExceptions = False  # a full disk under the log must not break the work
