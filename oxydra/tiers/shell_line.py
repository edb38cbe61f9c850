"""The runner's line to a shell guest, the same in every tier: it is told what it is to be, streams
are handed to it, and hanging up ends it. No thread runs here.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Mapping, Sequence

from oxydra.cage import NAMESPACED, tasks_of
from oxydra.errors import FrameError, OxydraError
from oxydra.frames import Unpacker, pack
from oxydra.tiers.base import Guard, ShellSpec
from oxydra.types import Json

READY_SECONDS = 30.0  # a machine without KVM on a busy host
STOP_SECONDS = 3.0
PROXY_PORT = 3128  # as in guest/egress-forwarder
FORWARDER_TASKS = 72  # its threads count against the user's


class ShellLine:
    """What `ShellProcess` wants that needs nothing but the line. `landlock` is known once it is
    configured.
    """

    def __init__(self, control: socket.socket, level: str) -> None:
        self._control = control
        self.level = level
        self.landlock = 0

    def configure(
        self,
        spec: ShellSpec,
        places: Mapping[str, int],
        guards: Mapping[Guard, tuple[int, int]],
        user: tuple[int, int],
        **more: Json | str | int | bool,
    ) -> None:
        """Tell the daemon what it is to do; returns once it is ready. Raises `OxydraError`.

        `places` is what `base.opened` says, `guards` how the guest is to find each, by device and
        inode; `user` is the user and group that it becomes if it is root. Its stream to the broker
        goes along where it has a network of its own to offer a proxy on.
        """
        named = self.level in NAMESPACED
        egress = spec.egress if named else None
        folders = [
            {
                "name": folder.virtual,
                "path": folder.virtual if named else folder.at,
                "descriptor": -1 if named else places[folder.root],
                "writable": folder.writable,
                "variable": folder.variable,
            }
            for folder in spec.folders_at(self.level)
        ]
        mounted = [
            {"path": g.at, "writable": g.writable, "device": device, "inode": inode}
            for g, (device, inode) in guards.items()
        ]
        said = {
            "level": self.level,
            "uid": user[0],
            "gid": user[1],
            "env": {
                **spec.env,
                **(_proxy_variables(spec.isolation.egress.git_hosts) if egress else {}),
            },
            "running": tasks_of(spec.uid) + (FORWARDER_TASKS if egress else 0),
            "proxy": PROXY_PORT if egress else 0,
            "newest_landlock": spec.newest_landlock,
            "folders": folders,
            "guards": mounted if named else [],
            "servers": {name: dict(row) for name, row in spec.servers.items()},
            **more,
        }
        self._control.settimeout(READY_SECONDS)
        unpacker = Unpacker(limit=1 << 16)
        try:
            self._tell(pack("configure", said), [egress.fileno()] if egress else [])
            while data := self._control.recv(4096):
                for op, payload in unpacker.feed(data):
                    if op == "ready":
                        self._control.settimeout(STOP_SECONDS)
                        self.landlock = int(payload.get("landlock", 0))
                        return
                    raise OxydraError(str(payload.get("message", op))[:500])
        except (OSError, FrameError) as error:
            raise OxydraError(f"it does not get ready ({error})") from error
        raise OxydraError("it ended at once; logs/shell.log says why")

    def _tell(self, frame: bytes, passed: Sequence[int]) -> None:
        """Send a frame and descriptors."""
        sent = socket.send_fds(self._control, [frame], passed)
        self._control.sendall(frame[sent:])

    def attach(self, stream: socket.socket) -> None:
        """Let whoever holds the other end of `stream` use it. Raises OSError if it has ended."""
        socket.send_fds(self._control, [pack("attach", {})], [stream.fileno()])

    def hang_up(self) -> None:
        """Ask it to end everything; it does so too when the line is cut."""
        with contextlib.suppress(OSError):
            self._control.sendall(pack("shutdown", {}))
            self._control.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._control.close()


def _proxy_variables(git_hosts: Iterable[str]) -> dict[str, str]:
    """How programs find the proxy; git asks those hosts by http, whose token the broker adds."""
    proxy = f"http://127.0.0.1:{PROXY_PORT}"
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    found = dict.fromkeys(names, proxy) | {"no_proxy": "localhost,127.0.0.1,::1"}
    hosts = sorted(git_hosts)
    for number, host in enumerate(hosts):
        found[f"GIT_CONFIG_KEY_{number}"] = f"url.http://{host}/.insteadOf"
        found[f"GIT_CONFIG_VALUE_{number}"] = f"https://{host}/"
    return found | ({"GIT_CONFIG_COUNT": str(len(hosts))} if hosts else {})
