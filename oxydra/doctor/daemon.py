"""A user's daemon from outside, for cron: bounded in time, without effects.

Nothing is written, started or opened that somebody else owns: the database is the agent guest's
alone, so its nightly check is that guest's work, and only the result is asked for here. No thread.
"""

from __future__ import annotations

import datetime
import os
import shlex
from collections.abc import Callable, Iterator

from oxydra.disk import shortage
from oxydra.doctor.base import TIMEOUT, Case, Finding
from oxydra.doctor.registry import missing_images
from oxydra.errors import OxydraError, TransportError
from oxydra.threads import CancelToken, Deadline
from oxydra.transport import DirectTransport, HttpRequest
from oxydra.types import Json

MAX_AGE = 600.0  # seconds that something may be due or owed
RECENT = 3600.0  # seconds that a restart of the agent is news
UNCHECKED = 50 * 3600.0  # seconds after which the daily check of a database is overdue
NEARLY = 0.9  # of a cap


def health(case: Case, max_age: float = MAX_AGE) -> Iterator[Finding]:
    """What there is to say of a user's daemon. `max_age` in seconds."""
    yield from map(case.of, _health(case, max_age))


def check(case: Case) -> Iterator[Finding]:
    """The same, for `doctor`."""
    yield from _health(case, MAX_AGE)


def _health(case: Case, max_age: float) -> Iterator[Finding]:
    yield disk(case)
    try:
        status = case.daemon()
    except OxydraError as error:
        yield Finding("daemon", "down", str(error), case.command("restart"))
        return
    if status.get("healthy"):
        detail = f"up {datetime.timedelta(seconds=round(status.get('uptime_secs', 0)))}"
        yield Finding("daemon", "healthy", detail)
    else:
        why = str(status.get("message", "It does not say why."))
        yield Finding("daemon", "down", why, case.command("restart"))
    yield _gateway(str(status.get("gateway_endpoint", "")), case)
    for name, look in DAEMON.items():
        if (said := status.get(name)) is not None:
            yield look(said, case, max_age)
    if status.get("guest_restarts") and status.get("guest_up_secs", 0) < RECENT:
        detail = f"The agent was restarted {status['guest_restarts']} times, last within the hour;"
        detail += f" it ended with: {status.get('last_guest_end', '?')}."
        command = case.command("logs", "--role", "runtime", "--tail", "50")
        yield Finding("restarts", "degraded", detail, command)
    yield images(case)


def disk(case: Case) -> Finding:
    """Whether the workspace is there and its disk has room."""
    try:
        os.statvfs(case.workspace.path)
    except OSError as error:
        detail = f"The workspace {case.workspace.path} cannot be read: {error.strerror}."
        return Finding("disk", "degraded", detail, case.command("init"))
    if short := shortage(case.workspace.path):
        tmp = case.workspace.tmp
        detail = f"Commands are paused: {short}. Make room"
        if case.workspace.owns(tmp) and tmp.is_dir() and any(tmp.iterdir()):
            detail += ", in the scratch folder of commands first."
            remedy = f"find {shlex.quote(str(tmp))} -mindepth 1 -delete"
        else:
            detail, remedy = f"{detail}.", case.command("workspace", "size")
        return Finding("disk", "degraded", detail, remedy)
    return Finding("disk", "healthy")


def _gateway(endpoint: str, case: Case) -> Finding:
    """A round trip through it."""
    page = "http://" + endpoint.removeprefix("ws://").removesuffix("/ws") + "/readyz"
    request = HttpRequest("GET", page, deadline=Deadline.after(TIMEOUT))
    transport = DirectTransport()
    try:
        with transport.open(request, CancelToken()) as answer:
            status = answer.status
    except TransportError as error:
        detail = f"The gateway does not answer. {error}"
        return Finding("gateway", "down", detail, case.command("restart"))
    finally:
        transport.close()
    if status != 200:
        said = f"The gateway answers {status}."
        return Finding("gateway", "degraded", said, case.command("restart"))
    return Finding("gateway", "healthy")


def _scheduler(state: Json, case: Case, max_age: float) -> Finding:
    late = state.get("late_seconds", 0)
    if state.get("stalled"):
        detail = "Nothing that is due runs. See logs/runtime.log, and restart the daemon."
    elif late > max_age:
        detail = f"What was due {late:.0f} s ago has not begun."
    else:
        return Finding("scheduler", "healthy", f"{late:.0f} s late" if late else "")
    return Finding("scheduler", "degraded", detail, case.command("restart"))


def _store(state: Json, case: Case, _max_age: float) -> Finding:
    at, age = state.get("checked_at") or "", state.get("age_seconds", 0)
    if trouble := state.get("trouble"):
        return Finding("store", "down", str(trouble), case.command("memory", "check"))
    if age > UNCHECKED:
        detail = f"The database was not checked since {at or 'the start'}."
        return Finding("store", "degraded", detail, case.command("restart"))
    return Finding("store", "healthy", f"checked {at}" if at else "not checked yet")


def _outbox(state: Json, case: Case, max_age: float) -> Finding:
    owed, oldest = state.get("owed", 0), state.get("oldest_seconds", 0)
    if oldest > max_age:
        detail = f"{owed} messages wait to be sent, the oldest for {oldest:.0f} s."
        return Finding("outbox", "degraded", detail, case.command("restart"))
    return Finding("outbox", "healthy", f"{owed} messages wait" if owed else "")


def _telegram(state: Json, case: Case, _max_age: float) -> Finding:
    detail = str(state.get("detail", ""))
    if state.get("state") == "stopped":
        variable = case.settings.user.channels.telegram.bot_token_env
        return Finding("telegram", "degraded", detail, case.with_key(variable))
    if state.get("state") == "waiting":
        return Finding("telegram", "degraded", detail, case.command("restart"))
    return Finding("telegram", "healthy", f"@{state['bot']}" if state.get("bot") else "")


def _spending(state: Json, case: Case, _max_age: float) -> Finding:
    for row in state.get("caps", ()):
        limit, left = row["limit_usd"], row.get("left_usd")
        if left is None or left > limit * (1 - NEARLY):
            continue
        detail = f"{row['cap']}: ${limit - left:.2f} of ${limit:.2f} are spent"
        detail += f", until {row['resets_at']}." if row.get("resets_at") else "."
        return Finding("spend", "degraded", detail, case.command("cost", "--by", "day"))
    return Finding("spend", "healthy", f"${state.get('today_usd', 0):.2f} today")


DAEMON: dict[
    str, Callable[[Json, Case, float], Finding]
] = {  # by what the daemon's answer calls it
    "store": _store,
    "scheduler": _scheduler,
    "outbox": _outbox,
    "telegram": _telegram,
    "spending": _spending,
}


def images(case: Case) -> Finding:
    """Whether what the tier's guests are made from is there."""
    tier = case.settings.tier
    if (error := missing_images(case)) is not None:
        return Finding("images", "degraded", str(error), case.remedy(error))
    return Finding("images", "healthy", f"the {tier} tier's are there")
