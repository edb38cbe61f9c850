"""Sessions that are run again on what was recorded of them, and sessions made of parts of one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oxydra.config import RuntimeConfig
from oxydra.errors import ProviderError, UsageError
from oxydra.runtime import replay
from oxydra.runtime.replay import Replay
from oxydra.threads import CancelToken
from oxydra.tools import tool
from oxydra.types import SafetyTier, Summary, TextDelta
from tests.scripted import calls
from tests.test_daemon import SCRIPT, home, running  # noqa: F401
from tests.undo_kit import World, call, write

RAN: list[str] = []


@tool(tier=SafetyTier.SIDE_EFFECTING)
def act(what: str) -> str:
    """Do something that must not be done twice."""
    RAN.append(what)
    if what == "fail":
        raise RuntimeError("it broke")
    return f"did {what}"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    RAN.clear()
    made = World(tmp_path, extra=(act,))
    yield made
    made.close()


def replayed(world: World, first: int = 1, most: int | None = None) -> dict[str, Any]:
    folder = world.store.path.parent
    ran = list(RAN)
    found = Replay(world.store, world.runtime, world.tools, folder).run(world.session, first, most)
    assert ran == RAN  # nothing was run
    assert not list(folder.glob(f"{replay.FOLDER}*"))
    return found


def test_what_was_recorded_comes_out_again(world: World) -> None:
    world.turn("t1", (write("a", "1"), call("act", what="x")), ["one ", "answer"])
    world.turn("t2", (call("act", what="fail"),), (call("nothing_like_it"),), "over", prompt="more")
    world.turn("t3", ProviderError("It is down.", code="provider_unavailable"))
    world.turn("t4", *[(call("act", what="same"),)] * 9)  # stopped by the loop guard
    stored = world.messages()
    found = replayed(world)
    assert found["difference"] is None
    assert (found["turns"], found["replayed"], found["next"]) == (4, 4, None)
    assert world.messages() == stored
    assert RAN[:2] == ["x", "fail"] and set(RAN[2:]) == {"same"}


def test_a_turn_that_was_cancelled(world: World) -> None:
    token = CancelToken()

    def cut(_request: object, _token: object) -> Any:
        token.cancel()
        return ["never said"]

    world.turn("t1", (call("act", what="x"),), cut, token=token)
    world.turn("t2", "fine")
    assert world.store.turn("t1").state == "cancelled"  # type: ignore[union-attr]
    assert replayed(world)["difference"] is None


def test_an_answer_that_was_cut_off(world: World) -> None:
    token = CancelToken()

    class Cutting:
        name = "cutting"

        def stream(self, _request: object, _token: CancelToken) -> Iterator[Any]:
            yield TextDelta("half of it")
            token.cancel()
            token.check()

    runtime = world.made()
    runtime.agents._agents["default"] = replace(runtime.agents.get("default"), provider=Cutting())
    turn, _ = world.store.accept_turn(world.session.session_id, "t1", "r", "go")
    runtime.run_turn(turn, token, world.emit)
    assert world.messages()[-1].content == "half of it\n\n[cancelled]"
    assert replayed(world)["difference"] is None


def test_messages_that_joined(world: World) -> None:
    def steer(text: str, turn_id: str) -> Any:
        def step(_request: object, _token: object) -> Any:
            world.store.accept_turn(world.session.session_id, turn_id, "r", text, joins="t1")
            return calls(call("act", what=turn_id))

        return step

    world.turn("t1", steer("also this", "s1"), steer("and that", "s2"), "all done")
    said = [m.content for m in world.messages() if m.role == "user"]
    assert said == ["go", "also this", "and that"]
    found = replayed(world)
    assert found["difference"] is None and found["turns"] == 1


def test_a_turn_that_was_taken_back_is_copied(world: World) -> None:
    world.turn("t1", (write("a", "1"),), "done")
    world.undo.run(world.session.session_id)
    world.turn("t2", "seen")
    found = replayed(world)
    assert found["difference"] is None and found["replayed"] == 2


def test_one_turn_of_many_and_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        world.turn(f"t{number}", (call("act", what=str(number)),), f"answer {number}")
    assert replayed(world, first=3, most=1)["replayed"] == 1
    monkeypatch.setattr(replay, "BATCH_SECONDS", 0.0)
    found = replayed(world, first=2)
    assert (found["replayed"], found["next"]) == (1, 3)
    for wrong in (0, 5):
        with pytest.raises(UsageError, match="no turn"):
            replayed(world, first=wrong)


def test_the_first_difference_is_told(world: World) -> None:
    """A limit that is another now, a tool that is gone."""
    world.turn("t1", (call("act", what="x"),), "one")
    world.runtime = world.made(config=RuntimeConfig(max_turns=1))
    difference = replayed(world)["difference"]
    assert (difference["turn"], difference["what"]) == (1, "events")
    world.tools = type(world.tools)()
    world.runtime = world.made()
    difference = replayed(world)["difference"]
    assert (difference["sequence"], difference["what"]) == (3, "text")
    assert "no tool named" in difference["replayed"] and difference["recorded"] == "did x"


def test_what_a_replay_left_behind_is_removed(world: World) -> None:
    left = world.store.path.parent / f"{replay.FOLDER}old"
    left.mkdir()
    (left / "scratch.db").write_text("x")
    world.turn("t1", "one")
    assert replayed(world)["difference"] is None
    assert not left.exists()


# -------------------------------------------------------------------------------------------- forks


def test_a_fork_at_any_point(world: World) -> None:
    world.turn("t1", (call("act", what="a"), call("act", what="b")), "one")  # events 1 to 5
    world.turn("t2", "two")  # 6 and 7
    store = world.store
    session_id = world.session.session_id
    store.add_pins(session_id, ["Never push."], 1)
    store.add_pins(session_id, ["Said later."], 6)
    store.add_summary(Summary(session_id, 1, 5, "short"))
    for at, count in ((5, 5), (4, 4), (0, 0), (None, 7)):
        made = store.fork_session(world.session, "branch", at)
        assert store.messages(made.session_id) == world.messages()[:count]
        assert len(store.pins(made.session_id)) == {5: 1, 4: 1, 0: 0, 7: 2}[count]
        summary = store.summary(made.session_id)
        assert (summary is not None) is (count >= 5)
        world.session, before = made, world.session
        world.turn(f"on-{at}", "on it goes")
        assert world.messages()[-1].content == "on it goes"
        assert replayed(world)["difference"] is None
        world.session = before
    for at, near in ((1, "0 and 4"), (3, "0 and 4"), (6, "5 and 7"), (99, "are 7")):
        with pytest.raises(UsageError, match="cut in two") as caught:
            store.fork_session(world.session, "x", at)
        assert near in caught.value.remedy


def test_from_the_command_line(running) -> None:  # noqa: F811
    wanted = [{"tool": "file_write", "arguments": {"path": "/shared/new.txt", "content": "x"}}]
    answer = running.run("ask", SCRIPT % json.dumps(wanted), "--json")
    session = json.loads(answer)["session"]["session_id"]
    running.run("ask", "hello", "--session", session)
    (running.workspace / "shared" / "new.txt").unlink()
    assert "2 of 2 turns replayed" in running.run("replay", session)
    found = json.loads(running.run("replay", session, "--turn", "2", "--json"))
    assert (found["replayed"], found["difference"]) == (1, None)
    assert not (running.workspace / "shared" / "new.txt").exists()
    assert "no turn 3" in running.fails("replay", session, "--turn", "3")
    forked = json.loads(running.run("fork", session, "--at", "4", "--name", "early", "--json"))
    assert forked["display_name"] == "early"
    text = running.run("session", "export", forked["session_id"])
    assert "hello" not in text
    assert "nearest points" in running.fails("fork", session, "--at", "2")
