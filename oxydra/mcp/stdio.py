"""A server that is a program in the shell guest, by its standard input and output: lines of JSON.

`oxydra-mcp-<name>` reads it from `start` until it has ended, which `close` brings about. What it
says on standard error is its log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from oxydra.errors import FrameError, ToolError
from oxydra.mcp.peer import Peer, ServerLost
from oxydra.mcp.protocol import Lines
from oxydra.threads import CancelToken, Deadline, Service
from oxydra.tools.shell_client import ServerPipe

log = logging.getLogger(__name__)

MAX_SENT = 1 << 20  # bytes of one message to it
MAX_LOG_LINE = 8 << 10


class StdioLink:
    """See `Link`."""

    def __init__(self, name: str, pipe: ServerPipe, peer: Peer, say: Callable[[str], None]) -> None:
        """`say` gets the lines of its log."""
        self._pipe = pipe
        self._peer = peer
        self._say = say
        self._reader = Service(f"mcp-{name}", self._read, wake=pipe.stop)

    def start(self) -> None:
        self._reader.start()

    def send(
        self, data: bytes, _number: int | None, _token: CancelToken, _deadline: Deadline
    ) -> None:
        if len(data) > MAX_SENT:
            raise ToolError(f"More than {MAX_SENT >> 20} MiB can't be sent to a server.")
        try:
            self._pipe.write(data + b"\n")
        except ToolError as error:
            raise ServerLost(self._peer.ended or error.message, unsent=True) from None

    def close(self) -> None:
        """May be called by the reader itself."""
        self._pipe.stop()

    def join(self) -> None:
        self._reader.stop()

    def _read(self, _service: Service) -> None:
        lines, errors, broken = Lines(), Lines(MAX_LOG_LINE), False
        while (said := self._pipe.read()) != ("", b""):
            stream, data = said
            if stream == "stderr":
                errors = self._log(errors, data)
            elif not broken:
                try:
                    for line in lines.feed(data):
                        self._peer.take(line)
                except FrameError as error:
                    broken = True  # what follows is the rest of that line
                    self._peer.end(f"It was ended: {error.message}")
                    self._pipe.stop()
        code = self._pipe.exit_code
        how = "its sandbox ended" if code is None else f"exit code {code}"
        self._log(errors, b"\n")
        self._peer.end(f"The server ended ({how}).")

    def _log(self, lines: Lines, data: bytes) -> Lines:
        """Lines of its log; of one that is too long only that it was there."""
        try:
            for line in lines.feed(data):
                self._say(line.decode("utf-8", "replace"))
        except FrameError:
            self._say("[a line that is too long]")
            return Lines(MAX_LOG_LINE)
        return lines
