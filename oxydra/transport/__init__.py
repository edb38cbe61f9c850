"""The one seam for every outbound request: no other file makes an HTTP connection.

`base` holds what a caller sees (`HttpRequest`, `HttpStream`, the `Transport` Protocol), `sse` turns
a body into server-sent events, `direct` is the transport that dials out itself, and `line` the
connections it dials with. A broker's transport takes the place of `direct` without a caller
noticing: callers name a credential and never hold one.
"""

from oxydra.transport.base import Credential, HttpRequest, HttpStream, Transport, origin_of
from oxydra.transport.direct import DirectConfig, DirectTransport
from oxydra.transport.sse import SseEvent, sse

__all__ = [
    "Credential",
    "DirectConfig",
    "DirectTransport",
    "HttpRequest",
    "HttpStream",
    "SseEvent",
    "Transport",
    "origin_of",
    "sse",
]
