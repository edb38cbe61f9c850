"""The agent guest: one user's gateway, turn loop and store, assembled from a bootstrap envelope.

`main` is the program `oxydra-vm`. Before it does anything else it locks itself in: it keeps the
workspace, what it inherited, and one byte stream to the runner, over which a mux carries the
control channel, the shell, the gateway's clients where they are forwarded, and every request to the
broker. It has no network and no key.

Its main thread answers the runner on the control channel and ends when that does; `oxydra-mux`
reads the stream; the other threads are the gateway's two, `oxydra-indexer`, `oxydra-checkup` and
one per running turn. When the runner says so or is gone, running turns are left as they are in the
store and resume with the next start.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import logging
import mimetypes
import os
import resource
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from oxydra import cage, config, embed, log
from oxydra.approvals import Approvals, Rules
from oxydra.budget import Account, Caps
from oxydra.channels.media import Kept
from oxydra.channels.registry import Chats, channel
from oxydra.config import GuestConfig, MemoryConfig
from oxydra.disk import Ballast, Quota, shortage
from oxydra.errors import FrameError, OxydraError, ToolError, UsageError
from oxydra.frames import Envelope, Unpacker, pack, usage_json
from oxydra.gateway.frontend import Gateway
from oxydra.gateway.hub import Hub
from oxydra.gateway.memory import MemoryCommands
from oxydra.gateway.snapshots import Snapshots
from oxydra.mcp.servers import Places, Servers
from oxydra.memory import Indexer, ModelNotebook, Retrieval, Weights
from oxydra.mux import Channel
from oxydra.policy import VirtualPath, parse_virtual
from oxydra.policy.network import Egress
from oxydra.providers import registry
from oxydra.providers.metered import Metered
from oxydra.providers.reliable import Choice, Reliable
from oxydra.runtime import (
    MADE,
    Agent,
    Delegations,
    Recall,
    Runtime,
    Spending,
    SystemPrompt,
    Terms,
    prompt,
)
from oxydra.runtime.replay import Replay
from oxydra.runtime.undo import Undo
from oxydra.scheduler import Desk, ModelDesk, Scheduler
from oxydra.scrub.guest import GuestScrubber
from oxydra.store import Checkup, Files, Store
from oxydra.stream import RunnerStream, Wire
from oxydra.threads import install_hooks, share_heap
from oxydra.tools.changes import Changes
from oxydra.tools.confine import Workspace
from oxydra.tools.delegate import delegate_tools
from oxydra.tools.gate import Gate
from oxydra.tools.media import Outgoing, send_media
from oxydra.tools.memory import memory_tools
from oxydra.tools.registry import ToolRegistry
from oxydra.tools.schedule import schedule_tools
from oxydra.tools.search import Finder, search_tools
from oxydra.tools.shell import ShellTool
from oxydra.tools.shell_client import ShellClient
from oxydra.tools.skills import skill_read, taught
from oxydra.tools.web import Web
from oxydra.transport import BrokeredTransport
from oxydra.types import Attachment, Folder, Json, Meter, ModelSpec, Provider, Tool, ToolSpec, Turn
from oxydra.worker import Workers

logger = logging.getLogger(__name__)

STOP_SECONDS = 8.0
EMBEDDED_TOKENS = 1 << 20  # more than a request for vectors can have
RECEIVED = VirtualPath("shared", ("received",))  # where files go that came by a channel
# of root's: to hand files to their owner and to read them, to become nobody in a tool worker
KEPT_CAPABILITIES = ("chown", "dac_override", "fowner", "kill", "setgid", "setuid")
UNCAGED: Json = {
    "code": "keys_exposed",
    "detail": "Keys exposed, users not separated: this kernel has no Landlock or seccomp that "
    "could hold the agent, which runs as your own user.",
}
UNSANDBOXED = (None, "none", "rlimits")  # levels at which nothing contains a privileged call


def _die(error: BaseException) -> None:
    """A thread without which nobody is served has died: end, so that the runner starts us again."""
    logger.critical("the gateway failed (%s): the agent guest ends", error)
    signal.raise_signal(signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Own:
    """What a program brings along that is itself the guest, as with `oxydra.Agent`: its tools, its
    providers by their names, and what is told when a thread without which nobody is served has
    died.
    """

    tools: Sequence[Tool] = ()
    providers: Mapping[str, Provider] = field(default_factory=dict)
    on_death: Callable[[BaseException], None] = _die


class AgentGuest:
    """Everything that serves one user. `start` returns when clients are answered."""

    def __init__(
        self,
        envelope: Envelope,
        stream: RunnerStream,
        listener: socket.socket | None,
        level: str,
        own: Own | None = None,
    ) -> None:
        """`level` says how this process is locked in, "none" where it is not."""
        self._own = own or Own()
        settings = config.from_effective(envelope.config)
        self._envelope = envelope
        self._degraded: Sequence[Json] = envelope.startup_status.get("degraded_reasons", ())
        self._level = level
        self._stream = stream
        self._model = settings.model
        egress = Egress.parse(envelope.runtime_policy.get("egress_allowlist", ()))
        self._transport = BrokeredTransport(stream.open)
        self._workers = Workers()
        root = Path(envelope.workspace_root)
        internal = root / "internal"
        writable = [Path(folder.at) for folder in envelope.folders if folder.writable]
        self._short = partial(shortage, internal, *writable)
        files = Files(internal / "attachments", settings.gateway.max_attachments_mib << 20)
        self._store = Store(internal / "oxydra.db", Ballast(internal / "ballast"), files)
        counted = [Path(f.at) for f in envelope.folders if f.writable and not f.guarded]
        self._checkup = Checkup(self._store)
        self._quota = Quota(counted, int(envelope.runtime_policy.get("workspace_bytes", 1 << 62)))
        self._workspace = Workspace(envelope.folders, self._quota.over)
        rules = Rules.from_json(envelope.runtime_policy.get("approvals"))
        self._approvals = Approvals(
            self._store,
            rules,
            sandboxed=envelope.startup_status.get("sandbox_level") not in UNSANDBOXED,
            uncontained=[tool.spec.name for tool in self._own.tools],
        )
        keys = envelope.runtime_policy.get("keys", ())
        self._memory = remembering(self._store, settings.memory, self._embedding(settings, keys))
        self._indexer = Indexer(self._store, self._memory)
        self._indexing = settings.memory.enabled
        notes = ModelNotebook(self._store, settings.memory)
        found = settings.memory
        recall = Recall(self._store, self._memory, found.retrieval) if found.enabled else None
        self._shell = ShellClient(lambda: self._short() or self._quota.over())
        delegations = Delegations(self._store, settings.runtime.delegation)
        extra = [*self._shell_tools(settings), *delegate_tools(settings), *self._own.tools]
        extra += [*memory_tools(settings.memory), *search_tools()]
        self._outgoing = Outgoing()
        bots = config.channels(envelope.runtime_policy)
        extra += [send_media] if bots.telegram.enabled else []
        self._skills = taught(envelope.runtime_policy.get("skills", ()), self._workspace)
        extra += [skill_read] if self._skills.rows else []
        tools = ToolRegistry(
            extra=[*extra, *(schedule_tools() if settings.scheduler.enabled else [])]
        )
        self._mcp = Servers(settings.mcp.servers, self._places(settings, keys), self._store)
        tools.replace(self._mcp.tools())
        schedules, finder = ModelDesk(), Finder()
        self._tools = tools
        self._spending = Spending(
            self._store,
            caps_of(envelope),
            settings.scheduler.default_timezone,
        )
        self._runtime = Runtime(
            store=self._store,
            provider=self._provider(settings.models, settings, keys),
            model=settings.model,
            gate=Gate(
                tools,
                {
                    "workspace": self._workspace,
                    "changes": Changes(
                        self._store, self._workspace, settings.runtime.undo_mib << 20
                    ),
                    "shell": self._shell,
                    "workers": self._workers,
                    "delegator": delegations,
                    "schedules": schedules,
                    "finder": finder,
                    "memory": self._memory,
                    "notes": notes,
                    "media": self._outgoing,
                    "skills": self._skills,
                    "web": Web(self._transport, self._workers, egress, settings.tools.web_search),
                },
                approve=self._approvals.check,
                scrubber=scrubber_of(envelope),
                private=[parse_virtual(path) for path in rules.private],
            ),
            tools=tools.specs,
            config=settings.runtime,
            reasoning=settings.selection.reasoning,
            keep=self._keep,
            workspace=self._workspace,
            summarizer=self._summarizer(settings, keys),
            agents=self._agents(settings, keys),
            prompt=SystemPrompt(
                [spec.name for spec in tools.specs],
                own=settings.system_prompt,
                agents={name: one.system_prompt for name, one in settings.agents.items()},
                mounts=envelope.folders,
                zone=settings.scheduler.default_timezone,
                skills=self._skills,
            ),
            spending=self._spending,
            recall=recall,
            search_above=settings.tools.search_above_kib << 10,
        )
        finder.attach(lambda turn: self._runtime.run_of(turn).hidden)
        self._mcp.on_change = self._offer
        delegations.attach(self._runtime)
        notes.attach(lambda turn: self._runtime.run_of(turn).marks())
        self._hub = Hub(self._store, self._runtime, settings.gateway, envelope.user_id)
        self._snapshots = Snapshots(self._store)
        self._scheduler = Scheduler(
            self._store, settings.scheduler, self._hub, on_death=self._own.on_death
        )
        self._hub.terms_of = self._terms_of
        self._hub.unattended = self._scheduler.runs
        self._hub.on_follow = self._scheduler.followed
        desk = Desk(self._scheduler)
        schedules.attach(self._scheduler, lambda turn: self._runtime.run_of(turn).marks())
        self._gateway = Gateway(
            listener=listener,
            hub=self._hub,
            store=self._store,
            config=settings.gateway,
            tokens=envelope.gateway_token_hashes,
            health=self.health,
            on_death=self._own.on_death,
            approvals=self._approvals,
            commands={
                "backup": self._snapshots.command,
                "agents": lambda _: self._runtime.agents.report(self._runtime.tools),
                "prompt": self._explain_prompt,
                "skills": lambda _: self._skills.report({one.name for one in self._tools.specs}),
                "cost": self._cost,
                "replay": self._replay,
                "undo": self._undo,
                "mcp": self._mcp.command,
                "mcp_trust": self._mcp.trust_command,
                "schedules": desk.command,
                **self._memory_commands(settings),
            },
            of_strangers={"schedules": desk.stranger},
            tools=tools,
        )
        stream.on_gateway = self._gateway.adopt
        self._telegram = self._bot(tools.specs)

    def _bot(self, tools: Sequence[ToolSpec]) -> Chats | None:
        """The user's Telegram bot, where there is one."""
        bots = config.channels(self._envelope.runtime_policy)
        if not bots.telegram.enabled:
            return None
        made: Chats = channel("telegram")(
            *(bots.telegram, self._transport, self._hub, self._store),
            commands=self._gateway.commands,
            health=self.health,
            approvals=self._approvals,
            keep=self._keep_received,
            audit=self._store.path.parent / "sender_audit.log",
            tools=[tool.name for tool in tools],
            on_death=self._own.on_death,
        )
        self._scheduler.post.add("telegram", made.courier)
        self._outgoing.attach(made)
        return made

    def _terms_of(self, turn: Turn) -> tuple[Account | None, Terms | None]:
        """Who pays for a turn and what limits it, where that is not just as a person's."""
        account, terms = self._scheduler.terms_of(turn)
        if terms is None and self._telegram is not None:
            terms = self._telegram.terms_of(turn)
        return account, terms

    @contextlib.contextmanager
    def _keep_received(self, name: str) -> Iterator[Kept]:
        """Put a file that comes with a message into the workspace."""
        path = RECEIVED.child(f"{secrets.token_hex(4)}-{name}")
        self._workspace.sweep(RECEIVED)
        with self._workspace.create(path) as take:
            yield Kept(str(path), take)

    def _keep(self, attachment: Attachment) -> str:
        """Put a file that a model made into the workspace; returns where, or why it is nowhere."""
        ending = mimetypes.guess_extension(attachment.mime_type) or ""
        path = MADE.child(f"{attachment.sha256[:16]}{ending}")
        try:
            self._workspace.write(path, attachment.data)
        except ToolError as error:
            return f"could not be saved: {error}"
        return str(path)

    def _shell_tools(self, settings: GuestConfig) -> list[Tool]:
        """`shell_exec`, where the runner has a shell guest."""
        said = self._envelope.startup_status
        if not said["shell_available"]:
            return []
        level = said["sandbox_level"]
        named, contained = level in cage.NAMESPACED, level not in UNSANDBOXED
        networked = bool(said.get("shell_network"))
        return [
            ShellTool(
                settings.tools.shell,
                named_paths=named,
                contained=contained,
                networked=networked,
                mounts=[f for f in self._envelope.folders if f.root.startswith("mnt/")],
            )
        ]

    def _places(self, settings: GuestConfig, keys: Collection[str]) -> Places:
        """Where MCP servers run."""
        said = self._envelope.startup_status
        return Places(
            shell=self._shell if said["shell_available"] else None,
            transport=self._transport,
            networked=bool(said.get("shell_network")),
            contained=said["sandbox_level"] not in UNSANDBOXED,
            keys=frozenset(keys),
        )

    def _offer(self) -> None:
        """MCP servers have other tools than before; a turn that has begun goes on with its own."""
        self._tools.replace(self._mcp.tools())
        self._runtime.tools = self._tools.specs

    def _explain_prompt(self, args: Json) -> Json:
        session = prompt.sample(str(args.get("agent") or "default"))
        runtime = self._runtime
        agent = runtime.agents.get(session.agent_name)
        tools = runtime.requested(agent.offered(runtime.tools))
        return prompt.report(runtime.prompt, session, tools, agent.model)

    def _cost(self, args: Json) -> Json:
        spending = self._spending
        found = spending.summary(str(args.get("session_id") or ""))
        return {**found, **(spending.report(str(args["by"])) if args.get("by") else {})}

    def _memory_commands(self, settings: GuestConfig) -> dict[str, Callable[[Json], Json]]:
        """Where memory is off, what was said can still be forgotten."""
        made = MemoryCommands(
            *(self._hub, self._runtime, self._memory, self._indexer),
            *(self._workspace, settings.memory),
        )
        return made.table() if settings.memory.enabled else {"forget": made.forget}

    def _undo(self, args: Json) -> Json:
        """Take the last turn of a session back; with `dry_run` only say what that means."""
        session_id = self._store.find_session(str(args.get("session_id") or "")).session_id
        undo = Undo(self._store, self._workspace, Desk(self._scheduler).pieces)
        if dry := bool(args.get("dry_run")):
            plan = undo.plan(session_id)
        else:
            with self._hub.at_rest(session_id):
                plan = undo.run(session_id, keep_changed=bool(args.get("keep_changed")))
                self._runtime.conversations.forget(session_id)
        return {**plan.to_json(), "text": plan.text(dry=dry)}

    def _replay(self, args: Json) -> Json:
        """Run a session again on what was recorded, from the turn `first`, at most `most` turns."""
        session = self._store.find_session(str(args.get("session_id") or ""))
        first, most = args.get("first", 1), args.get("most")
        if not isinstance(first, int) or not isinstance(most, int | None):
            raise UsageError("`first` and `most` are numbers of turns.")
        folder = self._store.path.parent
        return Replay(self._store, self._runtime, self._tools, folder).run(session, first, most)

    def attach_shell(self, channel: Channel, *, used: bool) -> None:
        """Take the channel to a shell guest; `used`: an agent guest had one to it before."""
        self._shell.connect(channel, used=used)

    def set_degraded(self, rows: Sequence[Json]) -> None:
        """What the runner has to say of the tier from now on."""
        self._degraded = rows

    def set_tokens(self, rows: Sequence[Json]) -> None:
        """Who may use the gateway from now on."""
        self._gateway.set_tokens(rows)

    def _agents(self, settings: GuestConfig, keys: Collection[str]) -> list[Agent]:
        """Those of `[agents]`."""
        found = []
        for name, profile in settings.agents.items():
            models = settings.agent_models.get(name, settings.models)
            agent = Agent(
                name,
                self._provider(models, settings, keys),
                models[0],
                profile.selection.reasoning or settings.selection.reasoning,
                profile.tools,
                profile.max_turns or settings.runtime.max_turns,
                profile.max_cost,
            )
            found.append(agent)
        return found

    def _summarizer(
        self, settings: GuestConfig, keys: Collection[str]
    ) -> tuple[Provider, ModelSpec] | None:
        """What makes summaries, where that is not each agent's own model."""
        models = settings.summary_models
        return (self._provider(models, settings, keys), models[0]) if models else None

    def _embedding(self, settings: GuestConfig, keys: Collection[str]) -> embed.Service | None:
        """What makes memory's vectors, where that is not done here. It is paid for like a turn of
        its own, in a session for each day.
        """
        memory = settings.memory
        if not memory.enabled or memory.embedding_backend != "openai_compatible":
            return None
        name = memory.embedding_provider
        entry = registry.settings(name, settings.providers.registry[name])
        free = Decimal(0) if memory.embedding_price is not None else None
        spec = ModelSpec(
            *(name, memory.embedding_model, EMBEDDED_TOKENS, 1),
            tools=False,
            price_input=memory.embedding_price,
            price_output=free,
        )

        def meter() -> Meter:
            day = f"memory-{datetime.now(UTC):%Y-%m-%d}"
            return self._spending.meter(Account(f"{day}-{uuid4().hex}", day, purpose="embedding"))

        return embed.Service(
            registry.embeddings_url(entry),
            spec,
            memory.embedding_dimensions,
            self._transport,
            meter,
            credential=name if name in keys else "",
            headers=entry.extra_headers,
        )

    def _provider(
        self, models: Sequence[ModelSpec], settings: GuestConfig, keys: Collection[str]
    ) -> Reliable:
        """The first choice and its fallbacks, as one provider; `keys` are the names of those that
        the broker holds a key for.
        """

        def choice(spec: ModelSpec) -> Choice:
            name = spec.provider
            if name in self._own.providers:
                return Choice(Metered(self._own.providers[name]), spec)
            entry = settings.providers.registry[name]
            key = name if name in keys else ""
            provider = registry.settings(name, entry, credential=key)
            return Choice(Metered(registry.create(provider, self._transport)), spec)

        return Reliable([choice(spec) for spec in models], settings.reliability)

    def start(self) -> None:
        self._store.sweep_files()
        self._spending.recover()
        if self._telegram is not None:
            self._telegram.listen()
        self._hub.start()
        self._scheduler.start()
        self._checkup.start()
        if self._indexing:
            self._indexer.start()
        self._gateway.start()
        self._mcp.start()
        if self._telegram is not None:
            self._telegram.start()

    def stop(self) -> None:
        """Stop intake, leave running turns to be resumed, close the store."""
        self._gateway.stop(STOP_SECONDS / 4)
        if self._telegram is not None:
            self._telegram.stop(STOP_SECONDS / 8)
        self._scheduler.stop(STOP_SECONDS / 8)
        self._checkup.stop(STOP_SECONDS / 8)
        self._indexer.stop(STOP_SECONDS / 4)
        self._hub.stop(STOP_SECONDS / 2)
        self._runtime.stop(STOP_SECONDS / 4)
        self._mcp.stop()
        self._shell.close()
        self._workers.stop()
        self._quota.stop()
        self._transport.close()
        self._snapshots.stop()
        self._store.close()
        self._workspace.close()

    def health(self) -> Json:
        """What `health_status` reports."""
        return {
            "healthy": True,
            "startup_status": self._startup_status(),
            "model": {"provider": self._model.provider, "model": self._model.id},
            "usage": usage_json(self._runtime.used()),
            "spending": self._spending.summary(),
            "estimates": self._runtime.context.estimates(),
            "scheduler": self._scheduler.state(),
            "store": self._checkup.state(),
            "outbox": self._store.overdue(),
            "mcp": self._mcp.status(),
            "skills": list(self._skills.rows),
            **({"telegram": self._telegram.state()} if self._telegram is not None else {}),
            **self._hub.counts(),
        }

    def _startup_status(self) -> Json:
        """What the runner said, with what is known here of the shell, tool workers and the disk."""
        said = self._envelope.startup_status
        reasons = [*self._degraded, *self._workers.degraded()]
        if self._level == "none":
            reasons.insert(0, UNCAGED)
        if short := self._short():
            detail = f"Commands are paused: {short}. They run again when there is room."
            reasons.append({"code": "low_disk", "detail": detail})
        elif full := self._quota.over():
            detail = f"Commands and file tools write nothing: {full}. Delete what is not needed."
            reasons.append({"code": "workspace_full", "detail": detail})
        if self._telegram is not None and (detail := self._telegram.state()["detail"]):
            reasons.append({"code": "telegram", "detail": f"The Telegram bot: {detail}"})
        reasons += self._mcp.degraded()
        return {
            **said,
            "shell_available": bool(said["shell_available"]) and self._shell.alive,
            "agent_level": self._level,
            "worker_level": self._workers.level,
            "degraded_reasons": reasons,
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the guest until the runner ends it; the exit code is 0 then."""
    options = _parser().parse_args(argv)
    listener = None
    if options.listen_fd is not None:
        listener = socket.socket(fileno=options.listen_fd)
        listener.set_inheritable(False)
    contained = "container" if options.stream_socket is not None else ""
    return _run(_connected(options), partial(_read_bootstrap, options), listener, contained)


def serve_machine(port: Wire, bootstrap: bytes) -> int:
    """The same in a machine of its own, over its port; `bootstrap` is the envelope's frame."""
    return _run(port, partial(read_bootstrap, io.BytesIO(bootstrap)), None, "microvm")


def _run(
    wire: Wire, bootstrap: Callable[[], Envelope], listener: socket.socket | None, contained: str
) -> int:
    install_hooks()
    share_heap()
    log.setup("oxydra-vm", sys.stderr)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a descriptor for each client
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner decides, not a Ctrl+C in its terminal
    with RunnerStream(wire) as stream:
        try:
            envelope = bootstrap()
            form: log.Form = (
                "json" if envelope.runtime_policy.get("log_format") == "json" else "text"
            )
            log.setup("oxydra-vm", sys.stderr, scrub=scrubber_of(envelope).logged, form=form)
            root = Path(envelope.workspace_root)
            level = lock_in(root / "internal", envelope.folders, contained)
            control = stream.start()
            guest = AgentGuest(envelope, stream, listener, level)
            guest.start()
        except OxydraError as error:
            logger.error("%s", error)
            with contextlib.suppress(OSError):
                stream.start().sendall(
                    pack("failed", {"message": error.message, "remedy": error.remedy})
                )
            return error.exit_code
        gc.freeze()  # code and settings stay: looking through them takes 25 ms, now and then
        control.sendall(pack("ready", {}))
        try:
            serve(control, guest, stream)
        finally:
            guest.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="oxydra-vm", description="The agent guest of Oxydra.")
    bootstrap = parser.add_mutually_exclusive_group(required=True)
    bootstrap.add_argument("--bootstrap-stdin", action="store_true", help="the envelope's frame")
    bootstrap.add_argument("--bootstrap-file", type=Path, metavar="F", help="a file that holds it")
    stream = parser.add_mutually_exclusive_group(required=True)
    stream.add_argument("--stream-fd", type=int, metavar="N", help="the stream to the runner")
    stream.add_argument("--stream-socket", metavar="PATH", help="where to connect to the runner")
    parser.add_argument("--listen-fd", type=int, metavar="N", help="the gateway's listener")
    return parser


def _connected(options: argparse.Namespace) -> socket.socket:
    """The stream to the runner. Raises OSError.

    Behind a socket file the runner first passes the descriptor of the workspace's lock, which is
    held from then on as long as this process lives.
    """
    if options.stream_fd is not None:
        inherited = socket.socket(fileno=options.stream_fd)
        inherited.set_inheritable(False)
        return inherited
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(options.stream_socket)
    for lock in socket.recv_fds(stream, 1, 1)[1]:
        os.set_inheritable(lock, False)
    return stream


def _read_bootstrap(options: argparse.Namespace) -> Envelope:
    """Raises `FrameError`."""
    if options.bootstrap_file is None:
        return read_bootstrap(sys.stdin.buffer)
    try:
        with options.bootstrap_file.open("rb") as file:
            return read_bootstrap(file)
    except OSError as error:
        raise FrameError(f"The bootstrap file can't be read: {error.strerror}.") from error


def lock_in(internal: Path, folders: Sequence[Folder], contained: str) -> str:
    """Give up everything but the database's folder and these, for good: "cage", or "none"
    where the kernel can't hold it. Before any thread is started, which would not be held.

    `contained` says in what the process stands alone, as in `container`: then "container+cage", or
    "container" where a part of the cage is missing.
    """
    found = cage.probe()
    if not (found.seccomp and (found.files or contained)):
        return contained or "none"
    os.environ["SQLITE_TMPDIR"] = str(internal)
    if not mimetypes.inited:
        mimetypes.init()  # it reads files of its own accord
    cage.forbid_privileges()
    cage.keep_capabilities(KEPT_CAPABILITIES)
    if found.files:
        readable = [folder.at for folder in folders if not folder.writable]
        writable = [folder.at for folder in folders if folder.writable]
        cage.confine(
            [*cage.SYSTEM, "/proc", "/usr/share/zoneinfo", *_code(), *readable],
            [str(internal), *writable, *cage.DEVICES],
            landlock=found.landlock,
        )
    cage.filter_calls(attributes=False)
    if contained:
        return f"{contained}+cage" if found.files else contained
    return "cage"


def _code() -> list[str]:
    """Where the interpreter and the packages are. Of a checkout only the two folders that hold
    code: beside them may be a configuration, and workspaces. In an image the packages are beside
    them.
    """
    places = [sys.prefix, sys.base_prefix, sys.exec_prefix]
    for entry in filter(None, sys.path):
        checkout = Path(entry, "pyproject.toml").is_file()
        if checkout and Path(entry, "oxydra", "vm.py").is_file():
            places += [f"{entry}/oxydra", f"{entry}/guest"]
        else:
            places.append(entry)
    return [place for place in places if place != "/"]


def caps_of(envelope: Envelope) -> Caps:
    """The user's caps. Raises `FrameError`: none of them is ever left out."""
    try:
        return Caps.from_json(envelope.runtime_policy.get("budget") or {})
    except (ArithmeticError, ValueError, TypeError) as error:
        raise FrameError(f"bootstrap: runtime_policy.budget is broken: {error}.") from None


def remembering(
    store: Store, settings: MemoryConfig, service: embed.Service | None = None
) -> Retrieval:
    """What searches, with the backend that is configured. Raises `ConfigError`."""
    if not settings.enabled:
        return Retrieval(store)
    weights = Weights(settings.retrieval.fts_weight, settings.retrieval.vector_weight)
    return Retrieval(store, embed.create(settings.embedding_backend, service), weights)


def scrubber_of(envelope: Envelope) -> GuestScrubber:
    """What removes this user's secrets from results and logs."""
    places = {folder.at: folder.virtual for folder in envelope.folders}
    return GuestScrubber(envelope.secret_hashes, {envelope.workspace_root: "", **places})


def serve(control: Channel, guest: AgentGuest, stream: RunnerStream) -> None:
    """Answer the runner until it says `shutdown` or the control channel ends."""
    unpacker = Unpacker()
    with contextlib.suppress(ConnectionError):
        while data := control.recv(65536):
            for op, payload in unpacker.feed(data):
                if op == "shutdown":
                    return
                if op == "shell" and (channel := stream.shell()) is not None:
                    guest.attach_shell(channel, used=bool(payload.get("used")))
                reply = {"request_id": payload.get("request_id")}
                if op == "tokens":
                    guest.set_tokens(payload.get("tokens") or [])
                    control.sendall(pack("tokens_set", reply))
                if op == "status":
                    guest.set_degraded(payload.get("degraded_reasons") or [])
                    control.sendall(pack("status_set", reply))
                if op == "health_check":
                    control.sendall(pack("health_status", {**reply, **guest.health()}))
    logger.warning("the runner is gone: the agent guest ends too")


def read_bootstrap(stream: BinaryIO) -> Envelope:
    """The envelope. Raises `FrameError`."""
    unpacker = Unpacker()
    frames = dict(unpacker.feed(stream.read()))
    if "bootstrap" not in frames or not unpacker.empty:
        raise FrameError("The bootstrap stream ended before the envelope was complete.")
    return Envelope.from_json(frames["bootstrap"])
