"""Standard logging, set up once per process: one line per record, made printable, with the turn it
is about.

A record is a line of text, whose further lines (a stack trace) are indented, or with `form="json"`
one object. So nothing that is logged can begin a line that looks like a record of its own. `fields`
puts the session and the turn into the records of a thread; they are context variables and so do not
cross into a thread that was not started through them. What is logged is scrubbed of known secrets
in both forms.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Literal, TextIO

from oxydra.scrub import printable

Form = Literal["text", "json"]

_fields: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar(
    "oxydra_log_fields", default=MappingProxyType({})
)


@contextlib.contextmanager
def fields(**values: str) -> Iterator[None]:
    """Mark every record of this thread inside the block with `name=value`."""
    reset = _fields.set({**_fields.get(), **values})
    try:
        yield
    finally:
        _fields.reset(reset)


class _Formatter(logging.Formatter):
    def __init__(self, component: str, scrub: Callable[[str], str], form: Form) -> None:
        super().__init__()
        self._component = component
        self._scrub = scrub
        self._form = form

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{seconds}.{record.msecs:03.0f}Z"

    def format(self, record: logging.LogRecord) -> str:
        trouble = [self.formatException(record.exc_info)] if record.exc_info else []
        trouble += [record.stack_info] if record.stack_info else []
        return self._line(record, record.getMessage(), "\n".join(trouble))

    def _line(self, record: logging.LogRecord, message: str, trouble: str) -> str:
        when, marks = self.formatTime(record), _fields.get()
        if self._form == "json":
            row = {**marks, "message": message, **({"exception": trouble} if trouble else {})}
            row = {name: printable(self._scrub(text)) for name, text in row.items()}
            about = {"time": when, "level": record.levelname, "component": self._component}
            return json.dumps({**about, "logger": record.name, **row})
        said = " ".join(f"{name}={value}" for name, value in marks.items())
        head = f"{when} {record.levelname} {self._component} {record.name}"
        text = f"{head}{f' [{said}]' if said else ''}: {message}"
        text = printable(self._scrub(f"{text}\n{trouble}" if trouble else text))
        return text.replace("\n", "\n  ")


PROGRESS = {"progress": True}  # `extra` of a record of what a person waits for


class Progress(logging.Handler):
    """Tells such records' messages to whoever waits."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "progress", False):
            with contextlib.suppress(OSError):  # nobody waits any more
                self._tell(printable(record.getMessage()))


_attached: dict[logging.Handler, Callable[[str], str]] = {}


@contextlib.contextmanager
def attached(
    component: str, stream: TextIO, scrub: Callable[[str], str], form: Form = "text"
) -> Iterator[None]:
    """Inside the block this package's records go to `stream`, and to nothing else: for a process
    whose logging is its own. Of several that are attached each is scrubbed of all secrets.
    """
    handler = logging.StreamHandler(stream)

    def scrubbed(text: str) -> str:
        for one in list(_attached.values()):
            text = one(text)
        return text

    handler.setFormatter(_Formatter(component, scrubbed, form))
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
    component: str,
    stream: TextIO,
    *,
    level: int = logging.INFO,
    scrub: Callable[[str], str] = lambda text: text,
    form: Form = "text",
) -> None:
    """Send this process's records to `stream`. `component` names it; `scrub` removes known
    secrets.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Formatter(component, scrub, form))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    logging.raiseExceptions = False  # a full disk under the log must not break the work
