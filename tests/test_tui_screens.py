"""The terminal UI's newer ways, typed into a real terminal (tmux); docs/tui.md shows its screens.

`REGENERATE=1 make test ARGS=tests/test_tui_screens.py` writes the screens in docs/tui.md anew.
"""

from __future__ import annotations

import base64
import os
import re

import pytest

from oxydra.types import Usage
from tests import tui_kit
from tests.conftest import ROOT, eventually
from tests.fake_gateway import DEADLINE, FakeGateway, Turn
from tests.test_tui_input import PNG
from tests.tui_kit import Tmux, needs_tmux

pytestmark = needs_tmux

DOCUMENT = ROOT / "docs" / "tui.md"
ANSWER = """\
The tests pass again; the cause was **one line** in `sum.py`.

1. `total()` began at 1
2. nobody had tested an *empty* list

| test | before | after |
|---|--:|--:|
| `test_empty` | failed | passed |
| `test_漢字` | passed | passed |

```python
assert total([]) == 0
```

More in [the guide](https://docs.example.org/tests).
"""
DIFF = """\
--- /shared/sum.py
+++ /shared/sum.py
@@ -1,3 +1,3 @@
 def total(n):
-    s = 1
+    s = 0"""


gateway, terminal = tui_kit.gateway, tui_kit.terminal


def repair(turn: Turn) -> None:
    """A turn with reasoning, a command, an edit and a formatted answer."""
    turn.emit("reasoning_delta", {"delta": "Which of the two is wrong, the test or the code?"})
    calls = [("shell_exec", "make test", "1 failed, 11 passed"), ("file_edit", "", DIFF)]
    for number, (name, command, result) in enumerate(calls):
        call = {"id": f"c{number}", "name": name, "arguments": f'{{"command": "{command}"}}'}
        turn.record({"role": "assistant", "content": "", "tool_calls": [call]})
        turn.record({"role": "tool", "tool_call_id": f"c{number}", "name": name, "content": result})
        said = command or "edited /shared/sum.py in 1 place"
        turn.tool(name, said, "finished", f"c{number}", 2100 if command else 12)
    turn.delta(ANSWER)
    turn.complete(ANSWER, Usage(2100, 160))


def documented(name: str, screen: str) -> None:
    """The screen is the one in the documentation."""
    shown = "\n".join(line.rstrip() for line in screen.splitlines()).strip("\n")
    text = DOCUMENT.read_text(encoding="utf-8")
    block = re.compile(rf"(<!-- screen: {name} -->\n```text\n)(.*?)(\n```\n)", re.DOTALL)
    found = block.search(text)
    assert found, f"docs/tui.md has no screen {name}"
    if os.environ.get("REGENERATE"):
        DOCUMENT.write_text(text[: found.start(2)] + shown + text[found.end(2) :], encoding="utf-8")
        return
    assert found.group(2) == shown


def still(terminal: Tmux, *wanted: str) -> str:
    """The screen, once it has all of this and is the same when it is looked at again."""
    seen = [""]

    def settled() -> bool:
        before, seen[0] = seen[0], terminal.screen
        return before == seen[0] and all(one in seen[0] for one in wanted)

    eventually(settled, DEADLINE, what=f"{wanted} on the screen")
    return seen[0]


def test_an_answer_with_calls_a_diff_and_markdown(gateway: FakeGateway, terminal: Tmux) -> None:
    gateway.on_turn = repair
    terminal.resize(80, 34)
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.say("why does test_empty fail?")
    screen = still(terminal, "● ready", "19 bytes", "(https://docs.example.org/tests)")
    documented("answer", screen)
    assert "Which of the two" not in screen
    terminal.keys("C-o")
    terminal.sees("command: make test")
    terminal.sees("Which of the two is wrong")
    terminal.keys("C-o")
    terminal.sees("∴ thought, 48 characters")
    terminal.resize(40, 20)
    screen = still(terminal, "◆ The tests pass again", "● ready")
    assert all(len(line) <= 40 for line in screen.splitlines())
    documented("narrow", screen)


def press_when_it_answers(terminal: Tmux, gateway: FakeGateway, key: str) -> None:
    """Press a key that answers only after a moment; before, it is a letter, which is taken back."""

    def answered() -> bool:
        if gateway.answers:
            return True
        terminal.type(key)
        terminal.sees(lambda screen: gateway.answers or f"❯ {key}\n" in screen)
        if not gateway.answers:
            terminal.keys("BSpace")
            terminal.sees("❯ Write a message")
        return bool(gateway.answers)

    eventually(answered, DEADLINE, what="the answer")


def test_an_approval_shows_all_arguments_and_is_answered(
    gateway: FakeGateway, terminal: Tmux
) -> None:
    def talk(turn: Turn) -> None:
        reason = "No sandbox contains it."
        answer = turn.ask("shell_exec", "command: rm -r build\ntimeout_secs: 30", reason)
        turn.complete(f"So it was: {answer['decision']}, {answer['scope']}.")

    gateway.on_turn = talk
    terminal.resize(80, 16)
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.say("clean up")
    documented("approval", still(terminal, "timeout_secs: 30", "a allows once"))
    press_when_it_answers(terminal, gateway, "s")
    terminal.sees("So it was: allow, session.")
    assert [a["scope"] for a in gateway.answers.values()] == ["session"]


def test_a_session_is_picked(gateway: FakeGateway, terminal: Tmux) -> None:
    for name in ("holiday", "tax return"):
        terminal_room = gateway._new_room(name)
        gateway.record(terminal_room, {"role": "user", "content": f"hello {name}"}, "t")
    terminal.resize(80, 10)
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.keys("C-t")
    documented("sessions", still(terminal, "switch to", "❯● main", "holiday", "tax return"))
    terminal.type("tax")
    terminal.sees(lambda screen: "holiday" not in screen and "tax return" in screen)
    terminal.keys("Enter")
    terminal.sees("● ready · tax return")
    terminal.sees("you ▸ hello tax return")


def test_what_was_sent_is_recalled_and_found_by_the_next_start(
    gateway: FakeGateway, terminal: Tmux
) -> None:
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.say("the first message")
    terminal.sees("You: the first message")
    terminal.say("another one")
    terminal.sees("You: another one")
    terminal.say("/quit")
    terminal.gone(0)
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.keys("Up", "Up")
    terminal.sees("❯ another one")
    terminal.keys("C-u", "C-r")
    terminal.type("FIRST")
    terminal.sees("❯ the first message")
    terminal.keys("Enter", "Enter")
    gateway.wait(lambda: len(gateway.sent("send_turn")) == 3, "the message")
    assert gateway.sent("send_turn")[-1]["prompt"] == "the first message"


def test_what_came_while_no_window_was_open_is_marked(gateway: FakeGateway, terminal: Tmux) -> None:
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.say("good night")
    terminal.sees("You: good night")
    terminal.say("/quit")
    terminal.gone(0)
    morning = {"role": "assistant", "content": "Good morning."}
    gateway.record(gateway.rooms["s-main"], morning, "scheduled")
    terminal.start(gateway)
    screen = terminal.sees("Good morning.")
    assert "You: good night" in screen.split("New since you were here:")[0]


def test_the_persons_own_editor_has_the_terminal_meanwhile(
    gateway: FakeGateway, terminal: Tmux
) -> None:
    script = terminal.folder / "editor"
    script.write_text('#!/bin/sh\ncat "$1"; echo " EDITING"; read x; echo "written: $x" >"$1"\n')
    script.chmod(0o755)
    terminal.start(gateway, before=f"import os; os.environ['VISUAL'] = {str(script)!r}")
    terminal.sees("● ready")
    terminal.type("draft")
    terminal.keys("C-g")
    terminal.sees("draft EDITING")
    assert terminal.mode("alternate_on") == "0"
    terminal.say("in the editor")
    terminal.sees("❯ written: in the editor")
    assert terminal.mode("alternate_on") == "1"
    terminal.keys("Enter")
    terminal.sees("You: written: in the editor")
    terminal.say("/quit")
    terminal.gone(0)


@pytest.mark.parametrize("editor", ["no-such-editor", "false", "'unbalanced"])
def test_an_editor_that_fails_costs_nothing(
    gateway: FakeGateway, terminal: Tmux, editor: str
) -> None:
    terminal.start(gateway, before=f'import os; os.environ["VISUAL"] = "{editor}"')
    terminal.sees("● ready")
    terminal.type("draft")
    terminal.keys("C-g")
    terminal.sees(lambda screen: "can't be used" in screen or "ended with 1" in screen)
    terminal.sees("❯ draft")


def test_a_file_is_completed_confirmed_and_attached(gateway: FakeGateway, terminal: Tmux) -> None:
    (terminal.folder / "cat.png").write_bytes(PNG)
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.type("what is @ca")
    terminal.keys("Tab")
    terminal.sees("❯ what is @cat.png")
    terminal.keys("Enter")
    terminal.sees("Attach cat.png (16 bytes)? Enter sends")
    terminal.keys("Enter")
    terminal.sees("▤ cat.png (16 bytes)")
    gateway.wait(lambda: gateway.sent("send_turn"), "the message")
    (row,) = gateway.sent("send_turn")[0]["attachments"]
    assert base64.b64decode(row["data"]) == PNG and row["mime_type"] == "image/png"


def test_tools_and_servers(gateway: FakeGateway, terminal: Tmux) -> None:
    own = (("file_read", "Read a text file."), ("tool_search", "Find further tools."))
    rows = [{"name": name, "about": about, "server": "", "requested": True} for name, about in own]
    rows += [
        {
            "name": f"mcp__tracker__issue_{verb}",
            "about": f"{verb.title()} issues.",
            "server": "tracker",
        }
        for verb in ("close", "create", "find")
    ]
    server = {"state": "running", "safety_tier": "read_only", "trusted": True}
    gateway.commands = {
        "tools": {"agent": "default", "tools": rows},
        "mcp": {
            "servers": [
                {
                    **server,
                    "name": "tracker",
                    "tools": rows[2:],
                    "source": "https://mcp.example.org",
                },
                {**server, "name": "files", "state": "idle", "trusted": False, "source": "files"},
            ]
        },
    }
    terminal.resize(80, 20)
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.say("/tools")
    terminal.sees("issue_find")
    terminal.say("/mcp")
    documented("tools", still(terminal, "● ready", "issue_find", "/mcp trust files"))


def test_commands_of_the_daemon_and_export(gateway: FakeGateway, terminal: Tmux) -> None:
    gateway.commands["export"] = {"text": "# main\n\nsaid\n"}
    terminal.start(gateway)
    terminal.sees("● ready")
    terminal.say("/schedules")
    terminal.sees("This daemon does not know /schedules.")
    terminal.say("/export out.md")
    terminal.sees("Written to")
    assert (terminal.folder / "out.md").read_text() == "# main\n\nsaid\n"
    terminal.say("/export out.md")
    terminal.sees("out.md can't be written: File exists.")
