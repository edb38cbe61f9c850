"""A user's daemon from outside, for cron: bounded in time, without effects. No thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from oxydra.disk import shortage
from oxydra.doctor.base import TIMEOUT, Case, Finding, runner_command
from oxydra.errors import OxydraError, TransportError
from oxydra.runner.control import call
from oxydra.runner.workspace import Workspace
from oxydra.threads import CancelToken, Deadline
from oxydra.transport import DirectTransport, HttpRequest
from oxydra.types import Json

Command = Callable[..., str]  # makes the line that runs `oxydra-runner` with some words


def check(case: Case) -> Iterator[Finding]:
    """What `oxydra-health` says."""
    yield from health(case.workspace, case.command)


def health(workspace: Workspace, command: Command = runner_command) -> Iterator[Finding]:
    """Look at a user's daemon: its runner, its gateway, the space on its disk."""
    try:
        status = call(workspace.control_socket, "health_check", {}, timeout=TIMEOUT)
    except OxydraError as error:
        yield Finding("daemon", "down", str(error), command("restart"))
        yield _disk(workspace, command)
        return
    if status.get("healthy"):
        yield Finding("daemon", "healthy")
    else:
        said = str(status.get("message", "not healthy"))
        yield Finding("daemon", "down", said, command("restart"))
    yield _gateway(str(status.get("gateway_endpoint", "")), command)
    if status.get("guest_restarts"):
        detail = f"The agent was restarted {status['guest_restarts']} times;"
        detail += f" it last ended with: {status.get('last_guest_end', '?')}. See logs/runtime.log."
        yield Finding("restarts", "degraded", detail, command("restart"))
    if status.get("scheduler"):
        yield _scheduler(status["scheduler"], command)
    yield _disk(workspace, command)


def _scheduler(state: Json, command: Command) -> Finding:
    if state.get("stalled"):
        detail = "Nothing that is due runs. See logs/runtime.log, and restart the daemon."
        return Finding("scheduler", "degraded", detail, command("restart"))
    return Finding("scheduler", "healthy")


def _gateway(endpoint: str, command: Command) -> Finding:
    page = "http://" + endpoint.removeprefix("ws://").removesuffix("/ws") + "/readyz"
    request = HttpRequest("GET", page, deadline=Deadline.after(TIMEOUT))
    transport = DirectTransport()
    try:
        with transport.open(request, CancelToken()) as answer:
            status = answer.status
    except TransportError as error:
        detail = f"The gateway does not answer. {error}"
        return Finding("gateway", "down", detail, command("restart"))
    finally:
        transport.close()
    if status != 200:
        return Finding("gateway", "degraded", f"The gateway answers {status}.", command("restart"))
    return Finding("gateway", "healthy")


def _disk(workspace: Workspace, command: Command) -> Finding:
    try:
        os.statvfs(workspace.path)
    except OSError as error:
        detail = f"The workspace cannot be read: {error.strerror}."
        return Finding("disk", "degraded", detail, command("init"))
    if short := shortage(workspace.path):
        detail = f"Commands are paused: {short}. Make room."
        return Finding("disk", "degraded", detail, command("workspace", "size"))
    return Finding("disk", "healthy")
