"""A server behind Streamable HTTP (2025-11-25, Transports): each message is a POST of its own.

The answer to a request comes on the way of its POST, as JSON or as a stream of events, which is
read by whoever asked; a stream that ends too early is taken up again where the server numbers its
events. `oxydra-mcp-<name>` reads what the server says of its own accord, where it offers that, from
`listen` to `close`. The transport adds the key and follows no redirect.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping

from oxydra.errors import Cancelled, DeadlineExceeded, OxydraError, TransportError
from oxydra.mcp.peer import Peer, ServerLost
from oxydra.mcp.protocol import MAX_MESSAGE
from oxydra.threads import CancelToken, Deadline, Service
from oxydra.transport import HttpRequest, HttpStream, Transport, sse

log = logging.getLogger(__name__)

ACCEPTED = "application/json, text/event-stream"
RETRY_SECONDS = 1.0  # before a stream is taken up again, where the server does not say
MAX_RETRY_SECONDS = 300.0
RESUMES = 20  # of one answer's stream
IDLE_SECONDS = 600.0  # of the stream on which the server speaks of its own accord
CLOSE_SECONDS = 1.0
SESSION = r"[\x21-\x7e]{1,1024}"


class SessionExpired(ServerLost):
    """The server does not know our session any more: it took nothing of the request."""


class _Place:
    """Where in a stream of events we are."""

    def __init__(self) -> None:
        self.event_id = ""
        self.retry = RETRY_SECONDS
        self.heard = False  # something, since it was last opened

    def note(self, event_id: str | None, retry: str | None) -> None:
        self.heard = True
        if event_id and re.fullmatch(r"[\x21-\x7e]{1,1024}", event_id):
            self.event_id = event_id
        if retry and re.fullmatch(r"[0-9]{1,9}", retry):
            self.retry = min(int(retry) / 1000, MAX_RETRY_SECONDS)


class HttpLink:
    """See `Link`."""

    def __init__(
        self,
        name: str,
        url: str,
        transport: Transport,
        peer: Peer,
        *,
        headers: Mapping[str, str],
        credential: str = "",
    ) -> None:
        self.version = ""  # set once it is agreed upon
        self._url = url
        self._transport = transport
        self._peer = peer
        self._headers = dict(headers)
        self._credential = credential
        self._session = ""
        self._token = CancelToken()  # of what is no request's
        self._listener = Service(f"mcp-{name}", self._listen, wake=self._token.cancel)

    def send(self, data: bytes, number: int | None, token: CancelToken, deadline: Deadline) -> None:
        with self._open("POST", token, deadline, body=data) as answer:
            kind = self._checked(answer, number)
            if number is None:
                return
            if kind == "application/json":
                self._peer.take(answer.read())
            elif kind == "text/event-stream":
                self._follow(answer, number, token, deadline)
            if not self._peer.answered(number):
                raise ServerLost(f"The server took the request and gave no answer ({kind}).")

    def listen(self) -> None:
        """Hear what it says of its own accord, if it offers that."""
        self._listener.start()

    def close(self) -> None:
        self._token.cancel()
        session, self._session = self._session, ""
        if session:
            with contextlib.suppress(OxydraError):
                headers = {"Mcp-Session-Id": session}
                self._open("DELETE", CancelToken(), Deadline.after(CLOSE_SECONDS), headers).close()

    def join(self) -> None:
        self._listener.stop()

    # ----------------------------------------------------------------------------------- requests

    def _open(
        self,
        method: str,
        token: CancelToken,
        deadline: Deadline,
        more: Mapping[str, str] | None = None,
        body: bytes = b"",
        idle: float = 180.0,
    ) -> HttpStream:
        headers = {**self._headers, "Accept": ACCEPTED, **(more or {})}
        if body:
            headers["Content-Type"] = "application/json"
        if self.version:
            headers["MCP-Protocol-Version"] = self.version
        if self._session:
            headers["Mcp-Session-Id"] = self._session
        request = HttpRequest(
            method,
            self._url,
            headers=headers,
            body=body,
            credential=self._credential,
            idle_timeout=idle,
            deadline=deadline,
            max_bytes=2 * MAX_MESSAGE,
        )
        try:
            return self._transport.open(request, token)
        except TransportError as error:
            if error.kind == "deadline":
                raise DeadlineExceeded(error.message) from None
            raise

    def _checked(self, answer: HttpStream, number: int | None) -> str:
        """The type of an answer's body. Raises `ServerLost` for a refusal."""
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        status = answer.status
        session = answer.headers.get("mcp-session-id", "")
        if 200 <= status < 300:
            if session and not self._session:
                if not re.fullmatch(SESSION, session):
                    raise ServerLost("The server's session id is no visible ASCII.")
                self._session = session
            return kind
        if status == 404 and self._session:
            self._session, why = "", "The server has ended our session."
            self._peer.end(why, blameless=True)
            raise SessionExpired(why, unsent=True)
        said = answer.text(2000)
        if number is not None and kind == "application/json":
            self._peer.take(said)  # some say by a status what they also answer
            if self._peer.answered(number):
                return kind
        remedy = "Look at url and headers in its section of the configuration."
        if status in (401, 403):
            remedy = "It wants a key: set its header, as in docs/mcp.md. OAuth is not offered."
        elif status in (429, 502, 503, 504):
            remedy = "Try again later."
        beginning = " ".join(said[:200].split())
        raise ServerLost(
            f"The server refused with HTTP status {status}: {beginning}", remedy=remedy
        )

    def _follow(
        self, answer: HttpStream, number: int, token: CancelToken, deadline: Deadline
    ) -> None:
        """Read a stream until the request is answered, over again where it ends too early."""
        place = _Place()
        for attempt in range(RESUMES + 1):
            if attempt:
                token.wait(min(place.retry, deadline.remaining()))
                token.check()
                deadline.check("The server's answer")
                answer = self._resumed(place, token, deadline)
            with answer:
                if self._read(answer, place, number):
                    return
            if not place.event_id:
                break
        raise ServerLost("The server's stream ended before its answer.")

    def _resumed(self, place: _Place, token: CancelToken, deadline: Deadline) -> HttpStream:
        headers = {"Last-Event-ID": place.event_id} if place.event_id else {}
        answer = self._open("GET", token, deadline, headers, idle=IDLE_SECONDS)
        try:
            if self._checked(answer, None) != "text/event-stream":
                raise ServerLost("The server offers no stream of events.")
        except BaseException:
            answer.close()
            raise
        return answer

    def _read(self, answer: HttpStream, place: _Place, number: int | None) -> bool:
        """Take what a stream says; whether the request was answered. A stream that breaks has
        ended.
        """
        try:
            for event in sse(answer, max_event=MAX_MESSAGE):
                place.note(event.id, event.retry)
                if event.data and event.event == "message":
                    self._peer.take(event.data)
                if number is not None and self._peer.answered(number):
                    answer.close(complete=True)
                    return True
                if self._peer.ended:
                    raise ServerLost(self._peer.ended)
        except TransportError as error:
            if error.kind == "deadline":
                raise DeadlineExceeded(error.message) from None
            if error.kind not in ("broken", "idle"):
                raise ServerLost(error.message, remedy=error.remedy) from None
        return False

    # ---------------------------------------------------------------------------- of its own accord

    def _listen(self, service: Service) -> None:
        place, pause = _Place(), 0.0
        while not service.stopping.is_set():
            place.heard = False
            try:
                with self._resumed(place, self._token, Deadline.after(None)) as answer:
                    self._read(answer, place, None)
            except Cancelled:
                return
            except (ServerLost, DeadlineExceeded) as error:
                log.debug("an MCP server offers no stream of its own: %s", error)
                return
            except OxydraError as error:
                log.info("an MCP server's stream can't be read: %s", error)
            pause = place.retry if place.heard else min(2 * pause + place.retry, MAX_RETRY_SECONDS)
            if self._token.wait(pause):
                return
