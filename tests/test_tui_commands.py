"""Slash commands that the daemon carries out, `/export`, and what came while nobody looked."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from oxydra.skills import asked_for
from oxydra.tui.client import Link
from oxydra.tui.outline import LINES, outlined
from oxydra.tui.state import Bell, Send, SessionInfo, Write
from oxydra.tui.transcript import seen
from tests import tui_kit
from tests.test_tui_view import draw
from tests.tui_kit import SESSION, World, completed, progress, sent, stored

world = tui_kit.world


def command(world: World, line: str) -> Send:
    (send,) = world.type(line)
    assert isinstance(send, Send) and send.type == "command"
    return send


@pytest.mark.parametrize(
    ("line", "name", "args"),
    [
        ("/memory where is it", "memory", {"query": "where is it"}),
        ("/notes", "notes", {}),
        ("/notes home work", "notes", {"tags": ["home", "work"]}),
        ("/remember the code is 1", "notes", {"action": "save", "content": "the code is 1"}),
        ("/schedules", "schedules", {}),
        ("/undo", "undo", {}),
        ("/pins", "pins", {}),
    ],
)
def test_the_daemon_is_asked(world: World, line: str, name: str, args: dict[str, Any]) -> None:
    send = command(world, line)
    assert send.payload["name"] == name
    assert send.payload["args"] == {"session_id": "s-main", **args}
    world.reply(send, "command_result", name=name, data={"rows": [{"id": 1}]})
    assert world.texts[-1] == "rows:\n  id 1"


@pytest.mark.parametrize("line", ["/schedules", "/model", "/export", "/cost"])
def test_a_command_that_the_daemon_does_not_know_is_said_and_no_longer_offered(
    world: World, line: str
) -> None:
    assert f"\n{line} " in help_text(world)
    send = command(world, line)
    message = f"There is no command '{line[1:]}'. There are: agents."
    world.reply(send, "error", message=message, code="usage")
    assert world.state.entries[-1].kind == "warning"
    assert world.texts[-1] == f"This daemon does not know {line}. {message}"
    assert f"\n{line} " not in help_text(world)
    assert world.type(line) != []  # another daemon may know it


def help_text(world: World) -> str:
    world.type("/help")
    return world.texts[-1]


def test_another_refusal_is_an_error(world: World) -> None:
    send = command(world, "/undo")
    world.reply(send, "error", message="A turn runs.", code="busy")
    assert world.shown[-1] == ("error", "A turn runs.", "")


def test_undo_says_what_was_taken_back_and_what_was_not(world: World) -> None:
    data = {"state": "done", "text": "as before: a.txt\nnot taken back: shell_exec"}
    world.reply(command(world, "/undo"), "command_result", name="undo", data=data)
    assert world.shown[-1][1] == data["text"]


def test_what_memory_found_is_told_by_place_and_local_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        world.state = replace(world.state, sessions=(SessionInfo("s-2", "My trip", "", ""),))
        said = {"session": "s-2", "sequence": 4, "time": "2026-01-02T20:04:05.123+00:00"}
        note = {"note_id": "n1", "tags": ["home"], "time": "soon", "from_strangers": True}
        found = [
            {**said, "role": "user", "score": 1.3, "text": "The key\nis \x1b[2Junder it."},
            {**note, "session": "0123456789abcdef", "text": "x" * 1000},
        ]
        send = command(world, "/memory key")
        world.reply(send, "command_result", name="memory", data={"found": found})
    finally:
        monkeypatch.undo()
        time.tzset()
    lines = world.texts[-1].split("\n")
    assert lines[0] == "1. 2026-01-03 05:04 · user · My trip"
    assert lines[1] == "   The key is ␛[2Junder it."
    assert lines[2] == "2. soon · note · 01234567 · #home · note n1 · from strangers"
    assert len(lines[3]) < 310
    world.reply(command(world, "/memory no"), "command_result", name="memory", data={"found": []})
    assert world.texts[-1] == "Nothing was found."


def test_notes_are_listed_and_made(world: World) -> None:
    note = {"note_id": "n1", "tags": ["home"], "time": "soon", "pinned": True}
    rows = [{**note, "content": "The key\nis \x1b[2Junder it.", "from_strangers": True}]
    data = {"notes": rows, "total": 3}
    world.reply(command(world, "/notes"), "command_result", name="notes", data=data)
    assert world.texts[-1].split("\n") == [
        "n1 · soon · #home · pinned · from strangers",
        "   The key is ␛[2Junder it.",
        "… and 2 more: oxydra-runner memory list",
    ]
    world.reply(command(world, "/notes x"), "command_result", name="notes", data={"notes": []})
    assert world.texts[-1] == "There is no note."
    world.reply(command(world, "/remember it"), "command_result", name="notes", data=note)
    assert world.texts[-1] == "Noted: n1"
    assert world.type("/remember") == []


def test_schedules_say_what_and_when(world: World) -> None:
    daily = {"schedule_id": "a1", "status": "active", "timezone": "Europe/Berlin", "goal": "News"}
    daily |= {"cadence_type": "cron", "cadence_value": "0 9 * * *", "name": ""}
    daily |= {"next_runs": ["2026-01-02T09:00:00+01:00"], "reason": ""}
    paused = {**daily, "status": "paused", "name": "old", "next_runs": [], "reason": "by hand"}
    data = {"schedules": [daily, paused], "total": 5}
    world.reply(command(world, "/schedules"), "command_result", name="schedules", data=data)
    assert world.texts[-1].split("\n") == [
        "a1 · active · cron 0 9 * * * (Europe/Berlin)",
        "   News",
        "   next: 2026-01-02T09:00:00+01:00",
        "a1 · paused · cron 0 9 * * * (Europe/Berlin)",
        "   old",
        "   ! by hand",
        "… and 3 more: oxydra-runner schedule list",
    ]


def test_agents_say_what_they_may(world: World) -> None:
    (send,) = world.type("/agents")
    row = {"name": "helper", "model": "m", "provider": "p", "max_turns": 9, "max_cost": "0.50"}
    world.reply(send, "command_result", name="agents", data={"agents": [row]})
    assert (
        world.texts[-1]
        == "  helper: m by p · no tools · at most 9 steps a turn · at most $0.50 a turn"
    )


TOOLS = [
    {"name": "file_read", "about": "Read a file.", "server": "", "requested": True},
    *(
        {"name": f"mcp__hub__t{n:02}", "about": "T\x1b[2J " * 60, "server": "hub"}
        for n in range(15)
    ),
]


def test_tools_are_listed_and_those_of_a_server_cut_short(world: World) -> None:
    send = command(world, "/tools")
    assert send.payload["args"] == {"session_id": "s-main"}
    world.reply(send, "command_result", name="tools", data={"agent": "a", "tools": TOOLS})
    lines = world.texts[-1].split("\n")
    assert lines[:3] == [
        "For the agent a: 1 tool",
        "  file_read: Read a file.",
        "MCP server hub: 15 tools, found by tool_search",
    ]
    assert lines[3].startswith("  t00: T␛[2J T␛[2J ") and lines[3].endswith("…")
    assert lines[-1] == "  … and 3 more: /tools hub" and max(map(len, lines)) <= 68
    world.reply(command(world, "/tools hub"), "command_result", name="tools", data={"tools": TOOLS})
    assert len(world.texts[-1].split("\n")) == 16
    world.reply(command(world, "/tools no"), "command_result", name="tools", data={"tools": TOOLS})
    assert world.texts[-1] == "There is no tool with 'no' in what is said of it."


def test_skills_are_listed(world: World) -> None:
    row = {"name": "invoices", "activation": "auto", "description": "Check.", "missing": ["x"]}
    asked = command(world, "/skills")
    world.reply(asked, "command_result", name="skills", data={"skills": [row]})
    assert world.texts[-1] == "invoices (auto): Check. - not offered: it needs x"


def test_mcp_servers_are_listed(world: World) -> None:
    row = {"name": "hub", "state": "running", "safety_tier": "read_only", "source": "prog\x07"}
    rows = [
        {**row, "trusted": True, "tools": ["a", "b"], "progress": "half"},
        {**row, "name": "new", "trusted": False, "detail": "It ended.", "differences": {}},
        {**row, "trusted": True, "tools": ["a"], "differences": {"added": ["x\u202e", "y"]}},
    ]
    world.reply(command(world, "/mcp"), "command_result", name="mcp", data={"servers": rows})
    assert world.texts[-1].split("\n") == [
        "hub: running · read-only · 2 tools · prog␇",
        "  half",
        "new: running · read-only · prog␇",
        "  ! It ended.",
        "  ! not trusted: its tools are not offered - /mcp trust new",
        "hub: running · read-only · 1 tool · prog␇",
        "  ! It says something else than what was trusted: added: x<U+202E>, y",
        "  ! /mcp trust hub",
    ]
    assert world.type("/mcp frob hub") == [] == world.type("/mcp trust")
    assert world.texts[-1] == "/mcp, or /mcp trust|distrust|restart|logs <server>."


def test_a_server_is_trusted_as_it_was_shown_and_not_otherwise(world: World) -> None:
    def trusting(data: dict[str, Any]) -> list[Any]:
        send = command(world, "/mcp trust hub")
        assert send.payload["args"] == {"action": "show", "name": "hub"}
        return world.reply(send, "command_result", name="mcp", data={"name": "hub", **data})

    (look,) = trusting({"digest": ""})
    assert look.payload == {**look.payload, "name": "mcp_trust"}
    assert look.payload["args"]["action"] == "look"
    world.reply(look, "command_result", name="mcp_trust", data={"servers": []})
    assert "in a moment" in world.texts[-1]
    offers = [{"name": "add", "description": "Add\x1b.", "schema": {}}]
    assert trusting({"digest": "one", "offers": offers}) == []
    assert "add\n  Add␛.\n" in world.texts[-1] and "once more" in world.texts[-1]
    assert trusting({"digest": "two", "offers": offers}) == []  # it changed: it is shown again
    (trust,) = trusting({"digest": "two", "offers": offers})
    assert trust.payload["args"]["action"] == "trust" and trust.payload["args"]["digest"] == "two"
    restart = command(world, "/mcp restart hub")
    assert restart.payload["name"] == "mcp_trust" and restart.payload["args"]["action"] == "restart"
    world.reply(command(world, "/mcp logs hub"), "command_result", name="mcp", data={"lines": []})
    assert world.texts[-1] == "It has said nothing."


def test_cancelall(world: World) -> None:
    assert sent(world.type("/cancelall")) == ["cancel_all_active_turns"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"text": "one\ntwo"}, "one\ntwo"),
        ({}, "/x: done."),
        ({"left_usd": 1.5, "empty": ""}, "left usd: 1.5"),
        ({"notes": []}, "notes: none"),
        (
            {"notes": [{"id": 3, "text": "a\nb", "pinned": True}, "plain"]},
            "notes:\n  id 3 · text a b · pinned yes\n  plain",
        ),
    ],
)
def test_whatever_a_command_answers_is_shown(data: dict[str, Any], expected: str) -> None:
    assert outlined("x", data) == expected


def test_a_long_answer_of_a_command_is_cut() -> None:
    lines = outlined("x", {"rows": list(range(2 * LINES))}).split("\n")
    assert len(lines) == LINES + 1 and lines[-1] == f"… {LINES + 1} more lines"


def test_export_writes_what_came_with_nothing_in_it_that_steers(world: World) -> None:
    send = command(world, "/export out.md")
    (write,) = world.reply(send, "command_result", name="export", data={"text": "# x \x1b[2J\n"})
    assert write == Write("out.md", "# x ␛[2J\n")
    send = command(world, "/export")
    (write,) = world.reply(send, "command_result", name="export", data={"text": "y"})
    assert write == Write("oxydra-s-main.md", "y")


# --------------------------------------------------------------------------------------------- away


def test_what_came_while_the_connection_was_broken_is_marked(world: World) -> None:
    turn = world.send("hi")
    world.turn("turn_started", turn)
    world.feed(Link(False, detail="gone"))
    (history, *_) = world.feed(Link(True, fresh=True))
    events = [
        stored(1, turn, "user", "hi"),
        stored(2, turn, "assistant", "hello"),
        stored(3, "other", "user", "from elsewhere"),
    ]
    world.reply(history, "session_history", session=SESSION, events=events, more=False)
    assert world.texts == ["hi", "hello", "While the connection was broken:", "from elsewhere"]
    (history,) = world.feed(Link(True, fresh=True))
    world.reply(history, "session_history", session=SESSION, events=events, more=False)
    assert "While the connection was broken:" not in world.texts


def test_nothing_is_marked_where_nothing_was_missed(world: World) -> None:
    turn = world.send("hi")
    world.feed(Link(False, detail="gone"))
    (history, *_) = world.feed(Link(True, fresh=True))
    events = [stored(1, turn, "user", "hi")]
    world.reply(history, "session_history", session=SESSION, events=events, more=False)
    assert world.texts == ["hi"]


def test_what_is_new_since_a_session_was_in_sight_is_marked(world: World) -> None:
    turn = world.send("hi")
    world.turn("turn_started", turn)
    world.turn("turn_completed", turn, response=completed("hello"))
    other = {"user_id": "alice", "session_id": "s-2"}
    world.frame("session_switched", session=other)
    assert world.state.seen == {"s-main": turn}
    (history, _names) = world.frame("session_switched", session=SESSION)
    events = [
        stored(1, turn, "user", "hi"),
        stored(2, turn, "assistant", "hello"),
        stored(3, "scheduled", "assistant", "Good morning."),
    ]
    world.reply(history, "session_history", session=SESSION, events=events, more=False)
    assert world.texts == ["hi", "hello", "New since you were here:", "Good morning."]
    assert dict(seen(world.state)) == {"s-main": "scheduled"}
    (history,) = world.feed(Link(True, fresh=True))
    world.reply(history, "session_history", session=SESSION, events=events, more=False)
    assert "New since you were here:" not in world.texts


def test_a_scheduled_message_is_shown_and_rings(world: World) -> None:
    payload = {"notice_id": 7, "schedule_id": "s1", "schedule_name": "news", "tainted": False}
    payload["due"] = "2026-11-26T09:00:00+01:00"
    bell, seen = world.frame("scheduled_notification", **payload, message="Nothing\nnew.")
    assert bell == Bell()
    assert seen.payload["args"] == {"action": "seen", "notice_ids": [7]}
    world.reply(seen, "command_result", name="schedules", data={"seen": 1})
    assert world.texts == ["Scheduled, news, 2026-11-26 09:00: Nothing\n  new."]
    (again,) = world.frame("scheduled_notification", **payload, message="Nothing\nnew.")
    world.reply(again, "error", message="The store is full.")
    assert world.texts == ["Scheduled, news, 2026-11-26 09:00: Nothing\n  new."]
    world.frame(
        "scheduled_notification", **payload | {"notice_id": 8, "tainted": True}, message="x"
    )
    strangers = "it has read what strangers wrote"
    assert world.texts[1:] == [f"Scheduled, news, 2026-11-26 09:00 ({strangers}): x"]


# -------------------------------------------------------------------------------- sessions, context


@pytest.mark.parametrize(
    ("line", "payload"),
    [
        ("/new", {}),
        ("/new two words", {"display_name": "two words"}),
        ("/new --agent coder", {"agent_name": "coder"}),
        ("/new --agent coder my trip", {"agent_name": "coder", "display_name": "my trip"}),
        ("/new my trip --agent coder", {"agent_name": "coder", "display_name": "my trip"}),
        ("/new a--agent b", {"display_name": "a--agent b"}),
    ],
)
def test_a_new_session(world: World, line: str, payload: dict[str, Any]) -> None:
    (send,) = world.type(line)
    assert isinstance(send, Send) and send.type == "create_session"
    del send.payload["request_id"]
    assert send.payload == payload


@pytest.mark.parametrize("line", ["/new --agent", "/new trip --agent "])
def test_a_new_session_of_no_agent(world: World, line: str) -> None:
    assert world.type(line) == [] and "Of which agent?" in world.texts[-1]


def test_how_full_the_context_is(world: World) -> None:
    turn = world.send("hi")
    world.turn("turn_started", turn)
    world.turn("turn_progress", turn, progress={**progress("provider_call", "x"), "turn": 2})
    world.effects.clear()
    world.turn("turn_completed", turn, response=completed("yes", total_tokens=64_000))
    (asked,) = world.effects
    assert isinstance(asked, Send) and asked.payload["name"] == "model"
    world.reply(asked, "command_result", name="model", data={"max_context_tokens": 128_000})
    assert "64.0k tokens · context 25%" in "\n".join(draw(world.state))
    assert [kind for kind, _, _ in world.shown] == ["user", "assistant"]


def test_a_daemon_that_does_not_know_the_model_is_asked_once(world: World) -> None:
    for _ in range(2):
        turn = world.send("hi")
        world.effects.clear()
        world.turn("turn_completed", turn, response=completed("yes", total_tokens=10))
        for asked in world.effects:
            world.reply(asked, "error", message="There is no command 'model'.", code="usage")
    assert world.effects == [] and "context" not in "\n".join(draw(world.state))
    assert {kind for kind, _, _ in world.shown} == {"user", "assistant"}


def test_a_skill_is_asked_for(world: World) -> None:
    assert world.type("/skill") == []
    assert "Which skill" in world.texts[-1]
    (send,) = world.type("/skill invoices Sum them.")
    assert isinstance(send, Send) and send.type == "send_turn"
    assert send.payload["prompt"] == asked_for("invoices", "Sum them.")
