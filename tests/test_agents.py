"""Agents: what the configuration says of them, and what they may do in a session."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from oxydra import config
from oxydra.catalog import Catalog
from oxydra.config import RuntimeConfig
from oxydra.errors import ConfigError
from oxydra.runner.settings import from_config
from oxydra.runtime import Agent, Runtime, SystemPrompt
from oxydra.threads import CancelToken
from oxydra.tools.gate import Gate
from oxydra.types import TurnState
from tests.config_place import Place
from tests.scripted import MODEL, Scripted, calls
from tests.test_daemon import SCRIPT, home  # noqa: F401
from tests.test_gateway import running  # noqa: F401
from tests.test_runtime import world  # noqa: F401

KEY = "sk-test-0123456789abcdefghijklmnop"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# ---------------------------------------------------------------------------------- configuration


def chains(place: Place, text: str) -> dict[str, list[tuple[str, str]]]:
    settings = place.load_local(text)
    chain = [place.select(settings)]
    chain += [place.select(settings, wanted=w) for w in settings.agent.selection.fallback]
    found = config.agent_models(settings, Catalog.load(), chain, place.env)
    told = config.effective(settings, chain[0], chain[1:], found)
    guest = config.from_effective(json.loads(json.dumps(told)))
    assert {name: [s.spec for s in own] for name, own in found.items()} == {
        name: list(own) for name, own in guest.agent_models.items()
    }
    return {name: [(s.provider, s.model) for s in own] for name, own in found.items()}


def test_what_an_agent_leaves_out_comes_from_the_selection(place: Place) -> None:
    place.env |= {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY}
    catalog = Catalog.load()
    of_openai, of_anthropic = catalog.default_model("openai"), catalog.default_model("anthropic")
    found = chains(
        place,
        '[selection]\nprovider = "openai"\nmodel = "gpt-4.1"\n'
        'fallback = [{provider = "anthropic"}]\n'
        '[agents.same]\n[agents.model.selection]\nmodel = "gpt-4.1-mini"\n'
        '[agents.provider.selection]\nprovider = "anthropic"\n'
        'fallback = [{provider = "openai"}]\n',
    )
    assert found == {
        "same": [("openai", "gpt-4.1"), ("anthropic", of_anthropic)],
        "model": [("openai", "gpt-4.1-mini"), ("anthropic", of_anthropic)],
        "provider": [("anthropic", of_anthropic), ("openai", of_openai)],
    }


def test_without_any_key_the_offline_model_plays_every_agent(place: Place) -> None:
    found = chains(place, '[agents.a.selection]\nmodel = "gpt-4.1"\n')
    assert [provider for provider, _ in found["a"]] == ["offline"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[agents.a.selection]\nprovider = "gemini"\n', "agents.a.selection.provider"),
        ('[agents.a.selection]\nprovider = "gemni"\n', "gemini"),
        ('[agents.a]\ntools = ["file_raed"]\n', "Did you mean file_read?"),
        ('[agents.a]\ntools = ["file_*", "wbe_*"]\n', "'wbe_*' fits no tool"),
        ('[agents.a]\ntools = ["delegate_*", "shell_exec", "*"]\nmax_turns = 0\n', "max_turns"),
        ('[agents."a b"]\nsystem_prompt = "x"\n', "can't be a name"),
    ],
)
def test_a_wrong_agent_is_refused_at_the_start(
    place: Place, text: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    monkeypatch.delenv("API_KEY", raising=False)
    with pytest.raises(ConfigError) as caught:
        from_config(place.load_local(text))
    assert says in f"{caught.value} {caught.value.key}"
    assert caught.value.file and caught.value.line


def test_an_agents_key_reaches_its_route_and_no_guest(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other-0123456789abcdefghij")
    text = '[selection]\nprovider = "openai"\n[agents.a.selection]\nprovider = "anthropic"\n'
    settings = from_config(place.load_local(text))
    assert [route.name for route in settings.routes] == ["openai", "anthropic"]
    assert settings.policy["keys"] == ["anthropic", "openai"]
    assert KEY in settings.secrets() and KEY not in json.dumps(settings.config)


# -------------------------------------------------------------------------------------- the runtime


def runtime(world, provider, *agents):  # noqa: F811
    registry = world.tools()
    return Runtime(
        store=world.store,
        provider=provider,
        model=MODEL,
        gate=Gate(registry, {}),
        tools=registry.specs,
        config=RuntimeConfig(),
        prompt=SystemPrompt(agents={"reader": "You only read."}),
        agents=agents,
    )


def run(world, built, agent):  # noqa: F811
    world.session = world.store.create_session(agent_name=agent)
    built.run_turn(world.turn(), CancelToken(), world.emit)


def test_an_agent_has_its_model_its_words_and_its_tools_only(world):  # noqa: F811
    script = calls(("act", '{"what": "a"}'), ("look", '{"what": "b"}'))
    own = Scripted(script, "done")
    model = replace(MODEL, id="script-2")
    agent = Agent("reader", own, model, "high", tools=("l*",), max_turns=7)
    run(world, runtime(world, Scripted(), agent), "reader")
    first, second = own.requests
    assert (first.model, first.reasoning) == (model, "high")
    assert [tool.name for tool in first.tools] == ["look"]
    assert first.messages[0].content.startswith("You only read.")
    assert world.ran == ["b"]
    refused = second.messages[-2]
    assert refused.is_error and "There are: look." in refused.content
    assert world.frames[0][1]["progress"]["max_turns"] == 7
    assert world.terminal()[0] == "turn_completed"


def test_the_default_agent_can_be_said_more_of(world):  # noqa: F811
    own = Scripted("hello")
    run(world, runtime(world, Scripted(), Agent("default", own, MODEL, tools=())), "default")
    assert own.requests[0].tools == ()


def test_nobody_goes_on_for_an_agent_that_is_gone(world):  # noqa: F811
    provider = Scripted("hello")
    run(world, runtime(world, provider), "reader")
    kind, payload = world.terminal()
    assert (kind, payload["code"]) == ("error", "unknown_agent")
    assert "There are: default." in payload["message"] and provider.requests == []
    assert world.roles() == ["user"]


def test_a_running_turn_of_an_agent_that_is_gone_runs_nothing(world):  # noqa: F811
    world.session = world.store.create_session(agent_name="reader")
    turn = world.turn()
    world.store.start_turn(turn)
    world.store.add_step(turn, calls(("look", '{"what": "b"}')))
    turn = replace(turn, state=TurnState.RUNNING)
    runtime(world, Scripted()).run_turn(turn, CancelToken(), world.emit)
    assert world.terminal()[1]["code"] == "unknown_agent" and world.ran == []


def test_agents_are_listed_with_what_they_may(world):  # noqa: F811
    built = runtime(world, Scripted(), Agent("reader", Scripted(), MODEL, tools=("look", "x")))
    rows = built.agents.report(built.tools)["agents"]
    assert [(row["name"], row["tools"]) for row in rows] == [
        ("default", ["act", "look"]),
        ("reader", ["look"]),
    ]


# -------------------------------------------------------------------------------------- the gateway


def test_a_session_of_an_unknown_agent_is_refused(running):  # noqa: F811
    with running().client() as client:
        reply = client.ask("create_session", agent_name="nobody")["payload"]
        assert reply["code"] == "unknown_agent" and "There are: default." in reply["message"]
        assert client.ask("create_session", agent_name="default")["type"] == "session_created"


def test_a_question_to_an_agent(home):  # noqa: F811
    home.add("agent.toml", '\n[agents.reader]\ntools = ["file_list"]\nmax_turns = 3\n')
    home.run("start", "--detach")
    steps = [{"tool": "file_write", "arguments": {"path": "/shared/x", "content": "y"}}]
    answer = home.run("ask", SCRIPT % json.dumps(steps), "--agent", "reader")
    assert "There is no tool named 'file_write'" in answer
    assert not (home.workspace / "shared" / "x").exists()
    assert "There are: default, reader." in home.fails("ask", "x", "--agent", "raeder")
    assert "--session" in home.fails("ask", "x", "--agent", "a", "--session", "b", code=2)
    told = json.loads(home.run("explain", "prompt", "--agent", "reader", "--json"))
    assert told["tools"]["count"] == 1
    home.run("stop")
    told = json.loads(home.run("explain", "prompt", "--agent", "reader", "--json"))
    assert told["tools"]["count"] == 1
