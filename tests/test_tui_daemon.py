"""The terminal UI in a real terminal (tmux) with a real daemon, as a person starts them."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests import tui_kit
from tests.conftest import eventually
from tests.test_daemon import RUNNER, Home, home  # noqa: F401
from tests.tui_kit import Tmux, needs_tmux

pytestmark = needs_tmux


terminal = tui_kit.terminal


def open_ui(terminal: Tmux, place: Home) -> None:
    command = f"{sys.executable} {RUNNER} --config {place.config} --tui"
    terminal.type(f"cd {place.path}; HOME={place.path} {command}; echo EXIT=$?")
    terminal.keys("Enter")
    terminal.sees("● ready")


def test_a_first_run_a_killed_daemon_and_files(home: Home, terminal: Tmux) -> None:  # noqa: F811
    home.run("start", "--detach")
    (home.workspace / "shared" / "notes.txt").write_text("x\n")
    open_ui(terminal, home)
    terminal.sees("Ask for anything")
    terminal.type("list the files in @/sh")
    terminal.keys("Tab")
    terminal.sees("❯ list the files in @/shared/")
    terminal.keys("BSpace", "Enter")
    terminal.sees("you ▸ list the files in /shared")
    terminal.sees(lambda screen: re.search(r"✓ file_list .* bytes", screen))
    terminal.sees("notes.txt")
    terminal.say("/rename First things")
    terminal.sees("● ready · First things")
    terminal.say("/model")
    terminal.sees("offline by offline")

    status = home.status()
    os.kill(status["runner_pid"], signal.SIGKILL)
    os.kill(status["guest_pid"], signal.SIGKILL)
    terminal.sees("no connection")
    terminal.say("list the files in /shared")
    terminal.sees("not sent yet")
    eventually(lambda: home.command("start", "--detach").returncode == 0, what="a new start")
    terminal.sees(lambda screen: "● ready · First things" in screen and "not sent" not in screen)
    terminal.sees(lambda screen: screen.count("✓ file_list") == 2)
    terminal.say("/export all.md")
    terminal.sees("Written to")
    assert Path(home.path, "all.md").read_text().count("list the files in /shared") == 2
    terminal.say("/quit")
    terminal.sees("EXIT=0\n")


@pytest.mark.slow
def test_two_windows_on_one_session(home: Home, terminal: Tmux) -> None:  # noqa: F811
    home.run("start", "--detach")
    other = Tmux()
    try:
        open_ui(terminal, home)
        open_ui(other, home)
        terminal.say("list the files in /shared")
        for window in (terminal, other):
            window.sees("you ▸ list the files in /shared")
            window.sees("/shared is empty.")
        other.say("run the command: echo from the other window")
        terminal.sees("you ▸ run the command")
    finally:
        other.close()
