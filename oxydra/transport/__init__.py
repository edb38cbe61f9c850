"""The one seam for every outbound request: no other file makes an HTTP connection.

`base` holds what a caller sees (`HttpRequest`, `HttpStream`, the `Transport` Protocol), `sse` turns
a body into server-sent events, `direct` is the transport that dials out itself, and `line` the
connections it dials with; it serves the runner's side alone. In a guest `brokered` takes its place
without a caller noticing: callers name a credential and never hold one. `route` says where a
credential may go.
"""

from oxydra.transport.base import (
    RETRYABLE,
    Credential,
    HttpRequest,
    HttpStream,
    Transport,
    origin_of,
)
from oxydra.transport.brokered import BrokeredTransport
from oxydra.transport.direct import DirectConfig, DirectTransport
from oxydra.transport.route import Route, Routes
from oxydra.transport.sse import SseEvent, sse

__all__ = [
    "RETRYABLE",
    "BrokeredTransport",
    "Credential",
    "DirectConfig",
    "DirectTransport",
    "HttpRequest",
    "HttpStream",
    "Route",
    "Routes",
    "SseEvent",
    "Transport",
    "origin_of",
    "sse",
]
