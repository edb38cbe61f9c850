"""The egress broker as a hostile guest meets it: over a real mux, with real servers behind it."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from oxydra.broker import Destinations, Quota, verify
from oxydra.broker.destinations import GuestName
from oxydra.config import EgressLimits, EgressPolicy
from oxydra.errors import Cancelled, PolicyDenied, TransportError
from oxydra.frames import pack, read_frame
from oxydra.policy.network import Egress, Url
from oxydra.providers import registry
from oxydra.providers.base import ProviderSettings
from oxydra.threads import CancelToken, Service
from oxydra.transport import Credential, HttpRequest, Route, Routes
from tests.broker_kit import UNLIMITED, BrokerWorld, broker_world
from tests.conftest import eventually
from tests.fake_model import STALL, FakeModel, Reply

KEY = "sk-live-0123456789/abcdef+XYZ"


@pytest.fixture
def fake() -> Iterator[FakeModel]:
    with FakeModel() as server:
        yield server


def destinations(fake: FakeModel, **also: object) -> Destinations:
    """The agent may post to one path of the fake, with a key, and nowhere else."""
    credential = Credential("Authorization", f"Bearer {KEY}", fake.origin)
    routes = Routes([Route("mine", fake.origin, "/v1/chat/completions", credential=credential)])
    return Destinations(routes, **also)  # type: ignore[arg-type]


@pytest.fixture
def world(fake: FakeModel) -> Iterator[BrokerWorld]:
    with broker_world(destinations(fake), secrets=[KEY]) as made:
        yield made


def post(fake: FakeModel, **fields: object) -> HttpRequest:
    url = f"{fake.url}/chat/completions"
    return HttpRequest("POST", url, body=b"{}", credential="mine", **fields)  # type: ignore[arg-type]


def ask(world: BrokerWorld, request: HttpRequest) -> bytes:
    with world.transport.open(request, CancelToken()) as stream:
        return stream.read()


# ------------------------------------------------------------------------------------------ routes


def test_the_key_is_added_outside_and_only_there(fake: FakeModel, world: BrokerWorld) -> None:
    fake.reply("hello")
    assert b"hello" in ask(world, post(fake))
    assert fake.requests[0].headers["authorization"] == f"Bearer {KEY}"
    [row] = world.log()
    assert (row["guest"], row["verdict"], row["route"]) == ("agent", "allowed", "mine")
    assert row["destination"] == f"POST {fake.origin}"
    assert row["sent"] == 2
    assert row["received"] > 10
    assert KEY not in json.dumps(world.log())


@pytest.mark.parametrize(
    ("method", "path", "credential"),
    [
        ("POST", "/v1/files", "mine"),
        ("GET", "/v1/chat/completions", "mine"),
        ("POST", "/v1/chat/completions/../files", "mine"),
        ("POST", "/v1/chat/completions%2f..%2ffiles", "mine"),
        ("POST", "//v1/chat/completions", "mine"),
        ("POST", "/v1/chat/completions", "other"),
        ("POST", "/v1/chat/completions", ""),
        ("DELETE", "/v1/chat/completions", "mine"),
    ],
)
def test_a_key_goes_nowhere_else(
    fake: FakeModel, world: BrokerWorld, method: str, path: str, credential: str
) -> None:
    request = HttpRequest(method, fake.origin + path, body=b"{}", credential=credential)
    with pytest.raises(PolicyDenied):
        ask(world, request)
    assert fake.requests == []
    assert world.log()[0]["verdict"] == "denied"


def test_a_key_goes_to_no_other_host(fake: FakeModel, world: BrokerWorld) -> None:
    with FakeModel() as thief:
        for url in (thief.url, f"http://localhost:{fake.port}/v1"):
            with pytest.raises(PolicyDenied, match="The key mine is not for"):
                ask(world, HttpRequest("POST", f"{url}/chat/completions", credential="mine"))
        assert thief.requests == []


def test_what_is_the_brokers_to_say_is_dropped(fake: FakeModel, world: BrokerWorld) -> None:
    fake.reply("x")
    forged = {
        "authorization": "Bearer stolen",
        "Cookie": "a=b",
        "Host": "other.example",
        "x-api-key": "k",
        "Proxy-Authorization": "p",
        "X-Forwarded-For": "1.2.3.4",
        "Transfer-Encoding": "chunked",
        "X-Kept": "yes",
    }
    ask(world, post(fake, headers=forged))
    seen = fake.requests[0].headers
    assert seen["authorization"] == f"Bearer {KEY}"
    assert seen["host"] == f"127.0.0.1:{fake.port}"
    assert seen["x-kept"] == "yes"
    assert {"cookie", "x-api-key", "proxy-authorization", "x-forwarded-for"}.isdisjoint(seen)
    assert "transfer-encoding" not in seen


def test_every_provider_has_a_route_for_what_it_posts() -> None:
    posts = {
        "openai": "/chat/completions",
        "openai_responses": "/responses",
        "anthropic": "/messages",
        "gemini": "/models/gemini-2.5-pro:streamGenerateContent",
    }
    assert {*posts, "offline"} == set(registry.PROVIDERS)
    for kind, path in posts.items():
        for base in ("http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/a/v1beta/"):
            route = registry.route(ProviderSettings("p", kind, base))
            assert route is not None
            start = base.removeprefix("http://h:1").rstrip("/")
            for version in ("", "/v1") if not start.endswith(("1", "a")) else ("",):
                assert route.leads_to("POST", "http://h:1", start + version + path)
            assert not route.leads_to("POST", "http://h:1", f"{start}/files")
            assert not route.leads_to("POST", "http://h:1", f"{start}/v1/x{path}/y")
    assert registry.route(ProviderSettings("p", "offline")) is None


# ----------------------------------------------------------------------------------- keys that leak


@pytest.mark.parametrize(
    "written",
    [
        KEY,
        json.dumps(KEY),
        base64.b64encode(KEY.encode()).decode(),
        KEY.replace("/", "%2F").replace("+", "%2B"),
        KEY.encode().hex(),
    ],
)
@pytest.mark.parametrize("size", [1000, 7, 1])
def test_a_reflected_key_is_removed_however_it_is_cut(
    fake: FakeModel, world: BrokerWorld, written: str, size: int
) -> None:
    body = f"you sent {written}, did you not?".encode()
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    fake.send(Reply(pieces, 401, {"X-Echo": f"Bearer {KEY}"}))
    with world.transport.open(post(fake), CancelToken()) as stream:
        assert stream.status == 401
        assert KEY not in str(stream.headers)
        text = stream.read()
    assert text.startswith(b"you sent ")
    assert text.endswith(b", did you not?")
    assert written.encode().strip(b'"') not in text


def test_nothing_is_held_back_that_begins_no_key(fake: FakeModel, world: BrokerWorld) -> None:
    gate = threading.Event()
    fake.send(Reply([b"data: {}\n\n", gate, b"data: s", b"k-live was all\n\n"]))
    with world.transport.open(post(fake), CancelToken()) as stream:
        chunks = iter(stream)
        assert next(chunks) == b"data: {}\n\n"
        gate.set()
        assert b"".join(chunks) == b"data: sk-live was all\n\n"


@pytest.mark.parametrize("where", ["body", "header", "url"])
def test_a_key_does_not_leave_with_what_a_guest_sends(
    fake: FakeModel, world: BrokerWorld, where: str
) -> None:
    request = HttpRequest(
        "POST",
        f"{fake.url}/chat/completions" + (f"?q={KEY}" if where == "url" else ""),
        {"X-Note": KEY if where == "header" else ""},
        f'{{"a": "{KEY if where == "body" else ""}"}}'.encode(),
        credential="mine",
    )
    with pytest.raises(PolicyDenied, match="holds a key"):
        ask(world, request)
    assert fake.requests == []


def test_a_redirect_takes_no_key_along(fake: FakeModel, world: BrokerWorld) -> None:
    with FakeModel() as thief:
        fake.redirect(f"{thief.origin}/v1/chat/completions?k={KEY}")
        with pytest.raises(TransportError) as caught:
            ask(world, post(fake))
        assert caught.value.kind == "redirect"
        assert caught.value.location.startswith(thief.origin)
        assert KEY not in caught.value.location
        assert thief.requests == []


# ------------------------------------------------------------------------------------ the web tools


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/",
        "http://localhost:{port}/",
        "http://[::1]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://2130706433:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://172.17.0.1/",
        "file:///etc/passwd",
        "http://user@127.0.0.1:{port}/",
    ],
)
def test_the_web_is_the_public_internet(fake: FakeModel, world: BrokerWorld, url: str) -> None:
    request = HttpRequest("GET", url.format(port=fake.port), guarded=True)
    with pytest.raises((PolicyDenied, TransportError)):
        ask(world, request)
    assert fake.requests == []


def test_an_allowed_local_service_is_fetched_and_only_fetched(fake: FakeModel) -> None:
    allowed = Egress.parse([f"127.0.0.1:{fake.port}"])
    with broker_world(Destinations(egress=allowed)) as world:
        fake.send(Reply([b"page"]))
        assert ask(world, HttpRequest("GET", f"{fake.origin}/", guarded=True)) == b"page"
        with pytest.raises(PolicyDenied):
            ask(world, HttpRequest("POST", f"{fake.origin}/", guarded=True))
        with pytest.raises(PolicyDenied):  # a provider's request that no route knows
            ask(world, HttpRequest("GET", f"{fake.origin}/"))
    assert len(fake.requests) == 1


# -------------------------------------------------------------------------------------- the shell


def allowing(
    *entries: str, mode: str = "allowlist", limits: EgressLimits = UNLIMITED
) -> EgressPolicy:
    return EgressPolicy(mode, entries, limits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "host", "port", "allowed"),
    [
        (allowing(mode="none"), "example.org", 443, False),
        (allowing(), "example.org", 443, False),
        (allowing("example.org:443"), "example.org", 443, True),
        (allowing("example.org:443"), "EXAMPLE.org.", 443, True),
        (allowing("example.org:443"), "example.org", 80, False),
        (allowing("example.org:443"), "api.example.org", 443, False),
        (allowing("example.org:443"), "example.org.evil.net", 443, False),
        (allowing("*.example.org:443"), "api.example.org", 443, True),
        (allowing("*.example.org:443"), "evilexample.org", 443, False),
        (allowing(mode="open"), "example.org", 443, True),
        (allowing(mode="open"), "localhost", 443, False),
        (allowing(mode="open"), "169.254.169.254", 80, False),
        (allowing(mode="open"), "10.0.0.7", 443, False),
        (allowing(mode="open"), "[::1]", 443, False),
        (allowing(mode="open"), "2130706433", 443, False),
        (allowing(mode="open"), "0x7f.1", 443, False),
        (allowing(mode="open"), "example.org", 25, False),
        (allowing("10.0.0.7:443"), "10.0.0.7", 443, False),
        (allowing(mode="open"), "example.org/..@x", 443, False),
        (allowing(mode="open"), "", 443, False),
        (allowing(mode="open"), "example.org", 0, False),
        (allowing(mode="open"), "example.org", 65536, False),
    ],
)
def test_where_the_shell_may_connect(
    policy: EgressPolicy, host: str, port: int, allowed: bool
) -> None:
    with contextlib.nullcontext() if allowed else pytest.raises(PolicyDenied):
        Destinations(shell=policy).admit_connection(host, port)


def connect(world: BrokerWorld, host: str, port: int) -> tuple[str, dict[str, object], object]:
    info = json.dumps({"kind": "connect", "host": host, "port": port}).encode()
    channel = world.channel(info)
    channel.settimeout(20)
    op, payload = read_frame(channel.recv, 1 << 16)
    return op, payload, channel


def test_a_name_that_leads_to_this_machine_is_not_dialled(fake: FakeModel) -> None:
    """Whatever the allow-list says of the name: the address is what counts."""
    host = socket.gethostname()
    policy = allowing(f"{host}.example.org:{fake.port}", mode="open")
    with broker_world(Destinations(shell=policy), guest="shell") as world:
        for name in ("localhost", "127.0.0.1", host):
            op, payload, _channel = connect(world, name, fake.port)
            assert (op, payload["code"]) == ("error", "denied")
    assert fake.requests == []


def test_a_local_service_of_the_web_tools_is_none_of_the_shells(fake: FakeModel) -> None:
    """Though commands may reach that very name and port on the internet."""
    service = f"service.example:{fake.port}"
    both = Destinations(egress=Egress.parse([service]), shell=allowing(service))

    def here(_host: str, port: int) -> list[Any]:
        return socket.getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM)

    url = f"http://{service}/v1/models"
    with broker_world(both, guest="shell", resolve=here) as world:
        op, payload, _channel = connect(world, "service.example", fake.port)
        assert (op, payload["code"]) == ("error", "denied")
        with pytest.raises(PolicyDenied, match=r"leads to 127\.0\.0\.1, a loopback address"):
            ask(world, HttpRequest("GET", url, guarded=True))
    assert fake.requests == []
    with broker_world(both, resolve=here) as world:  # where the web tools get to
        fake.reply("x")
        ask(world, HttpRequest("GET", url, guarded=True))
    assert len(fake.requests) == 1


def test_a_connection_is_carried_and_counted(fake: FakeModel) -> None:
    """To a local service, which only the tests allow."""
    service = f"127.0.0.1:{fake.port}"
    allowed = Destinations(egress=Egress.parse([service]), shell=allowing(service))
    with broker_world(_Unchecked(allowed), guest="shell") as world:
        fake.send(Reply([b"through the tunnel"], framing="length"))
        op, _payload, channel = connect(world, "127.0.0.1", fake.port)
        assert op == "response"
        channel.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")  # type: ignore[attr-defined]
        answer = b""
        while b"tunnel" not in answer:
            answer += channel.recv(1000)  # type: ignore[attr-defined]
        channel.close()  # type: ignore[attr-defined]
        [row] = world.log()
        assert (row["kind"], row["verdict"], row["guest"]) == ("connect", "allowed", "shell")
        assert row["sent"] > 40
        assert row["received"] == len(answer)


class _Unchecked(Destinations):
    """Without the look at the address, so that a server of the test's can be reached."""

    def __init__(self, other: Destinations) -> None:
        super().__init__(other.routes, other.egress, other.shell)

    def admit_connection(self, host: str, port: int) -> Url:
        assert self.shell.allows(host, port)
        return Url("https", host, port, "/")

    def local(self, guest: GuestName) -> Egress:
        return self.egress


def test_the_agent_opens_no_connection(world: BrokerWorld) -> None:
    op, payload, _channel = connect(world, "example.org", 443)
    assert (op, payload["code"]) == ("error", "denied")


def test_a_git_host_gets_its_token_over_https_alone() -> None:
    made = Destinations(shell=allowing("git.example.org:443"), git={"git.example.org": "tok-1234"})
    request = HttpRequest("POST", "http://git.example.org/a/b.git/git-upload-pack")
    admitted, route = made.admit("shell", request)
    assert admitted.url == "https://git.example.org/a/b.git/git-upload-pack"
    assert admitted.credential == route == "git:git.example.org"
    assert admitted.guarded
    credential = made.credentials("shell")["git:git.example.org"]
    assert credential.origin == "https://git.example.org"
    assert base64.b64decode(credential.value.removeprefix("Basic ")) == b"oxydra:tok-1234"
    with pytest.raises(PolicyDenied):  # another host, and the same by another port
        made.admit("shell", HttpRequest("GET", "http://other.example.org/"))
    with pytest.raises(PolicyDenied):
        made.admit("shell", HttpRequest("GET", "http://git.example.org:8080/"))
    with pytest.raises(PolicyDenied):  # the agent has no part in it
        made.admit("agent", HttpRequest("GET", "https://git.example.org/", credential=route))


# ----------------------------------------------------------------------------------------- quotas


def test_requests_in_a_minute(fake: FakeModel) -> None:
    limits = EgressLimits(requests_per_minute=2, requests_per_day=0, mib_per_day=0)
    with broker_world(destinations(fake), limits=limits) as world:
        for _ in range(2):
            fake.reply("x")
            ask(world, post(fake))
        with pytest.raises(TransportError, match="2 requests in a minute") as caught:
            ask(world, post(fake))
        assert (caught.value.kind, caught.value.retryable) == ("limit", True)
        assert len(fake.requests) == 2
        verdicts = sorted(row["verdict"] for row in world.log(3))
        assert verdicts == ["allowed", "allowed", "denied"]  # written when each has ended


def test_a_flood_of_refused_requests_does_not_push_the_rest_out_of_the_log(fake: FakeModel) -> None:
    limits = EgressLimits(requests_per_minute=5, requests_per_day=0, mib_per_day=0)
    with broker_world(destinations(fake), limits=limits) as world:
        fake.reply("x")
        ask(world, post(fake))
        for number in range(60):
            channel = world.channel(b"{}" if number % 2 else b'{"kind":"http"}', b"\0\0\0\2[]")
            channel.settimeout(60)
            assert read_frame(channel.recv, 1 << 16)[0] == "error"
        eventually(lambda: len(world.log(6)) == 6)
        assert [row["verdict"] for row in world.log(6)].count("allowed") == 1
        assert len(fake.requests) == 1


def test_a_row_is_short_whatever_a_guest_sends(fake: FakeModel, world: BrokerWorld) -> None:
    url = f"http://{'h' * 3000}.example/{'p' * 3000}"
    for request in (
        HttpRequest("M" * 5000, url, credential="mine"),
        HttpRequest("POST", url, {"X": "h" * 5000}, credential="c" * 5000),
    ):
        with pytest.raises((PolicyDenied, TransportError)):
            ask(world, request)
    assert all(len(json.dumps(row)) < 1500 for row in world.log(2))


def test_requests_and_bytes_in_a_day() -> None:
    quota = Quota(EgressLimits(0, 3, 1), requests=2)
    quota.admit(0.0, "2026-11-25")
    with pytest.raises(TransportError, match="3 requests in a day"):
        quota.admit(1.0, "2026-11-25")
    quota.admit(2.0, "2026-11-26")  # a new day
    with pytest.raises(TransportError, match="1 MiB in a day") as caught:
        quota.count((1 << 20) + 1)
    assert not caught.value.retryable
    with pytest.raises(TransportError, match="1 MiB in a day"):
        quota.admit(3.0, "2026-11-26")
    assert quota.used() == (1, (1 << 20) + 1)


def test_the_bucket_leaks() -> None:
    quota = Quota(EgressLimits(60, 0, 0))
    for _ in range(60):
        quota.admit(10.0, "d")
    with pytest.raises(TransportError):
        quota.admit(10.5, "d")
    quota.admit(11.6, "d")


def test_an_answer_past_the_days_bytes_is_cut_off(fake: FakeModel) -> None:
    limits = EgressLimits(0, 0, mib_per_day=1)
    with broker_world(destinations(fake), limits=limits) as world:
        fake.send(Reply([bytes(1 << 19)] * 4))
        with (
            pytest.raises(TransportError, match="1 MiB in a day"),
            world.transport.open(post(fake), CancelToken()) as stream,
        ):
            assert stream.status == 200
            stream.read()


# -------------------------------------------------------------------------------------- the guest


@pytest.mark.parametrize(
    "data",
    [
        pack("request", {}),
        pack("other", {"method": "GET"}),
        pack("request", {"method": "GET", "url": "http://x/", "headers": {}, "length": -1,
                         "connect_timeout": 1, "idle_timeout": 1, "max_bytes": 1}),
        pack("request", {"method": "GET", "url": "http://x/", "headers": {"a": 1}, "length": 0,
                         "connect_timeout": 1, "idle_timeout": 1, "max_bytes": 1}),
        pack("request", {"method": "GET", "url": "http://x/", "headers": {}, "length": 1 << 40,
                         "connect_timeout": 1, "idle_timeout": 1, "max_bytes": 1}),
        pack("request", {"method": "G\r\nX: y", "url": "http://x/", "headers": {}, "length": 0,
                         "connect_timeout": 1, "idle_timeout": 1, "max_bytes": 1}),
        b"\xff\xff\xff\xff{}",
        b"\0\0\0\2[]",
        b"\0\0\0\7nonsens",
        b"\0\0",
    ],
)  # fmt: skip
def test_nonsense_is_answered_and_harms_nobody(
    fake: FakeModel, world: BrokerWorld, data: bytes
) -> None:
    channel = world.channel(b'{"kind":"http"}', data)
    channel.shutdown(socket.SHUT_WR)
    channel.settimeout(60)
    op, payload = read_frame(channel.recv, 1 << 16)
    assert op == "error"
    assert payload["message"]
    fake.reply("still there")
    assert b"still there" in ask(world, post(fake))


@pytest.mark.parametrize("info", [b"", b"{}", b"[]", b'{"kind":"control"}', b"\xff"])
def test_an_unknown_service_is_refused(world: BrokerWorld, info: bytes) -> None:
    channel = world.channel(info)
    channel.settimeout(60)
    op, payload = read_frame(channel.recv, 1 << 16)
    assert (op, payload["code"]) == ("error", "denied")


def test_a_body_that_ends_early_is_not_sent(fake: FakeModel, world: BrokerWorld) -> None:
    head = {
        "method": "POST",
        "url": f"{fake.url}/chat/completions",
        "headers": {},
        "length": 100,
        "connect_timeout": 5,
        "idle_timeout": 5,
        "max_bytes": 9,
        "credential": "mine",
    }
    channel = world.channel(b'{"kind":"http"}', pack("request", head) + b"half")
    channel.shutdown(socket.SHUT_WR)
    channel.settimeout(60)
    assert read_frame(channel.recv, 1 << 16)[0] == "error"
    assert fake.requests == []


def test_a_guest_that_gives_up_ends_the_request(fake: FakeModel, world: BrokerWorld) -> None:
    fake.send(Reply([b"x", STALL]))
    token = CancelToken()
    stream = world.transport.open(post(fake), token)
    token.cancel()
    with pytest.raises(Cancelled):
        stream.read()
    stream.close()
    assert fake.requests[0].closed.wait(60)
    assert world.log()[0]["verdict"] == "cancelled"


def test_a_stop_ends_what_is_under_way(fake: FakeModel, world: BrokerWorld) -> None:
    fake.send(Reply([b"x", STALL]))
    with (
        pytest.raises(TransportError),
        world.transport.open(post(fake), CancelToken()) as stream,
    ):
        chunks = iter(stream)
        assert next(chunks) == b"x"
        world.broker.stop()
        next(chunks)
    assert fake.requests[0].closed.wait(60)


def test_a_guest_that_reads_nothing_blocks_nobody(fake: FakeModel, world: BrokerWorld) -> None:
    for _ in range(4):
        fake.send(Reply([bytes(1 << 20)] * 4))
    stalled = [world.transport.open(post(fake), CancelToken()) for _ in range(4)]
    fake.reply("quick")
    assert b"quick" in ask(world, post(fake))
    for stream in stalled:
        stream.close()


def test_many_at_once(fake: FakeModel, world: BrokerWorld) -> None:
    wrong: list[int] = []

    def one(number: int) -> None:
        request = post(fake)
        body = json.dumps({"messages": [{"role": "user", "content": f"{number}"}]}).encode()
        request = HttpRequest("POST", request.url, body=body, credential="mine")
        if b"[DONE]" not in ask(world, request):
            wrong.append(number)

    services = [Service(f"ask-{n}", lambda _, n=n: one(n)).start() for n in range(40)]
    assert all(service.stop(30) for service in services)
    assert not wrong
    assert len(fake.requests) == 40
    assert len(world.log(40)) == 40
    assert verify(world.folder)[:2] == (40, "")
