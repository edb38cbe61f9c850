"""Images that tools give: a model that can see them does, any other reads what there is."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace

import pytest

from oxydra.budget import estimate_message
from oxydra.config import RuntimeConfig
from oxydra.mcp.results import MAX_SEEN, result_of
from oxydra.providers.abilities import check_attachments, visible
from oxydra.providers.reliable import _lack
from oxydra.runtime import Runtime
from oxydra.store import Store
from oxydra.threads import CancelToken
from oxydra.tools.base import tool
from oxydra.tools.gate import IMAGE_BYTES, MAX_IMAGES, Gate
from oxydra.tools.registry import ToolRegistry
from oxydra.types import Attachment, Message, ModelRequest, SafetyTier, ToolResult
from tests.scripted import MODEL, Scripted, calls

PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 100
SEEING = replace(MODEL, images=True)


def image(data=PNG, kind="image/png"):
    return Attachment(kind, hashlib.sha256(data).hexdigest(), data)


# ------------------------------------------------------------------------------- an MCP server's


def part(data, kind="image/png"):
    return {"type": "image", "data": base64.b64encode(data).decode(), "mimeType": kind}


def test_what_is_an_image_is_told_by_its_content():
    saved = []
    rows = [part(PNG, "text/plain"), part(b"<svg/>"), part(b"%PDF-1.7"), {"type": "image"}]
    found = result_of({"content": rows}, lambda data, kind: saved.append(kind) or "/tmp/x")
    assert [(one.mime_type, one.data) for one in found.images] == [("image/png", PNG)]
    assert found.content.count("/tmp/x") == len(saved) == 4


def test_a_server_shows_so_many_and_no_more():
    rows = [part(PNG + bytes([number])) for number in range(MAX_SEEN + 3)]
    found = result_of({"content": rows}, lambda _data, _kind: "/tmp/x")
    assert len(found.images) == MAX_SEEN and found.content.count("/tmp/x") == MAX_SEEN + 3


# ------------------------------------------------------------------------------------ in a turn


def ask(path, images, *steps, room=None):
    """A turn in which a tool gives these; the store, and the requests that were made."""

    @tool(tier=SafetyTier.READ_ONLY)
    def look() -> ToolResult:
        """Look."""
        return ToolResult("[image/png: /tmp/x.png]", images=tuple(images))

    provider = Scripted(*(steps or (calls(("look", "{}")), "Seen.")))
    registry = ToolRegistry(names=(), extra=[look])
    store = Store(path)
    if room is not None:
        store.files.max_bytes = room
    session = store.create_session()
    runtime = Runtime(store, provider, SEEING, Gate(registry, {}), registry.specs, RuntimeConfig())
    turn, _ = store.accept_turn(session.session_id, "t1", "r", "Look")
    runtime.run_turn(turn, CancelToken(), lambda _kind, _payload: None)
    return store, session.session_id, provider.requests


def test_a_model_gets_it_and_a_restart_keeps_it(tmp_path):
    store, session_id, requests = ask(tmp_path / "db", [image()])
    result = requests[-1].messages[-1]
    assert (result.role, result.content) == ("tool", "[image/png: /tmp/x.png]")
    assert [one.data for one in result.attachments] == [PNG]
    store.close()
    again = Store(tmp_path / "db")
    (kept,) = [m for m in again.messages(session_id) if m.role == "tool"]
    assert [one.data for one in kept.attachments] == [PNG]
    again.close()


def test_they_are_bounded_whatever_a_tool_gives(tmp_path):
    large = image(PNG + bytes(IMAGE_BYTES))
    many = [image(PNG + bytes([n])) for n in range(MAX_IMAGES + 9)]
    store, _, requests = ask(tmp_path / "db", [large, image(b""), *many])
    kept = requests[-1].messages[-1].attachments
    assert [one.sha256 for one in kept] == [one.sha256 for one in many[:MAX_IMAGES]]
    store.close()


def test_where_there_is_no_room_the_words_stay(tmp_path):
    store, _, requests = ask(tmp_path / "db", [image()], room=10)
    result = requests[-1].messages[-1]
    assert result.content == "[image/png: /tmp/x.png]" and result.attachments == ()
    store.close()


# --------------------------------------------------------------------------------- who can see it


@pytest.mark.parametrize(
    ("model", "carried", "count"),
    [(SEEING, ("image/png",), 1), (SEEING, (), 0), (MODEL, ("image/png",), 0)],
)
def test_a_model_that_sees_none_goes_on_without(model, carried, count):
    result = Message("tool", "where", tool_call_id="c", attachments=(image(),), wire={"w": b"old"})
    said = Message("user", "hi")
    history = visible([said, result], model, carried)
    assert history[0] is said and len(history[1].attachments) == count
    assert history[1].content == "where" and (count or history[1].wire == {})
    check_attachments("p", model, history, carried)


def test_one_that_stands_in_does_not_refuse_for_it():
    result = Message("tool", "where", tool_call_id="c", attachments=(image(),))
    request = ModelRequest(SEEING, [Message("user", "hi"), result])
    assert _lack(MODEL, request) == ""
    own = ModelRequest(SEEING, [Message("user", "hi", attachments=(image(),))])
    assert _lack(MODEL, own) == "can't see images"


def test_it_counts():
    result = Message("tool", "where", tool_call_id="c")
    seen = replace(result, attachments=(image(),), wire={})
    assert estimate_message(seen, SEEING) > estimate_message(result, SEEING)
