"""`from oxydra import Agent, tool`: turns without a daemon, with what a daemon promises."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
from decimal import Decimal
from pathlib import Path

import pytest

import oxydra
from oxydra import (
    Agent,
    Completed,
    Message,
    ModelSpec,
    OxydraError,
    SafetyTier,
    TextDelta,
    ToolContext,
    TurnFailed,
    Usage,
    tool,
)
from oxydra.errors import Cancelled, ProviderError, UsageError
from oxydra.runner.workspace import AlreadyRunning
from tests.conftest import REAL_ENVIRONMENT, ROOT
from tests.scripted import Scripted, calls

MODEL = ModelSpec("scripted", "script-1", 100_000, 4_000)
CHEAP = ModelSpec(
    "scripted", "script-1", 100_000, 4_000, price_input=Decimal(1), price_output=Decimal(1)
)


@tool(tier=SafetyTier.READ_ONLY)
def word_count(text: str) -> str:
    """Count the words of a text.

    What stands here is for people.
    """
    return f"{len(text.split())} words"


@tool(tier=SafetyTier.PRIVILEGED)
def launch(what: str) -> str:
    """Do what can't be taken back."""
    return f"launched {what}"


def scripted(tmp_path: Path, *steps, model: ModelSpec = MODEL, **options) -> Agent:
    options.setdefault("settings", {"tools.shell.enabled": False})
    return Agent(tmp_path / "oxydra", provider=Scripted(*steps), model=model, **options)


def results(provider: Scripted) -> list[str]:
    """What the model was last told of its calls."""
    return [m.content for m in provider.requests[-1].messages if m.role == "tool"]


# ---------------------------------------------------------------------------------- the import


def test_the_import_is_free_of_charge() -> None:
    code = "import sys, oxydra; print([m for m in sys.modules if m.startswith('oxydra')])"
    env = {**REAL_ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert sorted(eval(done.stdout)) == ["oxydra", "oxydra.version"]


@pytest.mark.parametrize("name", oxydra.__all__)
def test_all_that_is_named_is_there(name: str) -> None:
    assert getattr(oxydra, name) is getattr(oxydra, name)


def test_what_is_not_named_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Agnet'"):
        oxydra.Agnet  # noqa: B018


# ----------------------------------------------------------------------------------- turns


def test_ten_lines_with_the_offline_model_a_tool_and_a_caged_command(tmp_path: Path) -> None:
    with Agent(tmp_path / "oxydra", tools=[word_count]) as agent:
        (agent.workspace / "shared" / "notes.txt").write_text("three small words")
        assert "three small words" in str(agent.run("read notes.txt"))
        script = [{"tool": "word_count", "arguments": {"text": "a b c"}}, {"text": "Done."}]
        answer = agent.run(f"[[script {json.dumps(script)}]]")
        assert (answer.text, answer.finish_reason) == ("Done.", "stop")
        status = agent.status()["startup_status"]
        assert status["sandbox_tier"] == "library"
        assert "in_process" in [row["code"] for row in status["degraded_reasons"]]
        if status["shell_available"]:
            told = agent.run("run `cat ../../../runner.toml; echo over`").text
            assert "over" in told and "config_version" not in told
    assert not (tmp_path / "oxydra" / "workspaces" / "alice" / "ipc" / "gateway-endpoint").exists()


def test_what_is_said_while_it_is_open_is_one_conversation(tmp_path: Path) -> None:
    provider = Scripted("one", "two", "three")
    options = {"provider": provider, "model": MODEL}
    with Agent(tmp_path / "oxydra", settings={"tools.shell.enabled": False}, **options) as agent:
        first, second = agent.run("first"), agent.run("second")
        assert first.session_id == second.session_id
        assert [m.content for m in provider.requests[-1].messages if m.role != "system"][-3:] == [
            *("first", "one", "second")
        ]
        named = agent.run("third", session="reports")
        assert named.session_id != first.session_id
        assert agent.run("fourth", session="reports").session_id == named.session_id
        assert "third" in [m.content for m in provider.requests[-1].messages]


def test_the_answer_is_streamed(tmp_path: Path) -> None:
    with scripted(tmp_path, ["Good ", "morning", "."], ["again"]) as agent:
        assert "".join(agent.stream("hello")) == "Good morning."
        kinds = [event.type for event in agent.send("hello")]
        assert kinds[-1] == "turn_completed" and "assistant_delta" in kinds


def test_a_tool_gets_its_context_and_what_it_raises_is_a_result(tmp_path: Path) -> None:
    seen = []

    @tool(tier=SafetyTier.SIDE_EFFECTING)
    def divide(context: ToolContext, a: int, b: int = 1) -> float:
        """Divide two numbers."""
        seen.append(context.turn_id)
        return a / b

    provider = Scripted(calls(("divide", '{"a": 6, "b": 0}'), ("divide", '{"a": "x"}')), "end")
    options = {"provider": provider, "model": MODEL, "settings": {"tools.shell.enabled": False}}
    with Agent(tmp_path / "oxydra", tools=[divide], **options) as agent:
        answer = agent.run("divide")
    failed, refused = results(provider)
    assert "ZeroDivisionError" in failed and seen == [answer.turn_id]
    assert "expected a whole number" in refused


def test_a_turn_that_fails_is_raised(tmp_path: Path) -> None:
    broken = ProviderError("It is down.", provider="scripted", code="provider_unavailable")
    with scripted(tmp_path, broken) as agent:
        with pytest.raises(TurnFailed, match="It is down") as caught:
            agent.run("hello")
        assert caught.value.code == "provider_unavailable"
        assert str(agent.run("again")) == "done"


def test_a_turn_can_be_stopped(tmp_path: Path) -> None:
    def endless(_request, token):
        token.wait(60)
        token.check()

    with scripted(tmp_path, endless) as agent:
        reply = agent.send("hello")
        for event in reply:
            if event.type == "turn_progress":
                reply.cancel()
        with pytest.raises(Cancelled, match="stopped"):
            reply.result()


# ------------------------------------------------------------------------------- the guarantees


def test_a_privileged_tool_of_the_programs_own_is_asked_about(tmp_path: Path) -> None:
    wanted = calls(("launch", '{"what": "the rocket"}'))
    asked = []

    def approve(request) -> bool:
        asked.append(request)
        return len(asked) == 1

    provider = Scripted(wanted, "one", wanted, "two")
    options = {"provider": provider, "model": MODEL, "tools": [launch]}
    with Agent(tmp_path / "oxydra", approve=approve, **options) as agent:
        agent.run("launch it")
        assert results(provider) == ["launched the rocket"]
        agent.run("launch it again", session="another")
        assert "did not allow it" in results(provider)[0]
    assert [request["tool"] for request in asked] == ["launch", "launch"]
    assert asked[0]["arguments"] == "what: the rocket"


def test_where_nobody_can_be_asked_it_is_denied(tmp_path: Path) -> None:
    provider = Scripted(calls(("launch", '{"what": "it"}')), "end")
    options = {"provider": provider, "model": MODEL, "tools": [launch]}
    with Agent(tmp_path / "oxydra", **options) as agent:
        agent.run("launch it")
    assert "Nobody is there to be asked" in results(provider)[0]


def test_the_programs_provider_is_held_to_the_caps(tmp_path: Path) -> None:
    with scripted(tmp_path, "one", model=CHEAP) as agent:
        assert agent.run("hello").usage["cost_usd"] == pytest.approx(0.000015)
    runner = tmp_path / "oxydra" / "runner.toml"
    text = runner.read_text()
    runner.write_text(text.replace("[budget]", "[budget]\nper_day = 0.00001"))
    with scripted(tmp_path, "two", model=CHEAP) as agent:
        with pytest.raises(TurnFailed) as caught:
            agent.run("hello")
        assert caught.value.code == "budget"


def test_a_key_reaches_neither_the_model_nor_a_log(tmp_path: Path, monkeypatch) -> None:
    key = "sk-proj-" + "Ab3" * 20
    monkeypatch.setenv("OPENAI_API_KEY", key)

    @tool(tier=SafetyTier.READ_ONLY)
    def leak() -> str:
        """Say what must not be said."""
        logging.getLogger("oxydra.tools.mine").warning("the key is %s", key)
        return f"the key is {key}"

    provider = Scripted(calls(("leak", "{}")), "end")
    options = {"provider": provider, "model": MODEL, "tools": [leak]}
    with Agent(tmp_path / "oxydra", **options) as agent:
        agent.run("leak")
        log = (agent.workspace / "logs" / "runtime.log").read_text()
    assert key not in results(provider)[0] and "the key is" in results(provider)[0]
    assert "the key is" in log and key not in log
    assert logging.getLogger("oxydra").propagate


def test_the_same_turn_id_is_the_same_turn(tmp_path: Path) -> None:
    with scripted(tmp_path, "one", "two") as agent:
        first = agent.run("hello", turn_id="daily")
        assert agent.run("hello", turn_id="daily") == first
        with pytest.raises(UsageError, match="another message"):
            agent.run("good-bye", turn_id="daily")
    with scripted(tmp_path) as agent:
        assert agent.run("hello", turn_id="daily").text == "one"
        assert agent.reply("daily").result().text == "one"


def test_one_at_a_time_has_the_workspace(tmp_path: Path) -> None:
    with scripted(tmp_path) as agent:
        with pytest.raises(AlreadyRunning, match="already running"):
            Agent(tmp_path / "oxydra").open()
        assert str(agent.run("hello")) == "done"


def test_two_agents_in_one_process(tmp_path: Path) -> None:
    with scripted(tmp_path / "a", "from a") as one, scripted(tmp_path / "b", "from b") as two:
        assert (str(one.run("hello")), str(two.run("hello"))) == ("from a", "from b")


def test_closing_wakes_whoever_waits_and_the_turn_goes_on_later(tmp_path: Path) -> None:
    def held(_request, token):
        token.wait(60)
        token.check()

    agent = scripted(tmp_path, held).open()
    reply = agent.send("hello", turn_id="held")
    assert next(iter(reply)).type == "turn_started"
    agent.close()
    with pytest.raises(Cancelled, match="goes on when it is opened again"):
        reply.result()
    with scripted(tmp_path, "the answer") as agent:
        assert agent.reply("held").result().text == "the answer"


def test_memory_by_command(tmp_path: Path) -> None:
    with scripted(tmp_path) as agent:
        saved = agent.command("notes", action="save", content="The cat is called Miso.")
        assert saved
        found = agent.command("memory", query="what is the cat called")
        assert "Miso" in json.dumps(found)
        with pytest.raises(UsageError, match="no command"):
            agent.command("nonsense")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"provider": Scripted()}, "ModelSpec"),
        ({"model": "nowhere/model-1"}, "no provider"),
        ({"settings": {"runtime.max_turnz": 3}}, "max_turnz"),
    ],
)
def test_a_mistake_is_said_with_its_remedy(tmp_path: Path, options, problem: str) -> None:
    with pytest.raises(OxydraError, match=problem):
        Agent(tmp_path / "oxydra", **options).open()


def test_a_closed_agent_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not open"):
        scripted(tmp_path).run("hello")


# ---------------------------------------------------------------------------------- the crash

CRASH = textwrap.dedent("""
    import json, os, signal, sys
    from pathlib import Path
    from oxydra import Agent, SafetyTier, tool

    place = Path(sys.argv[1])

    def append(name):
        with (place / name).open("a") as file:
            file.write("ran\\n")

    @tool(tier=SafetyTier.SIDE_EFFECTING)
    def first() -> str:
        '''Do something that is recorded.'''
        append("first")
        return "first was done"

    @tool(tier=SafetyTier.SIDE_EFFECTING)
    def fatal() -> str:
        '''Be killed in the middle.'''
        append("fatal")
        os.kill(os.getpid(), signal.SIGKILL)
        return "never"

    script = [{"tool": "first", "arguments": {}}, {"tool": "fatal", "arguments": {}},
              {"text": "Over."}]
    with Agent(place / "oxydra", tools=[first, fatal]) as agent:
        print(agent.run(f"[[script {json.dumps(script)}]]", turn_id="the-turn"))
        events = agent.command("export", session_id=agent.reply("the-turn").session_id)
        print(events["text"])
""")


def test_a_program_that_is_killed_in_a_tool_goes_on_and_does_nothing_twice(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(CRASH)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(program), str(tmp_path)]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

    assert run().returncode == -signal.SIGKILL
    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Over.") and "first was done" in done.stdout
    assert "unknown" in done.stdout, "what became of the call is not known, and said so"
    for name in ("first", "fatal"):
        assert (tmp_path / name).read_text() == "ran\n", "started at most once"


class Echo:
    """A provider of one's own."""

    name = "echo"

    def stream(self, request, token):
        text = request.messages[-1].content.upper()
        yield TextDelta(text)
        yield Completed(Message("assistant", text), "stop", Usage(1, 1))


def test_a_provider_of_ones_own_answers(tmp_path: Path) -> None:
    model = ModelSpec("echo", "echo-1", 8_000, 1_000)
    with Agent(tmp_path / "oxydra", provider=Echo(), model=model) as agent:
        assert agent.run("hello").text == "HELLO"
        assert agent.status()["model"] == {"provider": "echo", "model": "echo-1"}
        assert agent.status()["startup_status"]["degraded_reasons"][-1]["code"] != "no_model"


def test_the_examples_of_the_documentation_run(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "library.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    assert len(blocks) == 2
    for block in blocks:
        source = f"from __future__ import annotations\n{block}"
        exec(compile(source, "docs/library.md", "exec"), {"__name__": "documentation"})
    assert capsys.readouterr().out.endswith("HELLO\n")
