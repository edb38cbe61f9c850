"""What is sent of a conversation: fitted into the model's context before each call.

While a conversation is small nothing is done, and each request extends the bytes of the one before.
Once it has grown past a mark, old results are shortened all at once; where that is not enough, the
beginning gives way to a summary: after the turn, so that nobody waits, or at once where the next
call would not fit. `fitting` decides, `summaries` makes summaries, this does what they say and
keeps it: what was shortened or summarized stays so in the requests that follow and after a restart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from oxydra.budget import estimate_message
from oxydra.budget.tokens import REQUEST_TOKENS
from oxydra.config import RuntimeConfig
from oxydra.errors import OxydraError, UsageError
from oxydra.runtime import fitting, pins
from oxydra.runtime.conversation import Conversation, Conversations, told
from oxydra.runtime.spending import Spending, directly
from oxydra.runtime.summaries import CALL_SECONDS, Material, Summaries
from oxydra.store import Store
from oxydra.threads import CancelToken, Deadline
from oxydra.tools import outputs
from oxydra.tools.confine import Workspace
from oxydra.types import Json, Marks, Message, Meter, ModelSpec, Pin, Provider, Summary, ToolSpec

log = logging.getLogger(__name__)

LEAST_SUMMARY = 32  # tokens
ROUNDS = 4  # summaries, one upon the other, before one call
LOOK_AGAIN = 0.05  # of the room: growth after which shortening is looked into again
REFUSED = 0.7  # of a request that was too long for its provider is tried next


Last: TypeAlias = Callable[[Sequence[Message]], int]


def _newest(messages: Sequence[Message]) -> int:
    """The last resort: of what came after the last answer, only the newest message stays."""
    return max(
        (index for index, message in enumerate(messages) if message.role == "user"),
        default=fitting.last_step(messages),
    )


@dataclass(frozen=True, slots=True)
class Call:
    """The model call that a request is made for. `meter` answers for the cost of summaries, `say`
    tells people that they have to wait for one, `durably` does a write, again and again where there
    is no room for it.
    """

    turn_id: str
    provider: Provider
    model: ModelSpec
    tools: Sequence[ToolSpec]
    token: CancelToken
    deadline: Deadline
    meter: Meter | None = None
    say: Callable[[str], None] = lambda _text: None
    durably: Callable[[Callable[[], Any]], Any] = directly


class Context:
    """Fits the conversations of one user. Safe to use from several turns at once."""

    def __init__(
        self,
        store: Store,
        config: RuntimeConfig,
        conversations: Conversations,
        summaries: Summaries,
        spending: Spending,
        workspace: Workspace | None = None,
        reached: Callable[[], bool] = lambda: False,
    ) -> None:
        """`workspace` takes what is left out of results, but no private data while it is `reached`
        by what could send that off the machine.
        """
        self._store = store
        self._config = config
        self._conversations = conversations
        self._summaries = summaries
        self._spending = spending
        self._calibrations = spending.calibrations
        self._workspace = workspace
        self._reached = reached

    # --------------------------------------------------------------------------------- one call

    def messages(self, conversation: Conversation, call: Call) -> list[Message]:
        """The messages of the next request. Raises `OxydraError` (`context_overflow`) if what must
        be in it does not fit, and `Cancelled`.
        """
        self._catch_up(conversation, call.model)
        room = self._room(conversation, call.model)
        if self._size(conversation, call) > room.trigger:
            self._shorten(conversation, call, room)
            if self._size(conversation, call) > room.limit:
                self._shrink(conversation, call, room)
        return conversation.request()

    def refused(self, conversation: Conversation, call: Call, answering: ModelSpec) -> None:
        """A provider said that the request was too long: from now on less is sent."""
        tried = int(self._size(conversation, call) * REFUSED)
        own = fitting.room(answering, self._config, self._calibrations.of(answering)).limit
        conversation.ceiling = min(tried, own, conversation.ceiling or tried)
        conversation.tried = 0
        log.warning("a request was too long: at most %d tokens from now on", conversation.ceiling)

    def _catch_up(self, conversation: Conversation, model: ModelSpec) -> None:
        """Count what is new, and take in a summary that was made meanwhile."""
        conversation.count(model, self._store)
        made = self._summaries.take(conversation.session_id)
        if made is not None and made.epoch == conversation.epoch + 1:
            self._adopt(conversation, made, model)

    def _adopt(self, conversation: Conversation, made: Summary, model: ModelSpec) -> None:
        conversation.adopt(made)
        conversation.forget_pins()  # a summary may have found some
        conversation.count(model, self._store)
        covered = [pin for pin in conversation.pins if pin.sequence <= conversation.base]
        if lost := pins.missing(covered, conversation.head):
            raise OxydraError(
                f"A rule would have been lost with the summary: {lost[0].text}",
                remedy="This is a defect; /unpin takes the rule out.",
            )

    def _room(self, conversation: Conversation, model: ModelSpec) -> fitting.Room:
        known = self._calibrations.of(model)
        return fitting.room(model, self._config, known, conversation.ceiling)

    def _size(self, conversation: Conversation, call: Call) -> int:
        tools = self._spending.tool_tokens(call.tools, call.model)
        return REQUEST_TOKENS + tools + conversation.tokens

    # ---------------------------------------------------------------------------- results, first

    def _shorten(self, conversation: Conversation, call: Call, room: fitting.Room) -> None:
        """Shorten old results down to the target, if there is enough to gain."""
        size = self._size(conversation, call)
        soon = size < conversation.tried + room.limit * LOOK_AGAIN
        if conversation.tried and soon and size <= room.limit:
            return
        conversation.tried = size
        excess = size - room.target
        found = fitting.to_shorten(
            conversation.sent, conversation.counts, excess, room, conversation.done
        )
        self._cut_results(conversation, call, dict.fromkeys(found, room.kept_bytes))
        if found:
            conversation.tried = 0

    def _cut_results(self, conversation: Conversation, call: Call, kept: dict[int, int]) -> None:
        """Shorten these results, by index, to so many bytes; the whole of each stays readable."""
        if not kept:
            return
        first = conversation.base + 1
        events = self._store.events(
            conversation.session_id, [first + index for index in sorted(kept)]
        )
        marks = Marks()
        for event in events:
            marks |= Marks(event.message.tainted, event.message.sensitive)
        if marks:  # before it is there
            call.durably(lambda: self._store.mark_files([str(outputs.FOLDER)], marks))
        contents = {}
        reached = self._reached()
        for event in events:
            index = event.sequence - first
            contents[event.sequence] = outputs.shorten(
                event.message.content,
                kept[index],
                f"{event.turn_id}-{event.message.tool_call_id}",
                f"{event.turn_id}-event-{event.sequence}",  # a call's id may come again
                None if reached and event.message.sensitive else self._workspace,
            )
        if self._workspace is not None:
            outputs.prune(self._workspace)
        call.durably(lambda: self._store.shorten(conversation.session_id, contents))
        for sequence, content in contents.items():
            conversation.shorten(sequence - first, content, call.model)
        log.info("%d results were shortened", len(contents))

    # --------------------------------------------------------------------------- then a summary

    def _shrink(self, conversation: Conversation, call: Call, room: fitting.Room) -> None:
        """Bring down what does not fit at all."""
        step = fitting.last_step(conversation.sent)
        self._share(conversation, call, room, step, room.limit // 2)
        if self._size(conversation, call) <= room.limit:
            return
        for last in (fitting.last_step, _newest):
            for _ in range(ROUNDS):
                if self._summaries.wait(conversation.session_id, call.token, call.deadline):
                    self._catch_up(conversation, call.model)
                elif not self._summarize(conversation, call, room, last):
                    break
                if self._size(conversation, call) <= room.limit:
                    return
        self._share(conversation, call, room, 0, 0)
        size = self._size(conversation, call)
        if size > room.whole:
            raise OxydraError(
                f"This is too long for {call.model.id}: what must be sent has about {size:,} tokens"
                f" by estimate, and {room.whole:,} fit.",
                remedy="Send less at once (a file in /shared can be read in parts), take rules out"
                " (/pins), or choose a model with a larger context.",
                code="context_overflow",
            )

    def _summarize(
        self, conversation: Conversation, call: Call, room: fitting.Room, last: Last
    ) -> bool:
        """Make a summary while the turn waits; whether there was anything to summarize."""
        material = self._material(conversation, call, room, last)
        if material is None:
            return False
        call.say("Summarizing the earlier conversation")
        deadline = Deadline(min(call.deadline.at, Deadline.after(CALL_SECONDS).at))
        made = self._summaries.make(material, call.token, deadline, call.durably)
        if made is None:  # another one was stored meanwhile
            made = self._store.summary(conversation.session_id)
        if made is None or not conversation.base < made.through:
            return False
        self._adopt(conversation, made, call.model)
        return True

    def _material(
        self, conversation: Conversation, call: Call, room: fitting.Room, last: Last
    ) -> Material | None:
        """What the next summary covers, up to what `last` gives; None if nothing can be."""
        fixed = self._size(conversation, call) - sum(conversation.counts)
        if conversation.summary is not None:
            fixed -= estimate_message(told(conversation.summary), call.model)
        wanted = room.target - fixed - room.summary
        most = room.trigger - fixed - room.summary
        cut = fitting.where_to_cut(
            conversation.messages,
            conversation.counts,
            wanted,
            most,
            self._config.summarization.min_turns,
            last(conversation.messages),
        )
        if not cut:
            return None
        replaced = sum(conversation.counts[:cut])
        if conversation.summary is not None:
            replaced += estimate_message(told(conversation.summary), call.model)
        base = conversation.base
        covered = [(base + n, m) for n, m in enumerate(conversation.messages[:cut], 1)]
        carried = [estimate_message(m, call.model) for _, m in conversation.carried]
        carries = fitting.carried(
            conversation.carried,
            covered,
            [*carried, *conversation.counts[:cut]],
            int(room.limit * fitting.CARRIED),
            newest=all(message.role != "user" for message in conversation.messages[cut:]),
        )
        return Material(
            session_id=conversation.session_id,
            previous=conversation.summary,
            messages=tuple(conversation.messages[:cut]),
            through=base + cut,
            carries=carries,
            most=min(room.summary, max(replaced // 2, LEAST_SUMMARY)),
            provider=call.provider,
            model=call.model,
            meter=call.meter,
        )

    def _share(
        self, conversation: Conversation, call: Call, room: fitting.Room, begin: int, least: int
    ) -> None:
        """Let the results from the index `begin` on share what room there is for them, `least`
        tokens in any case.
        """
        size, sent = self._size(conversation, call), conversation.sent
        results = [i for i in range(begin, len(sent)) if sent[i].role == "tool"]
        if size <= room.limit or not results:
            return
        taken = sum(conversation.counts[index] for index in results)
        each = max(least, room.limit - (size - taken)) // len(results)
        kept = max(fitting.LEAST_KEPT, each * 2)
        long = [index for index in results if len(sent[index].content) > kept]
        self._cut_results(conversation, call, dict.fromkeys(long, kept))

    # ------------------------------------------------------------------------- around the turns

    def plan(self, conversation: Conversation, call: Call) -> Material | None:
        """What is worth summarizing once this turn is over; None if all is well."""
        conversation.count(call.model, self._store)
        room = self._room(conversation, call.model)
        size = self._size(conversation, call)
        if size <= room.trigger:
            return None
        if fitting.to_shorten(
            conversation.sent, conversation.counts, size - room.target, room, conversation.done
        ):
            return None  # that comes first, with the next request
        material = self._material(conversation, call, room, fitting.last_step)
        if material is None or material.most < room.summary:
            return None  # too little to be worth a call
        return material

    def begin(self, material: Material) -> None:
        """Make a summary without anybody waiting."""
        self._summaries.begin(material)

    def settled(self, session_id: str) -> None:
        """A session's past is about to change: no summary of it as it was may come after. Raises
        `UsageError` while one is being made.
        """
        if not self._summaries.drop(session_id):
            raise UsageError(
                f"A summary of the session {session_id} is being made.",
                remedy="Do it again in a moment.",
            )

    def estimates(self) -> list[Json]:
        """For `status`: how far estimates are off, by model."""
        return [
            {
                "model": model,
                "provider": provider,
                "ratio": round(known.ratio, 3),
                "error": round(known.error, 3),
                "reports": known.reports,
            }
            for (provider, model), known in sorted(self._calibrations.all().items())
        ]

    def stop(self, timeout: float) -> bool:
        return self._summaries.stop(timeout)

    # ----------------------------------------------------------------------------------- rules

    def said(self, session_id: str, sequence: int, message: Message) -> None:
        """The person said something: rules in it are kept."""
        if found := pins.stated(message):
            found = pins.affordable(found, self._store.pins(session_id))
            if self._store.add_pins(session_id, found, sequence):
                self._conversations.forget_pins(session_id)

    def pin(self, session_id: str, text: str) -> Pin:
        """Pin a rule by hand. Raises `UsageError`, `NotFoundError`."""
        self._store.session(session_id)
        there = self._store.pins(session_id)
        text = pins.check(text, there)
        added = self._store.add_pins(session_id, [text])
        self._conversations.forget_pins(session_id)
        return added[0] if added else next(pin for pin in there if pin.text == text)

    def unpin(self, session_id: str, pin_id: int) -> bool:
        """Take a rule out; whether it was in force."""
        removed = self._store.remove_pin(session_id, pin_id)
        self._conversations.forget_pins(session_id)
        return removed

    def pins(self, session_id: str) -> list[Pin]:
        return self._store.pins(session_id)
