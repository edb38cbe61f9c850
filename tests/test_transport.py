"""The transport against real sockets: streaming, limits, errors, keys, and cancelling in each
phase.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oxydra.errors import Cancelled, TransportError
from oxydra.threads import CancelToken, Deadline
from oxydra.transport import (
    Credential,
    DirectConfig,
    DirectTransport,
    HttpRequest,
    HttpStream,
    Transport,
    origin_of,
    sse,
)
from tests.broker_kit import broker_world
from tests.conftest import eventually
from tests.fake_model import CUT, STALL, FakeModel, Reply

KEY = "sk-secret-0123456789"


@pytest.fixture
def fake() -> Iterator[FakeModel]:
    with FakeModel() as server:
        yield server


@pytest.fixture(params=["direct", "brokered"])
def transport(request: pytest.FixtureRequest) -> Iterator[Transport]:
    """Both behave alike: the one that dials, and the one that has a broker dial."""
    if request.param == "direct":
        direct = DirectTransport()
        yield direct
        direct.close()
    else:
        with broker_world() as world:
            yield world.transport


def post(url: str, **fields: Any) -> HttpRequest:
    return HttpRequest("POST", url, body=b'{"messages":[]}', **fields)


def read(transport: Transport, request: HttpRequest) -> bytes:
    with transport.open(request, CancelToken()) as stream:
        return stream.read()


def failure(transport: Transport, request: HttpRequest) -> TransportError:
    with pytest.raises(TransportError) as caught:
        read(transport, request)
    shown = f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert KEY not in shown
    return caught.value


# --------------------------------------------------------------------------------------- streaming


def test_bytes_arrive_as_they_are_sent(fake: FakeModel, transport: Transport) -> None:
    gate = threading.Event()
    fake.send(Reply([b"one", gate, b"two"]))
    with transport.open(post(fake.url), CancelToken()) as stream:
        chunks = iter(stream)
        assert next(chunks) == b"one"
        assert not stream.finished
        gate.set()
        assert list(chunks) == [b"two"]
        assert stream.finished
        assert stream.bytes_read == 6
    assert stream.status == 200
    assert stream.headers["content-type"] == "text/event-stream"


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_all_ways_to_frame_a_body(fake: FakeModel, transport: Transport, framing: str) -> None:
    fake.send(Reply([b"a" * 100_000, b"b"], framing=framing))
    assert read(transport, post(fake.url)) == b"a" * 100_000 + b"b"


def test_a_compressed_body_is_decoded(fake: FakeModel, transport: Transport) -> None:
    body = gzip.compress(b"hello " * 1000)
    fake.send(Reply([body[:10], body[10:]], headers={"Content-Encoding": "gzip"}))
    assert read(transport, post(fake.url)) == b"hello " * 1000
    assert fake.requests[0].headers["accept-encoding"] == "identity"


def test_the_request_goes_out_as_it_is(fake: FakeModel, transport: Transport) -> None:
    fake.send(Reply([b"x"]))
    request = HttpRequest("POST", f"{fake.origin}/a/b?c=d", {"X-One": "1"}, b"body")
    read(transport, request)
    seen = fake.requests[0]
    assert (seen.method, seen.path, seen.raw) == ("POST", "/a/b?c=d", b"body")
    assert seen.headers["x-one"] == "1"
    assert seen.headers["user-agent"].startswith("oxydra/")
    assert {"authorization", "cookie"}.isdisjoint(seen.headers)


def test_a_connection_is_kept_for_the_next_request_on_any_thread(
    fake: FakeModel, transport: Transport
) -> None:
    for _ in range(3):
        fake.reply("a")
        worker = threading.Thread(target=read, args=(transport, post(fake.url)))
        worker.start()
        worker.join(60)
    assert [request.connection for request in fake.requests] == [1, 1, 1]


def test_a_complete_answer_keeps_the_connection_though_its_end_was_not_read(
    fake: FakeModel, transport: Transport
) -> None:
    for _ in range(2):
        fake.reply("a")
        stream = transport.open(post(fake.url), CancelToken())
        for event in sse(stream):
            if event.data == "[DONE]":
                break
        stream.close(complete=True)
        stream.close()  # may be called again
    assert [request.connection for request in fake.requests] == [1, 1]


def test_an_answer_left_in_the_middle_closes_its_connection(
    fake: FakeModel, transport: Transport
) -> None:
    fake.send(Reply([b"one", STALL]))
    with transport.open(post(fake.url), CancelToken()) as stream:
        assert next(iter(stream)) == b"one"
    assert fake.wait_requests(1)[0].closed.wait(60)
    fake.send(Reply([b"two"]))
    assert read(transport, post(fake.url)) == b"two"
    assert [request.connection for request in fake.requests] == [1, 2]


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(
    fake: FakeModel, transport: Transport
) -> None:
    fake.reply("a")
    read(transport, post(fake.url))
    fake.close()
    with FakeModel(fake.port) as again:
        again.reply("b")
        assert b'"b"' in read(transport, post(again.url))


def test_simultaneous_requests_get_connections_of_their_own(
    fake: FakeModel, transport: Transport
) -> None:
    gate = threading.Event()
    for _ in range(2):
        fake.send(Reply([b"x", gate]))
    first = transport.open(post(fake.url), CancelToken())
    second = transport.open(post(fake.url), CancelToken())
    gate.set()
    assert first.read() == second.read() == b"x"
    first.close()
    second.close()
    assert {request.connection for request in fake.requests} == {1, 2}


@pytest.mark.parametrize("config", [DirectConfig(keep_seconds=0.0), DirectConfig(keep=0)])
def test_a_connection_that_lay_idle_too_long_is_not_used_again(
    fake: FakeModel, config: DirectConfig
) -> None:
    transport = DirectTransport(config=config)
    for _ in range(2):
        fake.reply("a")
        read(transport, post(fake.url))
    assert [request.connection for request in fake.requests] == [1, 2]
    transport.close()


def test_a_closed_transport_keeps_nothing(fake: FakeModel) -> None:
    transport = DirectTransport()
    fake.send(Reply([b"x", STALL]))
    stream = transport.open(post(fake.url), CancelToken())
    transport.close()
    assert next(iter(stream)) == b"x"  # what is in use stays so
    stream.close()
    assert fake.wait_requests(1)[0].closed.wait(60)


def test_no_proxy_from_the_environment(
    fake: FakeModel, transport: Transport, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    fake.send(Reply([b"direct"]))
    assert read(transport, post(fake.url)) == b"direct"
    assert "authorization" not in fake.requests[0].headers


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(("steps", "framing"), [([b"half", CUT], "chunked"), ([b"half"], "length")])
def test_a_broken_stream(
    fake: FakeModel, transport: Transport, steps: list[Any], framing: str
) -> None:
    if framing == "length":
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
        fake.send(Reply([head, *steps], framing="raw"))
    else:
        fake.send(Reply(steps))
    error = failure(transport, post(fake.url))
    assert (error.kind, error.retryable) == ("broken", True)
    assert str(fake.port) in error.message


def test_no_answer_at_all(fake: FakeModel, transport: Transport) -> None:
    fake.send(Reply([CUT], framing="raw"))
    error = failure(transport, post(fake.url))
    assert (error.kind, error.retryable) == ("broken", True)
    assert "without an answer" in error.message


def test_no_http(fake: FakeModel, transport: Transport) -> None:
    fake.send(Reply([b"SSH-2.0-OpenSSH_9.2\r\n"], framing="raw"))
    error = failure(transport, post(fake.url))
    assert (error.kind, error.retryable) == ("broken", False)
    assert "does not speak HTTP" in error.message


@pytest.mark.parametrize("where", ["headers", "body"])
def test_a_silent_server(fake: FakeModel, transport: Transport, where: str) -> None:
    fake.send(Reply([STALL], framing="raw") if where == "headers" else Reply([b"x", STALL]))
    error = failure(transport, post(fake.url, idle_timeout=0.05))
    assert (error.kind, error.retryable) == ("idle", True)
    assert "silent" in error.message
    assert fake.wait_requests(1)[0].closed.wait(60)


@pytest.mark.parametrize("where", ["headers", "body"])
def test_a_server_that_trickles_past_the_deadline(
    fake: FakeModel, transport: Transport, where: str
) -> None:
    """Each byte comes in time, the whole does not."""
    trickle: list[Any] = [part for _ in range(3000) for part in (b"X", 0.01)]
    head = b"HTTP/1.1 200 OK\r\nX-Slow: " if where == "headers" else b"HTTP/1.1 200 OK\r\n\r\n"
    fake.send(Reply([head, *trickle], framing="raw"))
    error = failure(transport, post(fake.url, deadline=Deadline.after(0.2)))
    assert (error.kind, error.retryable) == ("deadline", False)


def test_nobody_listens(transport: Transport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    error = failure(transport, post(f"http://127.0.0.1:{port}/"))
    assert (error.kind, error.retryable) == ("connect", True)
    assert error.message == f"127.0.0.1:{port} can't be reached: connection refused."


def test_a_name_that_does_not_exist() -> None:
    def resolve(host: str, port: int) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    error = failure(DirectTransport(resolve=resolve), post("http://no-such-host.example/"))
    assert (error.kind, error.retryable) == ("resolve", True)
    assert "no-such-host.example can't be reached: name or service" in error.message


def test_the_next_address_is_tried(fake: FakeModel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        dead = server.getsockname()
    kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    addresses = [(*kind, dead), (*kind, ("127.0.0.1", fake.port))]
    transport = DirectTransport(resolve=lambda host, port: addresses)
    fake.send(Reply([b"second"]))
    assert read(transport, post(f"http://somewhere.example:{fake.port}/")) == b"second"
    assert fake.requests[0].headers["host"] == f"somewhere.example:{fake.port}"
    transport.close()


@pytest.mark.parametrize(
    "flood",
    [
        b"".join(b"X-%d: y\r\n" % number for number in range(500)),
        b"X: " + b"y" * 100_000 + b"\r\n",
    ],
)
def test_a_flood_of_headers(fake: FakeModel, transport: Transport, flood: bytes) -> None:
    fake.send(Reply([b"HTTP/1.1 200 OK\r\n" + flood + b"\r\n"], framing="raw"))
    error = failure(transport, post(fake.url))
    assert (error.kind, error.retryable) == ("headers", False)


@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_a_body_above_the_limit(fake: FakeModel, transport: Transport, framing: str) -> None:
    fake.send(Reply([b"x" * 65536] * 40, framing=framing))
    error = failure(transport, post(fake.url, max_bytes=2 << 20))
    assert error.kind == "too_large"
    assert "larger than 2 MB" in error.message


def test_a_compressed_bomb_is_counted_unpacked(fake: FakeModel, transport: Transport) -> None:
    body = gzip.compress(b"\0" * (20 << 20))
    fake.send(Reply([body], headers={"Content-Encoding": "gzip"}))
    assert failure(transport, post(fake.url, max_bytes=1 << 20)).kind == "too_large"


def test_a_damaged_compressed_body(fake: FakeModel, transport: Transport) -> None:
    fake.send(Reply([b"no gzip at all"], headers={"Content-Encoding": "gzip"}))
    assert failure(transport, post(fake.url)).kind == "encoding"


@pytest.mark.parametrize("url", ["", "localhost:1/v1", "ftp://x/", "http://", "http://[", "//x"])
def test_no_url(transport: Transport, url: str) -> None:
    error = failure(transport, post(url))
    assert error.kind == "url"
    assert "http://" in error.remedy


def test_a_url_with_a_password(transport: Transport) -> None:
    error = failure(transport, post(f"https://user:{KEY}@example.org/"))
    assert error.kind == "url"


def test_a_header_that_cannot_be_sent(fake: FakeModel, transport: Transport) -> None:
    for value in (f"{KEY}\nEvil: 1", f"{KEY} 😀"):
        assert failure(transport, post(fake.url, headers={"X-A": value})).kind == "url"
    assert fake.requests == []


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://API.Example.org/v1?x=1", "https://api.example.org"),
        ("https://api.example.org:443", "https://api.example.org"),
        ("http://localhost:8080/v1/", "http://localhost:8080"),
        ("http://[::1]:80/x", "http://[::1]"),
    ],
)
def test_origins(url: str, origin: str) -> None:
    assert origin_of(url) == origin


def test_the_text_of_an_error_is_cut_and_survives_a_break(
    fake: FakeModel, transport: Transport
) -> None:
    fake.send(Reply([b"no \xff way", CUT], status=500))
    with transport.open(post(fake.url), CancelToken()) as stream:
        assert (stream.status, stream.text()) == (500, "no � way")
    fake.send(Reply([b"x" * 300_000], status=500))
    with transport.open(post(fake.url), CancelToken()) as stream:
        assert len(stream.text()) <= 65536


# -------------------------------------------------------------------------------- keys, redirects


@pytest.fixture
def keyed(fake: FakeModel) -> Iterator[DirectTransport]:
    direct = DirectTransport({"K": Credential("Authorization", f"Bearer {KEY}", fake.origin)})
    yield direct
    direct.close()


def test_a_key_goes_out_by_name_and_shows_nowhere(fake: FakeModel, keyed: DirectTransport) -> None:
    fake.send(Reply([f"bad key {KEY}, Bearer {KEY}".encode()], status=401))
    request = post(fake.url, credential="K", headers={"authorization": "Bearer mine"})
    with keyed.open(request, CancelToken()) as stream:
        assert stream.text() == "bad key [key], [key]"
    assert fake.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(Credential("Authorization", KEY, "https://x"))
    assert KEY not in repr(request)


def test_a_key_goes_to_its_own_origin_only(fake: FakeModel, keyed: DirectTransport) -> None:
    with FakeModel() as other:
        error = failure(keyed, post(other.url, credential="K"))
        assert error.kind == "credential"
        assert other.requests == []
        error = failure(keyed, post(f"http://localhost:{fake.port}/", credential="K"))
        assert error.kind == "credential"
    assert fake.requests == []


def test_an_unknown_key_is_named_with_its_remedy(fake: FakeModel, keyed: DirectTransport) -> None:
    error = failure(keyed, post(fake.url, credential="OTHER"))
    assert error.kind == "credential"
    assert "oxydra-runner key set OTHER" in error.remedy


@pytest.mark.parametrize("tail", ["\n", "”", "\x00"])
def test_a_key_with_what_was_pasted_along(fake: FakeModel, tail: str) -> None:
    transport = DirectTransport({"K": Credential("X-Key", KEY + tail, fake.origin)})
    error = failure(transport, post(fake.url, credential="K"))
    assert error.kind == "credential"
    assert "pasted" in error.remedy


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused(fake: FakeModel, keyed: DirectTransport, status: int) -> None:
    with FakeModel() as other:
        fake.redirect(f"{other.origin}/elsewhere?token=t", status)
        error = failure(keyed, post(fake.url, credential="K"))
        assert error.kind == "redirect"
        assert other.origin in error.message
        assert "token" not in error.message
        assert error.location == f"{other.origin}/elsewhere?token=t"
        assert other.requests == []


def test_a_redirect_within_the_host_is_refused_too(fake: FakeModel, transport: Transport) -> None:
    fake.redirect("/login")
    assert failure(transport, post(fake.url)).kind == "redirect"


# ------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not in PATH, and makes the test's certificate")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(cert), "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.fixture
def secure(certificate: tuple[Path, Path]) -> Iterator[FakeModel]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with FakeModel(tls=context) as server:
        yield server


def test_tls(secure: FakeModel, certificate: tuple[Path, Path]) -> None:
    transport = DirectTransport(config=DirectConfig(ca_file=str(certificate[0])))
    for _ in range(2):
        secure.reply("safe")
        assert b"safe" in read(transport, post(secure.url))
    assert [request.connection for request in secure.requests] == [1, 1]
    transport.close()


def test_a_certificate_of_nobody_we_know(secure: FakeModel, transport: Transport) -> None:
    error = failure(transport, post(secure.url))
    assert (error.kind, error.retryable) == ("tls", False)
    assert "certificate" in error.message
    assert "SSL_CERT_FILE" in error.remedy


def test_a_certificate_of_another_host(secure: FakeModel, certificate: tuple[Path, Path]) -> None:
    transport = DirectTransport(config=DirectConfig(ca_file=str(certificate[0])))
    error = failure(transport, post(f"https://127.0.0.1:{secure.port}/"))
    assert error.kind == "tls"
    assert secure.requests == []


def test_https_where_http_is_spoken(fake: FakeModel, transport: Transport) -> None:
    # a server of HTTP may wait for the end of a line in what it takes for a request
    error = failure(transport, post(f"https://127.0.0.1:{fake.port}/", connect_timeout=3.0))
    assert error.kind == "tls"
    assert "https://" in error.remedy


# ------------------------------------------------------------------------------------- cancelling


def cancel_when(
    ready: Callable[[], object], work: Callable[[CancelToken], object]
) -> BaseException | None:
    """Run `work` on a thread, cancel once `ready()` returns, and return what it raised."""
    token = CancelToken()
    raised: list[BaseException] = []

    def body() -> None:
        try:
            work(token)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    ready()
    token.cancel("enough")
    thread.join(60)
    assert not thread.is_alive(), "the cancelled call went on"
    return raised[0] if raised else None


def drain(transport: Transport, request: HttpRequest) -> Callable[[CancelToken], None]:
    def work(token: CancelToken) -> None:
        with transport.open(request, token) as stream:
            stream.read()

    return work


def test_cancel_before_anything(fake: FakeModel, transport: Transport) -> None:
    token = CancelToken()
    token.cancel("enough")
    with pytest.raises(Cancelled, match="enough"):
        transport.open(post(fake.url), token)
    assert fake.requests == []


def test_cancel_while_resolving() -> None:
    resolving, free = threading.Event(), threading.Event()

    def resolve(host: str, port: int) -> list[Any]:
        resolving.set()
        free.wait(30)
        return []

    transport = DirectTransport(resolve=resolve)
    error = cancel_when(lambda: resolving.wait(60), drain(transport, post("http://slow.example/")))
    assert isinstance(error, Cancelled)
    free.set()


def test_a_look_up_that_takes_too_long() -> None:
    free = threading.Event()

    def resolve(host: str, port: int) -> list[Any]:
        free.wait(30)
        return []

    transport = DirectTransport(resolve=resolve)
    error = failure(transport, post("http://slow.example/", connect_timeout=0.05))
    assert error.kind == "resolve"
    assert "in time" in error.message
    free.set()


@contextlib.contextmanager
def deaf_port() -> Iterator[int]:
    """A port whose queue of connections is full, so that a further one hangs in connect."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(16):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(server.getsockname())
        yield server.getsockname()[1]


def connecting_to(port: int) -> int:
    """How many sockets of this machine are about to connect to `port` (state SYN_SENT)."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "02" for row in rows)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc/net/tcp")
def test_cancel_while_connecting(transport: Transport) -> None:
    with deaf_port() as port:
        others = connecting_to(port)
        error = cancel_when(
            lambda: eventually(lambda: connecting_to(port) > others),
            drain(transport, post(f"http://127.0.0.1:{port}/", connect_timeout=60)),
        )
    assert isinstance(error, Cancelled)


def test_a_connect_that_takes_too_long(transport: Transport) -> None:
    with deaf_port() as port:
        error = failure(transport, post(f"http://127.0.0.1:{port}/", connect_timeout=0.1))
    assert error.kind == "connect"
    assert "in time" in error.message


def silent_listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_cancel_while_waiting_for_an_answer(transport: Transport, scheme: str) -> None:
    """Waiting for headers over HTTP, for the server's part of the handshake over HTTPS."""
    accepted: list[socket.socket] = []

    def wait() -> None:
        peer, _ = server.accept()
        accepted.append(peer)
        assert peer.recv(65536)

    with silent_listener() as server:
        request = post(f"{scheme}://127.0.0.1:{server.getsockname()[1]}/", connect_timeout=60)
        error = cancel_when(wait, drain(transport, request))
        assert isinstance(error, Cancelled)
        with accepted[0] as peer:
            peer.settimeout(60)
            while peer.recv(65536):
                pass  # until the client's end of the connection is closed


@pytest.mark.parametrize("tls", [False, True])
def test_cancel_in_the_middle_of_a_stream(
    fake: FakeModel, secure: FakeModel, certificate: tuple[Path, Path], tls: bool
) -> None:
    server = secure if tls else fake
    transport = DirectTransport(config=DirectConfig(ca_file=str(certificate[0])))
    server.send(Reply([b"x", STALL]))
    first = threading.Event()

    def work(token: CancelToken) -> None:
        with transport.open(post(server.url), token) as stream:
            for _ in stream:
                first.set()

    assert isinstance(cancel_when(lambda: first.wait(60), work), Cancelled)
    assert server.requests[0].closed.wait(60)
    server.send(Reply([b"again"]))
    assert read(transport, post(server.url)) == b"again"
    transport.close()


def test_cancel_between_two_reads(fake: FakeModel, transport: Transport) -> None:
    fake.send(Reply([b"x", STALL], framing="close"))
    token = CancelToken()
    with transport.open(post(fake.url), token) as stream:
        chunks = iter(stream)
        assert next(chunks) == b"x"
        token.cancel("enough")
        with pytest.raises(Cancelled):
            next(chunks)
    assert fake.wait_requests(1)[0].closed.wait(60)


def test_cancelling_later_does_no_harm(fake: FakeModel, transport: Transport) -> None:
    token = CancelToken()
    fake.reply("a")
    with transport.open(post(fake.url), token) as stream:
        stream.read()
    token.cancel()
    fake.reply("b")
    assert b'"b"' in read(transport, post(fake.url))
    assert [request.connection for request in fake.requests] == [1, 1]


def test_importing_the_transport_is_cheap() -> None:
    code = (
        "import sys, oxydra.transport, oxydra.providers\n"
        "assert not {'requests', 'ssl', 'sseclient'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_a_stream_may_be_opened_by_hand() -> None:
    """What another transport builds on: a stream over any function that reads."""
    parts = iter([b"a", b"b", b""])
    released: list[bool] = []
    stream = HttpStream(
        status=200, headers={}, read=lambda: next(parts), release=released.append,
        token=CancelToken(), max_bytes=10, where="here",
    )  # fmt: skip
    assert stream.read() == b"ab"
    stream.close(complete=True)
    assert released == [True]


def test_whoever_reads_is_told_before_each_wait(fake: FakeModel, transport: Transport) -> None:
    gate = threading.Event()
    fake.reply("a", "b", gate, "c")
    seen: list[str] = []
    waited: list[str] = []

    def on_wait() -> None:
        waited.append("".join(seen))
        if waited[-1] == "ab":
            gate.set()  # nothing more comes until the two were shown

    with transport.open(replace(post(fake.url), on_wait=on_wait), CancelToken()) as stream:
        for event in sse(stream):
            if '"content":' in event.data:
                seen.append(json.loads(event.data)["choices"][0]["delta"].get("content") or "")
    assert "ab" in waited
    assert "".join(seen) == "abc"
