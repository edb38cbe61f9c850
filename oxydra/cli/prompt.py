"""`explain`: what the model is told besides what a person says, and what that takes.

`explain recall` is what memory has for a message. Of the prompt, a running daemon says what it
sends; without one it is worked out from the configuration, as a start would find it.
"""

from __future__ import annotations

import argparse
import json

from oxydra.cli.target import load, locate, workspace_of
from oxydra.config import Config
from oxydra.errors import NoDaemonError, UsageError
from oxydra.scrub import printable
from oxydra.types import Json, Tool


def explain(options: argparse.Namespace) -> int:
    settings = load(options)
    agent = options.agent or "default"
    if options.agent and options.agent not in settings.agent.agents:
        known = ", ".join(sorted(settings.agent.agents)) or "none"
        raise UsageError(
            f"There is no agent {options.agent[:64]!r}.",
            remedy=f"[agents.<name>] of agent.toml makes one; there are: {known}.",
        )
    found = _running(settings, agent) or _configured(settings, agent)
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    for part in found["parts"]:
        print(f"{part['name']} ({part['tokens']} tokens)")
        print("\n".join(f"  {line}" for line in printable(part["text"]).split("\n")))
    tools = found["tools"]
    print(f"{tools['count']} tools ({tools['tokens']} tokens)")
    print(f"in all {found['total_tokens']} tokens, estimated for {printable(found['model'])}")
    return 0


def recall(options: argparse.Namespace) -> int:
    """What would be recalled for a message; needs a running daemon."""
    from oxydra.tui.answer import desk

    workspace = workspace_of(load(options))
    with desk(lambda: locate(workspace), workspace.user) as asked:
        found = asked.command("recall", text=options.text)
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    elif found["message"]:
        print(printable(found["message"]))
        print(f"{found['tokens']} tokens, estimated")
    else:
        print("Nothing would be recalled.")
    return 0


def _running(settings: Config, agent: str) -> Json | None:
    """What the daemon sends, None where none runs."""
    from oxydra.tui.answer import desk

    workspace = workspace_of(settings)
    try:
        with desk(lambda: locate(workspace), workspace.user) as asked:
            return asked.command("prompt", agent=agent)
    except NoDaemonError:
        return None


def _configured(settings: Config, agent: str) -> Json:
    from oxydra import config
    from oxydra.catalog import Catalog
    from oxydra.runtime import SystemPrompt, prompt
    from oxydra.skills import Shelf
    from oxydra.tools.delegate import delegate_tools
    from oxydra.tools.media import send_media
    from oxydra.tools.memory import memory_tools
    from oxydra.tools.registry import ToolRegistry, matching
    from oxydra.tools.schedule import schedule_tools
    from oxydra.tools.shell import ShellTool
    from oxydra.tools.skills import Skills, skill_read

    shell = settings.agent.tools.shell
    wanted = shell.enabled and settings.user.behavior.shell_enabled
    made: list[Tool] = [ShellTool(shell, named_paths=True)] if wanted else []
    made += schedule_tools() if settings.agent.scheduler.enabled else []
    made += memory_tools(settings.agent.memory)
    made += [send_media] if settings.user.channels.telegram.enabled else []
    shelf = Shelf.of(settings)
    skills = Skills(shelf.rows(), shelf.texts())
    made += [skill_read] if skills.rows else []
    tools = ToolRegistry(extra=[*made, *delegate_tools(settings.agent)]).specs
    catalog = Catalog.load(home=settings.home)
    chosen = config.select(settings, catalog)
    told = config.effective(settings, chosen)
    built = SystemPrompt(
        [tool.name for tool in tools],
        own=settings.agent.system_prompt,
        agents={name: one.system_prompt for name, one in settings.agent.agents.items()},
        mounts=[mount.folder() for mount in config.isolation(settings).mounts.extra],
        zone=told["scheduler"]["default_timezone"],
        skills=skills,
    )
    own = config.agent_models(settings, catalog, [chosen]).get(agent, [chosen])
    profile = settings.agent.agents.get(agent)
    if profile is not None and profile.tools is not None:
        names = matching(profile.tools, [tool.name for tool in tools])
        tools = tuple(tool for tool in tools if tool.name in names)
    model = own[0].spec
    return prompt.report(built, prompt.sample(agent), tools if model.tools else (), model)
