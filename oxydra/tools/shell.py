"""`shell_exec`: a command in the sandbox, in the one bash that a conversation keeps.

The tool checks a command against `[tools.shell]` and hands it to the service `shell` (see
`shell_client`), which runs it in the shell guest. The rules are a convenience: what a command can
reach is decided by the sandbox alone (docs/sandbox.md).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Annotated

from oxydra.config.schema import ShellConfig
from oxydra.errors import ToolError
from oxydra.policy.commands import CommandRules
from oxydra.tools.base import FunctionTool
from oxydra.tools.schema import Bounds
from oxydra.tools.shell_client import Ran, ShellClient
from oxydra.types import Folder, Json, SafetyTier, ToolContext, ToolResult

MAX_COMMAND_CHARS = 64 * 1024
SLACK_SECONDS = 15.0  # on top of a command's own time, to open a shell and to end it

NAMED_PATHS = "/shared is the working directory it begins in, /tmp is scratch."
RELATIVE_PATHS = (
    "It begins in the folder that other tools call /shared; use relative paths, and $TMPDIR in the"
    " place of /tmp: here a command can't reach /shared and /tmp by these names."
)


def shell_exec(
    context: ToolContext,
    command: Annotated[str, Bounds(1, MAX_COMMAND_CHARS)],
    timeout_secs: Annotated[float | None, Bounds(0.1)] = None,
) -> ToolResult:
    """Run a command in bash and return what it prints, with its exit code."""
    shell = _shell(context)
    seconds = max(0.1, context.deadline.remaining() - SLACK_SECONDS)
    ran = shell.run(
        conversation=context.session_id,
        request_id=request_id(context, command),
        command=command,
        seconds=min(seconds, timeout_secs or seconds),
        token=context.token,
    )
    return result(command, ran)


class ShellTool(FunctionTool):
    """`shell_exec` as it is configured. `named_paths`: commands find `/shared`, `/tmp` and `mounts`
    there; `contained`: a sandbox keeps them from all other files and, unless they are `networked`,
    from the network.
    """

    def __init__(
        self,
        config: ShellConfig,
        *,
        named_paths: bool,
        contained: bool = True,
        networked: bool = False,
        mounts: Sequence[Folder] = (),
    ) -> None:
        super().__init__(
            shell_exec,
            tier=SafetyTier.PRIVILEGED,
            repeatable=False,
            timeout=config.command_timeout_secs + SLACK_SECONDS,
            egress=networked or not contained,
            taints=True,
            sensitive=not contained,
        )
        network = "There is no network and no input" if contained else "There is no input"
        if networked:
            network = "The network is what the proxy in $http_proxy lets through; there is no input"
        description = (
            "Run a command in bash and return what it prints, with its exit code. The conversation"
            f" keeps one shell: working directory and variables stay. {network};"
            f" a command has {config.command_timeout_secs:g} seconds."
        )
        paths = NAMED_PATHS if named_paths else RELATIVE_PATHS
        if mounts and not named_paths:
            paths += f" {', '.join(f'${m.variable} is {m.virtual}' for m in mounts)}."
        self.spec = dataclasses.replace(self.spec, description=f"{description} {paths}")
        self._rules = CommandRules(
            allow=config.allow,
            deny=config.deny,
            replace_defaults=config.replace_defaults,
            allow_operators=config.allow_operators,
        )

    def validate(self, arguments: Json) -> Json:
        """As `FunctionTool`, and the rules' `PolicyDenied`."""
        checked = super().validate(arguments)
        self._rules.check(checked["command"])
        return checked

    def recover(self, arguments: Json, context: ToolContext) -> ToolResult | None:
        """What the shell guest, which outlives us, says of the command."""
        command = arguments["command"]
        ran = _shell(context).recover(
            context.session_id, request_id(context, command), context.token, context.deadline
        )
        return None if ran is None else result(command, ran)


def _shell(context: ToolContext) -> ShellClient:
    shell = context.services.get("shell")
    if not isinstance(shell, ShellClient):
        raise ToolError("There is no shell here.", code="shell_unavailable")
    return shell


def request_id(context: ToolContext, command: str) -> str:
    """The name under which a call's command runs once, and can be asked for after a crash. A model
    may use a call's id for another command.
    """
    digest = hashlib.sha256(command.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{context.turn_id}/{context.step}/{context.call_id}/{digest}"


def result(command: str, ran: Ran) -> ToolResult:
    """What the model reads: the output, then what there is to say about how it ended."""
    notes = []
    if ran.fresh:
        notes.append("a new shell: the variables of the earlier one are gone")
    if ran.cut:
        notes.append(f"{ran.cut:,} bytes left out of the middle")
    text = ran.output.decode("utf-8", "replace")
    if "\0" in text or "\ufffd" in text:
        notes.append("not all of the output is text")
        text = text.replace("\0", "\ufffd")
    if ran.timed_out:
        notes.append("its time was up and it was ended")
    elif ran.killed:
        notes.append(f"it was killed, since {ran.why}" if ran.why else "it was killed")
    if ran.ended and not ran.timed_out:
        notes.append("the shell has ended with it")
    code = "none" if ran.exit_code is None else str(ran.exit_code)
    notes.append(f"exit code {code}")
    separator = "" if not text or text.endswith("\n") else "\n"
    failed = ran.timed_out or ran.killed or ran.exit_code is None
    return ToolResult(
        f"{text}{separator}[{'; '.join(notes)}]",
        is_error=failed,
        summary=f"exit {code}: {command.strip()}" if not failed else notes[-2],
    )
