"""Who may do what: every route, frame and command with what it needs, and who is who. Pure.

The three tables are complete: what is not in them is not served, and a test compares them with
what there is. A token has scopes; a row says which of them, any one, opens it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from oxydra.config import GatewayConfig
from oxydra.errors import PolicyDenied
from oxydra.frames import MAX_ATTACHMENT_FRAME
from oxydra.gateway.http import Request, Response
from oxydra.types import Json

SCOPES = ("ask", "chat", "approve", "admin")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

Need: TypeAlias = frozenset[str]

CHAT: Need = frozenset(("chat",))
ASK: Need = frozenset(("ask", "chat"))
APPROVE: Need = frozenset(("approve",))
ADMIN: Need = frozenset(("admin",))
SCOPED: Need = frozenset(SCOPES)  # any scope will do


@dataclass(frozen=True, slots=True)
class Route:
    """What an HTTP route asks for. `need` None: no token at all; empty: a token, even one without
    a scope. `body` is the most bytes that a request may carry; `door` routes are there only with
    `[gateway] openai_api`.
    """

    need: Need | None
    body: int = 0
    door: bool = False


ROUTES: dict[tuple[str, str], Route] = {
    ("GET", "/ws"): Route(SCOPED),
    ("GET", "/healthz"): Route(None),
    ("GET", "/readyz"): Route(None),
    ("GET", "/metrics"): Route(frozenset()),
    ("GET", "/v1/models"): Route(CHAT, door=True),
    ("POST", "/v1/chat/completions"): Route(CHAT, body=MAX_ATTACHMENT_FRAME, door=True),
    # what a browser asks before a listed page may send the others
    ("OPTIONS", "/v1/models"): Route(None, door=True),
    ("OPTIONS", "/v1/chat/completions"): Route(None, door=True),
}

# Reading a conversation needs any scope: who answers requests for approval sees what they are for.
FRAMES: dict[str, Need] = {
    "hello": SCOPED,
    "send_turn": ASK,
    "cancel_active_turn": ASK,
    "cancel_all_active_turns": CHAT,
    "health_check": SCOPED,
    "create_session": ASK,
    "list_sessions": SCOPED,
    "switch_session": SCOPED,
    "history": SCOPED,
    "approve": APPROVE,
    "command": SCOPED,  # and what COMMANDS says
}

COMMANDS: dict[str, Need] = {
    "agents": CHAT,
    "approvals": APPROVE,
    "backup": ADMIN,
    "cost": CHAT,
    "export": ASK,
    "forget": ADMIN,
    "fork": CHAT,
    "index": ADMIN,
    "mcp": CHAT,
    "mcp_trust": ADMIN,
    "memory": ASK,
    "model": CHAT,
    "notes": CHAT,
    "pin": CHAT,
    "pins": CHAT,
    "prompt": CHAT,
    "recall": CHAT,
    "rename": CHAT,
    "replay": CHAT,
    "skills": CHAT,
    "schedules": ASK,  # of which only some are for `ask`
    "tokens": ADMIN,
    "tools": CHAT,
    "trace": CHAT,
    "undo": CHAT,
    "unpin": CHAT,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose token it was."""

    token_name: str
    scopes: frozenset[str]
    digest: bytes

    @property
    def stranger(self) -> bool:
        """Whether what comes with it is not its person's own words."""
        return "chat" not in self.scopes

    @property
    def granted(self) -> list[str]:
        """Its scopes, always in the same order."""
        return [scope for scope in SCOPES if scope in self.scopes]

    def may(self, need: Need) -> bool:
        return not need or bool(self.scopes & need)

    def check(self, need: Need) -> None:
        """Raises `PolicyDenied` if it has no scope of `need`."""
        if not self.may(need):
            wanted = " or ".join(f"`{scope}`" for scope in SCOPES if scope in need)
            raise PolicyDenied(
                f"The token {self.token_name!r} may not do that.",
                remedy=f"Use a client whose token has the scope {wanted}.",
            )


class Access:
    """The tokens that are valid now, and where requests may come from. Any thread may ask."""

    def __init__(self, config: GatewayConfig, tokens: Sequence[Mapping[str, object]]) -> None:
        """`tokens` are rows `{name, sha256, scopes}`."""
        self._config = config
        listen = ipaddress.ip_address(config.listen)
        own = f"[{listen}]" if listen.version == 6 else str(listen)
        named = [*LOOPBACK, *config.allowed_hosts]
        self._hosts = frozenset(named if listen.is_unspecified else [*named, own])
        self._known: tuple[Identity, ...] = ()
        self.replace(tokens)

    def replace(self, tokens: Sequence[Mapping[str, object]]) -> None:
        """From now on these are valid and no others."""
        self._known = tuple(
            Identity(str(row["name"]), _scopes(row["scopes"]), bytes.fromhex(str(row["sha256"])))
            for row in tokens
        )

    def names(self) -> list[tuple[str, list[str]]]:
        """Each token's name and scopes."""
        known = self._known
        return [(one.token_name, one.granted) for one in known]

    def valid(self, identity: Identity) -> bool:
        """Whether a token that was valid still is, with the scopes that it had."""
        return identity in self._known

    def identify(self, request: Request) -> Identity | None:
        """Whose bearer token a request carries; None without a valid one."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("utf-8", "replace")).digest()
        found: Identity | None = None
        for known in self._known:  # all of them: the time taken tells nothing
            if hmac.compare_digest(known.digest, digest):
                found = known
        return found if kind.lower() == "bearer" else None

    def route(self, request: Request) -> tuple[Identity | None, Response | None]:
        """Who asks, and the refusal if they may not do so there. A route that needs no token has
        nobody and no refusal.
        """
        if (refusal := self._foreign(request)) is not None:
            return None, refusal
        route = ROUTES.get((request.method, request.path))
        if route is None or (route.door and not self._config.openai_api):
            return None, refused(request, 404, "There is nothing here.")
        if route.need is None:
            return None, None
        identity = self.identify(request)
        if identity is None:
            challenge = {"WWW-Authenticate": "Bearer"}
            return None, refused(request, 401, "A valid bearer token is needed.", challenge)
        try:
            identity.check(route.need)
        except PolicyDenied as error:
            return identity, refused(request, 403, str(error), known=True)
        return identity, None

    def _foreign(self, request: Request) -> Response | None:
        """Refuse a web page's request, and one whose Host was rebound to us."""
        if self._config.behind_proxy and not self._trusted(request.peer):
            return refused(request, 403, "Only the proxy is answered here.")
        origin = request.headers.get("origin")
        if origin is not None and origin not in self._config.allowed_origins:
            return refused(request, 403, "This origin is not in [gateway] allowed_origins.")
        host = request.headers.get("host", "")
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if name.lower() not in self._hosts:
            return refused(request, 403, "This host is not in [gateway] allowed_hosts.")
        return None

    def sharing(self, request: Request) -> dict[str, str]:
        """The headers that let a listed page read the answer (Fetch standard, CORS)."""
        origin = request.headers.get("origin")
        if origin is None or origin not in self._config.allowed_origins:
            return {}
        found = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        if request.method == "OPTIONS":
            wanted = request.headers.get("access-control-request-headers", "")
            if re.fullmatch("[A-Za-z0-9, -]{1,1024}", wanted):  # a token goes by none but its own
                found["Access-Control-Allow-Headers"] = wanted
            found["Access-Control-Allow-Methods"] = "GET, POST"
            found["Access-Control-Max-Age"] = "600"
        return found

    def source(self, request: Request) -> str:
        """The address of who asks. Behind a proxy it is the last one of X-Forwarded-For that is
        not a proxy's own: what stands before it was written by whoever asks.
        """
        if not self._config.behind_proxy or not self._trusted(request.peer):
            return request.peer
        for entry in reversed(request.headers.get("x-forwarded-for", "").split(",")):
            address = _address(entry)
            if not address:
                break  # nobody's address: what stands before it is no better
            if not self._trusted(address):
                return address
        return request.peer

    def _trusted(self, peer: str) -> bool:
        """Whether it is the proxy, or somebody on this machine."""
        address, config = _address(peer), self._config
        return bool(address) and (
            ipaddress.ip_address(address).is_loopback
            or address in (config.listen, *config.trusted_proxies)
        )


def _address(text: str) -> str:
    """An IP address in its one spelling, "" for anything else."""
    try:
        found = ipaddress.ip_address(text.strip().partition("%")[0])
    except ValueError:
        return ""
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def _scopes(value: object) -> frozenset[str]:
    return frozenset(str(scope) for scope in value) if isinstance(value, list) else frozenset()


def refused(
    request: Request,
    status: int,
    message: str,
    headers: Mapping[str, str] | None = None,
    *,
    known: bool = False,
) -> Response:
    """A refusal in the shape that the clients of a route expect."""
    body: Json = {"error": message}
    if request.path.startswith("/v1/"):
        body = openai_error(status, message)
    data = json.dumps(body).encode()
    return Response(status, data, "application/json", headers or {}, known)


def openai_error(status: int, message: str, code: str = "", param: str = "") -> Json:
    """An error as OpenAI's clients read it."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": message, "type": kind, "param": param or None, "code": code or None}
    return {"error": error}
