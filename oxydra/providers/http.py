"""A provider over HTTP: from a request to `Completed`, on the caller's thread.

A wire subclasses `HttpProvider` and says how it encodes and decodes; what they share is here. Each
message is encoded once and its bytes kept in `Message.wire`, so that the cost of a request does not
grow with its history, and the messages stand last in the body, so that it begins with the bytes of
the request before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from oxydra.errors import FrameError, ProviderError, TransportError
from oxydra.frames import parse
from oxydra.providers import failures
from oxydra.providers.base import ProviderSettings
from oxydra.providers.repair import repair
from oxydra.threads import CancelToken, Deadline
from oxydra.transport import HttpRequest, HttpStream, Transport
from oxydra.types import Completed, Message, ModelRequest, StreamEvent, ToolSpec

MAX_TOOLS_KEPT = 512  # encoded tool specs


class HttpProvider(ABC):
    """The base of every wire. Safe to use from any number of threads."""

    wire: ClassVar[str]  # the name under which `Message.wire` keeps this wire's bytes

    def __init__(self, settings: ProviderSettings, transport: Transport) -> None:
        self.name = settings.name
        self.settings = settings
        self.transport = transport
        self._tools: dict[int, tuple[ToolSpec, bytes]] = {}

    # ------------------------------------------------------------------------ what a wire defines

    @abstractmethod
    def url(self, request: ModelRequest) -> str:
        """Where to post."""

    def headers(self) -> Mapping[str, str]:
        """What the wire needs beyond the content type; never a key."""
        return {}

    @abstractmethod
    def encode_message(self, message: Message) -> bytes:
        """One message as an element of the request's list."""

    @abstractmethod
    def encode_tool(self, tool: ToolSpec) -> bytes:
        """One tool as an element of the request's list."""

    @abstractmethod
    def encode_body(
        self, request: ModelRequest, messages: Sequence[bytes], tools: Sequence[bytes]
    ) -> bytes:
        """The request's body, the messages last in it."""

    def encode_request(
        self, request: ModelRequest, history: Sequence[Message], tools: Sequence[bytes]
    ) -> bytes:
        """The request's body from its repaired history: what a wire overrides whose messages look
        different beside others, or to another model.
        """
        return self.encode_body(request, [self._encoded(message) for message in history], tools)

    def refused(
        self, request: ModelRequest, status: int, headers: Mapping[str, str], body: str
    ) -> ProviderError:
        """The error that an HTTP status other than 200 stands for; `body` is what came with it."""
        return failures.from_response(self.settings, request.model.id, status, headers, body)

    @abstractmethod
    def decode(
        self, stream: HttpStream, request: ModelRequest
    ) -> Generator[StreamEvent, None, Completed]:
        """Yield the deltas of a response with status 200 and return its end, which the wire's own
        end marker must have announced.
        """

    # ------------------------------------------------------------------------------ what all share

    def stream(self, request: ModelRequest, token: CancelToken) -> Iterator[StreamEvent]:
        """See the `Provider` Protocol."""
        model = request.model.id
        try:
            with self.transport.open(self._post(request), token) as stream:
                if stream.status != 200:
                    raise self.refused(request, stream.status, stream.headers, stream.text())
                if failures.login_page(stream.headers):
                    raise failures.web_page(self.settings, model, stream.status)
                completed = yield from self.decode(stream, request)
                try:
                    yield completed
                finally:
                    stream.close(complete=True)
        except TransportError as error:
            raise failures.from_transport(self.settings, model, error) from None

    def malformed(
        self, request: ModelRequest, what: str, *, retryable: bool = True
    ) -> ProviderError:
        """The error for an answer that does not follow the wire."""
        return failures.malformed(self.settings, request.model.id, what, retryable=retryable)

    def reported(self, stream: HttpStream, request: ModelRequest, error: Any) -> ProviderError:
        """The error that the server reported inside its stream."""
        return failures.from_event(self.settings, request.model.id, error, stream.scrub)

    def _parsed(self, data: str | bytes, request: ModelRequest) -> Mapping[str, Any]:
        """A JSON object of the stream."""
        try:
            parsed = parse(data if isinstance(data, str) else data.decode("utf-8", "replace"))
        except FrameError:
            raise self.malformed(request, "sent something that is not JSON") from None
        if not isinstance(parsed, dict):
            raise self.malformed(request, "sent JSON that is no part of an answer")
        return parsed

    def _post(self, request: ModelRequest) -> HttpRequest:
        settings = self.settings
        tools = [self._encoded_tool(tool) for tool in request.tools]
        limit = Deadline.after(settings.total_timeout)
        return HttpRequest(
            "POST",
            self.url(request),
            {
                "Content-Type": "application/json",
                "Accept": "text/event-stream",
                **self.headers(),
                **settings.extra_headers,
            },
            self.encode_request(request, repair(request.messages), tools),
            credential=settings.credential,
            connect_timeout=settings.connect_timeout,
            idle_timeout=settings.idle_timeout,
            deadline=limit if limit.at < request.deadline.at else request.deadline,
            max_bytes=settings.max_response_bytes,
            on_wait=request.on_wait,
        )

    def _encoded(self, message: Message) -> bytes:
        data = message.wire.get(self.wire)
        if data is None:
            data = message.wire[self.wire] = self.encode_message(message)
        return data

    def _encoded_tool(self, tool: ToolSpec) -> bytes:
        kept = self._tools.get(id(tool))
        if kept is not None:
            return kept[1]
        if len(self._tools) >= MAX_TOOLS_KEPT:
            self._tools = {}
        data = self.encode_tool(tool)
        self._tools[id(tool)] = (tool, data)  # holding the spec keeps its id its own
        return data
