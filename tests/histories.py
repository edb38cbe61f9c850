"""Histories as streams, crashes and other providers leave them behind, for tests of any wire."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from oxydra.types import Attachment, Message, Native, ToolCall

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060"
    "000000050001a5f645400000000049454e44ae426082"
)


def attached(mime_type: str = "image/png", data: bytes = PNG, name: str = "dot.png") -> Attachment:
    return Attachment(mime_type, hashlib.sha256(data).hexdigest(), data, name)


TEXTS = st.sampled_from(["", " ", "\n", "hi", "Grüße 😀", "a\ud800b", "data: [DONE]\n\n"])
IDS = st.sampled_from(["a", "b", "call_1", "", "ü:" + "9" * 60, "toolu_x"])
NAMES = st.sampled_from(["file_list", "my.tool", "9lives", "-x", "", "päth/" * 30])
ARGUMENTS = st.sampled_from(
    ["{}", '{"path":"/ü"}', '{"path": "/sh', "", "null", "[1]", '{"a":NaN}', '{"a":"\\ud800"}']
)
CALLS = st.builds(ToolCall, IDS, NAMES, ARGUMENTS)


def messages(natives: Sequence[Native | None] = (None,)) -> st.SearchStrategy[list[Message]]:
    """Any sequence of messages, sound or not; assistants' have one of `natives`."""
    assistant = st.builds(
        lambda content, calls, native, files: Message(
            "assistant", content, tool_calls=tuple(calls), native=native, attachments=tuple(files)
        ),
        TEXTS,
        st.lists(CALLS, max_size=3),
        st.sampled_from(list(natives)),
        st.sampled_from([(), (attached(),)]),
    )
    result = st.builds(
        lambda content, id, name, bad: Message(
            "tool", content, tool_call_id=id, name=name, is_error=bad
        ),
        TEXTS,
        IDS,
        NAMES,
        st.booleans(),
    )
    user = st.builds(
        lambda content, files: Message("user", content, attachments=tuple(files)),
        TEXTS,
        st.sampled_from([(), (attached(),)]),
    )
    return st.lists(st.one_of(user, assistant, result), max_size=12)


def working(turns: int) -> list[list[Message]]:
    """The messages that each step of a session of so many turns adds: a question, and for every
    other one a call and its result before the answer.
    """
    steps: list[list[Message]] = []
    for turn in range(turns):
        steps.append([Message("user", f"question {turn}")])
        if turn % 2:
            call = ToolCall(f"c{turn}", "file_list", '{"path":"/shared"}')
            steps[-1].append(Message("assistant", "", tool_calls=(call,)))
            steps.append([Message("tool", "a.txt", tool_call_id=call.id, name=call.name)])
        steps[-1].append(Message("assistant", f"answer {turn}"))
    return steps


def unmarked(value: Any) -> Any:
    """A request's body without its cache markers."""
    if isinstance(value, dict):
        return {key: unmarked(item) for key, item in value.items() if key != "cache_control"}
    return [unmarked(item) for item in value] if isinstance(value, list) else value
