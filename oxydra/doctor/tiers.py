"""Each tier: whether guests can be started in it, how well they are locked in, and whether hostile
code gets out: `guest/escape-attempts`, run for real in a scratch workspace, without what could do
lasting harm. The guest's own threads end with it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from oxydra import config
from oxydra.cage import descendants
from oxydra.config import Isolation
from oxydra.doctor.base import Case, Finding, install
from oxydra.doctor.outside import Outside, escaped, results_of
from oxydra.errors import OxydraError
from oxydra.runner import shell
from oxydra.runner.workspace import Workspace
from oxydra.threads import CancelToken
from oxydra.tiers import registry
from oxydra.tiers.base import guest_script
from oxydra.tools.shell_client import ShellClient

SECONDS = 120.0  # for all attempts; each has five
FEWEST = 60  # attempts that must have been made
BEST = "bwrap+cage"  # of the process tier's levels
WEAKER = ("cage", "rlimits")  # which the check of the tier says already
OPEN_LEVELS = (None, "cage")  # at which a guest sees processes of its machine


def check(case: Case) -> Iterator[Finding]:
    """The user's tier must work; another one may."""
    isolation = config.isolation(case.settings)
    for name in registry.TIERS:
        wanted = name == case.settings.tier
        try:
            yield from tried(name, isolation, case, wanted=wanted)
        except OxydraError as error:
            if wanted:
                yield Finding(f"tier {name}", "down", str(error), remedy(case, error))
            else:
                yield Finding(f"tier {name}", "healthy", f"not available here: {error.message}")


def remedy(case: Case, error: OxydraError) -> str:
    if error.code == "shell_unavailable":
        return error.command or install("bubblewrap")
    return error.command or case.command("--insecure", "restart")


def tried(name: str, isolation: Isolation, case: Case, *, wanted: bool) -> Iterator[Finding]:
    """Start a shell guest in a tier and try to break out of it. Raises `OxydraError`."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="oxydra-doctor-", dir="/var/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o711)
        workspace = Workspace(folder, "doctor")
        workspace.prepare()
        uid, _gid = shell.owner(workspace)
        wishes = case.settings.agent.tools.shell
        guest = shell.begin(
            registry.create(name), workspace, wishes, isolation, (), lambda _how: None
        )
        stack.callback(guest.stop)
        guest.await_start()
        yield _level(name, guest, wanted)
        dedicated = uid in shell.DEDICATED  # it owns nothing outside, so nothing there is its own
        outside = Outside(workspace.path, uid, os.geteuid() if dedicated else uid)
        stack.callback(outside.close.close)
        yield _attacked(name, guest, workspace, outside, case)


def _level(name: str, guest: shell.ShellGuest, wanted: bool) -> Finding:
    said = [str(row["detail"]) for row in guest.degraded()]
    detail = " ".join([f"level {guest.level}.", *said])
    if wanted and name == "process" and guest.level != BEST:
        return Finding(f"tier {name}", "degraded", detail, install("bubblewrap"))
    return Finding(f"tier {name}", "healthy", detail)


def _attacked(
    name: str, guest: shell.ShellGuest, workspace: Workspace, outside: Outside, case: Case
) -> Finding:
    parameters = outside.parameters(
        guest=[guest.pid, *descendants(guest.pid)],
        isolated=guest.level not in OPEN_LEVELS,
        harmless=True,
    )
    shutil.copy(guest_script("escape-attempts"), workspace.shared)
    given = workspace.shared / "parameters.json"
    given.write_text(json.dumps(parameters))
    given.chmod(0o644)
    client = ShellClient()
    client.connect(guest.stream())
    try:
        # read by the shell: a workspace of root's can't be reached by the name that Python makes
        command = "python3 -I -S - parameters.json <escape-attempts"
        ran = client.run("doctor", "escape", command, SECONDS, CancelToken())
    finally:
        client.close()
    text = ran.output.decode("utf-8", "replace")
    check = f"escape {name}"
    if ran.exit_code != 0 or "{" not in text:
        detail = f"The attempts could not be made: {text[-300:]}"
        return Finding(check, "degraded", detail, case.command("logs", "--role", "shell"))
    results = results_of(text)
    out = [*escaped(results), *outside.damage()]
    if out or len(results) < FEWEST:
        detail = f"{len(out)} of {len(results)} attempts got out: {'; '.join(out)[:1000]}"
        if guest.level in WEAKER:
            return Finding(check, "degraded", detail, install("bubblewrap"))
        return Finding(check, "down", detail, case.command("stop"))
    return Finding(check, "healthy", f"0 of {len(results)} attempts got out")
