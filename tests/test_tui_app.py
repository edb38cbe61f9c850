"""The terminal UI as a person meets it: a real terminal (tmux), a scripted gateway."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from oxydra.tui.app import Pace
from tests import tui_kit
from tests.conftest import ROOT
from tests.fake_gateway import DEADLINE, FakeGateway, Turn
from tests.tui_kit import Tmux, needs_tmux

gateway, terminal = tui_kit.gateway, tui_kit.terminal


def endless(turn: Turn) -> None:
    """Streams numbers until it is cancelled."""
    number = 0
    while not turn.cancelled.wait(0.01):
        number += 1
        turn.delta(f"{number} ")
    turn.cancel()


# --------------------------------------------------------------------------------------------- tmux


@needs_tmux
def test_first_run_question_answer_and_leaving(gateway: FakeGateway, terminal: Tmux) -> None:
    tell = threading.Event()

    def talk(turn: Turn) -> None:
        turn.progress("provider_call", "Asking gpt-test")
        turn.tool("file_list", "/shared", "finished")
        turn.delta("There are ")
        tell.wait(DEADLINE)
        turn.delta("two files.")
        turn.complete("There are two files.")

    gateway.on_turn = talk
    terminal.start(gateway)
    terminal.sees("Ask for anything")
    terminal.sees("● ready · main · gpt-test · process/cage")
    terminal.say("list the files")
    screen = terminal.sees("oxydra ▸ There are")
    assert "two files" not in screen
    assert "you ▸ list the files" in screen and "✓ file_list  /shared  12 ms" in screen
    assert "● working" in screen and "Ctrl+C cancels" in screen
    tell.set()
    terminal.sees("oxydra ▸ There are two files.")
    terminal.sees("● ready")
    terminal.say("/quit")
    terminal.gone(0)


@needs_tmux
def test_the_history_is_there_and_can_be_paged(gateway: FakeGateway, terminal: Tmux) -> None:
    room = gateway.rooms["s-main"]
    for number in range(150):
        gateway.record(room, {"role": "user", "content": f"question {number}"}, f"t{number}")
        gateway.record(room, {"role": "assistant", "content": f"answer {number}"}, f"t{number}")
    terminal.start(gateway, session="s-main")
    terminal.sees("answer 149")
    for _ in range(4):
        terminal.keys("PageUp")
    screen = terminal.sees("reading back")
    assert "answer 149" not in screen
    for _ in range(14):
        terminal.keys("PageUp")
    gateway.wait(lambda: len(gateway.sent("history")) >= 2, "older history")
    for _ in range(40):
        terminal.keys("PageUp")
    terminal.sees("question 0\n")
    terminal.keys("Escape")
    terminal.sees("answer 149")


@needs_tmux
def test_ctrl_c_cancels_then_says_so_then_leaves(gateway: FakeGateway, terminal: Tmux) -> None:
    gateway.on_turn = endless
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.say("go on for ever")
    terminal.sees("20 21")
    terminal.keys("C-c")
    terminal.sees("Cancelled.")
    terminal.sees("● ready")
    terminal.keys("C-c")
    terminal.sees("Ctrl+C again to leave")
    terminal.keys("C-c")
    terminal.gone(0)


@needs_tmux
def test_a_message_sent_meanwhile_is_shown_as_queued_and_runs(
    gateway: FakeGateway, terminal: Tmux
) -> None:
    gate = threading.Event()

    def talk(turn: Turn) -> None:
        if turn.prompt == "first":
            gate.wait(DEADLINE)
        turn.complete(f"done: {turn.prompt}")

    gateway.on_turn = talk
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.say("first")
    terminal.sees("● working")
    terminal.say("second")
    terminal.sees("queued: its turn")
    terminal.sees("● working, 1 queued")
    gate.set()
    screen = terminal.sees("done: second")
    pieces = ["you ▸ first", "done: first", "you ▸ second", "done: second"]
    assert [screen.find(p) for p in pieces] == sorted(screen.find(p) for p in pieces)
    assert "queued" not in screen


@needs_tmux
def test_resizing_while_it_streams(gateway: FakeGateway, terminal: Tmux) -> None:
    gateway.on_turn = endless
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.say("count")
    terminal.sees("30 31")
    for columns, rows in ((40, 12), (120, 30), (20, 5), (60, 20)):
        terminal.resize(columns, rows)
        screen = terminal.sees(
            lambda seen, rows=rows: (
                (lines := seen.splitlines())
                and len(lines) == rows
                and lines[-1].startswith("● ")
                and "working" in lines[-1]
                and lines[-2].startswith("❯ ")
            )
        )
        assert all(len(line) <= columns for line in screen.splitlines())
    terminal.keys("C-c")
    terminal.sees("Cancelled.")
    numbers = re.findall(r"\d+", terminal.screen.split("Cancelled.")[0].split("▸")[-1])
    counted = [int(n) for n in numbers]
    assert counted and counted == list(range(counted[0], counted[-1] + 1))


@needs_tmux
def test_twenty_by_five_and_less(gateway: FakeGateway) -> None:
    terminal = Tmux(20, 5)
    try:
        terminal.start(gateway)
        terminal.sees("● ready")
        terminal.say("hi")
        terminal.sees("◆ You: hi")
        terminal.type("next")
        screen = terminal.sees("❯ next")
        assert "◆ You: hi" in screen
        terminal.resize(19, 5)
        terminal.sees(lambda seen: seen.startswith("terminal too small"))
        terminal.resize(20, 5)
        terminal.sees("❯ next")
    finally:
        terminal.close()


@needs_tmux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_gives_the_terminal_back(
    gateway: FakeGateway, terminal: Tmux, number: signal.Signals
) -> None:
    gateway.on_turn = endless
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.say("count")
    terminal.sees("20 21")
    terminal.kill(number)
    terminal.gone(128 + number)


@needs_tmux
def test_a_crash_gives_the_terminal_back_and_shows_why(
    gateway: FakeGateway, terminal: Tmux
) -> None:
    terminal.start(
        gateway,
        before="""
import logging
import oxydra.tui.view as view
drawn = view.View.render
def render(self, state, columns, rows):
    if state.editor.text == "boom":
        logging.getLogger("test").error("logged meanwhile")
        raise RuntimeError("a bug")
    return drawn(self, state, columns, rows)
view.View.render = render
""",
    )
    terminal.sees("● ready")
    terminal.type("boom")
    terminal.gone(1)
    assert "RuntimeError: a bug" in terminal.screen
    assert "logged meanwhile" in terminal.screen


@needs_tmux
@pytest.mark.parametrize("how", ["key", "signal", "unnoticed"])
def test_stopped_and_continued(gateway: FakeGateway, terminal: Tmux, how: str) -> None:
    """By Ctrl+Z, by a signal from outside, and by one that can't be noticed."""
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.type("half a message")
    terminal.sees("❯ half a message")
    if how == "key":
        terminal.keys("C-z")
    else:
        terminal.kill(signal.SIGTSTP if how == "signal" else signal.SIGSTOP)
    terminal.sees("Stopped")
    if how == "unnoticed":  # the shell finds the terminal as the UI had set it
        terminal.type("stty sane")
        terminal.keys("C-j")
        terminal.type("echo sa''ne")
        terminal.keys("C-j")
        terminal.sees("sane")
    else:
        assert [terminal.mode("alternate_on"), terminal.mode("wrap_flag")] == ["0", "1"]
    terminal.say("clear; fg")
    terminal.sees(lambda seen: "❯ half a message" in seen and "Stopped" not in seen)
    terminal.type("!")
    terminal.sees("❯ half a message!")
    terminal.keys("C-u")
    terminal.say("/quit")
    terminal.sees(lambda seen: "❯" not in seen)
    assert [terminal.mode("alternate_on"), terminal.mode("wrap_flag")] == ["0", "1"]


@needs_tmux
def test_a_killed_gateway_comes_back(gateway: FakeGateway, terminal: Tmux) -> None:
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.say("before")
    terminal.sees("You: before")
    gateway.stop()
    terminal.sees("○ offline")
    terminal.sees("no connection: ")
    terminal.say("meanwhile")
    terminal.sees("not sent yet")
    gateway.restart()
    screen = terminal.sees("You: meanwhile")
    assert "● ready" in terminal.sees("● ready")
    assert screen.count("you ▸ before") == screen.count("You: before") == 1
    assert screen.count("you ▸ meanwhile") == 1
    assert len({turn["turn_id"] for turn in gateway.sent("send_turn")}) == 2


@needs_tmux
def test_a_cut_connection_loses_no_character(gateway: FakeGateway, terminal: Tmux) -> None:
    words = [f"w{i}" for i in range(120)]

    def talk(turn: Turn) -> None:
        for index, word in enumerate(words):
            turn.delta(f"{word} ")
            if index % 40 == 20:
                shaken = len(gateway.handshakes)
                gateway.cut()
                gateway.wait(lambda shaken=shaken: len(gateway.handshakes) > shaken, "a client")
        # No terminal frame: what is seen was streamed.

    gateway.on_turn = talk
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.say("talk")
    screen = terminal.sees("w119")
    assert re.findall(r"\bw\d+", screen) == words


@needs_tmux
@pytest.mark.parametrize("marked", [True, False])
def test_pasted_lines_are_not_sent(gateway: FakeGateway, terminal: Tmux, marked: bool) -> None:
    """With the markers of bracketed paste, and from a terminal that does not have them."""
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.tmux("set-buffer", "one\ntwo\nthree")
    terminal.tmux("paste-buffer", *(["-p"] if marked else []))
    terminal.sees(lambda seen: "❯ one\n  two\n  three\n" in seen)
    assert gateway.sent("send_turn") == []
    terminal.keys("M-Enter")
    terminal.type("four")
    terminal.keys("Enter")
    gateway.wait(lambda: gateway.sent("send_turn"), "the message")
    assert gateway.sent("send_turn")[0]["prompt"] == "one\ntwo\nthree\nfour"


@needs_tmux
def test_a_model_can_not_steer_the_terminal(gateway: FakeGateway, terminal: Tmux) -> None:
    evil = "\x1b]0;PWNED\x07\x1b[2J\x1b[31mred\x9b5n\u202egnp.exe"
    gateway.on_turn = lambda turn: turn.complete(evil)
    title = terminal.mode("pane_title")
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.say("attack")
    screen = terminal.sees("␛[2J")
    assert "you ▸ attack" in screen and "\u202e" not in screen
    assert terminal.mode("pane_title") == title


@needs_tmux
def test_sessions_can_be_made_listed_and_switched(gateway: FakeGateway, terminal: Tmux) -> None:
    terminal.start(gateway)
    terminal.sees("● ready · main")
    terminal.say("in main")
    terminal.sees("You: in main")
    terminal.say("/new trip")
    terminal.sees("● ready · trip")
    assert "in main" not in terminal.screen
    terminal.say("/sessions")
    terminal.sees("● s-new-")
    terminal.say("/switch mai")
    terminal.sees("● ready · main")
    terminal.sees("You: in main")
    terminal.say("/nonsense")
    terminal.sees("There is no command /nonsense")


@needs_tmux
def test_no_color_is_honoured(gateway: FakeGateway, terminal: Tmux) -> None:
    color = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|4[0-7]|9[0-7]|38|48)[;m]")
    terminal.start(gateway)
    terminal.sees("● ready")
    assert color.search(terminal.tmux("capture-pane", "-pe"))
    terminal.say("/quit")
    terminal.gone(0)
    terminal.start(gateway, before="import os; os.environ['NO_COLOR'] = '1'")
    terminal.sees("● ready")
    shown = terminal.tmux("capture-pane", "-pe")
    assert not color.search(shown) and "\x1b[2m" in shown


@needs_tmux
def test_a_degraded_daemon_is_announced(gateway: FakeGateway, terminal: Tmux) -> None:
    gateway.status["model"] = {"provider": "offline", "model": "offline"}
    reason = {"code": "no_landlock", "detail": "The kernel has no Landlock."}
    gateway.status["degraded_reasons"] = [reason]
    terminal.start(gateway)
    terminal.sees("▲ Answers come from the built-in offline model")
    terminal.say("/status")
    terminal.sees("The kernel has no Landlock.")


# --------------------------------------------------------------------------------- without a screen


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_without_a_terminal_it_names_the_alternative() -> None:
    done = run("import sys; from oxydra.tui.app import main; sys.exit(main('ws://x:1/ws','a','t'))")
    assert done.returncode == 2
    assert "needs a terminal" in done.stderr and "oxydra-runner ask" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


@needs_tmux
def test_no_daemon_is_said_on_the_plain_terminal(gateway: FakeGateway, terminal: Tmux) -> None:
    gateway.stop()
    terminal.start(gateway)
    terminal.sees("oxydra-runner start")
    terminal.gone(3)
    gateway.start()


@needs_tmux
def test_a_terminal_that_can_not_be_drawn_on(gateway: FakeGateway, terminal: Tmux) -> None:
    terminal.start(gateway, before="import os; os.environ['TERM'] = 'dumb'")
    terminal.sees("TERM=dumb")
    terminal.gone(2)


def test_the_heavy_packages_wait_until_they_are_needed() -> None:
    code = (
        "import sys, oxydra.tui.client, oxydra.tui.app; "
        "heavy = ('blessed', 'markdown_it', 'websocket', 'requests', 'ssl'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    assert run(code).stdout.strip() == "[]"


# --------------------------------------------------------------------------------------------- pace


def draws(events: list[tuple[float, bool]]) -> list[float]:
    """When each event (its time, and whether it is a key) is seen; all in seconds."""
    pace, now, urgent = Pace(), 0.0, False
    seen: list[float] = []
    taken = 0
    while len(seen) < len(events):
        due = now + pace.wait(now, urgent) if taken > len(seen) else float("inf")
        if taken < len(events) and events[taken][0] <= due:
            now = max(now, events[taken][0])
            urgent = urgent or events[taken][1]
            taken += 1
        elif due > now:
            now = due + 1e-9
        else:
            pace.drew(now)
            seen += [now] * (taken - len(seen))
            urgent = False
    return seen


def test_never_more_than_thirty_draws_in_any_second() -> None:
    times = sorted(set(draws([(i / 200, True) for i in range(1000)])))
    assert len(times) > 100
    assert max(sum(t <= u < t + 1 for u in times) for t in times) <= 30


def test_a_key_is_drawn_at_once_while_text_streams() -> None:
    stream = [(i / 200, False) for i in range(1000)]
    keys = [(0.013 + i / 7, True) for i in range(30)]
    events = sorted(stream + keys)
    late = [now - at for now, (at, key) in zip(draws(events), events, strict=True) if key]
    assert sorted(late)[int(len(late) * 0.95)] < 0.03
