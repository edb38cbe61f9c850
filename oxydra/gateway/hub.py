"""Sessions, turn queues and fan-out: what the gateway, and later channels and the scheduler, act
through.

Each running turn has a thread of its own, `oxydra-turn-…`, that ends with the turn; at most
`max_concurrent_turns_per_user` run at once, one per session, the longest waiting first, but people
before what nobody waits for. What a turn emits goes to its session's listeners: see `live`.

Locks: the hub's guards which turn waits and runs; each session's guards its numbering, so that
frames leave in the order of their numbers.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from oxydra.budget import Account
from oxydra.config import GatewayConfig
from oxydra.errors import (
    BusyError,
    NotFoundError,
    OxydraError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    UsageError,
)
from oxydra.frames import session_ref, turn_ref
from oxydra.gateway.live import Active, Listener, Live, Soon, Subscriber
from oxydra.runtime import Context, Runtime, Terms, internal_error
from oxydra.store import Store
from oxydra.store.conversation import new_session
from oxydra.threads import SHUTDOWN, Deadline, Service
from oxydra.types import DELEGATED, Attachment, Json, ModelSpec, Session, Turn, TurnState

log = logging.getLogger(__name__)

QUEUE = 16  # turns that may wait in one session
REPLAY_TOTAL = 8 << 20  # bytes kept in all sessions together once they rest
IDLE = 3600.0  # seconds after which a session that nobody uses is in the store only

_STATE_OF = {
    "turn_completed": TurnState.COMPLETED,
    "turn_cancelled": TurnState.CANCELLED,
    "error": TurnState.FAILED,
}


class Hub:
    """The sessions of one user. Every method may be called from any thread."""

    def __init__(self, store: Store, runtime: Runtime, config: GatewayConfig, user_id: str) -> None:
        self.store = store
        self.user_id = user_id
        self.epoch = secrets.token_hex(8)
        self.watch: Callable[[Turn, str, Json], None] = _nobody
        """Told of every frame that a turn emits, on the turn's thread."""
        self.terms_of: Callable[[Turn], tuple[Account | None, Terms | None]] = _usual
        """Who pays for a turn and what limits it, where that is not just as a person's."""
        self.unattended: Callable[[Turn], bool] = lambda _turn: False
        """Whether nobody waits for a turn, so that it waits for people; asked under the lock."""
        self.on_follow: Callable[[Subscriber], None] = lambda _client: None
        """Told of a client that begins to follow a session; it does not wait."""
        self.soon: Soon | None = None
        """Has what is streamed given out, by the gateway; set before the first session is used."""
        self._runtime = runtime
        self._config = config
        self._lock = threading.Lock()
        self._live: dict[str, Live] = {}
        self._numbered = 0  # the highest number in those that were dropped
        self._waiting: deque[Live] = deque()  # sessions with a queued turn and none running
        self._running: dict[str, Active] = {}  # by session
        self._stopping = False

    def start(self) -> None:
        """Take up the turns that a crash or a shutdown left unfinished."""
        self._archive_idle()
        for turn in self.store.unfinished_turns():
            live = self.live(turn.session_id)
            with self._lock:
                self._enqueue(live, turn)
        self._schedule()

    def stop(self, timeout: float) -> bool:
        """Take nothing more, leave running turns to be resumed; True if every turn's thread
        ended.
        """
        deadline = Deadline.after(timeout)
        with self._lock:
            self._stopping = True
            running = list(self._running.values())
        for active in running:
            active.token.cancel(SHUTDOWN)
        ended = [a.service.stop(deadline.remaining()) for a in running if a.service is not None]
        return False not in ended

    # ----------------------------------------------------------------------------------- sessions

    def live(self, session_id: str) -> Live:
        with self._lock:
            live = self._live.get(session_id)
            if live is None:
                live = self._live[session_id] = Live(session_id, self.soon, self._numbered)
            live.asked_at = time.monotonic()
            return live

    def followers(self, session_id: str = "") -> list[Subscriber]:
        """The clients that follow a session, or any, each once."""
        with self._lock:
            lives = [live for live in self._live.values() if session_id in ("", live.session_id)]
        return list(dict.fromkeys(client for live in lives for client in live.followers))

    def subscribe(self, session_id: str, listener: Listener) -> Callable[[], None]:
        """Let somebody in this process hear every frame of a session from now on, as a client does;
        returns what ends that.
        """
        live = self.live(session_id)
        live.listen(listener)
        return partial(live.unlisten, listener)

    def sessions(
        self, *, include_archived: bool = False, include_delegated: bool = False
    ) -> list[Session]:
        """As the store's, once those are archived that were not used for so long."""
        self._archive_idle()
        return self.store.sessions(
            include_archived=include_archived, include_delegated=include_delegated
        )

    def _archive_idle(self) -> None:
        """`[gateway] session_idle_ttl_hours` is looked at when it matters: at the start, where
        sessions are listed, and where they are counted. A message brings a session back.
        """
        if self._config.session_idle_ttl_hours:
            try:
                self.store.archive_idle(self._config.session_idle_ttl_hours)
            except (StoreFullError, StoreBusyError) as error:  # it can wait
                log.warning("idle sessions are not archived for now: %s", error)

    def archive(self, session_id: str) -> None:
        """Put a session away: in the store, and out of memory if nobody ever followed it."""
        self.store.archive_session(session_id)
        with self._lock:
            live = self._live.get(session_id)
            if live is not None and live.idle and not live.followed:
                del self._live[session_id]

    def create_session(
        self,
        *,
        agent_name: str = "default",
        display_name: str = "",
        channel_origin: str = "gateway",
    ) -> Session:
        """Raises `BusyError` at the limit `[gateway] max_sessions_per_user`, `NotFoundError` for an
        agent that there is not.
        """
        self._runtime.agents.get(agent_name)
        self._check_room()
        return self.store.create_session(
            agent_name=agent_name, display_name=display_name, channel_origin=channel_origin
        )

    def new_session(self, *, agent_name: str, display_name: str, channel_origin: str) -> Session:
        """As `create_session`, but stored with its first message only: see `submit`."""
        self._runtime.agents.get(agent_name)
        self._check_room()
        return new_session(agent_name, display_name, channel_origin)

    def fork_session(self, session: Session, display_name: str, at: int | None) -> Session:
        """A new session that begins with a copy of this one, up to the event `at`. Raises
        `BusyError` at the limit, `UsageError` for an event in the middle of something.
        """
        self._check_room()
        return self.store.fork_session(session, display_name, at)

    def _check_room(self) -> None:
        self._archive_idle()
        if self.store.count_sessions() >= self._config.max_sessions_per_user:
            raise BusyError(
                f"There are already {self._config.max_sessions_per_user} sessions.",
                remedy="Raise [gateway] max_sessions_per_user.",
            )

    def model_of(self, agent_name: str) -> ModelSpec:
        """The model that answers first for an agent. Raises `NotFoundError`."""
        return self._runtime.agents.get(agent_name).model

    def tools_of(self, agent: str) -> list[Json]:
        """What an agent may use. Raises `NotFoundError`."""
        return self._runtime.tools_of(agent)

    @property
    def context(self) -> Context:
        """What is sent of each conversation."""
        return self._runtime.context

    @property
    def agents(self) -> tuple[str, ...]:
        """The names of all agents."""
        return self._runtime.agents.names

    def active_turn(self, session_id: str) -> Json | None:
        """A reference to the turn that runs in a session, or to the first one that waits there."""
        with self._lock:
            live = self._live.get(session_id)
            if live is not None and live.active is not None:
                return turn_ref(live.active.turn.turn_id, TurnState.RUNNING)
            if live is not None and live.queue:
                return turn_ref(live.queue[0].turn_id, TurnState.QUEUED)
            return None

    def counts(self) -> Json:
        """How many turns run and wait."""
        with self._lock:
            queued = sum(len(live.queue) for live in self._live.values())
            return {"running_turns": len(self._running), "queued_turns": queued}

    # -------------------------------------------------------------------------------------- turns

    def submit(
        self,
        session_id: str,
        turn_id: str,
        request_id: str,
        prompt: str,
        attachments: tuple[Attachment, ...] = (),
        *,
        tainted: bool = False,
        sensitive: bool = False,
        steer: bool = False,
        opens: Session | None = None,
    ) -> tuple[Turn, bool]:
        """Accept a message durably and queue its turn; False if this turn id was accepted before.
        `tainted` says that others wrote some of it: it is forwarded, quoted, or not the person's;
        `sensitive` that it holds private data.
        With `steer` it joins the turn that runs in the session, before that asks its model again;
        where none runs, or the turn ends before, it is a message like any other. `opens` is the
        session, where it is one of `new_session`.

        Raises `NotFoundError` for an unknown session and `BusyError` when its queue is full.
        """
        session = opens or self.store.session(session_id)
        if session.channel_origin == DELEGATED:
            raise UsageError(
                "This session works for another one: it can be read, and takes no messages.",
                remedy="Write to the session that delegated the work.",
            )
        live = self.live(session_id)
        with self._lock:
            if self._stopping:
                raise BusyError("The daemon is shutting down.", remedy="Send it again in a moment.")
            full = len(live.queue) >= QUEUE
        if full and self.store.turn(turn_id) is None:
            raise BusyError(
                f"{QUEUE} messages already wait in this session.",
                remedy="Wait for an answer, or cancel the running turn.",
            )
        with self._lock:
            joins = live.active.turn.turn_id if steer and live.active is not None else ""
            live.arriving.add(turn_id)
        created = False
        try:
            turn, created = self.store.accept_turn(
                *(session_id, turn_id, request_id, prompt, attachments),
                tainted=tainted,
                sensitive=sensitive,
                joins=joins,
                opens=opens,
            )
        finally:
            with self._lock:
                waits = created and turn_id in live.arriving  # or it has joined already
                live.arriving.discard(turn_id)
                if waits:
                    self._enqueue(live, turn)
                    if live.active is not None or len(live.queue) > 1 or not self._room(turn):
                        live.publish("turn_started", self.address(turn, TurnState.QUEUED))
        self._schedule()
        return turn, created

    def cancel(self, session_id: str, turn_id: str) -> None:
        """Stop a running turn, or take a queued one out. Raises `NotFoundError` if it is
        neither.
        """
        with self._lock:
            live = self._live.get(session_id)
            active = live.active if live is not None else None
            queued = None
            if live is not None and active is not None and active.turn.turn_id == turn_id:
                pass
            elif live is not None:
                active = None
                queued = next((t for t in live.queue if t.turn_id == turn_id), None)
                if queued is not None:
                    live.queue.remove(queued)
        if active is not None:
            active.token.cancel()
        elif queued is not None and live is not None:
            terminal: Json = {"type": "turn_cancelled", "payload": {}}
            try:
                self.store.finish_turn(queued, TurnState.CANCELLED, terminal)
            except (StoreFullError, StoreBusyError):
                raise
            except StoreError:  # it joined the running turn just now
                raise NotFoundError("That message has joined the running turn.") from None
            live.publish("turn_cancelled", self.address(queued, TurnState.CANCELLED))
            self._schedule()  # what was behind it may find a place that it could not take
        else:
            raise NotFoundError("That turn is neither running nor waiting.")

    def cancel_all(self) -> None:
        """Stop every running turn and take every queued one out."""
        with self._lock:
            turns = [t for live in self._live.values() for t in live.queue]
            turns += [active.turn for active in self._running.values()]
        for turn in turns:
            try:
                self.cancel(turn.session_id, turn.turn_id)
            except NotFoundError:
                log.debug("turn %s ended by itself", turn.turn_id)

    def address(self, turn: Turn, state: TurnState, payload: Json | None = None) -> Json:
        """A frame's payload with the references that every frame of a turn carries."""
        return {
            "request_id": turn.request_id,
            "session": session_ref(self.user_id, turn.session_id),
            "turn": turn_ref(turn.turn_id, state),
            **(payload or {}),
        }

    @contextlib.contextmanager
    def at_rest(self, session_id: str) -> Iterator[None]:
        """No turn of this session runs meanwhile; what comes in waits. Raises `UsageError` if one
        is under way.
        """
        live = self.live(session_id)
        with self._lock:
            if live.active or live.queue or live.arriving or live.held:
                raise UsageError(
                    "A turn of this session is not over yet.", remedy="Cancel it, or let it finish."
                )
            live.held = True
        try:
            yield
        finally:
            with self._lock:
                live.held = False
                if live.queue:
                    self._waiting.append(live)
            self._schedule()

    # --------------------------------------------------------------------------------- scheduling

    def _room(self, turn: Turn) -> bool:
        """Under the lock: whether there is a place for this turn. What nobody waits for, as a
        scheduled run, never takes the last one.
        """
        places = self._config.max_concurrent_turns_per_user
        if self.unattended(turn):
            places = max(1, places - 1)
        return len(self._running) < places

    def _next(self) -> Live | None:
        """Under the lock: the session whose turn is next, out of those that wait: people's first,
        and of either kind the one that waits longest.
        """
        self._waiting = deque(live for live in self._waiting if live.queue)
        people = (live for live in self._waiting if not self.unattended(live.queue[0]))
        found = next(people, self._waiting[0] if self._waiting else None)
        if found is None or not self._room(found.queue[0]):
            return None
        self._waiting.remove(found)
        return found

    def _enqueue(self, live: Live, turn: Turn) -> None:
        """Under the lock."""
        live.queue.append(turn)
        if live.active is None and not live.held and live not in self._waiting:
            self._waiting.append(live)

    def _schedule(self) -> None:
        """Start what may run now."""
        while True:
            with self._lock:
                live = None if self._stopping else self._next()
                if live is None:
                    return
                active = live.active = Active(live.queue.popleft())
                self._running[live.session_id] = active
                name = f"turn-{active.turn.turn_id[:12]}"
                active.service = Service(name, partial(self._run, live, active))
                live.publish("turn_started", self.address(active.turn, TurnState.RUNNING))
                active.service.start()  # under the lock: `stop` joins every turn that started

    def _run(self, live: Live, active: Active, _service: Service) -> None:
        """The body of a turn's thread."""
        turn = active.turn

        def emit(frame_type: str, payload: Json) -> None:
            state = _STATE_OF.get(frame_type, TurnState.RUNNING)
            frame = self.address(turn, state, payload)
            self.watch(turn, frame_type, payload)
            if frame_type == "turn_joined":
                with self._lock:
                    self._joined(live, frame["turn"]["turn_id"])
            if not state.terminal:
                live.publish(frame_type, frame)
                return
            with self._lock:  # who reads that the turn has ended finds it ended
                self._retire(live, active)
                live.publish(frame_type, frame)

        try:
            self._runtime.run_turn(turn, active.token, emit, *self.terms_of(turn))
        except Exception as error:
            # Not stored as failed: it is tried again with the next start.
            known = error if isinstance(error, OxydraError) else internal_error()
            emit("error", {"message": str(known), "code": known.code})
        finally:
            with self._lock:
                self._retire(live, active)
            self._trim()
            self._schedule()

    def _trim(self) -> None:
        """Bound what is kept for clients that come back; the sessions that rest longest lose it,
        and are dropped after a while. A client of one reads the history: what is numbered later
        has higher numbers than it has seen.
        """
        with self._lock:
            old = time.monotonic() - IDLE  # since then nobody was given it who may yet use it
            for live in [each for each in self._live.values() if each.asked_at < old]:
                if live.idle:
                    self._numbered = max(self._numbered, live.seq)
                    del self._live[live.session_id]
            resting = [live for live in self._live.values() if live.active is None]
        resting.sort(key=lambda live: live.replay)
        total = sum(live.replay[1] for live in resting)
        for live in resting:
            if total <= REPLAY_TOTAL:
                return
            total -= live.replay[1]
            live.forget()

    def _joined(self, live: Live, turn_id: str) -> None:
        """Under the lock: this message waits no longer, it is part of the running turn."""
        live.arriving.discard(turn_id)
        live.queue = deque(turn for turn in live.queue if turn.turn_id != turn_id)

    def _retire(self, live: Live, active: Active) -> None:
        """Under the lock: this turn is over, the next one of its session may run."""
        if live.active is active:
            live.active = None
            del self._running[live.session_id]
            if live.queue:
                self._waiting.append(live)


def _nobody(_turn: Turn, _frame_type: str, _payload: Json) -> None:
    """Who watches where nobody does."""


def _usual(_turn: Turn) -> tuple[None, None]:
    """The terms of a person's turn."""
    return None, None
