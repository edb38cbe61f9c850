"""Is it well? `health` checks a user's daemon from outside, for cron: bounded in time, without
effects.

No thread is started here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from oxydra.disk import shortage
from oxydra.errors import OxydraError, TransportError
from oxydra.runner.control import call
from oxydra.runner.workspace import Workspace
from oxydra.threads import CancelToken, Deadline
from oxydra.transport import DirectTransport, HttpRequest
from oxydra.types import Json

TIMEOUT = 3.0  # seconds for each question

Level = Literal["healthy", "degraded", "down"]
EXIT_CODES: dict[Level, int] = {"healthy": 0, "degraded": 1, "down": 2}


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `detail` says what is wrong and what to do, empty if nothing is."""

    user: str
    name: str
    level: Level
    detail: str = ""

    def to_json(self) -> Json:
        return {
            "user": self.user,
            "check": self.name,
            "level": self.level,
            "detail": self.detail,
        }


def health(workspace: Workspace) -> list[Check]:
    """Look at a user's daemon: its runner, its gateway, the space on its disk."""
    user = workspace.user
    try:
        status = call(workspace.control_socket, "health_check", {}, timeout=TIMEOUT)
    except OxydraError as error:
        return [Check(user, "daemon", "down", str(error)), _disk(workspace)]
    checks = [
        Check(user, "daemon", "healthy")
        if status.get("healthy")
        else Check(user, "daemon", "down", str(status.get("message", "not healthy")))
    ]
    checks.append(_gateway(user, str(status.get("gateway_endpoint", ""))))
    if status.get("guest_restarts"):
        detail = f"The agent was restarted {status['guest_restarts']} times;"
        detail += f" it last ended with: {status.get('last_guest_end', '?')}. See logs/runtime.log."
        checks.append(Check(user, "restarts", "degraded", detail))
    if status.get("scheduler"):
        checks.append(_scheduler(user, status["scheduler"]))
    checks.append(_disk(workspace))
    return checks


def _scheduler(user: str, state: Json) -> Check:
    if state.get("stalled"):
        detail = "Nothing that is due runs. See logs/runtime.log, and restart the daemon."
        return Check(user, "scheduler", "degraded", detail)
    return Check(user, "scheduler", "healthy")


def _gateway(user: str, endpoint: str) -> Check:
    page = "http://" + endpoint.removeprefix("ws://").removesuffix("/ws") + "/readyz"
    request = HttpRequest("GET", page, deadline=Deadline.after(TIMEOUT))
    transport = DirectTransport()
    try:
        with transport.open(request, CancelToken()) as answer:
            status = answer.status
    except TransportError as error:
        return Check(user, "gateway", "down", f"The gateway does not answer. {error}")
    finally:
        transport.close()
    if status != 200:
        return Check(user, "gateway", "degraded", f"The gateway answers {status}.")
    return Check(user, "gateway", "healthy")


def _disk(workspace: Workspace) -> Check:
    try:
        os.statvfs(workspace.path)
    except OSError as error:
        detail = f"The workspace cannot be read: {error.strerror}. Run `oxydra-runner init`."
        return Check(workspace.user, "disk", "degraded", detail)
    if short := shortage(workspace.path):
        detail = f"Commands are paused: {short}. Make room."
        return Check(workspace.user, "disk", "degraded", detail)
    return Check(workspace.user, "disk", "healthy")
