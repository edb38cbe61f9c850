"""What is collapsed in the transcript: calls with their arguments, results and diffs; reasoning."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest

from oxydra.tui.client import Link
from oxydra.tui.keys import Key
from oxydra.tui.state import Entry, Send, State, Tick
from oxydra.tui.transcript import size
from tests import tui_kit
from tests.test_tui_view import draw
from tests.tui_kit import SESSION, World, completed, progress, stored, tool

DIFF = "--- /shared/a\n+++ /shared/a\n@@ -1,2 +1,2 @@\n same\n-old line\n+new line"
world = tui_kit.world


def screen(state: State, columns: int = 80, height: int = 30) -> str:
    return "\n".join(draw(state, columns, height))


def call_events(turn: str, name: str, arguments: str, result: str) -> list[dict[str, Any]]:
    call = {"id": "c1", "name": name, "arguments": arguments}
    return [
        stored(1, turn, "user", "do it"),
        stored(2, turn, "assistant", "", tool_calls=[call]),
        stored(3, turn, "tool", result, tool_call_id="c1", name=name),
    ]


def asked_history(effects: list[Any]) -> Send:
    (send,) = [e for e in effects if isinstance(e, Send) and e.type == "history"]
    return send


def test_the_details_of_calls_are_read_when_the_turn_has_ended(world: World) -> None:
    turn = world.send("do it")
    world.turn("turn_started", turn)
    world.turn("tool_event", turn, call=tool("file_read", "started", summary="/shared/a"))
    world.turn("tool_event", turn, call=tool("file_read", "finished", summary="/shared/a"))
    world.effects.clear()
    world.turn("turn_completed", turn, response=completed("Done."))
    events = call_events(turn, "file_read", '{"path": "/shared/a"}', "first\nsecond")
    world.reply(asked_history(world.effects), "session_history", events=events, more=False)
    collapsed = screen(world.state)
    assert "✓ file_read  /shared/a  7 ms · 12 bytes" in collapsed and "second" not in collapsed
    world.feed(Key("ctrl-o"))
    assert "path: /shared/a" in screen(world.state) and "second" in screen(world.state)
    world.feed(Key("ctrl-o"))
    assert screen(world.state) == collapsed


def test_a_turn_without_calls_asks_for_no_details(world: World) -> None:
    turn = world.send("hi")
    world.turn("turn_started", turn)
    world.effects.clear()
    world.turn("turn_completed", turn, response=completed("Hello."))
    assert world.effects == []


def test_an_edit_shows_its_diff_as_soon_as_it_is_done(world: World) -> None:
    turn = world.send("do it")
    world.turn("turn_started", turn)
    world.turn("tool_event", turn, call=tool("file_edit", "started"))
    world.effects.clear()
    world.turn("tool_event", turn, call=tool("file_edit", "finished"))
    asked = asked_history(world.effects)
    world.reply(asked, "session_history", events=call_events(turn, "file_edit", "{}", DIFF), more=0)
    world.turn("assistant_delta", turn, delta="so far")
    shown = screen(world.state)
    assert "-old line" in shown and "+new line" in shown and "--- /shared" not in shown


def test_a_long_diff_is_cut_until_details_are_wanted() -> None:
    diff = "\n".join(f"+line {i}" for i in range(20))
    entry = Entry(1, "tool", "", "t", "finished", tool="file_edit", result=diff)
    state = State("alice", "n", link=Link(True), entries=(entry,))
    assert "+line 7" in screen(state) and "… 12 more lines (Ctrl+O shows them)" in screen(state)
    assert "+line 8" not in screen(state)
    assert "+line 19" in screen(replace(state, details=True))


def test_reasoning_is_one_line_until_it_is_wanted(world: World) -> None:
    turn = world.send("think")
    world.turn("turn_started", turn)
    world.turn("reasoning_delta", turn, delta="Let me ")
    world.turn("reasoning_delta", turn, delta="see.")
    assert "∴ thinking, 11 characters" in screen(world.state)
    world.turn("assistant_delta", turn, delta="Forty")
    world.turn("assistant_delta", turn, delta="-two.")
    assert world.shown[-2:] == [
        ("reasoning", "Let me see.", ""),
        ("assistant", "Forty-two.", "open"),
    ]
    assert "∴ thought, 11 characters · Ctrl+O shows it" in screen(world.state)
    assert "Let me see." not in screen(world.state)
    world.turn("turn_completed", turn, response=completed("Forty-two."))
    world.feed(Key("ctrl-o"))
    assert "Let me see." in screen(world.state)


def test_reasoning_of_a_broken_off_answer_goes_with_it(world: World) -> None:
    turn = world.send("think")
    world.turn("turn_started", turn)
    world.turn("reasoning_delta", turn, delta="Hm")
    world.turn("assistant_delta", turn, delta="For")
    world.turn("turn_progress", turn, progress=progress("retry", "again"))
    world.turn("reasoning_delta", turn, delta="Hmm")
    world.turn("assistant_delta", turn, delta="Forty")
    kinds = [(kind, text) for kind, text, _ in world.shown if kind in ("assistant", "reasoning")]
    assert kinds == [("reasoning", "Hm"), ("reasoning", "Hmm"), ("assistant", "Forty")]


def test_history_has_reasoning_and_attachments_by_name_and_size(world: World) -> None:
    (history,) = world.feed(Link(True, fresh=True))
    picture = {"mime_type": "image/png", "sha256": "x", "size": 12345, "name": "cat.png"}
    events = [
        stored(1, "t1", "user", "look", attachments=[picture, {"mime_type": "image/gif"}]),
        stored(2, "t1", "assistant", "A cat.", reasoning="Whiskers."),
    ]
    world.reply(history, "session_history", session=SESSION, events=events, more=False)
    assert [kind for kind, _, _ in world.shown] == ["user", "reasoning", "assistant"]
    shown = screen(world.state)
    assert "▤ cat.png (12.3 KB)" in shown and "▤ image/gif (?)" in shown
    assert "∴ thought, 9 characters" in shown


def test_a_running_call_shows_its_seconds(world: World) -> None:
    turn = world.send("wait")
    world.feed(Tick(100.0))
    world.turn("turn_started", turn)
    world.turn("tool_event", turn, call=tool("shell_exec", "started", summary="make"))
    world.feed(Tick(107.5))
    assert "◦ shell_exec  make  7 s" in screen(world.state)


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 KB"), (2_000_000, "2.0 MB"), (None, "?")],
)
def test_sizes_for_people(count: object, said: str) -> None:
    assert size(count) == said


def test_a_heartbeat_says_how_long_calls_run_also_one_that_began_unseen(world: World) -> None:
    turn = world.send("do it")
    world.turn("turn_started", turn)
    world.turn("tool_event", turn, call=tool("shell_exec", "started", summary="make"))
    world.feed(Tick(100.0))
    calls = [{"id": "c1", "name": "shell_exec"}, {"id": "c2", "name": "web_fetch"}]
    beat = progress("tool_heartbeat", "Running both for 65 s", calls=calls, elapsed_ms=65_000)
    world.turn("turn_progress", turn, progress=beat)
    seen = screen(world.state)
    assert "◦ shell_exec  make  65 s" in seen and "◦ web_fetch  65 s" in seen
    assert "Running both" not in seen  # the rule above the input has a clock of its own
    world.turn("tool_event", turn, call=tool("shell_exec", "finished", summary="make"))
    world.turn("turn_progress", turn, progress=beat)  # that came late
    assert "✓ shell_exec  make" in screen(world.state)


def test_a_file_that_the_model_made_is_a_name_and_a_size(world: World) -> None:
    turn = world.send("draw it")
    world.turn("turn_started", turn)
    made = {"file_path": "/shared/made/cat.png", "media_type": "photo", "file_name": "cat.png"}
    data = base64.b64encode(b"x" * 3400).decode()
    world.turn("media_attachment", turn, attachment={**made, "data": data})
    world.turn("assistant_delta", turn, delta="Here it is.")
    world.turn("turn_completed", turn, response=completed("Here it is."))
    seen = screen(world.state)
    assert "oxydra ▸ Here it is." in seen and "▤ cat.png (3.4 KB)" in seen
