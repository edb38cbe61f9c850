"""How a conversation is fitted into a model's context: how much room there is, what gives way
first, and what a summary may cover. Pure.

Everything counts in estimated tokens as `budget` makes them; what providers have reported corrects
the room, not the counts. A request that has grown past `Room.trigger` is brought down to
`Room.target` in one step, so that the requests after it extend its bytes again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oxydra.budget import Calibration
from oxydra.config import RuntimeConfig
from oxydra.types import Message, ModelSpec

KEPT_BYTES = 400  # of a result that was shortened, where there is room
LEAST_KEPT = 160
WORTH = 0.2  # of the room: what shortening must gain at least, or it is left be
RECENT = 0.25  # of the target: the newest messages, whose results are shortened last
CARRIED = 0.25  # of the room: old questions of a turn that go on word for word
SUMMARY = 0.125  # of the room: a summary, at most
SUMMARY_TOKENS = (96, 2000)  # and within these bounds


@dataclass(frozen=True, slots=True)
class Room:
    """Tokens that a request may have: never more than `limit`; beyond `trigger` it is brought down
    to `target`. `whole` is what fits if every estimate is right.
    """

    limit: int
    trigger: int
    target: int
    whole: int

    @property
    def summary(self) -> int:
        """What a summary may take."""
        least, most = SUMMARY_TOKENS
        return min(max(int(self.limit * SUMMARY), least), most)

    @property
    def kept_bytes(self) -> int:
        """What stays of a result that is shortened."""
        return min(KEPT_BYTES, max(LEAST_KEPT, self.limit // 10))


def room(
    model: ModelSpec, config: RuntimeConfig, calibration: Calibration, ceiling: int = 0
) -> Room:
    """The room for requests to `model`: its context without its answer, or its limit of input, less
    the safety buffer, which is an eighth of it at most. `ceiling` bounds it where the provider has
    refused more; 0: it has not.
    """
    answer = min(model.max_output_tokens or 4096, model.max_context_tokens // 2)
    window = model.max_context_tokens - answer
    if model.max_input_tokens:
        window = min(window, model.max_input_tokens)
    budget = config.context_budget
    free = window - min(budget.safety_buffer_tokens, window // 8)
    limit = int(free / (calibration.ratio * (1 + calibration.error)))
    whole = int(window / calibration.ratio)
    if ceiling:
        limit, whole = min(limit, ceiling), min(whole, ceiling)
    return Room(
        limit,
        int(limit * budget.trigger_ratio),
        int(limit * min(config.summarization.target_ratio, budget.trigger_ratio)),
        whole,
    )


def last_step(messages: Sequence[Message]) -> int:
    """The index from which messages are not summarized: of the newest message that calls tools and
    whose results no answer has followed, else of the newest message.
    """
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "assistant":
            if messages[index].tool_calls:
                return index
            break
    return max(len(messages) - 1, 0)


def to_shorten(
    sent: Sequence[Message], counts: Sequence[int], excess: int, room: Room, done: set[int]
) -> list[int]:
    """The indices of results to shorten so that `excess` tokens are saved, the oldest first; none
    if that is not worth it. The last step and the newest part of the conversation are spared;
    `done` are those that are short already.
    """
    spared = last_step(sent)
    recent = int(room.target * RECENT) - sum(counts[spared:])
    while spared > 0 and recent >= counts[spared - 1]:
        spared -= 1
        recent -= counts[spared]
    kept = room.kept_bytes // 3
    found, saved = [], 0
    for index in range(spared):
        if saved >= excess:
            break
        if sent[index].role == "tool" and counts[index] > 2 * kept and index not in done:
            found.append(index)
            saved += counts[index] - kept
    return found if saved >= min(excess, room.limit * WORTH) else []


def cuts(messages: Sequence[Message], last: int) -> list[int]:
    """The indices at which a kept tail may begin, so that no call is parted from its results: past
    0 and up to `last`. As wherever histories are repaired, results come before the next message of
    the assistant.
    """
    found = []
    unanswered: set[str] = set()
    for index, message in enumerate(messages[: last + 1]):
        if message.role == "tool":
            unanswered.discard(message.tool_call_id)
            continue
        if index and (message.role == "assistant" or not unanswered):
            found.append(index)
        if message.role == "assistant":
            unanswered = {call.id for call in message.tool_calls}
    return found


def where_to_cut(
    messages: Sequence[Message],
    counts: Sequence[int],
    wanted: int,
    most: int,
    min_turns: int,
    last: int,
) -> int:
    """Where the kept tail begins: so that it has at most `wanted` tokens, but for the last
    `min_turns` turns, which stay whole if that is at most `most`. At the latest it
    begins at `last`; 0 if there is nothing to cut.
    """
    possible = cuts(messages, last)
    if not possible:
        return 0
    begins = _turn(messages, min_turns)
    left, tails = sum(counts), {}
    for index, count in enumerate(counts):
        tails[index] = left
        left -= count
    fitting = next((index for index in possible if tails[index] <= wanted), possible[-1])
    if begins < fitting:
        earlier = [i for i in possible if i <= begins and tails[i] <= most]
        return earlier[-1] if earlier else fitting
    return fitting


def _turn(messages: Sequence[Message], number: int) -> int:
    """The index at which the last `number` turns begin, 0 if there are fewer."""
    found = 0
    for index in range(len(messages) - 1, -1, -1):
        begins = messages[index].role == "user" and (
            not index or messages[index - 1].role != "user"
        )
        found += begins
        if found == number:
            return index
    return 0


def carried(
    before: Sequence[tuple[int, Message]],
    covered: Sequence[tuple[int, Message]],
    tokens: Sequence[int],
    most: int,
    newest: bool,
) -> tuple[int, ...]:
    """The sequences of messages that go on word for word beside a summary: what the person has said
    since the last answer. `before` are those carried so far, `covered` what is summarized now, each
    with its sequence; `tokens` are those of both. They may have `most` tokens, the newest first;
    that one has no bound if it is the `newest` of the conversation.
    """
    found: list[tuple[int, int]] = []
    for (sequence, message), count in zip([*before, *covered], tokens, strict=True):
        if message.role == "user":
            found.append((sequence, count))
        elif message.role == "assistant" and not message.tool_calls:
            found.clear()
    kept: list[int] = []
    for sequence, count in reversed(found):
        first = newest and not kept
        if count > most and not first:
            break
        kept.append(sequence)
        most -= count
    return tuple(reversed(kept))
