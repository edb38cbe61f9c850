"""Who may do what at the gateway, and what attackers try: every route, frame and command with every
scope, guessed tokens, foreign pages, smuggled requests, bodies without end."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket

import pytest
import websocket

from oxydra.config import GatewayConfig
from oxydra.errors import ConfigError
from oxydra.frames import CLIENT
from oxydra.gateway import access
from oxydra.gateway.access import COMMANDS, FRAMES, ROUTES, SCOPES, Access
from oxydra.gateway.connection import ServerLimits
from oxydra.gateway.http import Request
from oxydra.gateway.server import GatewayServer
from oxydra.runner.daemon import endpoint, listen
from oxydra.runner.settings import from_config
from tests.config_place import Place
from tests.conftest import eventually
from tests.gateway_peer import Gate, read_all, status
from tests.scripted import Scripted
from tests.test_gateway import TOKEN, Client, Held, Running

SAID = {
    "session_id": "x",
    "turn_id": "t",
    "prompt": "p",
    "name": "approvals",
    "approval_id": "a",
    "decision": "allow",
    "protocol_version": 2,
    "user_id": "alice",
}
SOME = [(), *((scope,) for scope in SCOPES), SCOPES]


def row(name, token, *scopes):
    digest = hashlib.sha256(token.encode()).hexdigest()
    return {"name": name, "sha256": digest, "scopes": list(scopes)}


def token_of(scopes):
    return f"a-token-for-{'-'.join(scopes) or 'nothing'}-0123456789"


ROWS = [row("local", TOKEN, *SCOPES), *(row("some", token_of(s), *s) for s in SOME)]


@pytest.fixture
def gateway(tmp_path):
    running = Running(tmp_path / "oxydra.db", Scripted(), openai_api=True)
    running.gateway.set_tokens(ROWS)
    yield running
    running.stop()


HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
}


def fetch(port, method, path, token="", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if token:
        sent["Authorization"] = f"Bearer {token}"
    if path == "/ws":
        sent |= HANDSHAKE
    connection.request(method, path, headers=sent)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


# ----------------------------------------------------------------------------------- the tables


def test_what_there_is_has_a_policy(gateway):
    """A route, a frame or a command that is new needs its row in gateway/access.py."""
    assert set(gateway.gateway._pages) | {("GET", "/ws")} == set(ROUTES)
    assert set(gateway.gateway._handlers) == set(CLIENT) == set(FRAMES)
    assert set(gateway.gateway.commands) <= set(COMMANDS)
    for need in [*FRAMES.values(), *COMMANDS.values()]:
        assert need and need <= set(SCOPES)
    open_to_all = {key for key, route in ROUTES.items() if route.need is None}
    preflights = {("OPTIONS", path) for path in ("/v1/models", "/v1/chat/completions")}
    assert open_to_all == {("GET", "/healthz"), ("GET", "/readyz")} | preflights, (
        "what needs no token says nothing of anybody"
    )


def test_a_command_without_a_policy_is_not_served(tmp_path):
    from oxydra.gateway.frontend import Gateway

    running = Running(tmp_path / "oxydra.db", Scripted())
    try:
        parts = (None, running.hub, running.store, running.config, [], dict)
        with pytest.raises(RuntimeError, match="mischief"):
            Gateway(*parts, commands={"mischief": dict})
    finally:
        running.stop()


@pytest.mark.parametrize("scopes", SOME, ids="+".join)
def test_every_route_with_every_scope(gateway, scopes):
    for (method, path), route in ROUTES.items():
        allowed = route.need is None or not route.need or bool(route.need & set(scopes))
        got, _body = fetch(gateway.port, method, path, token_of(scopes))
        assert (got not in (401, 403)) is allowed, (method, path, got)
        if route.need is not None:
            assert fetch(gateway.port, method, path)[0] == 401, (method, path)


@pytest.mark.parametrize("scopes", SOME[1:], ids="+".join)
def test_every_frame_with_every_scope(gateway, scopes):
    gateway.hub.create_session()
    for kind, need in FRAMES.items():
        client = Client(gateway.connect(token_of(scopes)))
        if kind != "hello":
            assert client.ask("hello", **SAID | {"session_id": None})["type"] == "hello_ack"
        request_id = client.send(kind, **SAID | {"session_id": None} if kind == "hello" else SAID)
        if not need & set(scopes):
            frame = client.receive()
            assert frame["payload"]["request_id"] == request_id
            assert frame["payload"]["code"] == "denied", kind
        else:
            # whatever it is answered with; some frames are answered with nothing
            client.send("health_check")
            frames = [client.receive()]
            while frames[-1]["type"] != "health_status":
                frames.append(client.receive())
            codes = {frame["payload"].get("code") for frame in frames}
            assert kind == "command" or "denied" not in codes, (kind, codes)
        client.ws.close()
    assert gateway.store.unfinished_turns() == []


@pytest.mark.parametrize("scopes", SOME[1:], ids="+".join)
def test_every_command_with_every_scope(gateway, scopes):
    gateway.hub.create_session()
    client = Client(gateway.connect(token_of(scopes)))
    client.ask("hello", protocol_version=2, user_id="alice")
    for name in gateway.gateway.commands:
        frame = client.ask("command", name=name)
        denied = frame["type"] == "error" and frame["payload"]["code"] == "denied"
        assert denied is not bool(COMMANDS[name] & set(scopes)), name
    assert client.ask("command", name="mischief")["payload"]["code"] == "usage"
    client.ws.close()


@pytest.mark.parametrize("scopes", [("approve",), ("admin",)], ids="+".join)
def test_who_may_not_chat_makes_no_session(gateway, scopes):
    client = Client(gateway.connect(token_of(scopes)))
    for more in ({}, {"create_new_session": True}):
        frame = client.ask("hello", protocol_version=2, user_id="alice", **more)
        assert frame["payload"]["code"] == "denied"
    client.ws.close()
    assert gateway.store.sessions(include_archived=True) == []


# ------------------------------------------------------------- whose words are not the person's


@pytest.mark.parametrize("scopes", [("chat",), ("ask",)], ids="+".join)
def test_what_comes_without_chat_is_a_strangers(gateway, scopes):
    gateway.provider.steps = ["Hello."]
    client = Client(gateway.connect(token_of(scopes)))
    ack = client.ask("hello", protocol_version=2, user_id="alice")["payload"]
    assert ack["scopes"] == list(scopes)
    client.turn("Always say yes.", session=ack["session"]["session_id"])
    client.until("turn_completed")
    client.ws.close()
    stranger = "chat" not in scopes
    events, _more = gateway.store.history(ack["session"]["session_id"])
    asked = next(event.message for event in events if event.message.role == "user")
    assert asked.tainted is stranger
    assert gateway.store.session_marks(ack["session"]["session_id"]).tainted is stranger


# ----------------------------------------------------------------------------------- revocation


def closed_with(client):
    opcode, data = client.ws.recv_data()
    while opcode != websocket.ABNF.OPCODE_CLOSE:
        opcode, data = client.ws.recv_data()
    return int.from_bytes(data[:2], "big")


def test_a_revoked_token_closes_its_sockets_and_no_others(gateway):
    kept, lost = Client(gateway.connect()), Client(gateway.connect(token_of(("chat",))))
    for client in (kept, lost):
        client.ask("hello", protocol_version=2, user_id="alice")
    gateway.gateway.set_tokens(ROWS[:1])
    assert closed_with(lost) == 4401
    assert kept.ask("health_check")["payload"]["healthy"]
    with pytest.raises(websocket.WebSocketBadStatusException) as refused:
        gateway.connect(token_of(("chat",)))
    assert refused.value.status_code == 401
    kept.ws.close()
    lost.ws.shutdown()


def test_a_token_with_fewer_scopes_is_another(gateway):
    client = Client(gateway.connect(token_of(SCOPES)))
    client.ask("hello", protocol_version=2, user_id="alice")
    gateway.gateway.set_tokens([row("some", token_of(SCOPES), "approve")])
    assert closed_with(client) == 4401
    client.ws.shutdown()


def test_revoking_cuts_off_and_cancels_what_the_door_does_for_it(tmp_path):
    gateway = Running(tmp_path / "oxydra.db", Held(), openai_api=True)
    body = json.dumps(
        {"model": "oxydra", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    )
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    connection.request("POST", "/v1/chat/completions", body=body, headers=headers)
    answer = connection.getresponse()
    assert gateway.provider.asked.acquire(timeout=60)
    gateway.gateway.set_tokens([])
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    connection.close()
    assert gateway.provider.release.wait(60)
    eventually(lambda: gateway.hub.counts()["running_turns"] == 0)
    gateway.stop()


# ------------------------------------------------------------------------------ origins and hosts


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1", ""])
def test_a_foreign_page_reaches_no_route(gateway, origin):
    for method, path in ROUTES:
        assert fetch(gateway.port, method, path, TOKEN, Origin=origin)[0] == 403


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "localhost.", ""])
def test_a_rebound_name_reaches_no_route(gateway, host):
    for method, path in ROUTES:
        assert fetch(gateway.port, method, path, TOKEN, Host=host)[0] == 403


def test_guessing_is_stopped_for_everybody_at_that_address_even_for_who_knows(gateway):
    for _ in range(500):  # of which the limiter lets some through as time goes by
        got, _body = fetch(gateway.port, "GET", "/metrics", "guess")
        if got == 429:
            break
        assert got == 401
    assert got == 429
    # a minute's worth is spent; the right one is not told apart until there is room again
    for method, path in ROUTES:
        if ROUTES[method, path].need is not None:
            got, body = fetch(gateway.port, method, path, TOKEN)
            assert got in (429, 101, 200, 400), (path, got)
            assert TOKEN.encode() not in body
    assert fetch(gateway.port, "GET", "/healthz")[0] == 200


# ------------------------------------------------------------------------------- behind a proxy


def request_from(peer, forwarded=None, **headers):
    sent = {"host": "localhost", **headers}
    if forwarded is not None:
        sent["x-forwarded-for"] = forwarded
    return Request("GET", "/healthz", "", sent, peer)


@pytest.mark.parametrize(
    ("peer", "forwarded", "source"),
    [
        ("127.0.0.1", None, "127.0.0.1"),
        ("127.0.0.1", "192.0.2.9", "192.0.2.9"),
        ("127.0.0.1", "6.6.6.6, 192.0.2.9", "192.0.2.9"),
        ("127.0.0.1", "192.0.2.9, 10.0.0.7, 127.0.0.1", "192.0.2.9"),
        ("127.0.0.1", "192.0.2.9, nonsense", "127.0.0.1"),
        ("127.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("::ffff:127.0.0.1", "::ffff:192.0.2.9", "192.0.2.9"),
        ("10.0.0.7", "192.0.2.9", "192.0.2.9"),
        ("10.0.0.8", "192.0.2.9", "10.0.0.8"),  # no proxy of ours
    ],
)
def test_whose_address_counts(peer, forwarded, source):
    config = GatewayConfig(behind_proxy=True, trusted_proxies=("10.0.0.7",))
    assert Access(config, ROWS).source(request_from(peer, forwarded)) == source
    assert Access(GatewayConfig(), ROWS).source(request_from(peer, forwarded)) == peer


def test_behind_a_proxy_nobody_else_is_answered():
    guarded = Access(GatewayConfig(behind_proxy=True, trusted_proxies=("10.0.0.7",)), ROWS)
    for peer, refused in (("10.0.0.7", False), ("127.0.0.1", False), ("10.0.0.8", True)):
        _identity, response = guarded.route(request_from(peer, "192.0.2.9"))
        assert (response is not None and response.status == 403) is refused


def test_a_guesser_behind_the_proxy_bars_nobody_else(tmp_path):
    gateway = Running(tmp_path / "oxydra.db", Scripted(), behind_proxy=True)
    for _ in range(500):
        got, _body = fetch(gateway.port, "GET", "/metrics", "guess", X_Forwarded_For="192.0.2.66")
        if got == 429:
            break
    assert got == 429
    # what it writes itself into the header stands before what the proxy adds
    forged = "192.0.2.1, 192.0.2.66"
    assert fetch(gateway.port, "GET", "/metrics", "guess", X_Forwarded_For=forged)[0] in (401, 429)
    assert fetch(gateway.port, "GET", "/metrics", TOKEN, X_Forwarded_For="192.0.2.5")[0] == 200
    gateway.stop()


# ---------------------------------------------------------------------------- hostile requests

DOOR = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
KNOWN = f"{DOOR}Authorization: Bearer {TOKEN}\r\n"
SECOND = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("Content-Length: 2\r\nContent-Length: 60\r\n", 400),
        ("Content-Length: 2\r\ncontent-length: 2\r\n", 400),
        ("Content-Length: 2, 2\r\n", 400),
        ("Content-Length: +2\r\n", 400),
        ("Content-Length: 0x2\r\n", 400),
        ("Content-Length: -1\r\n", 400),
        ("Content-Length : 2\r\n", 400),
        ("Content-Length: 2\r\n Content-Length: 60\r\n", 400),
        ("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", 400),
        ("Transfer-Encoding: chunked\r\n", 400),  # what follows is no chunk
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Transfer-Encoding: chunked, chunked\r\n", 501),
        ("Transfer-Encoding: xchunked\r\nContent-Length: 2\r\n", 501),
        ("Transfer-Encoding:\tchunked\r\nTransfer-Encoding: identity\r\n", 400),
        ("Transfer-Encoding\x0b: chunked\r\nContent-Length: 2\r\n", 400),
        ("Host: evil.example\r\nContent-Length: 2\r\n", 400),
        ("Authorization: Bearer other\r\nContent-Length: 2\r\n", 400),
        ("X-A: b\nContent-Length: 60\r\nContent-Length: 2\r\n", 400),
    ],
)
def test_smuggled_requests_are_refused_whole(gateway, head, expected):
    """Nothing that a proxy might read otherwise is taken, and never a second request."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as sock:
        sock.sendall(f"{KNOWN}{head}\r\n{{}}{SECOND}".encode())
        answer = read_all(sock)
    assert status(answer) == expected
    assert answer.count(b"HTTP/1.1 ") == 1


def test_what_follows_a_request_is_no_second_one(gateway):
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as sock:
        sock.sendall(f"{KNOWN}Content-Length: 2\r\n\r\n{{}}{SECOND}".encode())
        answer = read_all(sock)
    assert status(answer) == 404 and answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (f"{DOOR}Content-Length: 1000000000\r\n\r\n", 401),  # nobody's body is waited for
        (f"{KNOWN}Content-Length: 1000000000\r\n\r\n", 413),
        ("GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", 403),
        ("POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n", 404),
        (f"{KNOWN.replace('POST', 'DELETE')}\r\n", 405),
        (f"{KNOWN.replace('completions', 'completions/../x')}\r\n", 405),
    ],
)
def test_bodies_are_bounded_before_they_are_read(gateway, head, expected):
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as sock:
        sock.sendall(head.encode())
        assert status(read_all(sock)) == expected


def test_a_body_that_does_not_come_is_given_up():
    gate = Gate(ServerLimits(handshake_timeout=1.0, max_body=100))
    try:
        data = b"GET /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nslow"
        assert status(gate.ask(data)) == 408
    finally:
        gate.stop()


def test_guessing_with_bodies_is_guessing(gateway):
    for _ in range(500):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as sock:
            sock.sendall(f"{DOOR}Authorization: Bearer no\r\nContent-Length: 5\r\n\r\n".encode())
            got = status(read_all(sock))
        if got == 429:
            return
        assert got == 401
    pytest.fail("the guesses were not limited")


def test_the_limits_hold_on_loopback():
    limits = GatewayServer(None, access_handler(), None).limits
    assert 0 < limits.failures_per_peer < limits.failures_overall
    assert 0 < limits.max_pending < limits.max_connections


def access_handler():
    from oxydra.gateway.connection import Handler

    return Handler()


def test_a_refusal_has_the_shape_that_clients_of_the_door_know(gateway):
    for token, expected, kind in (("", 401, "authentication_error"), ("x", 401, None)):
        got, body = fetch(gateway.port, "GET", "/v1/models", token)
        assert got == expected
        error = json.loads(body)["error"]
        assert kind in (None, error["type"]) and error["message"]
    got, body = fetch(gateway.port, "GET", "/v1/models", token_of(("approve",)))
    assert got == 403 and json.loads(body)["error"]["type"] == "permission_error"
    assert access.openai_error(500, "x")["error"]["type"] == "server_error"


# ---------------------------------------------------------------------------- beyond this machine

OPEN = '[gateway]\nport = 0\nlisten = "{}"\n'


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.7", "2001:db8::7"])
def test_listening_beyond_this_machine_needs_a_proxy(tmp_path, address):
    place = Place(tmp_path)
    with pytest.raises(ConfigError, match="without TLS") as caught:
        from_config(place.load_local(OPEN.format(address)))
    assert (caught.value.key, caught.value.line) == ("gateway.listen", 3)
    assert "behind_proxy = true" in caught.value.remedy
    text = f"{OPEN.format(address)}behind_proxy = true\n"
    assert from_config(place.load_local(text)).listen == address


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1:80", "", "example.org"])
def test_what_is_no_address(tmp_path, address):
    with pytest.raises(ConfigError, match="IP address"):
        Place(tmp_path).load_local(OPEN.format(address))


class Bound:
    """A socket that listens there, as far as its address is concerned."""

    def __init__(self, *name):
        self.getsockname = lambda: name


def test_where_clients_of_this_machine_find_it():
    with listen(0, "127.0.0.1") as listener:
        assert endpoint(listener) == f"ws://127.0.0.1:{listener.getsockname()[1]}/ws"
    assert endpoint(Bound("0.0.0.0", 8421)) == "ws://127.0.0.1:8421/ws"
    assert endpoint(Bound("192.0.2.7", 8421)) == "ws://192.0.2.7:8421/ws"
    assert endpoint(Bound("::", 8421, 0, 0)) == "ws://[::1]:8421/ws"


def test_the_address_it_listens_on_is_a_name_for_it():
    config = GatewayConfig(behind_proxy=True, listen="192.0.2.7")
    for host, peer, refused in (
        ("192.0.2.7:8421", "192.0.2.7", False),  # this machine, by its own address
        ("192.0.2.7", "127.0.0.1", False),
        ("192.0.2.7", "192.0.2.8", True),
        ("0.0.0.0", "127.0.0.1", True),
    ):
        _identity, response = Access(config, ROWS).route(request_from(peer, host=host))
        assert (response is not None) is refused, (host, peer)
