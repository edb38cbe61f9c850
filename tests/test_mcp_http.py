"""MCP servers behind Streamable HTTP, through the broker: sessions, streams, keys, hostile ones."""

from __future__ import annotations

import threading

import pytest

from oxydra.broker import Destinations
from oxydra.config import McpServerConfig
from oxydra.mcp.route import mcp_route
from oxydra.threads import CancelToken
from oxydra.transport import Routes
from tests.broker_kit import broker_world
from tests.conftest import eventually
from tests.fake_web import serving
from tests.mcp_desk import desk
from tests.mcp_web import mcp_web, summed

KEY = "Bearer a-key-of-the-web-servers"


@pytest.fixture
def web():
    with mcp_web() as made:
        yield made


@pytest.fixture
def made(web, tmp_path):
    """A session with it, by a route with a key."""
    settings = {"url": web.url, "headers": {"Authorization": "Bearer env:K", "X-Own": "mine"}}
    route = mcp_route("web", McpServerConfig(**settings), KEY)
    with broker_world(Destinations(Routes([route])), secrets=[KEY, KEY[7:]]) as world:
        keys = frozenset(["mcp:web"])
        with desk(tmp_path, "web", transport=world.transport, keys=keys, **settings) as there:
            yield there


def test_a_session_with_its_headers(made, web):
    made.look()
    assert made.call("add", a=1, b=2).content == "3"
    (first, _), (call, said) = web.asked("initialize")[0], web.asked("tools/call")[0]
    assert "mcp-session-id" not in first and "mcp-protocol-version" not in first
    assert call["mcp-session-id"] == "session-1" and call["mcp-protocol-version"] == "2025-11-25"
    assert call["authorization"] == KEY and call["x-own"] == "mine"  # the broker put it in
    assert call["accept"] == "application/json, text/event-stream"
    assert said["params"]["_meta"] == {"progressToken": said["id"]}
    made.servers.stop()
    assert [method for method, _, _ in web.log][-1] == "DELETE"


def test_a_tool_is_a_way_out_and_not_in_the_sandbox(made):
    made.look()
    tool = made.tool("add")
    assert tool.egress and tool.taints and not tool.in_sandbox and not tool.contained


def test_an_answer_on_a_stream(made, web):
    def say(_web, handler, message):
        handler.stream()
        note = {"level": "info", "data": "working"}
        handler.event({"jsonrpc": "2.0", "method": "notifications/message", "params": note})
        handler.event({"jsonrpc": "2.0", "id": "q", "method": "sampling/createMessage"})
        handler.event(summed(message))

    web.say = say
    made.look()
    assert made.call("add", a=1, b=2).content == "3"
    assert "info: working" in made.said() and "sampling/createMessage" in made.said()
    refused = [said for _, _, said in web.log if said.get("id") == "q"]
    assert refused[0]["error"]["code"] == -32601


def test_a_stream_that_ends_too_early_is_taken_up_again(made, web):
    asked = []

    def say(_web, handler, message):
        asked.append(message)
        handler.stream()
        handler.event("", "e1", "10")

    def resumed(handler):
        handler.stream()
        if handler.headers.get("Last-Event-ID") == "e1":
            handler.event("", "e2", "10")
        else:
            handler.event(summed(asked[0]), "e3")

    made.look()
    web.say = say
    web.resume = resumed
    assert made.call("add", a=3, b=4).content == "7"
    places = [headers.get("last-event-id") for method, headers, _ in web.log if method == "GET"]
    assert places == ["e1", "e2"] and len(asked) == 1


def test_a_stream_that_ends_for_good_leaves_the_call_uncertain(made, web):
    made.look()
    web.say = lambda _web, handler, _message: handler.stream()
    result = made.call("add", a=1, b=1)
    assert result.is_error and "ended before its answer" in result.content
    assert "not known" in result.content


def test_a_session_that_expired_is_begun_anew_and_the_call_made_once(made, web):
    made.look()
    assert made.call("add", a=1, b=1).content == "2"
    web.session = "session-2"
    assert made.call("add", a=2, b=2).content == "4"
    assert len(web.asked("initialize")) == 2
    assert [said["params"]["arguments"]["a"] for _, said in web.asked("tools/call")] == [1, 2, 2]
    assert made.status()["failures"] == 0


def test_what_it_says_of_its_own_accord_is_heard(made, web):
    web.capabilities = {"tools": {"listChanged": True}}
    web.told = [{"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}]
    made.look()
    assert web.listening.wait(60)

    def listed_again() -> bool:
        made.call("add", a=1, b=1)
        return len(web.asked("tools/list")) > 1

    eventually(listed_again)


def test_a_cancelled_call_is_withdrawn(made, web):
    began = threading.Event()

    def say(web, handler, _message):
        handler.stream()
        began.set()
        web.over.wait(60)

    made.look()
    web.say = say
    token, results = CancelToken(), []
    caller = threading.Thread(
        target=lambda: results.append(made.call("add", token=token, a=1, b=1))
    )
    caller.start()
    assert began.wait(60)
    token.cancel("cancelled")
    caller.join(60)
    assert results[0].is_error and "It was stopped" in results[0].content
    (_, call), (_, withdrawn) = web.asked("tools/call")[0], web.asked("notifications/cancelled")[0]
    assert withdrawn["params"]["requestId"] == call["id"]


def test_a_call_that_is_never_answered_ends_with_its_time(made, web):
    made.look()
    web.say = lambda web, _handler, _message: web.over.wait(60)
    result = made.call("add", seconds=1.0, a=1, b=1)
    assert result.is_error and "Its time was up" in result.content


@pytest.mark.parametrize(
    ("say", "why"),
    [
        (lambda _w, h, _m: h.whole(b"denied", "text/plain", 401), "HTTP status 401: denied"),
        (lambda _w, h, _m: h.whole(b"oh", "text/plain", 500), "HTTP status 500"),
        (lambda _w, h, _m: h.whole(b"{", "application/json"), "gave no answer"),
        (lambda _w, h, _m: h.whole(b"hi", "text/html"), "gave no answer (text/html)"),
        (lambda _w, h, _m: h.whole(b"", "text/plain", 202), "gave no answer"),
        (lambda _w, h, _m: h.json({"jsonrpc": "2.0", "id": 999, "result": {}}), "no answer"),
        (lambda _w, h, _m: h.json({"a": [[[[]]]]}), "gave no answer"),
        (lambda _w, h, _m: h.whole(b"x" * (17 << 20), "application/json"), "larger than"),
        (
            lambda _w, h, m: h.json(
                {"jsonrpc": "2.0", "id": m["id"], "error": {"code": -32602, "message": "bad a"}},
                400,
            ),
            "answered with an error: bad a",
        ),
    ],
)
def test_answers_that_are_none(made, web, say, why):
    made.look()
    web.say = say
    result = made.call("add", a=1, b=1)
    assert result.is_error and why in result.content
    web.say = lambda _w, h, m: h.json(summed(m))
    assert made.call("add", a=1, b=1).content == "2"


def test_a_flood_on_a_stream_ends(made, web):
    def say(_web, handler, _message):
        handler.stream()
        note = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "flood"}}
        while True:
            handler.event(note)

    made.look()
    web.say = say
    result = made.call("add", a=1, b=1)
    assert result.is_error and "nobody asked for" in result.content


def test_a_redirect_is_not_followed(made, web):
    with serving() as other:
        to = other.add("/mcp", "{}")
        made.look()
        web.say = lambda _w, h, _m: h.whole(b"", "text/plain", 307, Location=to)
        result = made.call("add", a=1, b=1)
        assert result.is_error and "redirect" in result.content.lower()
        assert other.asked == []


def test_a_reflected_key_is_not_seen(made, web):
    def say(_web, handler, message):
        text = handler.headers["Authorization"]
        content = [{"type": "text", "text": f"you sent {text}"}]
        handler.json({"jsonrpc": "2.0", "id": message["id"], "result": {"content": content}})

    made.look()
    web.say = say
    result = made.call("add", a=1, b=1)
    assert result.content.startswith("you sent") and "a-key-of" not in result.content


def test_the_key_goes_nowhere_else(web, tmp_path):
    """Whoever spoke for the guest could ask for another address, or without the route's name."""
    settings = {"url": web.url, "headers": {"Authorization": "Bearer env:K"}}
    route = mcp_route("web", McpServerConfig(**settings), KEY)
    with mcp_web() as other, broker_world(Destinations(Routes([route]))) as world:
        for url, keys in (
            (other.url, ["mcp:web"]),
            (web.url + "/more", ["mcp:web"]),
            (web.url, []),
        ):
            with desk(
                tmp_path, "web", transport=world.transport, keys=frozenset(keys), url=url
            ) as made:
                made.look()
                assert "not for" in made.trouble() or "No route leads" in made.trouble()
        assert other.log == [] and web.log == []


def test_a_session_id_that_is_none_is_refused(made, web):
    web.session = "two words"
    made.look()
    assert "visible ASCII" in made.trouble()
