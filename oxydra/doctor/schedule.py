"""A schedule that fires: in a scratch instance, which leaves nothing and calls no model.

The store, the hub and the scheduler are those of an agent guest, the model plays along; their
threads end with the check.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

from oxydra.doctor.base import Case, Finding
from oxydra.gateway.hub import Hub
from oxydra.providers import registry
from oxydra.providers.base import ProviderSettings
from oxydra.runtime import Runtime
from oxydra.scheduler import Desk, Scheduler
from oxydra.store import Store
from oxydra.threads import CancelToken, Deadline
from oxydra.tools.gate import Gate
from oxydra.tools.registry import ToolRegistry
from oxydra.transport import DirectTransport
from oxydra.types import ModelSpec

AHEAD = 2  # seconds until it is due
PATIENCE = 30.0  # a busy machine's
MODEL = ModelSpec("offline", "offline", 100_000, 1000)


def check(case: Case) -> Iterator[Finding]:
    """Whether one that is due in two seconds runs."""
    config = case.settings.agent.scheduler
    if not config.enabled:
        yield Finding("schedule", "healthy", "schedules are off")
        return
    with tempfile.TemporaryDirectory(prefix="oxydra-doctor-") as folder, ExitStack() as stack:
        store = Store(Path(folder) / "oxydra.db")
        stack.callback(store.close)
        tools = ToolRegistry(names=())
        unused = stack.enter_context(closing(DirectTransport()))
        offline = registry.create(
            ProviderSettings("offline", "offline", script=[{"text": "done"}]), unused
        )
        runtime = Runtime(
            store=store,
            provider=offline,
            model=MODEL,
            gate=Gate(tools, {}),
            tools=tools.specs,
            config=case.settings.agent.runtime,
        )
        hub = Hub(store, runtime, case.settings.agent.gateway, case.user)
        scheduler = Scheduler(store, config, hub)
        hub.terms_of, hub.unattended = scheduler.terms_of, scheduler.runs
        for part, ended in ((hub, hub.stop), (scheduler, scheduler.stop)):
            part.start()
            stack.callback(ended, 5.0)
        yield _fired(Desk(scheduler), store, case)


def _fired(desk: Desk, store: Store, case: Case) -> Finding:
    due = int(time.time()) + AHEAD
    when = datetime.fromtimestamp(due, UTC).isoformat()
    wanted = {"goal": "Say done.", "cadence_type": "once", "cadence_value": when}
    made = desk.command({"action": "create", "notification": "never", **wanted})
    deadline, pause = Deadline.after(PATIENCE), CancelToken()
    while not deadline.expired:
        pause.wait(0.1)
        for fire in store.fires(made["schedule_id"], 1):
            if fire.state == "ran":
                late = max(0.0, time.time() - due)
                return Finding("schedule", "healthy", f"one ran {late:.1f} s after it was due")
            if fire.state in ("failed", "skipped", "missed"):
                detail = f"A schedule that was due {fire.state}: {fire.reason}"
                return Finding("schedule", "down", detail, case.command("logs", "--tail", "50"))
    detail = f"A schedule that was due did not run within {PATIENCE:g} s."
    return Finding("schedule", "down", detail, case.command("logs", "--tail", "50"))
