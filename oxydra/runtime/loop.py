"""The turn loop: ask the model, run the tools it calls, feed the results back, until it answers.

`Runtime.run_turn` runs one turn on the caller's thread, from `queued` to its one terminal frame.
Every step is committed before the next begins, so a turn found `running` after a crash simply goes
on: results that were committed are kept, a tool is asked what became of a call that was running, a
half-streamed answer is asked for again. Whatever is shown goes through `emit`, which never blocks.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Event as Waiting
from threading import Lock
from typing import Any, TypeVar

from oxydra.budget import Account
from oxydra.catalog import priced
from oxydra.config import RuntimeConfig
from oxydra.errors import (
    Cancelled,
    NotFoundError,
    OxydraError,
    ProviderError,
    StoreBusyError,
    StoreFullError,
    UsageError,
)
from oxydra.frames import media_json, message_json, real_call, turn_ref, usage_json
from oxydra.log import fields
from oxydra.policy import VirtualPath
from oxydra.runtime.agents import DEFAULT, Agent, Agents, Terms
from oxydra.runtime.context import Call, Context
from oxydra.runtime.conversation import Conversations
from oxydra.runtime.prompt import SystemPrompt
from oxydra.runtime.recall import Recall, passages
from oxydra.runtime.spending import Spending, directly
from oxydra.runtime.summaries import Material, Summaries
from oxydra.store import Store
from oxydra.threads import SHUTDOWN, CancelToken, Deadline
from oxydra.tools.confine import Workspace
from oxydra.tools.gate import Gate, TurnScope
from oxydra.tools.search import STANDING, fitted
from oxydra.types import (
    ASKED_ONCE,
    DELEGATED,
    Attachment,
    CallState,
    Completed,
    Emit,
    Event,
    FellBack,
    Json,
    Marks,
    Message,
    Meter,
    ModelRequest,
    ModelSpec,
    Provider,
    ReasoningDelta,
    Retrying,
    TextDelta,
    ToolCall,
    ToolSpec,
    Turn,
    TurnState,
    Usage,
)

T = TypeVar("T")
log = logging.getLogger(__name__)

MADE = VirtualPath("shared", ("made",))  # where files go that a model made
OVERFLOW = "context_overflow"
OVERFLOWS = 2  # times that a call is tried again with less, since it was too long
FULL_DISK_WAIT = (1.0, 10.0)  # seconds, first and longest, between attempts to write


class Runtime:
    """Runs turns; several may run at once, each on its own thread and in its own session."""

    def __init__(
        self,
        store: Store,
        provider: Provider,
        model: ModelSpec,
        gate: Gate,
        tools: Sequence[ToolSpec],
        config: RuntimeConfig,
        reasoning: str = "",
        keep: Callable[[Attachment], str] | None = None,
        prompt: SystemPrompt | None = None,
        agents: Iterable[Agent] = (),
        spending: Spending | None = None,
        workspace: Workspace | None = None,
        summarizer: tuple[Provider, ModelSpec] | None = None,
        recall: Recall | None = None,
        search_above: int = 16 << 10,
    ) -> None:
        """`keep` puts a file that a model made into `MADE`, and says under which path. `provider`,
        `model` and `reasoning` are the default agent's, unless `agents` has it too. `workspace`
        takes what is left out of old results; `summarizer` makes summaries in the place of each
        agent's own model; `recall` says what is recalled before a turn, None: nothing. Beyond
        `search_above` bytes of definitions, tools of other programs are not in the requests.
        """
        self.search_above = search_above
        self.keep = keep
        self.recall = recall
        self.store = store
        default = Agent(DEFAULT, provider, model, reasoning, max_turns=config.max_turns)
        self.agents = Agents(default, agents)
        self.gate = gate
        self.tools = tuple(tools)  # all that there are
        self.config = config
        self.prompt = prompt or SystemPrompt([tool.name for tool in self.tools])
        self.conversations = Conversations(store, self.prompt)
        self.spending = spending or Spending(store)
        self.context = Context(
            store,
            config,
            self.conversations,
            Summaries(store, summarizer, spent=lambda of, usage: self.used(priced(of, usage))),
            self.spending,
            workspace,
            lambda: gate.reached,
        )
        self._used = Usage()
        self._runs: dict[str, Run] = {}  # by turn
        self._lock = Lock()  # guards these two

    def used(self, more: Usage | None = None) -> Usage:
        """What all turns since the start have used, with `more` added to it."""
        with self._lock:
            if more is not None:
                self._used += more
            return self._used

    def requested(
        self, allowed: Sequence[ToolSpec], before: Sequence[ToolSpec] = ()
    ) -> tuple[ToolSpec, ...]:
        """What of the tools that a turn may use is in its requests; `before`: in those before it,
        which stays as it is if it can, for the provider's cache.
        """
        standing = [tool for tool in self.tools if tool.name in STANDING]
        return fitted(allowed, standing, self.search_above, before)

    def tools_of(self, agent: str) -> list[Json]:
        """What an agent may use, for people. Raises `NotFoundError`."""
        allowed = self.agents.get(agent).offered(self.tools)
        requested = {tool.name for tool in self.requested(allowed)}
        return self.gate.report(requested.union(tool.name for tool in allowed), requested)

    def run_of(self, turn_id: str) -> Run:
        """A turn that runs now, for what is done on its behalf. Raises `NotFoundError`."""
        with self._lock:
            run = self._runs.get(turn_id)
        if run is None:
            raise NotFoundError(f"The turn {turn_id!r} does not run.")
        return run

    def stop(self, timeout: float = 5.0) -> bool:
        """Give up summaries that are being made; True if their threads ended."""
        return self.context.stop(timeout)

    def run_turn(
        self,
        turn: Turn,
        token: CancelToken,
        emit: Emit,
        account: Account | None = None,
        terms: Terms | None = None,
    ) -> None:
        """Run `turn` until it is terminal, or until `token` is cancelled with reason `SHUTDOWN`.

        Exactly one terminal frame is stored and then emitted. Never raises for what a model, a tool
        or a provider does. `account` says who pays, where it is not just the one who sent the
        message: a schedule with its cap, or the turn that delegated this one; `terms` limit it.
        """
        run = Run(self, turn, token, emit, account, terms or Terms())
        with self._lock:
            self._runs[turn.turn_id] = run
        with fields(session=turn.session_id, turn=turn.turn_id):
            try:
                run.run()
            except _LeaveRunning:
                log.info("left running: it resumes with the next start")
            except Exception:
                self.conversations.forget(turn.session_id)
                log.exception("the turn could not be brought to its end")
                raise
            finally:
                with self._lock:
                    del self._runs[turn.turn_id]


class _LeaveRunning(Exception):
    """The process is ending; the turn stays as it is in the store."""


@dataclass(slots=True)
class _Ending:
    state: TurnState
    frame: str
    payload: Json
    message: Message | None = None


class Run:
    """One turn on its way."""

    def __init__(
        self,
        runtime: Runtime,
        turn: Turn,
        token: CancelToken,
        emit: Emit,
        account: Account | None,
        terms: Terms,
    ) -> None:
        self.terms = terms
        self.runtime = runtime
        self.store = runtime.store
        self.turn = turn
        self.token = token
        self.emit = emit
        own = Deadline.after(runtime.config.turn_timeout_secs)
        self.deadline = Deadline(min(own.at, terms.deadline.at))
        self.account = account or Account(turn.turn_id, turn.session_id)
        self.partial: list[str] = []  # what the current model call has streamed
        self.unsent: list[str] = []  # of it, what was not emitted yet
        self.usage = Usage()
        self.agent = runtime.agents.get(DEFAULT)  # until it is known whose session it is
        self.tools: tuple[ToolSpec, ...] = ()  # all that it may use
        self.shown: tuple[ToolSpec, ...] = ()  # those that are in its requests
        self.written: dict[str, str] = {}  # the names that the model gave its calls, by their ids
        self.answering = self.agent.model  # the model that answered last
        self.steps = 0  # model calls made
        self.calling: dict[str, ToolCall] = {}  # the calls of the current step
        self.repeated: Counter[tuple[str, str, str]] = Counter()  # call and result, how often

    def run(self) -> None:
        try:
            ending = self._work()
        except _LeaveRunning:
            raise
        except Cancelled:
            if self.token.reason == SHUTDOWN:
                raise _LeaveRunning from None
            ending = _Ending(
                TurnState.CANCELLED, "turn_cancelled", {}, self._kept_partial("cancelled")
            )
        except OxydraError as error:
            log.warning("the turn failed: %s", error)
            ending = self._failed(error)
        except Exception:
            log.exception("the turn failed")
            ending = self._failed(internal_error())
        self._durably(
            lambda: self.store.finish_turn(
                self.turn,
                ending.state,
                {"type": ending.frame, "payload": ending.payload},
                ending.message,
            )
        )
        if ending.message is not None:
            self.conversation.messages.append(ending.message)
        plan = self._summary_to_make() if ending.state is TurnState.COMPLETED else None
        self.emit(ending.frame, ending.payload)
        if plan is not None:
            self.runtime.context.begin(plan)

    def _summary_to_make(self) -> Material | None:
        """What is worth a summary now that the turn is over; the turn does not fail for it."""
        if self.session.channel_origin in (DELEGATED, ASKED_ONCE):
            return None  # nobody goes on in it
        try:
            return self.runtime.context.plan(self.conversation, self._call(later=True))
        except OxydraError as error:
            log.warning("no summary is made after this turn: %s", error)
            return None

    def _work(self) -> _Ending:
        session = self.session = self.store.session(self.turn.session_id)
        if session.agent_name in self.runtime.agents:
            self._serve(self.runtime.agents.get(session.agent_name))
        offered = [tool.name for tool in self.tools]
        self.conversation = self.runtime.conversations.get(session, offered)
        kept = self.conversation.tools
        shown = self.runtime.requested(self.tools, kept)
        self.shown = self.conversation.tools = kept if kept == shown else shown
        if self.turn.state is TurnState.QUEUED:
            recalled = self._recalled()
            event = self._durably(lambda: self.store.start_turn(self.turn, recalled))
            if recalled is not None:
                self.conversation.messages.append(recalled)
                self._progress("recall", f"Recalled from memory: {passages(recalled)}")
            self._add_said(event)
            self.runtime.agents.get(session.agent_name)  # nobody else may go on in its place
        else:
            self.runtime.agents.get(session.agent_name)
            self._resume()
        limit = min(self.agent.max_turns, self.terms.max_turns or self.agent.max_turns)
        while self.steps < limit:
            self.token.check()
            self.deadline.check("The turn")
            self._take_steering()
            completed = self._ask_model()
            if not completed.message.tool_calls:
                return self._completed(completed)
            self._run_tools(completed.message)
        raise OxydraError(
            f"The turn was stopped after {limit} model calls.",
            remedy="Ask it to go on, or raise [runtime] max_turns.",
            code="max_turns",
        )

    def _serve(self, agent: Agent) -> None:
        """This is whose turn it is."""
        self.agent = agent
        self.tools = agent.offered(self.runtime.tools, self.terms.tools)
        self.answering = agent.model

    @property
    def hidden(self) -> list[ToolSpec]:
        """What it may use that is not in the requests."""
        shown = {tool.name for tool in self.shown}
        return [tool for tool in self.tools if tool.name not in shown]

    def _recalled(self) -> Message | None:
        """What memory has for this turn's message."""
        if self.runtime.recall is None or not self.terms.recall:
            return None
        return self.runtime.recall.before(
            self.turn, self.session, self.conversation, self.agent.model, self.token
        )

    def _resume(self) -> None:
        """Go on with a turn that a crash or a shutdown interrupted."""
        self._durably(lambda: self.store.note_resumed(self.turn))
        self.steps = self.store.steps(self.turn.turn_id)
        self._progress("resumed", "Going on after a restart")
        begun: list[ToolCall] = []
        again: list[ToolCall] = []
        for call, state in self.store.open_calls(self.turn.turn_id):
            repeat = state is CallState.INTENDED or self.runtime.gate.may_repeat(call.name)
            (again if repeat else begun).append(call)
        if begun:  # the oldest of all: what did nothing runs again before the others
            again[:0] = self.runtime.gate.recover(begun, self._scope(begun), self.emit)
        if again:
            self._execute(again)

    def _take_steering(self) -> None:
        """What the person said to the running turn, since its last model call."""
        for said, event in self._durably(lambda: self.store.join_turn(self.turn)):
            self._add_said(event)
            joined = turn_ref(said.turn_id, TurnState.JOINED)
            payload = {"request_id": said.request_id, "turn": joined, "into": self.turn.turn_id}
            self.emit("turn_joined", payload)

    def _add_said(self, event: Event) -> None:
        """A message of the person's is part of the conversation now."""
        self.conversation.messages.append(event.message)
        said = partial(self.runtime.context.said, event.session_id, event.sequence, event.message)
        self._durably(said)

    def _call(self, *, later: bool = False) -> Call:
        """The next model call, as its request has to be fitted; `later`: what comes after the turn,
        for which nobody waits.
        """
        durably = directly if later else self._durably
        return Call(
            turn_id=self.turn.turn_id,
            provider=self.agent.provider,
            model=self.agent.model,
            tools=self.shown,
            token=self.token,
            deadline=self.deadline,
            meter=self.meter("summary", durably),
            say=partial(self._progress, "rolling_summary"),
            durably=durably,
        )

    def _ask_model(self) -> Completed:
        """One answer, in which the context may be fitted anew if a provider finds it too long."""
        self.steps += 1
        self._progress("provider_call", f"Asking {self.agent.model.id}")
        call, before = self._call(), self.conversation.ceiling
        refused: ProviderError | None = None
        for _ in range(1 + OVERFLOWS):
            try:
                messages = self.runtime.context.messages(self.conversation, call)
            except OxydraError as error:
                self.conversation.ceiling = before
                raise refused if refused is not None and error.code == OVERFLOW else error from None
            try:
                return self._ask(messages)
            except ProviderError as error:
                if error.code != OVERFLOW:
                    raise
                refused = error
                self._progress("retry", f"{error.message} Less of the conversation is sent.")
                self.runtime.context.refused(self.conversation, call, self.answering)
        self.conversation.ceiling = before
        assert refused is not None
        raise refused

    def _ask(self, messages: Sequence[Message]) -> Completed:
        self.partial.clear()
        request = ModelRequest(
            model=self.agent.model,
            messages=messages,
            tools=self.shown,
            session_id=self.turn.session_id,
            deadline=self.deadline,
            reasoning=self.agent.reasoning,
            on_wait=self._show,
            meter=self.meter(),
        )
        completed: Completed | None = None
        answering = self.agent.model
        try:
            for event in self.agent.provider.stream(request, self.token):
                if isinstance(event, TextDelta):
                    self.partial.append(event.text)
                    self.unsent.append(event.text)
                    if event.more:
                        continue
                self._show()
                match event:
                    case ReasoningDelta(text):
                        self.emit("reasoning_delta", {"delta": text})
                    case Retrying(attempt, reason, seconds):
                        self.partial.clear()
                        self._progress("retry", f"{reason} Attempt {attempt} in {seconds:.1f} s.")
                    case FellBack(provider, model, reason):
                        self.partial.clear()
                        answering = model
                        if model != self.answering:  # said once, not at every call of the turn
                            said = f"{reason} Asking {model.id} of {provider}."
                            self._progress("fallback", said)
                        self.answering = model
                    case Completed():
                        completed = event
        finally:
            self._show()
        if completed is None:
            raise OxydraError(f"{self.agent.provider.name} ended its stream without an answer.")
        completed = self._with_files(completed)
        usage = priced(answering, completed.usage)
        self.usage += usage
        self.runtime.used(usage)
        return completed

    def meter(
        self, purpose: str = "turn", durably: Callable[[Callable[[], Any]], Any] | None = None
    ) -> Meter:
        """Who pays for a call of this turn: what `ModelRequest.meter` takes."""
        return self.runtime.spending.meter(self.payer(purpose), durably or self._durably)

    def payer(self, purpose: str = "turn") -> Account:
        """Who pays for what this turn does, with the caps that hold for it."""
        caps = (self.account.max_cost, self.runtime.config.max_cost, self.agent.max_cost)
        return replace(
            self.account,
            agent=self.agent.name,
            purpose=purpose,
            max_cost=min((cap for cap in caps if cap is not None), default=None),
        )

    def _with_files(self, completed: Completed) -> Completed:
        """An answer whose text says where the files are that the model made."""
        message = completed.message
        if self.runtime.keep is None or not message.attachments:
            return completed
        if marks := self.marks():
            self.mark_files([str(MADE)], marks)
        said = []
        for attachment in message.attachments:
            where = self.runtime.keep(attachment)
            said.append(f"[{attachment.mime_type}: {where}]")
            if where.startswith("/"):  # else it says why it is nowhere
                self.emit("media_attachment", {"attachment": media_json(attachment, where)})
        text = ("\n\n" if message.content else "") + "\n".join(said)
        self.unsent.append(text)
        self._show()
        message = replace(message, content=message.content + text, wire={})
        return replace(completed, message=message)

    def _show(self) -> None:
        """Emit what was streamed since: at the latest before the stream waits for more, so that
        deltas that arrived together leave together and none is held back.
        """
        if self.unsent:
            text = "".join(self.unsent)
            self.unsent.clear()
            self.emit("assistant_delta", {"delta": text})

    def _run_tools(self, message: Message) -> None:
        calls = [real_call(call) for call in message.tool_calls]
        self._durably(lambda: self.store.add_step(self.turn, message, calls))
        self.conversation.messages.append(message)
        self.partial.clear()
        self._execute(calls)

    def _scope(self, calls: Sequence[ToolCall]) -> TurnScope:
        """What the gate is told of the turn that makes these calls."""
        self.calling = {call.id: call for call in calls}
        said = reversed(self.conversation.messages)
        written = next((m.tool_calls for m in said if m.tool_calls), ())
        self.written = {call.id: call.name for call in written}
        marks = self.marks()
        return TurnScope(
            session_id=self.turn.session_id,
            turn_id=self.turn.turn_id,
            token=self.token,
            journal=self,
            deadline=self.deadline,
            step=self.steps,
            max_steps=min(self.agent.max_turns, self.terms.max_turns or self.agent.max_turns),
            tainted=marks.tainted,
            sensitive=marks.sensitive,
            tools=frozenset(tool.name for tool in (*self.tools, *self.shown)),
            attended=self.terms.attended,
            asked_by=self.terms.asked_by,
            vault=self.terms.vault,
        )

    def _execute(self, calls: Sequence[ToolCall]) -> None:
        self.runtime.gate.run(calls, self._scope(calls), self.emit)
        stop_after = self.runtime.config.loop_guard.stop_after
        if stop_after and self.repeated and max(self.repeated.values()) >= stop_after:
            raise OxydraError(
                f"The turn was stopped: the model made the same call {stop_after} times and got the"
                " same result each time.",
                remedy="Say it in another way, or raise [runtime.loop_guard] stop_after.",
                code="loop",
            )

    def marks(self) -> Marks:
        """What the conversation holds so far."""
        return self.conversation.marks

    # ------------------------------------------------------------------- the gate's journal

    def calls_running(self, running: Sequence[str]) -> None:
        self._durably(lambda: self.store.calls_running(self.turn, running))

    def calls_finished(
        self,
        results: Sequence[tuple[CallState, Message]],
        running: Sequence[str] = (),
        took: Sequence[int] = (),
    ) -> None:
        results = [(state, self._roomy(self._guarded(message))) for state, message in results]
        self._durably(lambda: self.store.calls_finished(self.turn, results, running, took))
        self.conversation.messages.extend(message for _state, message in results)

    def _roomy(self, result: Message) -> Message:
        """A result without its images where those of all conversations have no more room."""
        try:
            self.store.files.check_room(result.attachments)
        except UsageError as error:
            log.warning("the images of a result are not kept: %s", error)
            return replace(result, attachments=(), wire={})
        return result

    def marks_of(self, paths: Sequence[str]) -> Marks:
        return self.store.marks_of(paths)

    def mark_files(self, paths: Sequence[str], marks: Marks) -> None:
        self._durably(lambda: self.store.mark_files(paths, marks))

    def _guarded(self, result: Message) -> Message:
        """A result as the answer to what the model wrote, with a warning where the same call has
        brought it too often.
        """
        call = self.calling.get(result.tool_call_id)
        name = self.written.get(result.tool_call_id, result.name)
        if name != result.name:
            result = replace(result, name=name)
        if call is None:
            return result
        key = (call.name, call.arguments, result.content)
        self.repeated[key] += 1
        warn_after = self.runtime.config.loop_guard.warn_after
        if not warn_after or self.repeated[key] < warn_after:
            return result
        warning = (
            f"\n\n[This call has now brought this same result {self.repeated[key]} times. Repeating"
            " it will not help: do something else, or say what is in the way.]"
        )
        return replace(result, content=result.content + warning)

    # ------------------------------------------------------------------------------------- endings

    def _completed(self, completed: Completed) -> _Ending:
        message = completed.message
        shown = message_json(message)
        shown.pop("native", None)
        payload = {
            "response": {
                "message": {"tool_calls": [], **shown},
                "tool_calls": [],
                "finish_reason": completed.finish_reason,
                "usage": usage_json(self.usage),
            }
        }
        return _Ending(TurnState.COMPLETED, "turn_completed", payload, message)

    def _failed(self, error: OxydraError) -> _Ending:
        payload: Json = {"message": str(error), "code": error.code}
        if after := getattr(error, "retry_after", None):
            payload["retry_after_ms"] = round(1000 * after)
        return _Ending(TurnState.FAILED, "error", payload, self._kept_partial("cut off"))

    def _kept_partial(self, why: str) -> Message | None:
        """What was streamed before the turn ended early: people saw it, so the model is told of
        it.
        """
        text = "".join(self.partial)
        return Message("assistant", f"{text}\n\n[{why}]") if text else None

    # ------------------------------------------------------------------------------------- helpers

    def _progress(self, kind: str, message: str) -> None:
        self.emit(
            "turn_progress",
            {
                "progress": {
                    "kind": {"kind": kind},
                    "message": message,
                    "turn": self.steps,
                    "max_turns": self.agent.max_turns,
                }
            },
        )

    def _durably(self, write: Callable[[], T]) -> T:
        """Do `write`; while the disk is full or another program holds the database, say so, give up
        the ballast, and try again rather than lose the step.
        """
        pause, longest = FULL_DISK_WAIT
        while True:
            try:
                return write()
            except (StoreFullError, StoreBusyError) as error:
                log.error("%s", error)
                self._progress("retry", str(error))
                if isinstance(error, StoreFullError) and self.store.release_ballast():
                    continue
                if self.token.cancelled:
                    if self.token.reason == SHUTDOWN:
                        raise _LeaveRunning from None
                    Waiting().wait(pause)  # cancelled, but that too has to be written
                else:
                    self.token.wait(pause)
                pause = min(2 * pause, longest)


def internal_error() -> OxydraError:
    """A defect of ours, as a person is told of it."""
    return OxydraError(
        "Something went wrong inside Oxydra; the turn was stopped.",
        remedy="The log has the details: logs/runtime.log in the workspace.",
    )
