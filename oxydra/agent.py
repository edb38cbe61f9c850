"""`Agent`: the library's front. A program runs turns itself, without a daemon beside it.

    with Agent("assistant", tools=[word_count]) as agent:
        print(agent.run("How long is /shared/report.md?"))

An open agent is what a daemon is: the same runner on the thread `oxydra-runner` holds the
workspace's lock, the broker and the shell guest, and the same agent guest on `oxydra-agent`, with
the threads of either. Only that this process is the guest: the program's tools and provider run in
it, and it is not caged. All end with `close`; turns that run then go on with the next opening.

What is asked is answered on the caller's thread, which waits for frames. Every method may be called
from any thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from oxydra import config, log
from oxydra.budget import Account
from oxydra.errors import BusyError, Cancelled, NotFoundError, OxydraError, TurnFailed, UsageError
from oxydra.frames import pack
from oxydra.gateway import answer
from oxydra.mux import Channel
from oxydra.runner.daemon import Runner
from oxydra.runner.settings import RunnerSettings, from_config
from oxydra.runtime import Terms
from oxydra.scrub.exact import ExactScrubber
from oxydra.scrub.guest import GuestScrubber
from oxydra.stream import RunnerStream
from oxydra.threads import Service
from oxydra.tiers import registry
from oxydra.tiers.base import GuestSpec, HostTree, ShellProcess, ShellSpec
from oxydra.types import Attachment, Json, ModelSpec, Provider, Tool, Turn
from oxydra.vm import AgentGuest, Own, serve

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
STOP_SECONDS = 30.0
ORIGIN = "library"  # of the sessions made here
ENDED = "ended"  # to whoever waits for a turn: its frames come no longer
TERMINAL = ("turn_completed", "turn_cancelled", "turn_joined", "error", ENDED)
IN_PROCESS: Json = {
    "code": "in_process",
    "detail": "The agent is part of a program, which is not caged: its own tools can do what that "
    "program can, and the keys are in its memory.",
}

Approve = Callable[[Json], bool]
"""Whether a call may run, given the payload of its `approval_request` frame."""


@dataclass(frozen=True, slots=True)
class Event:
    """A frame of a turn: `type` and `payload` as docs/protocol.md has them. `text` is what the
    answer goes on with, where that is what the frame brings.
    """

    type: str
    payload: Json

    @property
    def text(self) -> str:
        return str(self.payload["delta"]) if self.type == "assistant_delta" else ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a turn came to. `usage` has tokens and, where prices are known, `cost_usd`."""

    text: str
    session_id: str
    turn_id: str
    finish_reason: str = ""
    usage: Json = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text


class Agent:
    """One user's agent, from `open` to `close`, or as a context.

    `folder` holds its configuration (agent.toml, runner.toml, as `oxydra-runner init` makes them)
    and its workspace; both are made where they are not there. `user` may be left out where there is
    one. `model` is `provider/model` of the configuration, or the description of the one that
    `provider` is; by default what `[selection]` says. `tools` come beside those that there are.

    `approve` decides where approvals are asked for, on the thread that waits for the turn; without
    it nobody can be asked, and what needs asking is denied. `settings` are configuration keys with
    their values, as `{"runtime.max_turns": 10}`.
    """

    def __init__(
        self,
        folder: str | Path = ".oxydra",
        *,
        user: str | None = None,
        model: str | ModelSpec = "",
        provider: Provider | None = None,
        tools: Sequence[Tool] = (),
        approve: Approve | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if (provider is not None) != isinstance(model, ModelSpec):
            raise UsageError(
                "A provider of your own comes with a ModelSpec of what it answers as.",
                remedy='Give both: provider=…, model=ModelSpec("mine", "model-1", 8000, 1000).',
            )
        self.folder = Path(folder)
        self._user = user
        self._model = model
        self._approve = approve
        self._overrides = dict(settings or {})
        own: dict[str, Provider] = {}
        if provider is not None and isinstance(model, ModelSpec):
            own[model.provider] = provider
            self._overrides["selection.provider"] = "offline"  # its place is taken below
        elif isinstance(model, str) and model:
            self._overrides |= _selection(model)
        self._tools, self._providers = tuple(tools), own
        self._tier: InProcess | None = None
        self._service: Service | None = None
        self._session = ""
        self._lock = threading.Lock()

    # --------------------------------------------------------------------------- from open to close

    def open(self) -> Agent:
        """Take the workspace, start what serves it, and take up the turns that were left there.
        Raises `OxydraError` with the remedy, `AlreadyRunning` where a daemon or another program has
        it.
        """
        if self._service is not None:
            raise UsageError("The agent is open already.")
        if not (self.folder / "runner.toml").is_file():
            config.write_default(self.folder, self._user or "alice")
        found = config.load(self.folder, self._user, overrides=self._overrides)
        settings = self._answering(from_config(found))
        self._tier = InProcess(settings, self._tools, self._providers, self._approve)
        runner = Runner(settings, self._tier)
        told: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        settings.workspace.prepare()
        exact, patterns = ExactScrubber(settings.secrets()), GuestScrubber()

        def scrub(text: str) -> str:
            return patterns.logged(exact.text(text))

        def run(_service: Service) -> None:
            descriptor = settings.workspace.open_log("runtime.log")
            with (
                os.fdopen(descriptor, "a", encoding="utf-8") as file,
                log.attached("oxydra", file, scrub, settings.log_format),
            ):
                try:
                    runner.run(on_ready=lambda _endpoint: told.put(None))
                except (OxydraError, OSError) as error:
                    told.put(error)

        wake = partial(runner.stop, "closed")
        self._service = Service("runner", run, wake=wake, on_death=told.put).start()
        try:
            failure = told.get(timeout=START_SECONDS)
        except queue.Empty:
            failure = OxydraError(f"The agent was not ready after {START_SECONDS:g} s.")
        if failure is not None:
            self.close()
            if not isinstance(failure, OxydraError):
                raise OxydraError(f"The agent could not start: {failure}.") from failure
            raise failure
        return self

    def close(self) -> None:
        """End what serves it. Turns that run go on with the next opening. Idempotent."""
        service, self._service = self._service, None
        if service is not None:
            service.stop(STOP_SECONDS)
        self._session = ""

    def __enter__(self) -> Agent:
        return self.open()

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _answering(self, settings: RunnerSettings) -> RunnerSettings:
        """The same, with the program's own provider as the one that answers."""
        if not isinstance(self._model, ModelSpec):
            return settings
        told = dict(settings.config)
        entries = {**told["providers"]["registry"], self._model.provider: {}}
        entries[self._model.provider] = {"provider_type": "offline"}
        told["providers"] = {**told["providers"], "registry": entries}
        told["models"] = [self._model.to_json(), *told["models"][1:]]
        told["reason"] = "It is the program's own."
        notices = tuple(row for row in settings.notices if row["code"] != "no_model")
        return replace(settings, config=told, notices=notices)

    # ---------------------------------------------------------------------------------------- turns

    def run(
        self,
        prompt: str,
        *,
        session: str = "",
        turn_id: str = "",
        attachments: Sequence[Attachment] = (),
    ) -> Answer:
        """Say something and wait for the answer: as `send`, and then `Reply.result`."""
        return self.send(prompt, session=session, turn_id=turn_id, attachments=attachments).result()

    def stream(self, prompt: str, *, session: str = "", turn_id: str = "") -> Iterator[str]:
        """Say something; yields the answer's text as it is written. Raises as `Reply.result`."""
        return self.send(prompt, session=session, turn_id=turn_id).text()

    def send(
        self,
        prompt: str,
        *,
        session: str = "",
        turn_id: str = "",
        attachments: Sequence[Attachment] = (),
    ) -> Reply:
        """Say something. The message is stored when this returns, and is answered whatever becomes
        of this process, if need be after the next opening.

        `session` is an id or a name; one that there is not yet is made with that name. Without it
        all that is said while the agent is open is one conversation. The same `turn_id` again is
        the same turn: it is not run twice. Raises `UsageError` where another message had that id,
        `BusyError` where too many wait.
        """
        guest = self._guest()
        if turn_id and (there := guest.turn(turn_id)) is not None:
            if there.prompt != prompt:
                raise UsageError(f"The turn id {turn_id[:64]!r} was used for another message.")
            return Reply(guest, turn_id, there.session_id, self._approve)
        session_id = self._session_id(guest, session)
        reply = Reply(guest, turn_id or uuid4().hex, session_id, self._approve)
        try:
            guest.submit(reply, prompt, tuple(attachments))
        except BaseException:
            reply.close()
            raise
        return reply

    def reply(self, turn_id: str) -> Reply:
        """A turn that was accepted before. Raises `NotFoundError`."""
        guest = self._guest()
        turn = guest.turn(turn_id)
        if turn is None:
            raise NotFoundError(f"There is no turn {turn_id[:64]!r}.")
        return Reply(guest, turn_id, turn.session_id, self._approve)

    def unfinished(self) -> list[Reply]:
        """The turns that wait or run, in the order in which they were accepted: after a crash those
        that it cut off.
        """
        guest = self._guest()
        turns = guest.unfinished()
        return [Reply(guest, turn.turn_id, turn.session_id, self._approve) for turn in turns]

    def command(self, name: str, **args: Any) -> Json:
        """What a `command` frame of that name answers (docs/protocol.md): notes, memory, schedules,
        cost, … Raises `UsageError` for an unknown one, and what the command raises.
        """
        return self._guest().command(name, args)

    def status(self) -> Json:
        """What `oxydra-runner status --json` says of the guest."""
        return self._guest().health()

    @property
    def workspace(self) -> Path:
        """The folder that holds `shared`, which the model sees as /shared."""
        return Path(self._guest().root)

    def _guest(self) -> LibraryGuest:
        if self._tier is None or self._service is None:
            raise UsageError(
                "The agent is not open.", remedy="Use it inside `with Agent(…) as agent:`."
            )
        if self._tier.guest is None:
            raise BusyError("The agent is being started again.", remedy="Its log says why.")
        return self._tier.guest

    def _session_id(self, guest: LibraryGuest, wanted: str) -> str:
        with self._lock:
            if wanted:
                return guest.session(wanted)
            self._session = self._session or guest.new_session("")
            return self._session


def _selection(model: str) -> dict[str, str]:
    provider, slash, name = model.partition("/")
    if not slash:
        return {"selection.model": model}
    return {"selection.provider": provider, "selection.model": name}


class Reply:
    """A turn, from the moment that its message is stored. One thread reads it: by iterating over
    its events or its text, or by `result`, which begin where another has stopped.
    """

    def __init__(
        self, guest: LibraryGuest, turn_id: str, session_id: str, approve: Approve | None
    ) -> None:
        self.turn_id = turn_id
        self.session_id = session_id
        self._guest = guest
        self._approve = approve
        self._frames: queue.SimpleQueue[tuple[str, Json]] = queue.SimpleQueue()
        self._last: Event | None = None
        self._asked: set[str] = set()  # the requests that the program was asked about
        self._unlisten = guest.listen(self)

    def hear(self, frame_type: str, payload: Json) -> None:
        """See `Listener`."""
        if frame_type == ENDED or payload.get("turn", {}).get("turn_id") == self.turn_id:
            self._frames.put((frame_type, payload))

    def __iter__(self) -> Iterator[Event]:
        """Each event, the last one included; approvals are asked for on the way."""
        for request in self._guest.requests(self.turn_id) if self._last is None else ():
            self._decide(request)
        while self._last is None:
            event = self._next()
            if event.type in TERMINAL:
                self._last = event
                self.close()
            if event.type == "approval_request":
                self._decide(event.payload)
            if event.type != ENDED:
                yield event

    def _decide(self, request: Json) -> None:
        """Have the program asked about a request, once."""
        approval_id = request["approval_id"]
        if self._approve is not None and approval_id not in self._asked:
            self._asked.add(approval_id)
            self._guest.answer(approval_id, self._approve(request))

    def text(self) -> Iterator[str]:
        """The answer's text as it is written; what is streamed again appears once. Raises as
        `result`.
        """
        pieces: list[str] = []
        written = answer.Answer(pieces.append)
        for event in self:
            if event.text:
                written.delta(event.text)
            elif event.type == "turn_progress":
                written.progress(event.payload)
            elif event.type == "turn_completed":
                written.finish(event.payload["response"]["message"]["content"])
            yield from pieces
            pieces.clear()
        self.result()

    def result(self) -> Answer:
        """Wait for the end. Raises `TurnFailed`, or `Cancelled` where the turn was stopped or the
        agent closed meanwhile. Ctrl+C stops the turn.
        """
        try:
            for _event in self:
                pass
        except KeyboardInterrupt:
            with contextlib.suppress(OxydraError):
                self.cancel()
            raise
        if self._last is None:
            raise RuntimeError("the events ended without a last one")
        kind, payload = self._last.type, self._last.payload
        if kind == "turn_completed":
            said = payload["response"]
            return Answer(
                *(said["message"]["content"], self.session_id, self.turn_id),
                finish_reason=said["finish_reason"],
                usage=said["usage"],
            )
        if kind == "error":
            code = str(payload.get("code") or "")
            raise TurnFailed(payload["message"], code=code, turn_id=self.turn_id)
        if kind == ENDED:
            raise Cancelled("The agent was closed: the turn goes on when it is opened again.")
        raise Cancelled("The turn was stopped.")

    def cancel(self) -> None:
        """Stop the turn. Raises `NotFoundError` where it has ended."""
        self._guest.cancel(self)

    def close(self) -> None:
        """Hear no more of it; the turn itself goes on. Idempotent."""
        self._unlisten()

    def _next(self) -> Event:
        """The next frame, of those heard; of a turn that ended before this began to listen, how it
        ended.
        """
        with contextlib.suppress(queue.Empty):
            return Event(*self._frames.get_nowait())
        ended = self._guest.turn(self.turn_id)
        if ended is not None and ended.terminal is not None and self._frames.empty():
            return Event(ended.terminal["type"], ended.terminal["payload"])
        return Event(*self._frames.get())


# ---------------------------------------------------------------------------------------- the guest


class LibraryGuest(AgentGuest):
    """An agent guest that is part of a program: what clients ask by frames is asked by calls."""

    def __init__(
        self,
        spec: GuestSpec,
        stream: RunnerStream,
        own: Own,
        attended: bool,
    ) -> None:
        self.root = spec.envelope.workspace_root
        self._attended = attended
        self._replies: dict[Reply, None] = {}
        self._replies_lock = threading.Lock()
        super().__init__(spec.envelope, stream, spec.listener.dup(), "in-process", own)

    def stop(self) -> None:
        super().stop()
        with self._replies_lock:
            waiting = list(self._replies)
        for reply in waiting:
            reply.hear(ENDED, {})

    def submit(self, reply: Reply, prompt: str, attachments: tuple[Attachment, ...]) -> None:
        self._hub.submit(reply.session_id, reply.turn_id, reply.turn_id, prompt, attachments)

    def turn(self, turn_id: str) -> Turn | None:
        return self._store.turn(turn_id)

    def unfinished(self) -> list[Turn]:
        return self._store.unfinished_turns()

    def cancel(self, reply: Reply) -> None:
        self._hub.cancel(reply.session_id, reply.turn_id)

    def listen(self, reply: Reply) -> Callable[[], None]:
        """Let it hear its session; returns what ends that."""
        unlisten = self._hub.subscribe(reply.session_id, reply)
        with self._replies_lock:
            self._replies[reply] = None

        def leave() -> None:
            unlisten()
            with self._replies_lock:
                self._replies.pop(reply, None)

        return leave

    def session(self, wanted: str) -> str:
        """The id of the session of this id or name; a new one of that name where there is none."""
        with contextlib.suppress(NotFoundError):
            return self._store.find_session(wanted).session_id
        return self.new_session(wanted)

    def new_session(self, name: str) -> str:
        made = self._hub.create_session(display_name=name, channel_origin=ORIGIN)
        return made.session_id

    def requests(self, turn_id: str) -> list[Json]:
        """What is asked for a turn and not answered yet."""
        found = self._gateway.commands["approvals"]({})["requests"]
        return [row for row in found if row["turn"]["turn_id"] == turn_id]

    def answer(self, approval_id: str, allow: bool) -> None:
        """Settle a request; somebody else may have been faster."""
        try:
            self._approvals.answer(approval_id, allow=allow, by=ORIGIN)
        except UsageError as error:
            logger.info("an answer came too late: %s", error)

    def command(self, name: str, args: Json) -> Json:
        known = self._gateway.commands
        if name not in known:
            raise UsageError(
                f"There is no command {name[:64]!r}.",
                remedy=f"There are: {', '.join(sorted(known))}.",
            )
        return known[name](args)

    def _terms_of(self, turn: Turn) -> tuple[Account | None, Terms | None]:
        account, terms = super()._terms_of(turn)
        if terms is None and not self._attended:
            terms = Terms(attended=False)
        return account, terms


class InProcess(HostTree):
    """A tier whose agent guest is this process; commands run in the shell guest of the configured
    one. `guest` is the one that runs.
    """

    name = "library"

    def __init__(
        self,
        settings: RunnerSettings,
        tools: Sequence[Tool],
        providers: Mapping[str, Provider],
        approve: Approve | None,
    ) -> None:
        self.guest: LibraryGuest | None = None
        self._shells = registry.create(settings.tier)
        self._tools, self._providers = tools, providers
        self._attended = approve is not None

    def degraded(self) -> list[Json]:
        return [IN_PROCESS]

    def start(self, spec: GuestSpec) -> Embedded:
        return Embedded(self, spec)

    def start_shell(self, spec: ShellSpec) -> ShellProcess:
        return self._shells.start_shell(spec)

    def serve(self, spec: GuestSpec, stream: RunnerStream) -> None:
        """Be the guest, until the runner says otherwise or a thread dies that it can't do without.
        The body of `oxydra-agent`.
        """
        try:
            control = stream.start()
            own = Own(self._tools, self._providers, _hang_up(control))
            guest = LibraryGuest(spec, stream, own, self._attended)
            guest.start()
        except OxydraError as error:
            logger.error("%s", error)
            with contextlib.suppress(OSError):
                failed = {"message": error.message, "remedy": error.remedy}
                stream.start().sendall(pack("failed", failed))
            return
        self.guest = guest
        try:
            control.sendall(pack("ready", {}))
            serve(control, guest, stream)
        finally:
            self.guest = None
            guest.stop()


def _hang_up(control: Channel) -> Callable[[BaseException], None]:
    """What ends the guest when one of its threads has died: then the runner starts it again."""

    def died(error: BaseException) -> None:
        logger.critical("the gateway failed (%s): the agent starts again", error)
        control.close()

    return died


class Embedded:
    """The guest as the runner sees it; its thread is `oxydra-agent`."""

    def __init__(self, tier: InProcess, spec: GuestSpec) -> None:
        self.pid = os.getpid()
        self.stream, theirs = socket.socketpair()
        self._ended = threading.Event()
        guests_end = RunnerStream(theirs)

        def run(_service: Service) -> None:
            try:
                with guests_end:
                    tier.serve(spec, guests_end)
            finally:
                self._ended.set()

        self._service = Service("agent", run, wake=self._hang_up).start()

    def wait(self) -> str:
        """Block until it has ended; says how."""
        self._ended.wait()
        return "it was closed"

    def kill(self) -> None:
        """End it; its turns are left as they are in the store."""
        self._service.stop(STOP_SECONDS)

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.shutdown(socket.SHUT_RDWR)
