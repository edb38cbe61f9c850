"""The TUI's reducer: no socket, no clock, no terminal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra.frames import Frame
from oxydra.tui.client import Link
from oxydra.tui.keys import Key
from oxydra.tui.state import (
    Anchor,
    Effect,
    Exit,
    Repaint,
    Scroll,
    Scrolled,
    Send,
    Suspend,
    Tick,
)
from oxydra.types import Json
from tests import tui_kit
from tests.test_tui_view import draw
from tests.tui_kit import SESSION, World, completed, greet, progress, sent, stored, tool

world = tui_kit.world


# --------------------------------------------------------------------------------------- connection


def test_the_first_connection_reads_history_health_and_names() -> None:
    world = World()
    greet(world)
    assert sent(world.feed(Link(True, fresh=True))) == ["history", "health_check", "list_sessions"]
    assert world.state.session_id == "s-main"


def test_a_resumed_connection_does_not_read_the_history_again(world: World) -> None:
    world.feed(Link(False, detail="gone"))
    greet(world)
    assert sent(world.feed(Link(True, fresh=False))) == ["health_check", "list_sessions"]


def test_a_history_that_was_asked_for_and_did_not_come_is_asked_for_again(world: World) -> None:
    world.feed(Link(True, fresh=True), Link(False, detail="gone"), Link(False, detail="still"))
    greet(world)
    assert "history" in sent(world.feed(Link(True, fresh=False)))
    world.feed(Link(False))
    (history, *_) = world.feed(Link(True, fresh=False))
    world.reply(history, "session_history", session=SESSION, events=[], more=False)
    world.feed(Link(False))
    assert "history" not in sent(world.feed(Link(True, fresh=False)))


def test_a_gap_found_while_connected_reads_only_the_history(world: World) -> None:
    assert sent(world.feed(Link(True, fresh=True))) == ["history"]


def test_a_message_written_while_disconnected_goes_out_with_the_same_id_until_it_is_taken(
    world: World,
) -> None:
    world.feed(Link(False, detail="gone"))
    assert world.type("hello") == []
    assert world.shown == [("user", "hello", "sending")]
    greet(world)
    effects = world.feed(Link(True))
    first = [e.payload for e in effects if isinstance(e, Send) and e.type == "send_turn"]
    world.feed(Link(False))
    greet(world)
    effects = world.feed(Link(True))
    again = [e.payload for e in effects if isinstance(e, Send) and e.type == "send_turn"]
    assert [p["prompt"] for p in first + again] == ["hello", "hello"]
    assert first[0]["turn_id"] == again[0]["turn_id"]
    assert first[0]["request_id"] != again[0]["request_id"]
    world.turn("turn_started", first[0]["turn_id"])
    world.feed(Link(False))
    greet(world)
    assert "send_turn" not in sent(world.feed(Link(True)))


# -------------------------------------------------------------------------------------------- turns


def test_a_turn_from_question_to_answer(world: World) -> None:
    world.feed(Tick(100.0))
    turn = world.send("what is there?")
    assert world.shown == [("user", "what is there?", "sending")]
    world.turn("turn_started", turn)
    assert world.state.active is not None and world.state.active.since == 100.0
    world.turn("turn_progress", turn, progress=progress("provider_call", "Asking gpt"))
    assert world.state.active.activity == "Asking gpt"
    world.turn("assistant_delta", turn, delta="Let me ")
    world.turn("assistant_delta", turn, delta="look.")
    world.turn("tool_event", turn, call=tool("file_list", "started", summary="/shared"))
    assert world.shown[1:] == [
        ("assistant", "Let me look.", ""),
        ("tool", "/shared", "started"),
    ]
    world.turn("tool_event", turn, call=tool("file_list", "finished"))
    world.turn("assistant_delta", turn, delta="Two files.")
    usage = {"total_tokens": 30, "cost_usd": 0.25}
    world.turn("turn_completed", turn, "completed", response=completed("Two files.", **usage))
    assert world.shown == [
        ("user", "what is there?", ""),
        ("assistant", "Let me look.", ""),
        ("tool", "/shared", "finished"),
        ("assistant", "Two files.", ""),
    ]
    assert world.state.entries[2].elapsed_ms == 7
    assert (world.state.tokens, world.state.cost) == (30, 0.25)
    assert world.state.active is None


def test_the_stored_answer_replaces_what_was_streamed_of_it(world: World) -> None:
    """A window that joined in the middle of a turn has only its tail."""
    turn = world.send("hi")
    world.turn("turn_started", turn)
    world.turn("assistant_delta", turn, delta="the end")
    world.turn("turn_completed", turn, response=completed("the beginning and the end"))
    assert world.texts == ["hi", "the beginning and the end"]


def test_an_answer_without_any_delta_is_shown(world: World) -> None:
    turn = world.send("hi")
    world.turn("turn_completed", turn, response=completed("all at once"))
    assert world.texts == ["hi", "all at once"]


@pytest.mark.parametrize("kind", ["retry", "fallback", "resumed"])
def test_a_broken_off_answer_is_replaced_by_the_new_one(world: World, kind: str) -> None:
    turn = world.send("hi")
    world.turn("assistant_delta", turn, delta="half an ans")
    world.turn("turn_progress", turn, progress=progress(kind, "Once more"))
    assert world.texts == ["hi", "half an ans", "Once more"]
    world.turn("turn_progress", turn, progress=progress("provider_call", "Asking"))
    world.turn("assistant_delta", turn, delta="whole ")
    world.turn("assistant_delta", turn, delta="answer")
    assert world.texts == ["hi", "Once more", "whole answer"]


def test_a_failed_turn_shows_the_gateways_sentence(world: World) -> None:
    turn = world.send("hi")
    world.turn("turn_started", turn)
    world.turn("tool_event", turn, call=tool("shell", "started"))
    world.turn("error", turn, "failed", message="The key was refused.", code="unauthorized")
    assert world.shown[1:] == [("tool", "", "unknown"), ("error", "The key was refused.", "")]
    assert world.state.active is None


def test_queued_messages_wait_below_what_the_running_turn_brings(world: World) -> None:
    first = world.send("one")
    world.turn("turn_started", first)
    second = world.send("two")
    world.turn("turn_started", second, "queued")
    world.turn("tool_event", first, call=tool("file_read", "started"))
    world.turn("assistant_delta", first, delta="answer one")
    assert world.shown == [
        ("user", "one", ""),
        ("tool", "", "started"),
        ("assistant", "answer one", "open"),
        ("user", "two", "queued"),
    ]
    world.turn("turn_completed", first, response=completed("answer one"))
    world.turn("turn_started", second)
    world.turn("assistant_delta", second, delta="answer two")
    assert world.texts[2:] == ["answer one", "two", "answer two"]


def test_steering_is_sent_as_such_and_stands_where_it_was_read(world: World) -> None:
    first = world.send("one")
    world.turn("turn_started", first)
    waits = world.send("two")
    world.turn("turn_started", waits, "queued")
    (send,) = world.type("/steer not so\nfast")
    assert isinstance(send, Send) and send.payload["steer"] is True
    assert send.payload["prompt"] == "not so\nfast"
    said = send.payload["turn_id"]
    world.turn("turn_started", said, "queued")
    world.turn("tool_event", first, call=tool("file_read", "finished"))
    world.turn("turn_joined", said, "joined", into=first)
    world.turn("assistant_delta", first, delta="answer one")
    assert world.shown == [
        ("user", "one", ""),
        ("tool", "", "finished"),
        ("user", "not so\nfast", ""),
        ("assistant", "answer one", "open"),
        ("user", "two", "queued"),
    ]
    assert world.state.active is not None and world.state.active.turn_id == first
    world.turn("turn_joined", "another-windows", "joined", into=first)
    assert isinstance(world.effects[-1], Send) and world.effects[-1].type == "history"
    assert world.type("/steer ") == []
    assert "warning" in [entry.kind for entry in world.state.entries]


def test_a_refused_message_goes_back_into_the_input(world: World) -> None:
    (send,) = world.type("too much")
    world.reply(send, "error", message="16 messages already wait.", code="busy")
    assert world.shown == [
        ("user", "too much", "refused"),
        ("error", "16 messages already wait.", ""),
    ]
    assert world.state.editor.text == "too much"


def test_frames_of_another_session_are_not_shown(world: World) -> None:
    elsewhere = {"user_id": "alice", "session_id": "s-other"}
    ref = {"turn_id": "t", "state": "running"}
    world.frame("assistant_delta", session=elsewhere, turn=ref, delta="psst")
    assert world.shown == [] and world.state.active is None


def test_another_windows_turn_is_shown_with_its_message(world: World) -> None:
    world.turn("turn_started", "theirs")
    effects = world.feed(
        Frame(
            "assistant_delta",
            {
                "request_id": "x",
                "session": SESSION,
                "turn": {"turn_id": "theirs", "state": "running"},
                "delta": "an ",
            },
        )
    )
    assert sent(effects) == ["history"]
    world.turn("assistant_delta", "theirs", delta="answer")
    assert sent(world.effects).count("history") == 2  # the first was the start's
    events = [stored(1, "theirs", "user", "a question")]
    world.reply(effects[0], "session_history", session=SESSION, events=events, more=False)
    assert world.texts == ["a question", "an answer"]


def test_a_turn_that_ended_unseen_is_read_from_the_history(world: World) -> None:
    (send,) = world.type("hi")
    assert isinstance(send, Send)
    ref = {"turn_id": send.payload["turn_id"], "state": "completed"}
    (history,) = world.reply(send, "turn_started", session=SESSION, turn=ref)
    events = [
        stored(1, ref["turn_id"], "user", "hi"),
        stored(2, ref["turn_id"], "assistant", "hello"),
    ]
    world.reply(history, "session_history", session=SESSION, events=events, more=False)
    assert world.shown == [("user", "hi", ""), ("assistant", "hello", "")]


# ------------------------------------------------------------------------------------------ history


def test_what_was_recalled_is_a_notice_before_the_message(world: World) -> None:
    (history,) = world.feed(Link(True, fresh=True))
    events = [
        stored(1, "recall-t1", "user", '[Oxydra: recalled…]\n{"text":"a"}\n{"text":"b"}'),
        stored(2, "t1", "user", "what was it?"),
    ]
    world.reply(history, "session_history", session=SESSION, events=events, more=False)
    assert world.shown == [("notice", "Recalled from memory: 2", ""), ("user", "what was it?", "")]


def test_history_becomes_entries_with_calls_as_lines(world: World) -> None:
    (history,) = world.feed(Link(True, fresh=True))
    call = {"id": "c1", "name": "file_read", "arguments": '{"path": "/shared/a", "lines": 3}'}
    cut = {"id": "c2", "name": "file_read", "arguments": '{"path": "/sh'}
    events = [
        stored(1, "t1", "user", "read it"),
        stored(2, "t1", "assistant", "", tool_calls=[call, cut]),
        stored(3, "t1", "tool", "text", tool_call_id="c1", name="file_read"),
        stored(4, "t1", "tool", "no", tool_call_id="c2", name="file_read", is_error=True),
        stored(5, "t1", "assistant", "Done."),
    ]
    world.reply(history, "session_history", session=SESSION, events=events, more=True)
    assert world.shown == [
        ("user", "read it", ""),
        ("tool", "/shared/a 3", "finished"),
        ("tool", '{"path": "/sh', "failed"),
        ("assistant", "Done.", ""),
    ]
    assert world.state.more


def test_what_came_live_while_the_history_was_read_stays_and_nothing_is_shown_twice(
    world: World,
) -> None:
    turn = world.send("hi")
    world.turn("turn_started", turn)
    world.turn("assistant_delta", turn, delta="lost")
    (history,) = world.feed(Link(True, fresh=True))
    world.turn("tool_event", turn, call=tool("file_read", "finished", "c7"))
    world.turn("assistant_delta", turn, delta=" and found")
    call = {"id": "c7", "name": "file_read", "arguments": "{}"}
    events = [
        stored(1, turn, "user", "hi"),
        stored(2, turn, "assistant", "First.", tool_calls=[call]),
        stored(3, turn, "tool", "", tool_call_id="c7", name="file_read"),
    ]
    world.reply(history, "session_history", session=SESSION, events=events, more=False)
    assert world.shown == [
        ("user", "hi", ""),
        ("assistant", "First.", ""),
        ("tool", "", "finished"),
        ("assistant", " and found", "open"),
    ]
    world.turn("turn_completed", turn, response=completed("lost and found"))
    assert world.texts[-1] == "lost and found"


def test_a_waiting_message_survives_a_new_reading_of_the_history(world: World) -> None:
    world.send("still on its way")
    (history,) = world.feed(Link(True, fresh=True))
    world.reply(history, "session_history", session=SESSION, events=[], more=False)
    assert world.shown == [("user", "still on its way", "sending")]


def test_the_top_asks_for_older_history_once(world: World) -> None:
    (history,) = world.feed(Link(True, fresh=True))
    events = [stored(41, "t", "user", "newer")]
    world.reply(history, "session_history", session=SESSION, events=events, more=True)
    (older,) = world.feed(Scrolled(Anchor(1, 0), top=True))
    assert isinstance(older, Send) and older.payload["before_sequence"] == 41
    assert world.feed(Scrolled(Anchor(1, 0), top=True)) == []
    events = [stored(40, "s", "user", "older")]
    world.reply(older, "session_history", session=SESSION, events=events, more=False)
    assert world.texts == ["older", "newer"]
    assert world.feed(Scrolled(Anchor(1, 0), top=True)) == []


# ----------------------------------------------------------------------------------- keys, commands


def test_ctrl_c_cancels_then_announces_then_leaves(world: World) -> None:
    turn = world.send("hi")
    world.turn("turn_started", turn)
    (cancel,) = world.feed(Key("ctrl-c"))
    assert isinstance(cancel, Send) and cancel.type == "cancel_active_turn"
    assert cancel.payload["turn_id"] == turn
    assert world.state.active is not None and world.state.active.cancelling
    world.turn("turn_cancelled", turn, "cancelled")
    assert world.feed(Key("ctrl-c")) == []
    assert "Ctrl+C" in world.state.hint
    assert world.feed(Key("ctrl-c")) == [Exit(0)]


def test_any_other_key_takes_the_announcement_back(world: World) -> None:
    world.feed(Key("ctrl-c"), Key("text", "x"))
    assert world.state.hint == ""
    assert world.feed(Key("ctrl-c")) == []


def test_ctrl_c_leaves_even_if_a_turn_does_not_stop(world: World) -> None:
    world.turn("turn_started", world.send("hi"))
    assert world.feed(Key("ctrl-c"), Key("ctrl-c"), Key("ctrl-c"))[-1] == Exit(0)


@pytest.mark.parametrize(
    ("key", "effect"),
    [
        ("pageup", Scroll(-1.0)),
        ("pagedown", Scroll(1.0)),
        ("escape", Scroll(0.0)),
        ("ctrl-z", Suspend()),
        ("ctrl-l", Repaint()),
        ("ctrl-d", Exit(0)),
    ],
)
def test_keys_that_are_not_the_editors(world: World, key: str, effect: Effect) -> None:
    assert world.feed(Key(key)) == [effect]


def test_enter_on_nothing_sends_nothing(world: World) -> None:
    assert world.feed(Key("enter"), Key("text", "  "), Key("enter")) == []


def test_a_message_keeps_its_lines_and_ids_are_unique(world: World) -> None:
    world.feed(Key("text", "a"), Key("alt-enter"), Key("paste", "b\nc"))
    effects = world.feed(Key("enter")) + world.type("next")
    assert [e.payload["prompt"] for e in effects if isinstance(e, Send)] == ["a\nb\nc", "next"]
    everything = [e for e in world.effects if isinstance(e, Send)]
    ids = [e.payload["request_id"] for e in everything]
    assert len(set(ids)) == len(ids)
    assert world.state.editor.text == "" and world.state.anchor is None


def test_an_unknown_command_names_the_known_ones_and_keeps_what_was_typed(world: World) -> None:
    assert world.type("/shared/a.txt is what?") == []
    (kind, text, _), *_ = world.shown
    assert kind == "warning" and "/help" in text and "/switch" in text
    assert world.state.editor.text == "/shared/a.txt is what?"
    world.feed(Key("home"))
    assert sent(world.type(" ")) == ["send_turn"]


def test_help_lists_every_command(world: World) -> None:
    world.type("/help")
    for name in [
        "/new",
        "/agents",
        "/sessions",
        "/switch",
        "/steer",
        "/cancel",
        "/cost",
        "/rename",
        "/fork",
        "/model",
        "/tokens",
        "/status",
        "/help",
        "/quit",
    ]:
        assert name in world.texts[0]


def test_quit(world: World) -> None:
    assert world.type("/quit") == [Exit(0)]


def test_cancel_without_a_turn_says_so(world: World) -> None:
    assert world.type("/cancel") == []
    assert world.texts == ["No turn is running."]


def test_commands_that_need_the_gateway_say_when_it_is_away(world: World) -> None:
    world.feed(Link(False, detail="gone"))
    assert world.type("/sessions") == []
    assert "connection" in world.texts[0]


def test_new_creates_a_session_and_goes_there(world: World) -> None:
    world.send("old")
    (create,) = world.type("/new trip plans")
    assert isinstance(create, Send) and create.payload["display_name"] == "trip plans"
    there = {"user_id": "alice", "session_id": "s-2"}
    (switch,) = world.reply(create, "session_created", session=there, agent_name="default")
    assert isinstance(switch, Send) and switch.payload["session_id"] == "s-2"
    effects = world.reply(switch, "session_switched", session=there)
    assert sent(effects) == ["history", "list_sessions"]
    assert world.state.session_id == "s-2" and world.state.entries == ()


def rows(*sessions: tuple[str, str]) -> list[Json]:
    return [
        {
            "session_id": session_id,
            "display_name": name or None,
            "agent_name": "default",
            "last_active_at": "2026-01-02T03:04:05Z",
        }
        for session_id, name in sessions
    ]


@pytest.mark.parametrize(
    ("wanted", "goes_to"),
    [
        ("abc", "abc-1"),
        ("Work", "xyz-2"),
        ("wor", ""),
        ("xyz-3", "xyz-3"),
        ("workshop", "xyz-3"),
        ("xyz", ""),
        ("nothing", ""),
    ],
)
def test_switch_finds_names_and_beginnings_of_ids(world: World, wanted: str, goes_to: str) -> None:
    (listing,) = world.type(f"/switch {wanted}")
    sessions = rows(("abc-1", ""), ("xyz-2", "Work"), ("xyz-3", "Workshop"))
    effects = world.reply(listing, "session_list", sessions=sessions)
    if goes_to:
        (switch,) = effects
        assert isinstance(switch, Send) and switch.payload["session_id"] == goes_to
    else:
        assert effects == [] and world.state.entries[-1].kind == "warning"


def test_a_session_without_a_name_is_called_by_what_was_said_first(world: World) -> None:
    assert "● ready · s-main" in "\n".join(draw(world.state))
    world.send("plan the\ntrip to Kyoto")
    assert "● ready · plan the trip to Kyoto " in "\n".join(draw(world.state))
    (listing,) = world.type("/switch plan")
    named = [{**row, "title": "plan the\ntrip " * 9} for row in rows(("s-main", ""), ("s-2", "x"))]
    (switch,) = world.reply(listing, "session_list", sessions=named)
    assert isinstance(switch, Send) and switch.payload["session_id"] == "s-main"
    assert world.state.session_name == "plan the trip plan the trip plan the tr…"


def test_sessions_lists_them_with_this_one_marked(world: World) -> None:
    (listing,) = world.type("/sessions")
    world.reply(listing, "session_list", sessions=rows(("s-main", "here"), ("s-2", "")))
    first, second = world.texts[0].splitlines()
    assert first.startswith("● s-main") and "here" in first
    assert second.startswith("  s-2") and "(no name)" in second
    assert world.state.session_name == "here"


def test_status_and_the_problems_of_a_degraded_daemon(world: World) -> None:
    (check,) = world.type("/status")
    status = {
        "sandbox_tier": "process",
        "sandbox_level": "rlimits",
        "shell_available": False,
        "degraded_reasons": [{"code": "no_landlock", "detail": "The kernel has no Landlock."}],
        "model": {"provider": "offline", "model": "offline"},
    }
    world.reply(check, "health_status", healthy=True, startup_status=status)
    health = world.state.health
    assert health is not None and len(health.problems) == 2
    assert "OPENAI_API_KEY" in health.problems[0]
    for word in ("process", "rlimits", "not available", "no Landlock", "s-main"):
        assert word in world.texts[0]


def test_no_model_is_said_once_and_first(world: World) -> None:
    reasons = [
        {"code": "no_shell", "detail": "There is no shell."},
        {"code": "no_model", "detail": "No key was found."},
    ]
    status = {"degraded_reasons": reasons, "model": {"provider": "offline", "model": "offline"}}
    world.frame("health_status", healthy=True, startup_status=status)
    assert world.state.health is not None
    assert world.state.health.problems == ("No key was found.", "There is no shell.")


def test_a_session_of_an_agent_and_the_list_of_agents(world: World) -> None:
    (send,) = world.type("/new --agent reader my notes")
    assert isinstance(send, Send) and send.type == "create_session"
    assert (send.payload["agent_name"], send.payload["display_name"]) == ("reader", "my notes")
    (send,) = world.type("/new --agents")
    assert isinstance(send, Send) and send.payload["display_name"] == "--agents"
    assert world.type("/new --agent ") == []
    (send,) = world.type("/agents")
    assert isinstance(send, Send) and send.payload["name"] == "agents"
    row = {"name": "reader", "provider": "p", "model": "m", "tools": ["look"]}
    world.reply(send, "command_result", name="agents", data={"agents": [row, "x"]})
    assert world.texts[-1].strip() == "reader: m by p · look"
    (send,) = world.type("/sessions all")
    assert isinstance(send, Send) and send.payload["include_subagent_sessions"] is True
    assert world.type("/sessions every") == []


def test_cost_asks_for_this_session_and_shows_what_came(world: World) -> None:
    (send,) = world.type("/cost model")
    assert isinstance(send, Send) and send.payload["name"] == "cost"
    assert send.payload["args"] == {"session_id": world.state.session_id, "by": "model"}
    cap = {"cap": "per_day", "limit_usd": 5, "left_usd": 4, "resets_at": "2026-11-26T00:00:00"}
    data = {"today_usd": 1, "month_usd": 2.5, "session_usd": 0.25, "caps": [cap], "time_zone": "Z"}
    world.reply(send, "command_result", name="cost", data=data)
    assert "this session  $0.2500" in world.texts[-1]
    assert "$5.00 a day, $4.00 left; it resets at 2026-11-26 00:00 (Z)" in world.texts[-1]
    assert world.type("/cost weather") == []
    assert world.shown[-1][0] == "warning"


def test_trace_is_of_the_last_turn_here_or_of_one_that_is_named(world: World) -> None:
    (send,) = world.type("/trace")
    assert isinstance(send, Send) and send.payload["name"] == "trace"
    assert send.payload["args"] == {"session_id": world.state.session_id}
    step = {"at": "2026-11-26T09:00:01.000+00:00", "kind": "resumed"}
    data = {"turn_id": "t1", "accepted_at": "2026-11-26T09:00:00.000+00:00", "steps": [step]}
    world.reply(send, "command_result", name="trace", data=data)
    assert "turn t1 of session" in world.texts[-1]
    assert "+1.000  resumed after a restart" in world.texts[-1]
    (send,) = world.type("/trace 9c1d")
    assert isinstance(send, Send) and send.payload["args"] == {"turn_id": "9c1d"}
    world.reply(send, "command_result", name="trace", data={})
    assert "no trace" in world.texts[-1]


def asked(world: World, line: str, /, **args: str) -> Send:
    """The one command that typing this asks for, about this session."""
    (send,) = world.type(line)
    assert isinstance(send, Send) and send.type == "command"
    assert send.payload["name"] == line.split()[0].removeprefix("/")
    assert send.payload["args"] == {"session_id": world.state.session_id, **args}
    return send


def test_renaming_and_forking(world: World) -> None:
    send = asked(world, "/rename My  notes", name="My  notes")
    world.reply(send, "command_result", name="rename", data={"display_name": "My notes"})
    assert world.state.session_name == "My notes"
    assert world.type("/rename ") == [] and world.shown[-1][0] == "warning"
    send = asked(world, "/fork")
    (switch,) = world.reply(send, "command_result", name="fork", data={"session_id": "s-9"})
    assert isinstance(switch, Send) and switch.payload["session_id"] == "s-9"
    asked(world, "/fork other", name="other")


def test_the_model_and_who_may_connect(world: World) -> None:
    data = {"agent": "default", "id": "m-1", "provider": "p", "max_context_tokens": 128_000}
    prices = {"price_input": "2.50", "price_output": "10"}
    world.reply(asked(world, "/model"), "command_result", name="model", data=data | prices)
    assert "m-1 by p, for the agent default" in world.texts[-1]
    assert "128,000 tokens of context, ? of an answer" in world.texts[-1]
    assert "$2.50 in, $10 out" in world.texts[-1]
    world.reply(asked(world, "/model"), "command_result", name="model", data=data)
    assert "no known price" in world.texts[-1]
    rows = [{"name": "local", "scopes": ["chat"], "clients": 2}, {"name": "x", "scopes": []}, 5]
    world.reply(asked(world, "/tokens"), "command_result", name="tokens", data={"tokens": rows})
    assert world.texts[-1].split("\n") == ["local: chat · 2 connected", "x: no scope"]


def test_an_error_without_a_turn_is_shown(world: World) -> None:
    (switch,) = world.reply(
        world.type("/switch s-2")[0], "session_list", sessions=rows(("s-2", ""))
    )
    world.reply(switch, "error", message="That session is gone.", code="not_found")
    assert world.shown[-1] == ("error", "That session is gone.", "")


def test_a_cancel_that_came_too_late_is_no_error(world: World) -> None:
    world.turn("turn_started", world.send("hi"))
    (cancel,) = world.feed(Key("ctrl-c"))
    world.reply(cancel, "error", message="That turn is not running.", code="not_found")
    assert "error" not in [kind for kind, _, _ in world.shown]


# ------------------------------------------------------------------------------ any order of frames

TURNS = st.sampled_from(["n-t1", "t2", "t3"])
FRAMES = st.one_of(
    st.tuples(st.just("assistant_delta"), st.fixed_dictionaries({"delta": st.text(max_size=5)})),
    st.tuples(
        st.just("tool_event"),
        st.builds(
            lambda state, call_id: {"call": tool("x", state, call_id)},
            st.sampled_from(["started", "finished", "failed"]),
            st.sampled_from(["c1", "c2"]),
        ),
    ),
    st.tuples(
        st.just("turn_progress"),
        st.builds(
            lambda kind: {"progress": progress(kind, kind)},
            st.sampled_from(["provider_call", "retry", "resumed", "tool_heartbeat"]),
        ),
    ),
    st.just(("turn_started", {})),
    st.just(("turn_cancelled", {})),
    st.just(("error", {"message": "no"})),
    st.just(("turn_completed", {"response": completed("the answer")})),
)


@given(st.lists(st.tuples(TURNS, FRAMES), max_size=30))
def test_any_order_of_frames_leaves_a_sound_state(frames: list[tuple[str, Any]]) -> None:
    world = World()
    greet(world)
    world.feed(Link(True, fresh=True))
    for turn_id, (frame_type, payload) in frames:
        world.turn(frame_type, turn_id, **payload)
    ids = [entry.id for entry in world.state.entries]
    assert len(set(ids)) == len(ids) and max(ids, default=0) <= world.state.last_id
    for turn_id, (frame_type, _) in frames[-1:]:
        if frame_type in ("turn_cancelled", "error", "turn_completed"):
            open_ones = [
                e for e in world.state.entries if e.turn_id == turn_id and e.state == "open"
            ]
            assert not open_ones
