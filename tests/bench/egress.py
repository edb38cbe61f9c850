"""The broker by itself: what it adds to a request on a kept connection, and 200 streams at once.

Two processes, as in a daemon: this one is the broker, its child the guest, with one socketpair
between them. `python -m tests.bench.egress BASE_URL` prints one JSON object, which `measures`
reads; `--guest FD` is the child.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from oxydra.broker import AuditLog, Broker, Destinations, Quota
from oxydra.config import EgressLimits
from oxydra.frames import channel_info
from oxydra.mux import Mux
from oxydra.threads import CancelToken, Service, parallel
from oxydra.transport import (
    BrokeredTransport,
    DirectTransport,
    HttpRequest,
    Routes,
    Transport,
    sse,
)
from oxydra.transport.route import Route
from tests.bench import proc

REQUESTS = 300
STREAMS = 200
DELTAS = 100
STAMP = re.compile(r"\[(\d+)\]")


def asking(base_url: str, prompt: str) -> HttpRequest:
    body = {"model": "load-1", "stream": True, "messages": [{"role": "user", "content": prompt}]}
    return HttpRequest("POST", f"{base_url}/v1/chat/completions", body=json.dumps(body).encode())


def round_trip(transport: Transport, request: HttpRequest) -> float:
    """Milliseconds of one small answer."""
    began = time.monotonic()
    with transport.open(request, CancelToken()) as stream:
        stream.read()
    return (time.monotonic() - began) * 1000


def lags(transport: Transport, request: HttpRequest) -> list[float]:
    """Milliseconds from the sending of each delta to its being read."""
    found = []
    with transport.open(request, CancelToken()) as stream:
        for event in sse(stream):
            if stamp := STAMP.search(event.data):
                found.append(time.monotonic_ns() / 1e6 - int(stamp[1]) / 1000)
    return found


def guest(descriptor: int, base_url: str) -> dict[str, float]:
    mux = Mux(socket.socket(fileno=descriptor), opener=True)
    reader = Service("mux", lambda _: mux.run(), wake=mux.close).start()
    brokered, direct = BrokeredTransport(mux.open), DirectTransport()
    small = asking(base_url, "[[load n=1]]")
    times: dict[str, list[float]] = {"direct": [], "brokered": []}
    for number in range(REQUESTS):  # in turn, so that both see the same machine
        for name, transport in (("direct", direct), ("brokered", brokered)):
            taken = round_trip(transport, small)
            if number >= 20:
                times[name].append(taken)
    many = asking(base_url, f"[[load n={DELTAS} delay_ms=20 stamp=1]]")
    jobs = [lambda: lags(brokered, many)] * STREAMS
    found = sorted(lag for stream in parallel("stream", jobs) for lag in stream)
    assert len(found) == STREAMS * DELTAS
    reader.stop()
    direct.close()
    return {
        "egress_direct_ms": proc.median(times["direct"]),
        "egress_brokered_ms": proc.median(times["brokered"]),
        "egress_added_ms": proc.median(times["brokered"]) - proc.median(times["direct"]),
        "egress_lag_p50_ms": found[len(found) // 2],
        "egress_lag_p99_ms": found[len(found) * 99 // 100],
    }


def main(base_url: str) -> str:
    routes = Routes([Route("load", base_url, "/v1/chat/completions")])
    ours, theirs = socket.socketpair()
    with tempfile.TemporaryDirectory() as folder, ours:
        limits = EgressLimits(0, 0, 0)
        broker = Broker(Destinations(routes), Quota(limits), AuditLog(Path(folder)), ["k" * 40])
        broker.warm()
        mux = Mux(
            ours,
            opener=False,
            accept=lambda channel: broker.accept("agent", channel_info(channel.info), channel),
        )
        reader = Service("mux", lambda _: mux.run(), wake=mux.close).start()
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.egress", "--guest", str(theirs.fileno()),
                 base_url],
                stdout=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
            )  # fmt: skip
        printed, _ = child.communicate()
        broker.stop()
        reader.stop()
    if child.returncode:
        raise SystemExit(child.returncode)
    return printed.decode()


if __name__ == "__main__":
    if sys.argv[1] == "--guest":
        print(json.dumps(guest(int(sys.argv[2]), sys.argv[3])))
    else:
        print(main(sys.argv[1]))
