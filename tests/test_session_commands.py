"""The commands that name, copy and write out sessions: over sockets and from the command line."""

from __future__ import annotations

import json

import pytest

from oxydra.gateway.commands import MAX_EXPORT, MAX_NAME
from oxydra.tools import tool
from oxydra.types import SafetyTier
from tests.scripted import Scripted, calls
from tests.test_daemon import home, running  # noqa: F401
from tests.test_gateway import Held, Running


@tool(tier=SafetyTier.READ_ONLY)
def look(place: str) -> str:
    """Look at a place."""
    return f"```\nat {place}\n```"


@pytest.fixture
def gateway(tmp_path):
    started = []

    def start(provider=None, **config):
        tools = config.pop("tools", ())
        path = tmp_path / "oxydra.db"
        started.append(Running(path, provider or Scripted("one", "two"), tools=tools, **config))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def command(client, name, /, **args):
    """The data of a command about the client's session."""
    frame = client.ask("command", name=name, args={"session_id": client.session, **args})
    assert frame["type"] == "command_result", frame
    return frame["payload"]["data"]


def refusal(client, name, /, **args):
    frame = client.ask("command", name=name, args={"session_id": client.session, **args})
    assert frame["type"] == "error", frame
    return frame["payload"]["message"]


def test_a_session_gets_a_name(gateway):
    with gateway().client() as client:
        row = command(client, "rename", name="  My   notes ")
        assert (row["session_id"], row["display_name"]) == (client.session, "My notes")
        (listed,) = client.ask("list_sessions")["payload"]["sessions"]
        assert listed["display_name"] == "My notes"
        for wrong in ("", "   ", "x" * (MAX_NAME + 1), 5, None):
            assert refusal(client, "rename", name=wrong)
        assert "no session" in refusal(client, "rename", session_id="nowhere", name="x")
        asked = {"name": "rename", "session_id": client.session, "args": {"name": "Again"}}
        frame = client.ask("command", **asked)  # the frame may say of which session
        assert frame["payload"]["data"]["display_name"] == "Again"


def test_a_fork_goes_on_from_what_was_said_and_parts(gateway):
    running_gateway = gateway(Scripted("one", "two", "three"))
    with running_gateway.client() as client:
        client.turn("first", "t1")
        client.until("turn_completed")
        made = command(client, "fork", name="branch")
        assert made["session_id"] != client.session and made["display_name"] == "branch"
        for number, session in enumerate((made["session_id"], client.session)):
            client.turn("second", f"t2{number}", session=session)
            client.until("turn_completed")
    said = [[m.content for m in r.messages[1:]] for r in running_gateway.provider.requests]
    assert said == [["first"], ["first", "one", "second"], ["first", "one", "second"]]
    store = running_gateway.store
    assert [m.content for m in store.messages(made["session_id"])][-1] == "two"
    assert [m.content for m in store.messages(client.session)][-1] == "three"


def test_a_fork_leaves_out_the_turn_that_runs(gateway):
    running_gateway = gateway(Held())
    with running_gateway.client() as client:
        client.turn("first", "t1")
        assert running_gateway.provider.asked.acquire(timeout=60)
        made = command(client, "fork")
        assert running_gateway.store.messages(made["session_id"]) == []
        running_gateway.provider.release.set()
        client.until("turn_completed")
    assert len(running_gateway.store.messages(client.session)) == 2


def test_a_fork_counts_as_a_session(gateway):
    with gateway(max_sessions_per_user=1).client() as client:
        assert "max_sessions_per_user" in refusal(client, "fork")


def test_an_export_has_all_that_was_said(gateway):
    steps = (calls(("look", '{"place":"Kiel"}'), text="I look."), "It is Kiel.")
    with gateway(Scripted(*steps), tools=(look,)).client() as client:
        client.turn("Where is it?", "t1")
        client.until("turn_completed")
        data = command(client, "export")
        assert data["format"] == "markdown" and data["text"].startswith(f"# {client.session}\n")
        for part in ("Where is it?", "I look.", "- called `look`", "It is Kiel."):
            assert part in data["text"]
        assert "````\n```\nat Kiel\n```\n````" in data["text"]  # what is in it ends no block
        document = json.loads(command(client, "export", format="json")["text"])
        assert document["session"]["session_id"] == client.session
        assert [e["message"]["role"] for e in document["events"]] == [
            "user",
            "assistant",
            "tool",
            "assistant",
        ]
        assert "markdown, json, html" in refusal(client, "export", format="pdf")


def test_an_export_is_whole_over_many_pages_or_refused(gateway, monkeypatch):
    from oxydra.gateway import commands, export

    running_gateway = gateway(Scripted(*(f"answer {n}" for n in range(5))))
    with running_gateway.client() as client:
        for number in range(5):
            client.turn(f"question {number}", f"t{number}")
            client.until("turn_completed")
        monkeypatch.setattr(export, "PAGE", 3)
        text = command(client, "export")["text"]
        order = [text.index(f"{what} {n}") for n in range(5) for what in ("question", "answer")]
        assert order == sorted(order)
        monkeypatch.setattr(commands, "MAX_EXPORT", 50)
        assert "daemon is stopped" in refusal(client, "export")
    assert MAX_EXPORT < 8 << 20  # what a connection may hold


def test_which_tools_there_are(gateway):
    served = gateway()
    with served.client() as client:
        data = command(client, "tools")
        assert data["agent"] == "default"
        names = [spec.name for spec in served.hub._runtime.tools]
        assert [row["name"] for row in data["tools"]] == names
        assert all(row["requested"] and not row["server"] for row in data["tools"])
        assert command(client, "tools", session_id=client.session) == data


def test_which_model_answers(gateway):
    with gateway().client() as client:
        data = command(client, "model")
        assert (data["agent"], data["id"], data["provider"]) == ("default", "script-1", "scripted")
        assert data["max_context_tokens"] == 100_000


def test_sessions_from_the_command_line(running):  # noqa: F811
    answer = json.loads(running.run("ask", "hello there", "--json"))
    session = answer["session"]["session_id"]
    assert "my notes" in running.run("session", "rename", session[:6], "my notes")
    forked = json.loads(running.run("session", "fork", "my notes", "--name", "other", "--json"))
    rows = json.loads(running.run("session", "list", "--json"))
    assert {row["display_name"] for row in rows} == {"my notes", "other"}
    assert "other · default" in running.run("session", "list")
    text = running.run("session", "export", forked["session_id"])
    assert text.startswith("# other\n") and "hello there" in text
    document = json.loads(running.run("session", "export", session, "--format", "json"))
    assert document["events"][0]["message"]["content"] == "hello there"
    assert "no session" in running.fails("session", "export", "nothing-like-it")


def test_what_was_said_is_found_from_the_command_line(running):  # noqa: F811
    answer = json.loads(running.run("ask", "The boiler was serviced by Mr Petersen.", "--json"))
    session = answer["session"]["session_id"]
    rows = json.loads(running.run("memory", "search", "who serviced the boiler?", "--json"))
    assert (rows[0]["session"], rows[0]["sequence"]) == (session, 1)
    assert "Petersen" in rows[0]["text"]
    assert f"{session} 1" in running.run("memory", "search", "boiler")
    assert "Nothing was found" in running.run("memory", "search", "zebra")
    assert "`top_k`" in running.fails("memory", "search", "boiler", "--top", "0")
    assert "what to look for" in running.fails("memory", "search", " ")
    assert running.run("memory", "rebuild").splitlines()[-1].startswith("Done: 2 chunks")
    assert json.loads(running.run("memory", "check", "--json")) == {"troubles": []}
    stats = json.loads(running.run("memory", "stats", "--json"))
    assert (stats["chunks"], stats["to_index"], stats["rebuilding"]) == (2, 0, False)
    assert "2 chunks" in running.run("memory", "stats")
