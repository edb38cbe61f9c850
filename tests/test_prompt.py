"""The system prompt: what is in it, when it stays the same, and `explain prompt`."""

from __future__ import annotations

import json

from oxydra.budget import estimate_text, estimate_tools
from oxydra.runtime import SystemPrompt
from oxydra.runtime.prompt import IDENTITY, RULES, report, sample
from oxydra.types import Folder, Session, ToolSpec
from tests.scripted import MODEL
from tests.test_daemon import home  # noqa: F401

MOUNTS = [
    Folder("shared", "/w/shared", True),
    Folder("mnt/code", "/home/u/code", True, guarded=True),
    Folder("mnt/photos", "/home/u/photos", False, guarded=True),
]


def began(at: str = "2026-11-25T23:30:00.000+00:00", agent: str = "default", origin: str = ""):
    return Session("s", agent, "", origin, at, at, False)


def test_the_parts_are_there_where_they_are_needed() -> None:
    bare = SystemPrompt(folders=())
    assert [part.name for part in bare.parts(began())] == ["identity", "rules", "date"]
    full = SystemPrompt(["file_read"], folders=("shared", "vault"), mounts=MOUNTS)
    parts = {part.name: part.text for part in full.parts(began(origin="gateway"))}
    assert list(parts) == ["identity", "rules", "folders", "tools", "channel", "date"]
    listed = "/shared (their workspace), /vault (read-only), /mnt/code, /mnt/photos (read-only)."
    assert parts["folders"].endswith(listed)
    assert "/home/u" not in full.text(began()), "where they are on the host is nobody's business"
    assert "file_read" not in full.text(began(), tools=["file_list"])
    assert bare.text(began()) == "\n".join(part.text for part in bare.parts(began()))


def test_own_words_take_the_place_of_the_first_part_and_the_rules_stay() -> None:
    prompt = SystemPrompt(own=" You are Ada.\n", agents={"judge": "You judge.", "plain": ""})
    for agent, words in (("default", "Ada."), ("judge", "You judge."), ("plain", "Ada.")):
        text = prompt.text(began(agent=agent))
        assert words in text and RULES in text and IDENTITY not in text, agent
    assert SystemPrompt().text(began()).startswith(IDENTITY)


def test_the_date_is_the_users_and_the_sessions() -> None:
    assert "Thursday, 2026-11-26 (Europe/Berlin)" in SystemPrompt(zone="Europe/Berlin").text(
        began()
    )
    assert "Wednesday, 2026-11-25 (UTC)" in SystemPrompt().text(began())
    assert "(UTC)" in SystemPrompt(zone="Nowhere/Land").text(began())


def test_a_session_has_one_prompt_to_the_byte() -> None:
    """A second process with the same configuration makes the same one, whatever the time."""
    made = [SystemPrompt({"b", "a", "file_read"}, zone="Asia/Tokyo").text(began()) for _ in "12"]
    assert made[0] == made[1]


def test_the_report_counts_every_part() -> None:
    tools = [ToolSpec("file_read", "Read.", {"type": "object", "properties": {}})]
    found = report(SystemPrompt(["file_read"]), sample("default"), tools, MODEL)
    for part in found["parts"]:
        assert part["tokens"] == estimate_text(part["text"])
    assert found["tools"] == {"count": 1, "tokens": estimate_tools(tools, MODEL)}
    counted = sum(part["tokens"] for part in found["parts"]) + found["tools"]["tokens"]
    assert found["total_tokens"] == counted > 0


def test_explain_prompt_with_and_without_a_daemon(home) -> None:  # noqa: F811
    home.add(
        "agent.toml",
        '\n[agents.judge]\nsystem_prompt_file = "judge.md"\n',
    )
    (home.folder / "judge.md").write_text("You judge what others made.\x1b[31m\n")
    (home.folder / "judge.md").chmod(0o600)
    stopped = json.loads(home.run("explain", "prompt", "--json"))
    home.run("start", "--detach")
    started = json.loads(home.run("explain", "prompt", "--json"))
    assert stopped["parts"] == started["parts"]
    assert stopped["tools"]["count"] >= started["tools"]["count"] > 0
    names = [part["name"] for part in started["parts"]]
    assert names == ["identity", "rules", "folders", "tools", "skills", "channel", "date"]

    shown = home.run("explain", "prompt", "--agent", "judge")
    assert "You judge what others made." in shown and "\x1b" not in shown and IDENTITY not in shown
    assert "in all" in shown
    line = home.fails("explain", "prompt", "--agent", "nobody", code=2)
    assert "nobody" in line and "judge" in line


def test_the_configured_prompt_is_what_is_sent(home) -> None:  # noqa: F811
    text = (home.folder / "agent.toml").read_text()
    (home.folder / "agent.toml").write_text('system_prompt = "You are a parrot."\n' + text)
    home.run("start", "--detach")
    assert "You are a parrot." in home.run("explain", "prompt")
