"""Talking: `ask`, `approvals`, `--tui` and `oxydra-tui`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oxydra.cli.target import load, locate, workspace_of
from oxydra.errors import UsageError
from oxydra.scrub import printable

Locate = Callable[[], tuple[str, str]]


def ask(options: argparse.Namespace) -> int:
    from oxydra.tui.ask import ask as ask_gateway

    workspace = workspace_of(load(options))
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    if not prompt.strip():
        raise UsageError("The question is empty.")
    if options.steer and options.ask_session is None:
        raise UsageError("--steer needs a session.", remedy="Name the one that runs: --session ID.")
    if options.agent and options.ask_session is not None:
        raise UsageError(
            "--agent is for a new session: one that there is keeps its agent.",
            remedy="Leave out --session or --agent.",
        )
    raw = options.raw or not sys.stdout.isatty()
    return ask_gateway(
        prompt,
        lambda: locate(workspace),
        workspace.user,
        session_id=options.ask_session,
        attachments=[_attachment(path) for path in options.attach],
        steer=options.steer,
        agent=options.agent,
        as_json=options.json,
        clean=str if raw else printable,
    )


def _attachment(path: Path) -> dict[str, Any]:
    """A file as `send_turn` takes it."""
    import base64

    from oxydra.media import media_type

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    kind = media_type(data)
    if not kind:
        raise UsageError(
            f"{path} cannot be attached.",
            remedy="PNG, JPEG, GIF and WebP images and PDFs can; text goes into the question.",
        )
    return {"mime_type": kind, "data": base64.b64encode(data).decode(), "name": path.name}


def approvals(options: argparse.Namespace) -> int:
    from oxydra.tui.answer import desk, lines

    workspace = workspace_of(load(options))
    with desk(lambda: locate(workspace), workspace.user) as asked:
        if options.action == "list":
            requests = asked.requests()
            print(json.dumps(requests, indent=2) if options.json else "\n".join(lines(requests)))
            return 0
        allow = options.action == "allow"
        for_session = allow and options.for_session
        resolved = asked.answer(options.id, allow=allow, for_session=for_session)
    if options.json:
        print(json.dumps(resolved, indent=2))
    else:
        scope = ", for the session" if for_session else ""
        print(printable(f"{resolved['tool']} was {resolved['decision']}{scope}."))
    return 0


def tui(options: argparse.Namespace) -> int:
    from oxydra import config

    settings = load(options)
    workspace = workspace_of(settings, config.mounts(settings))
    return _open_tui(lambda: locate(workspace), workspace.user, options.session, workspace.shared)


def tui_direct(options: argparse.Namespace) -> int:
    from oxydra.runner.workspace import read_small

    path = options.token_file
    if path is None:
        path = workspace_of(load(options)).ipc / "gateway-token"

    def named() -> tuple[str, str]:
        try:
            return options.gateway_endpoint, read_small(path).strip()
        except OSError as error:
            raise UsageError(
                f"The token file {path} cannot be read: {error.strerror}.",
                remedy="Name the one that the daemon wrote with --token-file.",
            ) from None

    return _open_tui(named, options.user, options.session)


def _open_tui(where: Locate, user: str, session: str | None, shared: Path | None = None) -> int:
    try:
        from oxydra.tui.app import main
    except ImportError as error:
        raise UsageError(
            "oxydra-tui was not found in PATH.",
            remedy=f"Install Oxydra with its dependencies ({error.name} is missing).",
        ) from None
    endpoint, token = where()
    return main(endpoint, user, token, session, locate=where, shared=shared)
