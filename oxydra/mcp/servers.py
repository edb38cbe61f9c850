"""All servers of one user: begun when they are first needed, begun again after they ended, trusted.

A turn's list of tools needs no server: it is what the person trusted, kept in the database. A
server is begun by the first call of one of its tools, on the turn's thread; before each call it is
known what the server says of that tool today, and if that is not what was trusted, the call is
refused until the person has looked. One that fails is begun again no sooner than its pause says,
which doubles.

`oxydra-mcp-look` is there while a server is looked at without a call: for the person, or because
what it says first is to be trusted. `stop` cancels it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from oxydra.config import McpServerConfig
from oxydra.errors import Cancelled, NotFoundError, OxydraError, ToolError, UsageError
from oxydra.mcp.client import Client
from oxydra.mcp.http import HttpLink
from oxydra.mcp.offers import Offer, listing_digest, offers, tool_name
from oxydra.mcp.route import route_name
from oxydra.mcp.stdio import StdioLink
from oxydra.mcp.tools import MORE, McpTool
from oxydra.scrub.terminal import explicit
from oxydra.store import Store
from oxydra.threads import CancelToken, Deadline, Service
from oxydra.tools.registry import matching
from oxydra.tools.shell_client import ShellClient
from oxydra.transport import Transport
from oxydra.types import Json, SafetyTier, Tool, ToolContext

log = logging.getLogger(__name__)

START_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0  # seconds
PATIENCE = 5.0  # seconds of a pause that a call waits for
MAX_LINES = 200  # of a server's log, kept for the person
LOGGED = 500  # lines of it since its start that go into our log
LINE = 2000  # characters


class Diary:
    """The last things a server said for people."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: deque[Json] = deque(maxlen=MAX_LINES)
        self._logged = 0

    def begin(self) -> None:
        self._logged = 0

    def say(self, text: str) -> None:
        line = explicit(text[:LINE].strip())
        if not line:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._lines.append({"time": now, "text": line})
        self._logged += 1
        if self._logged <= LOGGED:
            log.info("mcp server %s: %s", self._name, line)
        elif self._logged == LOGGED + 1:
            log.warning("mcp server %s says too much: the rest is not logged", self._name)

    def lines(self) -> list[Json]:
        return list(self._lines)


@dataclass(frozen=True, slots=True)
class Listing:
    """What a server, found at `source`, said that it offers; `more` are abilities besides tools,
    `wrong` what was left out of it.
    """

    source: str
    about: str
    offers: tuple[Offer, ...]
    more: tuple[str, ...]
    wrong: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        return listing_digest(self.offers, self.more)

    def offer(self, name: str) -> Offer | None:
        return next((offer for offer in self.offers if offer.name == name), None)

    def to_json(self) -> Json:
        return {
            "source": self.source,
            "about": self.about,
            "offers": [offer.to_json() for offer in self.offers],
            "more": list(self.more),
            "wrong": list(self.wrong),
        }

    @classmethod
    def from_json(cls, row: Json) -> Listing:
        return cls(
            row["source"],
            row["about"],
            tuple(map(Offer.from_json, row["offers"])),
            tuple(row["more"]),
            tuple(row["wrong"]),
        )


@dataclass(frozen=True, slots=True)
class Places:
    """Where servers run: `shell` starts programs (None where there is no shell guest), `transport`
    reaches the others. `networked` and `contained` are as for commands; `keys` names those that
    the broker holds a key for.
    """

    shell: ShellClient | None
    transport: Transport
    networked: bool = False
    contained: bool = True
    keys: frozenset[str] = frozenset()


class Server:
    """One server of the configuration. Any thread may call anything."""

    def __init__(
        self,
        name: str,
        config: McpServerConfig,
        places: Places,
        store: Store,
        known: tuple[Json | None, Json | None],
        on_change: Callable[[], None],
    ) -> None:
        self.name = name
        self.config = config
        self.source = config.url or config.command
        self.diary = Diary(name)
        self._places = places
        self._store = store
        self._on_change = on_change
        said, trusted = (None if row is None else Listing.from_json(row) for row in known)
        self._said = said if said is not None and said.source == self.source else None
        ours = trusted is not None and trusted.source == self.source
        self._trusted = trusted if ours else None
        self._client: Client | None = None
        self._link: StdioLink | HttpLink | None = None
        self._changed = threading.Condition()  # guards what follows
        self._starting = False
        self._closed = False
        self._failures = 0
        self._not_before = 0.0
        self._trouble = ""
        self._progress = ""

    # --------------------------------------------------------------------------- what it is to be

    @property
    def trusted(self) -> bool:
        """Whether the person trusted what it said once."""
        return self._trusted is not None

    @property
    def tools(self) -> list[Tool]:
        """Those that the person trusted and wants."""
        if self._trusted is None:
            return []
        config, places = self.config, self._places
        tier = SafetyTier(config.safety_tier)
        wanted = [offer for offer in self._trusted.offers if self._wants(offer.name)]
        taken = {offer.name for offer in wanted}
        made: list[tuple[Offer, Callable[..., McpTool]]] = [(offer, McpTool) for offer in wanted]
        made += [MORE[ability] for ability in self._trusted.more if ability not in taken]
        local = not config.url
        return [
            make(
                *(self, offer, tool_name(self.name, offer.name), tier),
                timeout=config.timeout_secs,
                in_sandbox=local,
                egress=not local or places.networked or not places.contained,
                sensitive=local and not places.contained,
            )
            for offer, make in made
        ]

    def _wants(self, name: str) -> bool:
        wanted = self.config.tools
        return wanted is None or bool(matching(wanted, [name]))

    def check(self, offer: Offer) -> None:
        said = self._said
        if said is not None and not offer.digest and offer.name in said.more:
            return
        now = None if said is None else said.offer(offer.name)
        if now is None:
            raise ToolError(
                f"The MCP server {self.name} does not offer {offer.name} any more.",
                remedy="Nothing was done. Do it in another way, and tell the person.",
                code="mcp_changed",
            )
        if now.digest != offer.digest:
            raise ToolError(
                f"The MCP server {self.name} now says something else of {offer.name} than what the"
                " person trusted, so nothing was sent to it.",
                remedy="Tell the person; it is allowed again by: oxydra-runner mcp-servers trust"
                f" {self.name}.",
                code="mcp_changed",
            )

    def trust(self, digest: str) -> None:
        """From now on what it said last counts, if that is what the person was shown."""
        said = self._said
        if said is None or said.digest != digest:
            raise UsageError(
                f"{self.name} says something else now than what was shown.",
                remedy=f"Look again: oxydra-runner mcp-servers show {self.name}.",
            )
        self._keep(said, said)

    def distrust(self) -> None:
        self._keep(self._said, None)

    def _keep(self, said: Listing | None, trusted: Listing | None) -> None:
        rows = [None if one is None else one.to_json() for one in (said, trusted)]
        self._store.set_mcp_listing(self.name, *rows)
        before, self._said, self._trusted = self._trusted, said, trusted
        if trusted != before:
            self._on_change()

    # ------------------------------------------------------------------------------------ running

    def client(self, context: ToolContext) -> Client:
        return self.session(context.token, context.deadline)

    def session(self, token: CancelToken, deadline: Deadline, *, afresh: bool = False) -> Client:
        """An open session with it, of which it is known what it offers; `afresh`: it is asked in
        any case. Raises `OxydraError`.
        """

        def wake() -> None:
            with self._changed:
                self._changed.notify_all()

        with token.on_cancel(wake), self._changed:
            self._changed.wait_for(
                lambda: token.cancelled or not self._starting, deadline.timeout()
            )
            token.check()
            deadline.check(f"The start of the MCP server {self.name}")
            if self._closed:
                raise ToolError("The MCP servers are being stopped.", code="mcp_lost")
            client = self._client
            if client is not None and client.alive and not client.changed and not afresh:
                return client
            self._starting = True
        try:
            if client is None or not client.alive:
                client = self._begun(client, token, deadline)
            self._look(client, token, deadline)
            return client
        finally:
            with self._changed:
                self._starting = False
                self._changed.notify_all()

    def progress(self, text: str) -> None:
        self._progress = explicit(text[:200])

    def answered(self) -> None:
        self._failures = 0
        self._trouble = self._progress = ""

    def stop(self, *, for_good: bool = False) -> None:
        """End it; unless `for_good`, the next call begins it anew, at once."""
        with self._changed:
            client, self._client = self._client, None
            link, self._link = self._link, None
            self._closed = self._closed or for_good
            self._failures, self._not_before, self._trouble = 0, 0.0, ""
        if client is not None:
            client.peer.end("It was stopped.")
        if link is not None:
            link.close()
            link.join()

    def _begun(self, old: Client | None, token: CancelToken, deadline: Deadline) -> Client:
        """Begin it, after its pause. Raises `ToolError`, `Cancelled`."""
        if old is not None and old.peer.ended:
            if not old.peer.blameless:
                self._failed(old.peer.ended, old.peer.ended_at)
            self._drop()
        pause = self._not_before - time.monotonic()
        if pause > min(PATIENCE, deadline.remaining()):
            raise ToolError(
                f"The MCP server {self.name} does not work: {self._trouble}",
                remedy=f"It is tried again in {pause:.0f} s, or at once after: oxydra-runner"
                f" mcp-servers restart {self.name}.",
                code="mcp_failed",
            )
        token.wait(max(0.0, pause))
        token.check()
        client = Client(self.diary.say)
        self.diary.begin()
        limit = Deadline(min(deadline.at, Deadline.after(START_SECONDS).at))
        try:
            link = self._connected(client, token)
            client.peer.link = self._link = link
            client.open(token, limit)
            if isinstance(link, HttpLink):
                link.version = client.version
            client.opened(limit)
            if isinstance(link, HttpLink) and client.announces:
                link.listen()
        except Cancelled:
            self._drop()
            raise
        except OxydraError as error:
            self._failed(client.peer.ended or error.message, time.monotonic())
            self._drop()
            raise ToolError(
                f"The MCP server {self.name} could not be started: {self._trouble}",
                remedy=getattr(error, "remedy", "")
                or f"Its log may say why: oxydra-runner mcp-servers logs {self.name}.",
                code="mcp_failed",
            ) from error
        with self._changed:
            self._client = client
        about = client.info.get("name")
        log.info("mcp server %s began: %s", self.name, explicit(str(about)[:100]))
        return client

    def _connected(self, client: Client, token: CancelToken) -> StdioLink | HttpLink:
        config, places = self.config, self._places
        if config.url:
            name = route_name(self.name)
            return HttpLink(
                *(self.name, config.url, places.transport, client.peer),
                headers=config.plain_headers,
                credential=name if name in places.keys else "",
            )
        if places.shell is None:
            raise ToolError(
                "It runs in the sandbox of commands, and there is none.",
                remedy="See [tools.shell] and docs/sandbox.md.",
            )
        link = StdioLink(
            self.name, places.shell.server(self.name, token), client.peer, self.diary.say
        )
        link.start()
        return link

    def _drop(self) -> None:
        link, self._link = self._link, None
        with self._changed:
            self._client = None
        if link is not None:
            link.close()
            link.join()

    def _failed(self, why: str, when: float) -> None:
        self._failures += 1
        pause = min(FIRST_PAUSE * 2 ** (self._failures - 1), LONGEST_PAUSE)
        self._not_before = when + pause
        self._trouble = explicit(why[:500])
        self.diary.say(f"[{self._trouble}]")

    def _look(self, client: Client, token: CancelToken, deadline: Deadline) -> None:
        """Ask what it offers, and keep that."""
        rows = client.tools(token, deadline)
        found, wrong = offers(rows, self.config.tools)
        about = " ".join(
            explicit(str(client.info.get(key) or "")[:60]) for key in ("name", "version")
        )
        said = Listing(
            self.source,
            about.strip(),
            tuple(found),
            tuple(name for name in MORE if client.offers(name)),
            tuple(wrong),
        )
        for sentence in wrong:
            self.diary.say(f"[{sentence}]")
        trusted = self._trusted
        if trusted is None and self.config.trust == "first_use":
            trusted = said
        if said != self._said or trusted is not self._trusted:
            self._keep(said, trusted)

    # ----------------------------------------------------------------------------- what people see

    def differences(self) -> Json:
        """What it says now and was not trusted, by the names of tools."""
        trusted, said = self._trusted, self._said
        if trusted is None or said is None:
            return {}
        old = {offer.name: offer.digest for offer in trusted.offers}
        new = {offer.name: offer.digest for offer in said.offers}
        found = {
            "added": [name for name in new if name not in old],
            "changed": [name for name in new if name in old and new[name] != old[name]],
            "removed": [name for name in old if name not in new],
        }
        if trusted.more != said.more:
            found["abilities"] = list(said.more)
        return {kind: names for kind, names in found.items() if names}

    def status(self) -> Json:
        client = self._client
        state = "idle"
        if self._starting:
            state = "starting"
        elif client is not None and client.alive:
            state = "running"
        elif self._failures or (client is not None and client.peer.ended):
            state = "failed"
        said = self._said
        return {
            "name": self.name,
            "kind": "http" if self.config.url else "stdio",
            "source": self.source,
            "state": state,
            "trusted": self.trusted,
            "tools": [tool.spec.name for tool in self.tools],
            "safety_tier": self.config.safety_tier,
            "about": "" if said is None else said.about,
            "version": "" if client is None else client.version,
            "differences": self.differences(),
            "failures": self._failures,
            "detail": self._trouble or (client.peer.ended if client is not None else ""),
            "progress": self._progress,
        }

    def show(self) -> Json:
        """What it said last, for the person to judge."""
        said = self._said
        if said is None:
            return {"name": self.name, "digest": "", "offers": [], "more": [], "wrong": []}
        rows = [
            {"name": o.name, "description": o.description, "schema": o.schema} for o in said.offers
        ]
        return {
            "name": self.name,
            "about": said.about,
            "digest": said.digest,
            "trusted": self._trusted is not None and self._trusted.digest == said.digest,
            "offers": rows,
            "more": list(said.more),
            "wrong": list(said.wrong),
            "differences": self.differences(),
        }


class Servers:
    """All of them. `on_change` is called when other tools are offered than before."""

    def __init__(
        self,
        configured: Mapping[str, McpServerConfig],
        places: Places,
        store: Store,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.on_change = on_change
        known = store.mcp_listings() if configured else {}
        self._servers = {
            name: Server(
                *(name, config, places, store, known.get(name, (None, None))),
                lambda: self.on_change(),
            )
            for name, config in configured.items()
        }
        self._token = CancelToken()
        self._lock = threading.Lock()
        self._lookers: dict[str, Service] = {}
        self._looks: dict[str, str] = {}  # how the last one went wrong

    def tools(self) -> list[Tool]:
        return [tool for server in self._servers.values() for tool in server.tools]

    def start(self) -> None:
        """Look at those of which nothing is trusted and which are to be trusted at once."""
        for server in self._servers.values():
            if server.config.trust == "first_use" and not server.trusted:
                self._look(server)

    def stop(self) -> None:
        self._token.cancel()
        for server in self._servers.values():
            server.stop(for_good=True)
        for looker in list(self._lookers.values()):
            looker.stop()

    def status(self) -> list[Json]:
        return [
            {**server.status(), "looking": self._looking(server.name)}
            for server in self._servers.values()
        ]

    def degraded(self) -> list[Json]:
        """What the person should know of."""
        rows = []
        for row in self.status():
            name = row["name"]
            look = f"Look at it: oxydra-runner mcp-servers trust {name}."
            if row["state"] == "failed" or self._looks.get(name):
                detail = row["detail"] or self._looks.get(name) or ""
                rows.append({"code": "mcp_failed", "detail": f"MCP server {name}: {detail}"})
            if row["differences"]:
                named = ", ".join(
                    f"{kind}: {', '.join(n)}" for kind, n in row["differences"].items()
                )
                detail = f"MCP server {name} says something else than what was trusted ({named})."
                rows.append({"code": "mcp_changed", "detail": f"{detail} {look}"[:1000]})
            elif not row["trusted"] and not row["looking"]:
                detail = (
                    f"MCP server {name} is not trusted yet, so its tools are not offered. {look}"
                )
                rows.append({"code": "mcp_untrusted", "detail": detail})
        return rows

    # ------------------------------------------------------------------------------------ commands

    def command(self, args: Json) -> Json:
        """`mcp`: what there is. `action`: `list`, `show` or `logs` of the server `name`."""
        action = args.get("action") or "list"
        if action == "list":
            return {"servers": self.status()}
        server = self._server(args)
        if action == "show":
            trouble = self._looks.get(server.name, "")
            return {**server.show(), "looking": self._looking(server.name), "trouble": trouble}
        if action == "logs":
            return {"name": server.name, "lines": server.diary.lines()}
        raise UsageError("`action` is list, show or logs.")

    def trust_command(self, args: Json) -> Json:
        """`mcp_trust`: `action` is `look`, which begins the server to hear what it offers; `trust`
        of the `digest` that was shown; `distrust`; or `restart`.
        """
        action, server = args.get("action"), self._server(args)
        if action == "look":
            self._look(server)
        elif action == "trust":
            server.trust(str(args.get("digest") or ""))
        elif action == "distrust":
            server.distrust()
        elif action == "restart":
            server.stop()
        else:
            raise UsageError("`action` is look, trust, distrust or restart.")
        return {"servers": [server.status()]}

    def _server(self, args: Json) -> Server:
        name = args.get("name")
        server = self._servers.get(name) if isinstance(name, str) else None
        if server is None:
            known = ", ".join(self._servers) or "none"
            raise NotFoundError(
                f"There is no MCP server {str(name)[:64]!r}.",
                remedy=f"[mcp.servers.<name>] of agent.toml makes one. There are: {known}.",
            )
        return server

    def _looking(self, name: str) -> bool:
        looker = self._lookers.get(name)
        return looker is not None and looker.alive

    def _look(self, server: Server) -> None:
        """Hear what it offers, on a thread of its own; one at a time."""
        name = server.name

        def look(_service: Service) -> None:
            try:
                server.session(self._token, Deadline.after(START_SECONDS), afresh=True)
            except Cancelled:
                return
            except OxydraError as error:
                self._looks[name] = str(error)
                log.warning("mcp server %s can't be looked at: %s", name, error)

        with self._lock:
            if self._token.cancelled or self._looking(name):
                return
            self._looks.pop(name, None)
            self._lookers[name] = Service("mcp-look", look)
            self._lookers[name].start()
