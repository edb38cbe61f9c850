"""The examples for reverse proxies, run: TLS outside, the gateway behind, and what an attacker in
front of it tries. Each is skipped where its program is not installed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
from functools import partial

import pytest
import websocket

from oxydra.errors import NoDaemonError
from oxydra.threads import parallel
from oxydra.tui.client import GatewayClient, UntrustedError
from tests.conftest import ROOT, eventually
from tests.gateway_peer import status
from tests.scripted import Scripted
from tests.test_gateway import TOKEN, Client, Running

HOST = "oxydra.example.org"
PROXIES = ("nginx", "caddy")

NGINX = """\
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
daemon off;
{user}
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/oxydra.conf;
}}
"""
CADDY = "{\n\tadmin off\n\tauto_https off\n}\n"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def replaced(text, *pairs):
    for old, new in pairs:
        assert text.count(old) == 1, f"the example has no {old!r} any more"
        text = text.replace(old, new)
    return text


class Proxy:
    """A proxy of one kind in front of a gateway."""

    def __init__(self, kind, folder, backend, certificate):
        program = shutil.which(kind) or shutil.which(f"/usr/sbin/{kind}")
        if program is None:
            pytest.skip(f"{kind} is not installed")
        self.kind = kind
        self.certificate, key = certificate
        for _ in range(3):  # somebody may take the port before the proxy does
            self.port = free_port()
            self._start(program, kind, folder, backend, key)
            eventually(self._decided, 60)
            if self.process.poll() is None:
                return
        self.log.seek(0)
        pytest.fail(f"{kind} did not start: {self.log.read()}")

    def _start(self, program, kind, folder, backend, key):
        example = ROOT / "examples" / "proxy" / ("nginx.conf" if kind == "nginx" else "Caddyfile")
        text = example.read_text()
        if kind == "nginx":
            live = f"/etc/letsencrypt/live/{HOST}"
            text = replaced(
                text,
                ("listen 443 ssl;", f"listen 127.0.0.1:{self.port} ssl;"),
                (f"{live}/fullchain.pem", str(self.certificate)),
                (f"{live}/privkey.pem", str(key)),
                ("http://127.0.0.1:8421", f"http://127.0.0.1:{backend}"),
            )
            (folder / "oxydra.conf").write_text(text)
            user = "user root;" if os.geteuid() == 0 else ""
            (folder / "nginx.conf").write_text(NGINX.format(folder=folder, user=user))
            command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf")]
        else:
            text = replaced(
                text,
                (
                    f"\n{HOST} {{",
                    f"\nhttps://{HOST}:{self.port}, https://localhost:{self.port} {{\n"
                    f"\ttls {self.certificate} {key}",
                ),
                ("reverse_proxy 127.0.0.1:8421", f"reverse_proxy 127.0.0.1:{backend}"),
            )
            (folder / "Caddyfile").write_text(CADDY + text)
            config = str(folder / "Caddyfile")
            command = [program, "run", "--adapter", "caddyfile", "--config", config]
        self.log = (folder / "log").open("w+")
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=self.log, env=environment, cwd=folder
        )

    def _decided(self):
        """Whether it answers, or has ended."""
        if self.process.poll() is not None:
            return True
        with contextlib.suppress(OSError), self.connect():
            return True
        return False

    def connect(self):
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        context = ssl.create_default_context(cafile=str(self.certificate))
        try:
            return context.wrap_socket(raw, server_hostname=HOST)
        except OSError:
            raw.close()
            raise

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection(HOST, timeout=60)
        connection.sock = self.connect()
        sent = {"Authorization": f"Bearer {TOKEN}", **headers}
        connection.request(
            method, path, body=body, headers=sent, encode_chunked=not isinstance(body, str | None)
        )
        answer = connection.getresponse()
        found = answer.status, answer.read().decode()
        connection.close()
        return found

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificate")
    made = (folder / "certificate.pem", folder / "key.pem")
    curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1"
    command = f"openssl req -x509 {curve} -nodes -days 2 -subj /CN={HOST}".split()
    command += ["-addext", f"subjectAltName=DNS:{HOST},DNS:localhost"]
    subprocess.run(
        [*command, "-out", str(made[0]), "-keyout", str(made[1])],
        check=True,
        capture_output=True,
    )
    return made


@contextlib.contextmanager
def before_a_gateway(kind, place, certificate):
    gateway = Running(
        place / "oxydra.db",
        Scripted(*[["Hel", "lo"]] * 100),
        behind_proxy=True,
        allowed_hosts=(HOST,),
        openai_api=True,
    )
    folder = place / "proxy"
    folder.mkdir()
    try:
        proxy = Proxy(kind, folder, gateway.port, certificate)
        try:
            yield gateway, proxy
        finally:
            proxy.stop()
    finally:
        gateway.stop()


@pytest.fixture(scope="module", params=PROXIES)
def proxied(request, tmp_path_factory, certificate):
    """A gateway, and a proxy before it; the same for all tests that leave it as it was."""
    with before_a_gateway(request.param, tmp_path_factory.mktemp("proxied"), certificate) as both:
        yield both


@pytest.fixture(params=PROXIES)
def proxy_of_its_own(request, tmp_path, certificate):
    with before_a_gateway(request.param, tmp_path, certificate) as (_gateway, proxy):
        yield proxy


def test_the_terminal_uis_client_through_the_proxy(proxied, monkeypatch):
    gateway, proxy = proxied
    endpoint, heard, links = f"wss://localhost:{proxy.port}/ws", [], []
    changed = threading.Condition()

    def take(into, item):
        with changed:
            into.append(item)
            changed.notify_all()

    def client():
        return GatewayClient(
            endpoint, TOKEN, "alice", on_frame=partial(take, heard), on_link=partial(take, links)
        )

    with pytest.raises(UntrustedError, match="not trusted: self-signed certificate"):
        client().connect()
    monkeypatch.setenv("SSL_CERT_FILE", str(proxy.certificate))
    connected = client()
    connected.connect()
    try:
        asking = [
            lambda: [connected.send("health_check", {}) for _ in range(100)] for _ in range(3)
        ]
        parallel("asking", asking)  # while its own thread reads
        with changed:
            assert changed.wait_for(
                lambda: sum(frame.type == "health_status" for frame in heard) == 300, 60
            )
        turn = {
            "session_id": connected.session_id,
            "turn_id": "t",
            "prompt": "so it goes " * 15_000,
        }
        connected.send("send_turn", turn)
        with changed:
            ended = changed.wait_for(lambda: heard[-1].type == "turn_completed" and heard[-1], 60)
        assert ended.payload["response"]["message"]["content"] == "Hello"
    finally:
        assert connected.close()
    with pytest.raises(NoDaemonError, match="speaks no TLS"):
        endpoint = f"wss://localhost:{gateway.port}/ws"
        client().connect()


def test_a_conversation_through_the_proxy(proxied):
    gateway, proxy = proxied
    assert proxy.ask("GET", "/healthz")[0] == 200
    ws = websocket.create_connection(
        f"wss://{HOST}/ws",
        socket=proxy.connect(),
        header=[f"Authorization: Bearer {TOKEN}"],
        suppress_origin=True,
        timeout=60,
    )
    client = Client(ws)
    client.ack = client.ask("hello", protocol_version=2, user_id="alice")
    client.session = client.ack["payload"]["session"]["session_id"]
    client.turn()
    end = client.until("turn_completed")
    assert end["payload"]["response"]["message"]["content"] == "Hello"
    ws.close()
    assert gateway.provider.requests


def completion(**more):
    messages = [{"role": "user", "content": "hi"}]
    return json.dumps({"model": "oxydra", "messages": messages, **more})


def test_the_door_through_the_proxy(proxied):
    """Streamed, with a body in chunks, which nginx makes whole before, and with a large one."""
    _gateway, proxy = proxied
    code, text = proxy.ask("POST", "/v1/chat/completions", completion(stream=True))
    assert code == 200 and text.endswith("data: [DONE]\n\n")
    chunks = iter([completion().encode()])
    assert proxy.ask("POST", "/v1/chat/completions", chunks)[0] == 200
    assert proxy.ask("POST", "/v1/chat/completions", completion(padding="x" * 200_000))[0] == 200


def test_who_is_foreign_stays_out(proxied):
    _gateway, proxy = proxied
    assert proxy.ask("GET", "/metrics", Authorization="Bearer wrong")[0] == 401
    assert proxy.ask("GET", "/metrics", Origin="https://evil.example")[0] == 403
    # a name that is not the proxy's is answered by nobody, or by the gateway's refusal
    assert proxy.ask("GET", "/metrics", Host="evil.example")[1].count("oxydra_turns") == 0


def test_the_proxy_says_who_it_is_whatever_the_client_wrote(proxy_of_its_own):
    """Somebody who guesses, with another address in the header each time, is stopped."""
    proxy = proxy_of_its_own
    for number in range(500):
        forged = {"Authorization": "Bearer guess", "X-Forwarded-For": f"192.0.2.{number % 250}"}
        code, _text = proxy.ask("GET", "/metrics", **forged)
        if code == 429:
            return
        assert code == 401
    pytest.fail("the guesses were not limited")


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 2\r\nContent-Length: 60\r\n",
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: xchunked\r\nContent-Length: 2\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    ],
)
def test_nothing_is_smuggled_past_it(proxied, head):
    """Whatever the two make of such a request, the one inside of it is not answered."""
    _gateway, proxy = proxied
    hidden = f"GET /metrics HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    with proxy.connect() as sock:
        sock.settimeout(20)
        start = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n"
        sock.sendall(f"{start}{head}\r\n0\r\n\r\n{hidden}".encode())
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # some hang up on such a client
            while part := sock.recv(65536):
                answer += part
    assert not answer or status(answer) in (400, 401, 413, 501)
    assert b"oxydra_turns" not in answer and answer.count(b"HTTP/1.1 ") <= 1
