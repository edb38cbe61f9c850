"""The gate: the one way from a model's tool calls to their results, for every channel.

Each call goes look-up -> parse -> validate and policy -> approval -> journal -> execute with a
deadline -> scrub -> cap -> journal. Calls of tools that are read-only, or say that they may, run
side by side where they stand next to each other, all others in order, on the turn's thread. A tool
watches its token and deadline; no thread is left behind.

What a commit costs decides when the journal is written. A call whose tool is not repeatable is
marked running, durably, before it starts, so that it starts at most once; the mark shares a
transaction with the results before it. Whoever comes after a crash asks its tool what became of it
(`Gate.recover`). A repeatable call needs no mark: after a crash it simply runs again. The results
of calls that ran side by side share a transaction too.

What needs an approval is asked about before any call of the step starts, so that nothing waits for
a person with its result unwritten. Results are scrubbed before they are cut: no half of a secret is
left at the cut, and a saved output holds none.

Results are marked with where they come from, and what a call writes with what the conversation
holds, before it is written. A command can copy any file it reaches to any other, and what it left
running does so later: so marks of private data spread to all that commands reach as soon as one has
been run, or while a shell is open. Where commands have the network it sends them too: so what puts
private data where one that was left running may be is decided on as what sends it, and an output
that holds some is not saved there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from contextvars import copy_context
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Literal, Protocol, TypeAlias

from oxydra.errors import Cancelled, OxydraError, PolicyDenied
from oxydra.policy import VirtualPath
from oxydra.scrub.guest import GuestScrubber
from oxydra.threads import SHUTDOWN, CancelToken, Deadline, parallel, pulse
from oxydra.tools.base import failure
from oxydra.tools.outputs import FOLDER as OUTPUTS
from oxydra.tools.outputs import cap, fits
from oxydra.tools.registry import ToolRegistry
from oxydra.tools.schema import parse_arguments
from oxydra.tools.shell_client import ShellClient
from oxydra.types import (
    Attachment,
    CallState,
    Emit,
    Json,
    Marks,
    Message,
    SafetyTier,
    Tool,
    ToolCall,
    ToolContext,
    ToolResult,
)

log = logging.getLogger(__name__)

SUMMARY_CHARS = 120
BRIEF = 30.0  # seconds: of calls that can't take longer, no heartbeat tells
MAX_IMAGES = 4  # of one result, that a model sees
IMAGE_BYTES = 5 << 20  # of each; providers take no larger ones
OVERRUN = 2.0  # seconds past its deadline after which a tool is said to ignore it

WORKSPACE = ["/shared", "/tmp", "/mnt"]  # what a command can reach


class Journal(Protocol):
    """The calls of one turn in the database, where they are already stored as intended.

    Each method is one transaction, committed when it returns. Results are stored with their events,
    in the order given: `running -> done | failed | unknown`, or `intended -> done | failed` for
    calls that were refused or are repeatable. Then `running`, the ids of calls that start next:
    `intended -> running`.
    """

    def calls_running(self, running: Sequence[str]) -> None: ...

    def calls_finished(
        self,
        results: Sequence[tuple[CallState, Message]],
        running: Sequence[str] = (),
        took: Sequence[int] = (),
    ) -> object:
        """`took`: the milliseconds that each of `results` ran."""
        ...

    def marks_of(self, paths: Sequence[str]) -> Marks:
        """The marks of files."""
        ...

    def mark_files(self, paths: Sequence[str], marks: Marks) -> None:
        """Add marks to files, for good."""
        ...


@dataclass(frozen=True, slots=True)
class TurnScope:
    """The turn that calls belong to. `step` (of at most `max_steps`) counts its model calls.

    `attended` says that a person may be asked; `tainted` and `sensitive` that the conversation
    holds what strangers wrote, and private data. `tools` are all that may be called, None: any.
    `asked_by` is the agent to which the turn was delegated; without `vault` nothing is read there.
    """

    session_id: str
    turn_id: str
    token: CancelToken
    journal: Journal
    deadline: Deadline = field(default_factory=lambda: Deadline.after(None))
    step: int = 1
    max_steps: int = 1
    attended: bool = True
    tainted: bool = False
    sensitive: bool = False
    tools: frozenset[str] | None = None
    asked_by: str = ""
    vault: bool = True


@dataclass(frozen=True, slots=True)
class Wanted:
    """A call that could run: its arguments as the model gave them, and as its tool takes them.
    `private`: it sends something off the machine, and the conversation or what it could send holds
    private data, or a command that was left running could send what it writes; `tainted`: the
    conversation holds what strangers wrote, or such a command does. Both as of its decision.
    """

    call: ToolCall
    tool: Tool
    given: Json
    arguments: Json
    private: bool = False
    tainted: bool = False


Approve: TypeAlias = Callable[[Sequence[Wanted], TurnScope, Emit], Sequence[str]]
"""Why each call may not run, as a sentence for the model; empty for one that may. It may block
until a person has answered, the token is cancelled or the turn's deadline passes.
"""


def allow_all(wanted: Sequence[Wanted], _scope: TurnScope, _emit: Emit) -> Sequence[str]:
    """The `Approve` of a gate whose caller answers for every call."""
    return [""] * len(wanted)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a call, as journaled; `message` is what the model reads."""

    call: ToolCall
    state: CallState
    message: Message
    elapsed_ms: int


@dataclass(slots=True)
class GateLimits:
    """`output_bytes`: UTF-8 bytes of a result that the model gets. `parallel`: read-only calls that
    run at once. `heartbeat`: seconds between two words of calls that still run.
    """

    output_bytes: int = 16 * 1024
    parallel: int = 4
    heartbeat: float = 5.0


class Gate:
    """Runs tool calls; may be used by any number of turns at once."""

    def __init__(
        self,
        registry: ToolRegistry,
        services: Mapping[str, Any],
        limits: GateLimits | None = None,
        *,
        approve: Approve = allow_all,
        scrubber: GuestScrubber | None = None,
        private: Sequence[VirtualPath] = (),
    ) -> None:
        """`services` are what tools find in their context, by name; `workspace` also takes the
        outputs that were too long. `approve` decides on calls, `scrubber` removes secrets from what
        they say. `private` are files and folders that the person said hold private data.
        """
        self._registry = registry
        self._services = services
        self._limits = limits or GateLimits()
        self._approve = approve
        self._scrubber = scrubber or GuestScrubber()
        self._private = [str(path) for path in private]
        self._spread = Marks()  # what all of the workspace was marked with since the start

    def may_repeat(self, name: str) -> bool:
        """Whether a call that may have started may be started again."""
        return name in self._registry and self._registry.get(name).repeatable

    def report(self, allowed: Collection[str], requested: Collection[str]) -> list[Json]:
        """See `ToolRegistry.report`."""
        return self._registry.report(allowed, requested)

    def refusal(self, call: ToolCall, scope: TurnScope) -> str:
        """What a call is answered that can't run at all, whatever people allow; "" if it can."""
        refused = self._prepare(call, scope).refusal
        return "" if refused is None else refused.content

    def run(self, calls: Sequence[ToolCall], scope: TurnScope, emit: Emit) -> list[Outcome]:
        """Run the calls of one step and return what became of each, in their order.

        Every outcome is in the journal when it is emitted and when this returns. A cancelled token
        or a passed deadline ends the running calls by their own means, and no other is started.
        Where the reason is `SHUTDOWN`, calls that can run after the restart are left as the journal
        has them and are not in what is returned. Raises only what the journal raises.
        """
        prepared = [self._prepare(call, scope) for call in calls]
        self._ask(prepared, scope, emit)
        groups = self._grouped(prepared)
        outcomes: list[Outcome] = []
        marked = self._next_marks(groups, scope)
        if marked:
            scope.journal.calls_running(marked)
        while groups:
            if stopped := _stopped(scope):
                group = [planned for rest in groups for planned in rest]
                groups.clear()
                result = ToolResult(f"Not started: {stopped}.", is_error=True, summary=stopped)
                ended = [(result, 0)] * len(group)
            else:
                group = groups.pop(0)
                ended = self._execute(group, scope, emit)
            finished = [
                (self._outcome(planned, result, elapsed, scope), result)
                for planned, (result, elapsed) in zip(group, ended, strict=True)
                if not (_shutdown(scope) and result.is_error and planned.call.id not in marked)
            ]
            for outcome, _result in finished:
                scope = _marked(scope, outcome.message)
            anew = self._other_now(groups, scope)
            marked = [] if anew else self._next_marks(groups, scope)
            if finished or marked:
                results = [(outcome.state, outcome.message) for outcome, _ in finished]
                took = [outcome.elapsed_ms for outcome, _ in finished]
                scope.journal.calls_finished(results, marked, took)
            for outcome, result in finished:
                emit("tool_event", _ended_event(outcome, result))
                outcomes.append(outcome)
            if anew:
                self._ask(anew, scope, emit)
                if marked := self._next_marks(groups, scope):
                    scope.journal.calls_running(marked)
        return outcomes

    def recover(self, calls: Sequence[ToolCall], scope: TurnScope, emit: Emit) -> list[ToolCall]:
        """Journal what became of calls that were running when this process's predecessor ended, in
        their order: as their tools say, or that it is unknown. Returns those that did nothing and
        may be run again.

        Nothing is started. A cancelled token or a passed deadline ends what still runs; where the
        reason is `SHUTDOWN` the rest is left for the next start. Raises only what the journal
        raises.
        """
        again: list[ToolCall] = []
        for planned in [self._prepare(call, scope) for call in calls]:
            if _shutdown(scope):
                break
            emit("tool_event", _event(planned.call, "started", self._announced(planned), 0))
            wanted = planned.wanted
            found, elapsed = (None, 0) if wanted is None else self._recovered(wanted, scope)
            if found == "nothing done":
                again.append(planned.call)
                continue
            result = found or _unknown(planned.call)
            outcome = self._outcome(planned, result, elapsed, scope)
            if found is None:
                outcome = replace(outcome, state=CallState.UNKNOWN)
            scope.journal.calls_finished([(outcome.state, outcome.message)])
            scope = _marked(scope, outcome.message)
            emit("tool_event", _ended_event(outcome, result))
        return again

    # ------------------------------------------------------------------------------- before

    def _prepare(self, call: ToolCall, scope: TurnScope) -> _Planned:
        """Look up, parse, validate: a call that can run, or its refusal."""
        try:
            tool = self._registry.get(call.name, scope.tools)
            given = parse_arguments(call)
            wanted = Wanted(call, tool, given, tool.validate(given))
            if not scope.vault and any(path.startswith("/vault") for path in _named(wanted)):
                raise PolicyDenied("The vault is for private conversations only.")
            private = self._sends_private(wanted, scope)
            tainted = scope.tainted or (private and not tool.egress)
            return _Planned(call, replace(wanted, private=private, tainted=tainted))
        except Exception as error:
            return _Planned(call, refusal=self._scrubbed(failure(call.name[:64], error)))

    def _ask(self, planned: Sequence[_Planned], scope: TurnScope, emit: Emit) -> None:
        """Turn calls that are not allowed into refusals; where that can't be decided, all."""
        asked = [item for item in planned if item.wanted is not None]
        if not asked or _stopped(scope):
            return
        wanted = [item.wanted for item in asked if item.wanted is not None]
        try:
            refusals = self._approve(wanted, scope, emit)
        except Exception as error:
            why = str(error) if isinstance(error, OxydraError) else "The approval failed."
            log.error("calls were refused, since their approval failed", exc_info=error)
            refusals = [f"{item.call.name} was not run. {why}" for item in wanted]
        for item, refusal in zip(asked, refusals, strict=True):
            if refusal:
                item.refuse(refusal)

    def _grouped(self, planned: Sequence[_Planned]) -> list[list[_Planned]]:
        """What runs side by side, in order."""
        groups: list[list[_Planned]] = []
        for item in planned:
            together = groups and item.harmless and groups[-1][-1].harmless
            if together and len(groups[-1]) < self._limits.parallel:
                groups[-1].append(item)
            else:
                groups.append([item])
        return groups

    def _other_now(self, groups: Sequence[Sequence[_Planned]], scope: TurnScope) -> list[_Planned]:
        """The calls of the next group that would now send private data off the machine, in a
        conversation that holds what strangers wrote, or put some where what was left running sends
        it, and were decided on before that was so.
        """
        found = []
        for planned in groups[0] if groups else ():
            wanted = planned.wanted
            if wanted is not None and self._exfiltrates_now(wanted, scope):
                planned.wanted = replace(wanted, private=True, tainted=True)
                found.append(planned)
        return found

    def _next_marks(self, groups: Sequence[Sequence[_Planned]], scope: TurnScope) -> list[str]:
        """The calls of the next group that must be known to have been started."""
        if not groups or _stopped(scope):
            return []
        return [
            planned.call.id
            for planned in groups[0]
            if planned.wanted is not None and not planned.wanted.tool.repeatable
        ]

    # ------------------------------------------------------------------------------- running

    def _execute(
        self, group: Sequence[_Planned], scope: TurnScope, emit: Emit
    ) -> list[tuple[ToolResult, int]]:
        started = [planned for planned in group if planned.refusal is None]
        if started:
            emit("turn_progress", _execution(started, scope))
        for planned in started:
            emit("tool_event", _event(planned.call, "started", self._announced(planned), 0))
        running = {id(planned): planned.call for planned in started}
        began = time.monotonic()

        def run(planned: _Planned, wanted: Wanted) -> tuple[ToolResult, int]:
            try:
                return self._call(wanted, scope)
            finally:
                del running[id(planned)]

        def beat() -> None:
            if calls := list(running.values()):
                elapsed = int((time.monotonic() - began) * 1000)
                emit("turn_progress", _heartbeat(calls, elapsed, scope))

        # log fields are context variables, and a thread starts without them
        jobs: list[Callable[[], tuple[ToolResult, int]]] = [
            partial(copy_context().run, run, planned, planned.wanted)
            for planned in group
            if planned.wanted is not None
        ]
        if not jobs:
            return [(planned.refusal, 0) for planned in group if planned.refusal is not None]
        brief = all(p.wanted is None or p.wanted.tool.timeout <= BRIEF for p in group)
        beating = pulse("tool-heartbeat", self._limits.heartbeat, beat)
        with nullcontext() if brief else beating:
            ran = iter(parallel("tool", jobs))
        return [next(ran) if planned.refusal is None else (planned.refusal, 0) for planned in group]

    def _announced(self, planned: _Planned) -> str:
        return _short(self._scrubber.shown(planned.summary))

    def _call(self, wanted: Wanted, scope: TurnScope) -> tuple[ToolResult, int]:
        """Run one call; returns its result and the milliseconds it took."""
        call, tool = wanted.call, wanted.tool
        context = self._context(wanted, scope)
        try:
            context.recheck()
        except PolicyDenied as error:
            return self._scrubbed(failure(call.name, error)), 0
        self._mark_written(wanted, scope)
        began = time.monotonic()
        try:
            result = tool.run(wanted.arguments, context)
        except Exception as error:  # a tool that breaks its contract ends its call, not the turn
            result = failure(call.name, error)
        if _is_command(wanted):  # a file may have got its marks from another turn meanwhile
            self._mark_written(wanted, scope)
        ended = time.monotonic()
        log.info("tool %s took %d ms", call.name, (ended - began) * 1000)
        overrun = ended - context.deadline.at
        if overrun > OVERRUN:
            log.warning("tool %s ran %.1f s past its deadline", call.name, overrun)
        return self._scrubbed(result), int((ended - began) * 1000)

    def _recovered(
        self, wanted: Wanted, scope: TurnScope
    ) -> tuple[ToolResult | Literal["nothing done"] | None, int]:
        """What a tool says of a call that was running, None if it does not know; and the
        milliseconds until it did.
        """
        began = time.monotonic()
        found: ToolResult | Literal["nothing done"] | None = None
        try:
            found = wanted.tool.recover(wanted.arguments, self._context(wanted, scope))
        except Cancelled as error:
            found = failure(wanted.call.name, error)
        except Exception as error:
            log.warning("%s could not be asked after its call: %s", wanted.call.name, error)
        if _is_command(wanted):
            self._mark_written(wanted, scope)
        elapsed_ms = int((time.monotonic() - began) * 1000)
        return self._scrubbed(found) if isinstance(found, ToolResult) else found, elapsed_ms

    def _context(self, wanted: Wanted, scope: TurnScope) -> ToolContext:
        """What a call may use from now on."""
        return ToolContext(
            session_id=scope.session_id,
            turn_id=scope.turn_id,
            call_id=wanted.call.id,
            token=scope.token,
            deadline=Deadline(min(scope.deadline.at, time.monotonic() + wanted.tool.timeout)),
            services=self._services,
            step=scope.step,
            recheck=partial(self._recheck, wanted, scope),
        )

    def _scrubbed(self, result: ToolResult) -> ToolResult:
        """Without secrets. What a file holds stays as it is, but for those that we were given: the
        model may write it back.
        """
        scrubber = self._scrubber
        verbatim = result.verbatim and not result.is_error
        content = (scrubber.contents if verbatim else scrubber.shown)(result.content)
        summary = scrubber.shown(result.summary or result.content[: 8 * SUMMARY_CHARS])
        return replace(result, content=content, summary=_short(summary.strip().partition("\n")[0]))

    # --------------------------------------------------------------------------------- after

    def _outcome(
        self, planned: _Planned, result: ToolResult, elapsed_ms: int, scope: TurnScope
    ) -> Outcome:
        call = planned.call
        marks = result.marks
        if planned.wanted is not None:
            marks |= self._marks_of(planned.wanted, scope)
        # ids may come again in another turn, and the earlier output was promised to be there
        name = f"{scope.turn_id}-{call.id}"
        workspace = self._services.get("workspace")
        if marks.sensitive and self.reached:
            workspace = None
        if (
            marks and workspace is not None and not fits(result.content, self._limits.output_bytes)
        ):  # the whole goes there
            scope.journal.mark_files([str(OUTPUTS)], marks)
        content = cap(result.content, self._limits.output_bytes, name, workspace)
        message = Message(
            "tool",
            content or "(no output)",
            tool_call_id=call.id,
            name=call.name,
            is_error=result.is_error,
            tainted=marks.tainted,
            sensitive=marks.sensitive,
            attachments=_seen(result.images),
        )
        state = CallState.FAILED if result.is_error else CallState.DONE
        return Outcome(call, state, message, elapsed_ms)

    # --------------------------------------------------------------------------------- marks

    def _marks_of(self, wanted: Wanted, scope: TurnScope) -> Marks:
        """What a result is marked with: by its tool, by the vault, by the marks of the files.

        Whatever lies in the workspace may have come from strangers; what is in the vault, the
        person put there.
        """
        paths = _named(wanted)
        vaulted = [path.startswith("/vault") for path in paths]
        foreign = wanted.tool.taints and not (paths and all(vaulted))
        own = Marks(foreign, wanted.tool.sensitive or any(vaulted))
        return own | self._file_marks(paths, scope)

    def _sends_private(self, wanted: Wanted, scope: TurnScope) -> bool:
        """Whether it sends private data off the machine, or puts some where what was left running
        does. What a conversation writes counts as private where strangers' content may have had a
        say in it, what is copied from the vault always.
        """
        tool = wanted.tool
        if tool.egress:
            return scope.sensitive or self._marks_of(wanted, scope).sensitive
        if tool.tier is SafetyTier.READ_ONLY or not (
            tool.sensitive or (scope.sensitive and scope.tainted)
        ):
            return False
        return any(not path.startswith("/vault") for path in _named(wanted)) and self.reached

    @property
    def reached(self) -> bool:
        """Whether a command that was left running could send what is put into the workspace."""
        return self._shell_open() and any(
            tool.egress and _in_sandbox(tool) for tool in self._registry
        )

    def _exfiltrates_now(self, wanted: Wanted, scope: TurnScope) -> bool:
        """Whether it does so now, and did not when it was decided on."""
        if wanted.private and wanted.tainted:
            return False
        strange = scope.tainted or not wanted.tool.egress
        return strange and self._sends_private(wanted, scope)

    def _recheck(self, wanted: Wanted, scope: TurnScope) -> None:
        """What a call could send may get its marks from another turn, or from a call beside it,
        after it was decided on.
        """
        if self._exfiltrates_now(wanted, scope):
            why = "what it would send off this machine has come to hold private data"
            if not wanted.tool.egress:
                why = "a command may be running that could send what it writes off this machine"
            raise PolicyDenied(
                f"{wanted.call.name} was not run: {why} since it was decided on.",
                remedy="Call it again: then that is decided anew.",
            )

    def _file_marks(self, paths: Sequence[str], scope: TurnScope) -> Marks:
        """The marks that files got, and those of what the person called private."""
        if not paths:
            return Marks()
        private = any(_overlap(path, one) for path in paths for one in self._private)
        return Marks(sensitive=private) | scope.journal.marks_of(paths)

    def _mark_written(self, wanted: Wanted, scope: TurnScope) -> None:
        """What a call may write gets the conversation's marks: they come back with the file, in
        whatever session it is read.
        """
        tool = wanted.tool
        named = _named(wanted)
        written = [path for path in named if not path.startswith("/vault")]
        read = tool.tier is SafetyTier.READ_ONLY or tool.egress  # what is sent is only read
        if (read and named is not WORKSPACE) or not written:
            return
        marks = Marks(scope.tainted, scope.sensitive) | Marks(tool.taints, tool.sensitive)
        if named is WORKSPACE:
            marks |= self._file_marks(WORKSPACE, scope)
        elif marks.sensitive and self._shell_open():
            written = WORKSPACE
        if written is not WORKSPACE and marks:
            scope.journal.mark_files(written, marks)
        elif self._spread | marks != self._spread:  # they stay: once is enough
            scope.journal.mark_files(WORKSPACE, marks)
            self._spread |= marks

    def _shell_open(self) -> bool:
        """Whether a command may be running, or what it left behind."""
        shell = self._services.get("shell")
        return isinstance(shell, ShellClient) and shell.open


def _seen(images: Sequence[Attachment]) -> tuple[Attachment, ...]:
    """Those that are put before a model."""
    small = (image for image in images if 0 < len(image.data) <= IMAGE_BYTES)
    return tuple(islice(small, MAX_IMAGES))


def _named(wanted: Wanted) -> list[str]:
    """The files that a call may touch: those it names, or for a command all that it can reach."""
    paths = list(map(str, _paths(list(wanted.arguments.values()))))
    return paths or (WORKSPACE if _in_sandbox(wanted.tool) else [])


def _in_sandbox(tool: Tool) -> bool:
    """Whether it is of commands, or a program of others there, which reaches what they reach,
    whatever its tier is.
    """
    return bool(getattr(tool, "in_sandbox", tool.tier is SafetyTier.PRIVILEGED))


def _paths(value: object) -> Iterator[VirtualPath]:
    """The paths among arguments, however deep."""
    if isinstance(value, VirtualPath):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item)
    elif isinstance(value, dict):
        yield from _paths(list(value.values()))
    elif is_dataclass(value):
        yield from _paths([getattr(value, one.name) for one in fields(value)])


def _is_command(wanted: Wanted) -> bool:
    return _named(wanted) is WORKSPACE


def _overlap(one: str, other: str) -> bool:
    """Whether one path is the other's, or is in it."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _marked(scope: TurnScope, result: Message) -> TurnScope:
    """The scope of what comes after a result: its marks are the conversation's now."""
    tainted, sensitive = scope.tainted or result.tainted, scope.sensitive or result.sensitive
    if (tainted, sensitive) == (scope.tainted, scope.sensitive):
        return scope
    return replace(scope, tainted=tainted, sensitive=sensitive)


@dataclass(slots=True)
class _Planned:
    """A call on its way: `wanted` while it may run, else its `refusal`."""

    call: ToolCall
    wanted: Wanted | None = None
    refusal: ToolResult | None = None

    def refuse(self, why: str) -> None:
        self.wanted, self.refusal = None, ToolResult(why, is_error=True, summary=why)

    @property
    def harmless(self) -> bool:
        """It may run beside others."""
        if self.wanted is None:
            return True
        return self.wanted.tool.tier is SafetyTier.READ_ONLY or self.wanted.tool.beside

    @property
    def summary(self) -> str:
        """The beginning of the arguments that were given, in one line, for people."""
        if self.wanted is None:
            return ""
        given, arguments = self.wanted.given, self.wanted.arguments
        return ", ".join(
            f"{name}={_beginning(value)}"
            for name, value in arguments.items()
            if given.get(name) is not None
        )


def _beginning(value: object) -> str:
    """Enough of a value that no secret which is shown at all is cut."""
    return str(value)[: 8 * SUMMARY_CHARS]


def _unknown(call: ToolCall) -> ToolResult:
    """The result of a call of which nobody knows what became of it."""
    return ToolResult(
        f"The outcome of this call is unknown: Oxydra was interrupted while {call.name} ran. It may"
        " or may not have taken effect; look before you do it again, and tell the person.",
        is_error=True,
        summary="its outcome is unknown",
    )


def _stopped(scope: TurnScope) -> str:
    """Why nothing may be started any more; empty if it may."""
    if scope.token.cancelled:
        return scope.token.reason or "cancelled"
    return "the turn's time is up" if scope.deadline.expired else ""


def _shutdown(scope: TurnScope) -> bool:
    return scope.token.cancelled and scope.token.reason == SHUTDOWN


# --------------------------------------------------------------------------- what people are told


def _event(call: ToolCall, state: str, summary: str, elapsed_ms: int) -> Json:
    return {
        "call": {
            "id": call.id,
            "name": call.name,
            "state": state,
            "summary": summary,
            "elapsed_ms": elapsed_ms,
        }
    }


def _ended_event(outcome: Outcome, result: ToolResult) -> Json:
    state = "finished" if outcome.state is CallState.DONE else "failed"
    return _event(outcome.call, state, _short(result.summary), outcome.elapsed_ms)


def _execution(group: Sequence[_Planned], scope: TurnScope) -> Json:
    names = [planned.call.name for planned in group]
    kind = {"kind": "tool_execution", "tool_names": names}
    return _progress(kind, f"Running {', '.join(names)}", scope)


def _heartbeat(calls: Sequence[ToolCall], elapsed_ms: int, scope: TurnScope) -> Json:
    kind = {
        "kind": "tool_heartbeat",
        "calls": [{"id": call.id, "name": call.name} for call in calls],
        "elapsed_ms": elapsed_ms,
    }
    names = ", ".join(call.name for call in calls)
    return _progress(kind, f"Running {names} for {elapsed_ms // 1000} s", scope)


def _progress(kind: Json, message: str, scope: TurnScope) -> Json:
    return {
        "progress": {
            "kind": kind,
            "message": message,
            "turn": scope.step,
            "max_turns": scope.max_steps,
        }
    }


def _short(text: str) -> str:
    line = " ".join(text[: 2 * SUMMARY_CHARS].split())
    return line if len(line) <= SUMMARY_CHARS else line[: SUMMARY_CHARS - 1] + "…"
