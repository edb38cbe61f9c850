"""The daemons: `start`, `stop`, `restart` and `status`, for one user or `--all`.

With `--all` each user is served for itself: what fails for one is said and does not keep the others
from their turn, and the exit code is the worst of all.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from oxydra.cli.target import each_user, load, workspace_of
from oxydra.errors import EXIT_FAILED, NoDaemonError, OxydraError
from oxydra.scrub import printable

if TYPE_CHECKING:  # imported when a command needs them
    from oxydra.runner.settings import RunnerSettings
    from oxydra.runner.workspace import Workspace

Json = dict[str, Any]

Run = Callable[[argparse.Namespace], int]

EXIT_INTERRUPTED = 130
STOP_SECONDS = 20.0  # how long `stop` waits for a daemon to be gone


def start(options: argparse.Namespace) -> int:
    if options.all:
        return _for_all(options, lambda one: _start_detached(_runner_settings(one), one.user), True)
    settings = _runner_settings(options)
    if options.detach:
        return _start_detached(settings)
    from oxydra.runner.daemon import Runner, handle_signals
    from oxydra.threads import install_hooks

    _set_up_log(settings)
    install_hooks()
    daemon = Runner(settings)
    with handle_signals(daemon):
        daemon.run(on_ready=lambda endpoint: print(f"Oxydra is ready at {endpoint}", flush=True))
    return 0


def _for_all(options: argparse.Namespace, run: Run, apart: bool = False) -> int:
    """`run` for each user, whatever becomes of the others; returns the worst exit code.

    `apart`: in a process of its own, so that no user's keys are in the memory of another's daemon.
    """
    worst = 0
    for one in each_user(options):
        sys.stdout.flush()
        if not apart:
            code = _attempt(one, run)
        elif (child := os.fork()) == 0:
            code = EXIT_FAILED
            try:
                code = _attempt(one, run)
            except KeyboardInterrupt:
                code = EXIT_INTERRUPTED
            finally:
                os._exit(code)
        else:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            code = status if status >= 0 else EXIT_FAILED
        worst = max(worst, code)
    return worst


def _attempt(one: argparse.Namespace, run: Run) -> int:
    code = EXIT_FAILED
    try:
        code = run(one)
        sys.stdout.flush()
    except OxydraError as error:
        print(f"oxydra: {one.user}: {printable(str(error))}", file=sys.stderr)
        code = error.exit_code
    except OSError as error:
        print(f"oxydra: {one.user}: {printable(str(error))}.", file=sys.stderr)
    return code


def _start_detached(settings: RunnerSettings, user: str = "") -> int:
    """Start the daemon in a session of its own; return when it is ready, or say why it is not.
    What it waits for meanwhile goes to stderr.

    `user` is named in what is printed, if it is given.
    """
    settings.workspace.prepare()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        _daemon_process(settings, writer)
    os.close(writer)
    report: Json = {}
    with os.fdopen(reader, encoding="utf-8") as pipe:
        for line in pipe:
            report = json.loads(line)
            if "progress" in report:
                who = f"oxydra: {user}: " if user else "oxydra: "
                print(f"{who}{report['progress']}", file=sys.stderr, flush=True)
    if "ready" in report:
        print(
            f"{user}: ready at {report['ready']}"
            if user
            else f"Oxydra is ready at {report['ready']}"
        )
        return 0
    error = OxydraError(
        report.get("error", "The daemon ended while it started."),
        remedy=report.get("remedy", f"Its log is {settings.workspace.logs / 'runner.log'}."),
    )
    error.exit_code = report.get("exit_code", error.exit_code)
    raise error


def _set_up_log(settings: RunnerSettings) -> None:
    from oxydra import log
    from oxydra.scrub.exact import ExactScrubber

    scrub = ExactScrubber(settings.secrets()).text
    log.setup("oxydra-runner", sys.stderr, scrub=scrub, form=settings.log_format)


def _daemon_process(settings: RunnerSettings, report: int) -> NoReturn:
    """The background process, from fork to its end; `report` is told how the start went."""
    from oxydra.log import Progress
    from oxydra.runner.daemon import Runner, handle_signals
    from oxydra.threads import install_hooks

    told = False
    telling = threading.Lock()

    def tell(**what: object) -> None:
        nonlocal told
        with telling:
            if not told:
                os.write(report, json.dumps(what).encode() + b"\n")
                told = "progress" not in what
                if told:
                    os.close(report)

    code = EXIT_FAILED
    try:
        os.setsid()
        output = settings.workspace.open_log("runner.log")
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.close(output)
        os.close(null)
        _set_up_log(settings)
        logging.getLogger().addHandler(Progress(lambda text: tell(progress=text)))
        install_hooks()
        daemon = Runner(settings)
        with handle_signals(daemon):
            daemon.run(on_ready=lambda endpoint: tell(ready=endpoint))
        code = 0
    except OxydraError as error:
        tell(error=error.message, remedy=error.remedy, exit_code=error.exit_code)
        code = error.exit_code
    except OSError as error:
        tell(error=f"The daemon could not start: {error}.")
    except BaseException:
        logging.getLogger(__name__).critical("the daemon failed", exc_info=True)
    finally:
        logging.shutdown()
        os._exit(code)


def status(options: argparse.Namespace) -> int:
    rows: list[Json] = []
    if options.all:
        code = _for_all(options, lambda one: _status(one, rows))
        if options.json:
            print(json.dumps(rows, indent=2))
        return code
    code = _status(options, rows)
    if options.json:
        print(json.dumps(rows[0], indent=2))
    return code


def _status(options: argparse.Namespace, rows: list[Json]) -> int:
    """Print how one daemon is, or with `--json` add it to `rows`."""
    from oxydra.runner.control import call

    workspace = workspace_of(load(options))
    try:
        found = call(workspace.control_socket, "health_check", {})
    except NoDaemonError as error:
        if options.json:
            rows.append({"user_id": workspace.user, "running": False})
            return error.exit_code
        raise
    if options.json:
        rows.append({"running": True, **found})
    else:
        print("\n".join(_status_lines(found)))
    return 0 if found.get("healthy") else EXIT_FAILED


def _status_lines(status: Json) -> list[str]:
    startup = status.get("startup_status", {})
    model = status.get("model", {})
    health = "healthy" if status.get("healthy") else f"not healthy: {status.get('message', '')}"
    lines = [
        f"{status['user_id']}: {health}",
        f"  gateway   {status['gateway_endpoint']}",
        f"  model     {model.get('model', '?')} ({model.get('provider', '?')})",
        f"  tier      {startup.get('sandbox_tier', '?')}{_by(startup.get('accelerator'))},"
        f" sandbox {startup.get('sandbox_level')},"
        f" workers {startup.get('worker_level', '?')}",
        f"  processes runner {status['runner_pid']}, agent {status['guest_pid']},"
        f" up {status['uptime_secs']:.0f} s, {status['guest_restarts']} restarts of the agent",
    ]
    if "last_guest_end" in status:
        lines.append(f"  the agent last ended: {status['last_guest_end']}")
    if "running_turns" in status:
        turns = f"{status['running_turns']} running, {status['queued_turns']} waiting"
        lines.append(f"  turns     {turns}")
    if usage := status.get("usage"):
        lines.append(f"  usage     {_usage_line(usage)}")
    if spending := status.get("spending"):
        lines.append(f"  spent     {_spending_line(spending)}")
    if skills := status.get("skills"):
        lines.append(f"  skills    {', '.join(skills)}")
    lines += [f"  estimates {_estimate_line(row)}" for row in status.get("estimates", ())]
    lines += [
        f"  mcp       {row['name']}: {row['state']}, {len(row['tools'])} tools"
        for row in status.get("mcp", ())
    ]
    lines += [f"  ! {row['detail']}" for row in startup.get("degraded_reasons", [])]
    return [printable(line) for line in lines]


def _by(accelerator: object) -> str:
    """What executes the guests' machines, where they have some."""
    return f" ({accelerator})" if accelerator else ""


def _usage_line(usage: Json) -> str:
    """Tokens since the start, how many of them came from a prompt cache, and their cost."""
    prompt = usage["prompt_tokens"]
    line = f"{prompt} tokens in, {usage['completion_tokens']} out"
    if prompt:
        line += f", {usage.get('cached_tokens', 0) / prompt:.0%} of the input from cache"
    return line + (f", ${usage['cost_usd']:.4f}" if "cost_usd" in usage else "")


def _estimate_line(known: Json) -> str:
    """How far the estimates of a model's tokens are off once they are corrected."""
    line = f"tokens of {known['model']} are off by {known['error']:.0%}, corrected by"
    return f"{line} {known['ratio']:.2f} ({known['reports']} reports)"


def _spending_line(spending: Json) -> str:
    """Today and this month, each with its cap."""
    caps = {row["cap"]: row for row in spending["caps"] if "left_usd" in row}
    said = []
    for name, cap in (("today", "per_day"), ("month", "per_month")):
        amount = f"${spending[f'{name}_usd']:.4f}"
        of = f" of ${caps[cap]['limit_usd']:.2f}" if cap in caps else ""
        said.append(f"{amount}{of} {'today' if name == 'today' else 'this month'}")
    return ", ".join(said)


def stop(options: argparse.Namespace) -> int:
    return _for_all(options, _stop) if options.all else _stop(options)


def _stop(options: argparse.Namespace) -> int:
    workspace = workspace_of(load(options))
    _stop_daemon(workspace)
    print(f"Oxydra was stopped for {workspace.user}.")
    return 0


def _stop_daemon(workspace: Workspace) -> None:
    """Raises `NoDaemonError` if there is none; returns when it is gone."""
    from oxydra.runner.control import call

    call(workspace.control_socket, "shutdown_user", {"user_id": workspace.user})
    with workspace.lock(wait=STOP_SECONDS):
        pass


def restart(options: argparse.Namespace) -> int:
    if options.all:
        return _for_all(options, lambda one: _restart(one, one.user), True)
    return _restart(options)


def _restart(options: argparse.Namespace, user: str = "") -> int:
    settings = _runner_settings(options)  # a broken configuration must not stop what runs
    try:
        _stop_daemon(settings.workspace)
    except NoDaemonError:
        print(f"No daemon was running for {settings.workspace.user}.", file=sys.stderr)
    return _start_detached(settings, user)


def _runner_settings(options: argparse.Namespace) -> RunnerSettings:
    """Configuration and keys, read and resolved: what a daemon is started with."""
    from oxydra import config
    from oxydra.runner.settings import from_config

    overrides: dict[str, str] = {}
    if options.insecure:
        overrides |= {"default_tier": "process", "behavior.sandbox_tier": "process"}
    if options.log_format:
        overrides["log_format"] = options.log_format
    return from_config(config.load(options.config, options.user, overrides=overrides))
