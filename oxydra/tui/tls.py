"""`TlsSocket`: TLS to a gateway behind a proxy, read by one thread while others write.

OpenSSL does not let two threads use a connection at once, and a read that waits would hold it: so
reads and writes never wait inside it, and take turns. No thread of its own.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class TlsSocket:
    """What `websocket` needs of a socket; `handshake` comes first.

    Certificates are checked against those of the system, or of the file that `SSL_CERT_FILE` names.
    """

    def __init__(self, sock: socket.socket, host: str) -> None:
        """Takes `sock` over, with its timeout. Raises `OSError` if it is not connected."""
        self._timeout = sock.gettimeout()
        self._lock = threading.Lock()  # guards what goes on inside OpenSSL
        context = ssl.create_default_context()
        self._tls = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        self._tls.setblocking(False)

    def handshake(self) -> None:
        """Raises `ssl.SSLCertVerificationError` for a certificate that is not trusted, `OSError` if
        what answers speaks no TLS or not in time.
        """
        self._patiently(self._tls.do_handshake)

    def recv(self, size: int) -> bytes:
        return self._patiently(lambda: self._tls.recv(size))

    def send(self, data: bytes) -> int:
        return self._patiently(lambda: self._tls.send(data))

    def settimeout(self, seconds: float | None) -> None:
        self._timeout = seconds

    def gettimeout(self) -> float | None:
        return self._timeout

    def fileno(self) -> int:
        return self._tls.fileno()

    def shutdown(self, how: int) -> None:
        """Wake whoever waits, from any thread; OpenSSL is not asked."""
        socket.socket.shutdown(self._tls, how)

    def close(self) -> None:
        with self._lock:
            self._tls.close()

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """Try until nothing is missing for it. Raises `TimeoutError`."""
        until = None if self._timeout is None else time.monotonic() + self._timeout
        while True:
            try:
                with self._lock:
                    return attempt()
            except ssl.SSLWantReadError:
                wanted = select.POLLIN
            except ssl.SSLWantWriteError:
                wanted = select.POLLOUT
            poll = select.poll()
            poll.register(self._tls, wanted)
            left = None if until is None else max(0.0, until - time.monotonic())
            if not poll.poll(None if left is None else 1000 * left):
                raise TimeoutError("timed out")
