"""What commands reach when `[egress]` gives them a network: through the real guest and broker."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from oxydra.broker import AuditLog, Broker, Destinations, Quota, rows
from oxydra.broker.destinations import GuestName
from oxydra.config import EgressLimits, EgressPolicy
from oxydra.policy.network import Egress, Url, parse_url
from oxydra.runner.shell import EgressLine
from oxydra.transport import HttpRequest
from tests.conftest import eventually
from tests.sandbox import IN_MACHINE, Sandbox, isolation, missing, sandbox

LEVELS = ["bwrap+cage", pytest.param("container+cage", marks=pytest.mark.docker), IN_MACHINE]
each_level = pytest.mark.parametrize("level", LEVELS)
TOKEN = "git-token-0123456789"


class Pages(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, bytes]]

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, self.path, body))  # type: ignore[attr-defined]
        text = b"a page from outside"
        self.send_response(302 if self.path == "/moved" else 200)
        if self.path == "/moved":
            self.send_header("Location", "http://elsewhere.example/")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = _answer

    def log_message(self, *_args: object) -> None:
        pass


class Reachable(Destinations):
    """Lets a server on loopback stand for one on the internet; names decide as they always do."""

    def admit_connection(self, host: str, port: int) -> Url:
        if not self.shell.allows(host, port):
            return super().admit_connection(host, port)
        return Url("https", host, port, "/")

    def local(self, guest: GuestName) -> Egress:
        return self.egress

    def _of_shell(self, request: HttpRequest) -> tuple[HttpRequest, str]:
        url = parse_url(request.url)
        if self.egress.allows(url.host, url.port):
            return replace(request, guarded=True), "shell"
        return super()._of_shell(request)


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    made.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@contextlib.contextmanager
def networked(
    level: str, folder: Path, policy: EgressPolicy, port: int, audit: Path
) -> Iterator[Sandbox]:
    if missing(level):
        pytest.skip(missing(level))
    folder.mkdir()
    audit.mkdir()
    destinations = Reachable(egress=Egress.parse([f"127.0.0.1:{port}"]), shell=policy)
    broker = Broker(destinations, Quota(EgressLimits(0, 0, 0)), AuditLog(audit), [TOKEN])
    line = EgressLine(lambda info, channel: broker.accept("shell", info, channel))
    held = replace(isolation(folder, images=level == "container+cage"), egress=policy)
    box = Sandbox(folder, level, egress=line.theirs, isolation=held)
    line.start()
    try:
        yield box
    finally:
        box.close()
        line.close()
        broker.stop()


def listed(*entries: str, **git: str) -> EgressPolicy:
    return EgressPolicy("allowlist", entries, EgressLimits(0, 0, 0), git)


def fetch(url: str, *, connect: bool = False, body: str = "None") -> str:
    """A command that prints a status and a body, with what Python brings along; `body` is an
    expression.
    """
    lines = [
        "import os, http.client, urllib.parse as u",
        "p = u.urlsplit(os.environ['http_proxy'])",
        "c = http.client.HTTPConnection(p.hostname, p.port, timeout=60)",
        f"url = u.urlsplit({url!r})",
    ]
    if connect:
        lines += ["c.set_tunnel(url.hostname, url.port)", "target = url.path or '/'"]
    else:
        lines += [f"target = {url!r}"]
    lines += [
        f"c.request({'GET' if body == 'None' else 'POST'!r}, target, body={body})",
        "r = c.getresponse()",
        "print(r.status, r.read().decode())",
    ]
    script = "\n".join(lines).replace("'", "'\\''")
    return f"python3 -c '{script}' 2>&1 | tail -3"


@each_level
def test_commands_reach_what_is_listed_and_nothing_else(tmp_path: Path, server, level: str) -> None:
    port = server.server_port
    folder = tmp_path / "w"
    with networked(level, folder, listed(f"127.0.0.1:{port}"), port, tmp_path / "audit") as box:
        assert "200 a page from outside" in box.text(fetch(f"http://127.0.0.1:{port}/a"))
        tunnelled = box.text(fetch(f"http://127.0.0.1:{port}/b", connect=True))
        assert "200 a page from outside" in tunnelled
        posted = box.text(fetch(f"http://127.0.0.1:{port}/c", body="b'data ' * 30_000"))
        assert "200 a page" in posted
        assert [(method, path) for method, path, _ in server.seen] == [
            ("GET", "/a"),
            ("GET", "/b"),
            ("POST", "/c"),
        ]
        assert len(server.seen[2][2]) == 150_000
        before = len(server.seen)
        for wrong in ("http://other.example/", f"http://127.0.0.1:{port + 1}/", "ftp://x/"):
            assert "200" not in box.text(fetch(wrong))
        for wrong in ("http://other.example:443/", "http://169.254.169.254:80/"):
            said = box.text(fetch(wrong, connect=True))
            assert "403" in said or "Tunnel" in said
        assert "elsewhere" not in box.text(fetch(f"http://127.0.0.1:{port}/moved"))
        assert len(server.seen) == before + 1
    eventually(lambda: len(list(rows(tmp_path / "audit"))) >= 8)
    verdicts = {(row["kind"], row["verdict"]) for row in rows(tmp_path / "audit")}
    assert {("http", "allowed"), ("connect", "allowed"), ("http", "denied")} <= verdicts


@each_level
def test_the_proxy_is_the_only_way(tmp_path: Path, server, level: str) -> None:
    """No other socket, no other address, no listener, no name."""
    port = server.server_port
    folder = tmp_path / "w"
    attempts = {
        "direct": f"s=socket.socket(); s.settimeout(3); s.connect(('127.0.0.1',{port}))",
        "metadata": "s=socket.socket(); s.settimeout(3); s.connect(('169.254.169.254',80))",
        "bridge": "s=socket.socket(); s.settimeout(3); s.connect(('172.17.0.1',22))",
        "udp": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "raw": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        "unix": "socket.socket(socket.AF_UNIX)",
        "vsock": "socket.socket(40, socket.SOCK_STREAM)",
        "netlink": "socket.socket(16, socket.SOCK_RAW)",
        "bind": "s=socket.socket(); s.bind(('127.0.0.1',8080)); s.listen()",
        "dns": "socket.getaddrinfo('example.org', 443)[0]",
        "packet": "socket.socket(17, socket.SOCK_STREAM)",
    }
    with networked(level, folder, listed(f"127.0.0.1:{port}"), port, tmp_path / "audit") as box:
        for name, code in attempts.items():
            said = box.text(
                f"python3 -c \"import socket; {code}; print('GOT OUT')\" 2>&1 | tail -1"
            )
            assert "GOT OUT" not in said, name
        assert "3128" in box.text("echo $http_proxy")
        assert "killed" not in box.text("pkill -9 -f egress-forwarder; kill -9 -1; echo alive")
        assert "200 a page" in box.text(fetch(f"http://127.0.0.1:{port}/"))
    assert len(server.seen) == 1


@each_level
def test_without_egress_there_is_no_socket(tmp_path: Path, level: str) -> None:
    if missing(level):
        pytest.skip(missing(level))
    with sandbox(tmp_path, level) as box:
        assert box.text("echo [$http_proxy]") == "[]\n"
        said = box.text("python3 -c 'import socket; socket.socket()' 2>&1 | tail -1")
        assert "PermissionError" in said


@each_level
def test_git_asks_by_http_where_the_broker_has_its_token(
    tmp_path: Path, server, level: str
) -> None:
    folder = tmp_path / "w"
    policy = listed("git.example.org:443", **{"git.example.org": "env:T"})
    with networked(level, folder, policy, server.server_port, tmp_path / "audit") as box:
        said = box.text(
            "git config --get-urlmatch url.x https://git.example.org; env | grep ^GIT_C"
        )
        assert "GIT_CONFIG_KEY_0=url.http://git.example.org/.insteadOf" in said
        assert TOKEN not in box.text("env")
    assert json.dumps(list(rows(tmp_path / "audit"))) == "[]"
    assert os.listdir(folder / "shared") == []
