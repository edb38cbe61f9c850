"""Makes any history sendable: what a stream left behind, wherever it was cut. Pure.

`repair` establishes what all wires demand. A wire's own demands (which roles may follow each other,
where native parts go) are met where that wire encodes.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import replace

from oxydra.errors import FrameError
from oxydra.frames import compact, parse
from oxydra.types import Message, ToolCall

MAX_NAME = 64  # characters of a tool's name
MAX_ID = 40  # characters of a call's id
UNKNOWN = (
    "The outcome of this call is unknown: it was interrupted before a result was recorded. "
    "It may or may not have taken effect; check before calling again."
)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # without its other half it can't be sent
_FOREIGN = re.compile(r"[^a-zA-Z0-9_-]")
_SOUND = "sound"  # a key in `Message.wire`: this message needs no repair of its own


def repair(messages: Sequence[Message]) -> list[Message]:
    """`messages` as a history that every wire accepts:

    - each tool call is answered once, right after the message that made it and in the calls' order;
      a call without a result gets one that says its outcome is unknown; results without a call go;
    - call ids are unique in the whole history, and ids and names are of letters, digits, `_`, `-`;
    - arguments are a JSON object (RFC 8259: no NaN) of valid Unicode: others are wrapped as
      `{"invalid_json": "<what was written>"}`;
    - no message of a user or assistant is empty.

    A message that needs no change is returned as the same object, so that what is encoded of it
    stays; the rest is deterministic, so that a history's beginning stays the same as it grows.
    """
    repaired: list[Message] = []
    used: set[str] = set()
    for index, message in enumerate(messages, 1):
        if message.role == "tool":
            continue  # those with a call were taken together with it
        if not message.tool_calls or message.role != "assistant":
            if message.content or message.attachments or message.role == "system":
                repaired.append(message)
            continue
        if _in_order(message, messages, index, used):  # nearly all are: long histories are quick
            repaired.append(message)
            repaired += messages[index : index + len(message.tool_calls)]
            continue
        # a user's message may have come between a call and its result; an assistant's may not
        results: dict[str, list[Message]] = {}
        for later in itertools.takewhile(
            lambda m: m.role != "assistant", itertools.islice(messages, index, None)
        ):
            if later.role == "tool":
                results.setdefault(later.tool_call_id, []).append(later)
        sound = _with_sound_calls(message, used)
        repaired.append(sound)
        for was, call in zip(message.tool_calls, sound.tool_calls, strict=True):
            found = results.get(was.id)
            repaired.append(_answering(found.pop(0), call) if found else _unknown(call))
    return repaired


def _in_order(message: Message, messages: Sequence[Message], index: int, used: set[str]) -> bool:
    """Whether neither `message` nor the results from `index` on need a change; its ids are used
    then.
    """
    if _SOUND not in message.wire:
        return False
    for call in message.tool_calls:
        if index == len(messages) or call.id in used:
            return False
        result = messages[index]
        if result.role != "tool" or result.tool_call_id != call.id or result.name != call.name:
            return False
        index += 1
    ids = {call.id for call in message.tool_calls}
    used |= ids
    if len(ids) < len(message.tool_calls):
        used -= ids
        return False
    return True


def _with_sound_calls(message: Message, used: set[str]) -> Message:
    """`message` with calls that every wire accepts and ids that are not in `used` yet."""
    calls = message.tool_calls
    if _SOUND not in message.wire:
        calls = tuple(_sound_call(call) for call in calls)
        if calls == message.tool_calls:
            message.wire[_SOUND] = b""
    unique = []
    for call in calls:
        fresh = call.id
        number = 2
        while fresh in used:
            tail = f"_{number}"
            fresh = call.id[: MAX_ID - len(tail)] + tail
            number += 1
        used.add(fresh)
        unique.append(call if fresh == call.id else ToolCall(fresh, call.name, call.arguments))
    if tuple(unique) == message.tool_calls:
        return message
    return replace(message, tool_calls=tuple(unique), wire={})


def _sound_call(call: ToolCall) -> ToolCall:
    arguments = call.arguments
    try:
        value = parse(arguments)
    except FrameError:
        value = None
    if not isinstance(value, dict):
        arguments = compact({"invalid_json": arguments})
    elif _SURROGATE.search(arguments):
        arguments = compact(value)
    name = _FOREIGN.sub("_", call.name)[:MAX_NAME] or "unnamed"
    identity = _FOREIGN.sub("_", call.id) or "call"
    if len(identity) > MAX_ID:
        identity = "call_" + hashlib.sha256(call.id.encode("utf-8", "replace")).hexdigest()[:24]
    return ToolCall(identity, name, arguments)


def _answering(result: Message, call: ToolCall) -> Message:
    if result.tool_call_id == call.id and result.name == call.name:
        return result
    return replace(result, tool_call_id=call.id, name=call.name, wire={})


def _unknown(call: ToolCall) -> Message:
    return Message("tool", UNKNOWN, tool_call_id=call.id, name=call.name, is_error=True)
