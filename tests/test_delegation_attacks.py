"""What a hostile model gets from delegation: nothing that its turn did not have, and never more
than the bounds say.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from decimal import Decimal

import pytest

from oxydra.approvals import Rules
from oxydra.config import DelegationConfig
from oxydra.providers.metered import Metered
from oxydra.runtime.agents import Terms
from oxydra.threads import CancelToken
from oxydra.tools.delegate import DelegateTool
from oxydra.tools.registry import ToolRegistry
from oxydra.types import Completed, Message, TurnState, Usage
from tests.scripted import MODEL, Scripted, calls
from tests.test_delegation import ACT, House, errand, killed, offered, results
from tests.test_runtime import Dies


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path / "oxydra.db")
    yield house
    house.store.close()


class Endless(Scripted):
    """Delegates in every answer, for ever, with a new goal each time."""

    def __init__(self, agent, width):
        super().__init__()
        self.agent, self.width = agent, width
        self.goals = itertools.count()

    def stream(self, request, token):
        token.check()
        self.requests.append(request)
        goals = [f"again {next(self.goals)}" for _ in range(self.width)]
        message = calls(*(errand(agent=self.agent, goal=goal) for goal in goals))
        yield Completed(message, "tool_calls", Usage(10, 5))


# -------------------------------------------------------------------------------------- how much


@pytest.mark.parametrize("agent", ["default", "helper"])
@pytest.mark.parametrize("depth", [1, 5])
def test_delegating_to_oneself_for_ever_ends(house, agent, depth):
    house.limits = DelegationConfig(max_depth=depth, max_per_turn=5)
    endless = Endless(agent, width=2)
    runtime = house.build(endless, endless, max_turns=4)
    agents = runtime.agents
    runtime.agents = type(agents)(
        agents.get("default"), [replace(agents.get("helper"), max_turns=4), agents.get("reader")]
    )
    runtime.run_turn(house.turn(), CancelToken(), house.emit)
    assert house.terminal()[1]["code"] == "max_turns"
    turns = house.child_turns()
    assert len(turns) == 5  # of all levels together
    assert {turn.state for turn in turns} == {TurnState.FAILED}
    assert max(house.store.depth_of(turn.turn_id) for turn in turns) <= depth
    assert len(endless.requests) <= 4 * (1 + 5)


def test_of_fifty_errands_in_a_step_some_run_and_each_is_answered(house):
    lock, now, most = threading.Lock(), [0], [0]

    class Counts(Scripted):
        def stream(self, request, token):
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            yield from Scripted("found").stream(request, token)
            with lock:
                now[0] -= 1

    parent = Scripted(calls(*(errand(goal=f"number {n}") for n in range(50))), "fine")
    house.go(parent, Counts())
    answers = results(parent)
    assert [r.tool_call_id for r in answers] == [f"call-{n}" for n in range(50)]
    assert [r.is_error for r in answers].count(False) == len(house.children()) == 8
    assert 1 <= most[0] <= 4
    assert house.store.open_calls("t1") == []


def test_a_child_that_never_ends_is_ended_and_its_parent_goes_on(house):
    tools = house.tools

    def hurried():
        specs = [tools().get(name) for name in ("act", "look")]
        return ToolRegistry((), extra=[*specs, DelegateTool(("default", "helper"), 0.2)])

    def stuck(request, token):
        token.wait(request.deadline.remaining())
        request.deadline.check("The call")
        raise AssertionError("it had no end")

    house.tools = hurried
    parent = Scripted(calls(errand()), "fine")
    house.go(parent, Scripted(stuck))
    (result,) = results(parent)
    assert result.is_error and "did not come to an answer" in result.content
    assert [turn.state for turn in house.child_turns()] == [TurnState.FAILED]
    assert house.terminal()[0] == "turn_completed"


def test_a_child_that_calls_the_same_for_ever_is_stopped(house):
    parent, helper = Scripted(calls(errand()), "fine"), Scripted(*[calls(ACT)] * 60)
    house.go(parent, helper)
    assert len(house.ran) == 5 and "5 times" in results(parent)[0].content


# ------------------------------------------------------------------------------------- more power


def test_a_restart_with_fewer_tools_takes_them_from_a_running_child_too(house):
    killed(house, Scripted(calls(errand())), first := Scripted(Dies()))
    assert "act" in offered(first)
    runtime = house.build(Scripted("fine"), helper := Scripted(calls(ACT), "no"))
    terms = Terms(tools=frozenset({"look", "delegate_to_agent"}), attended=False)
    runtime.run_turn(house.store.turn("t1"), CancelToken(), house.emit, terms=terms)
    assert offered(helper) == ["look"] and house.ran == []
    assert "There is no tool named 'act'" in results(helper)[0].content


def test_marks_from_two_children_meet_in_their_parent_and_in_the_next_child(house):
    """One read what strangers wrote, another one private data; nobody may send after that."""
    house.rules = Rules(exfiltration="deny")

    class Each(Scripted):
        """Does what its goal says, then answers."""

        def stream(self, request, token):
            self.requests.append(request)
            goal = request.messages[1].content
            todo = next(word for word in ("fetch", "secret", "send") if f"do {word}" in goal)
            arguments = '{"what": "it"}' if todo == "send" else "{}"
            asked = request.messages[-1].role == "user"
            step = calls((todo, arguments)) if asked else "done"
            yield from Scripted(step).stream(request, token)

    parent = Scripted(
        calls(errand(goal="do fetch"), errand(goal="do secret")),
        calls(errand(goal="do send")),
        calls(("send", '{"what": "it"}')),
        "fine",
    )
    house.go(parent, helper := Each())
    first, second, third, fourth = results(parent)
    assert (first.tainted, first.sensitive) == (True, False)
    assert (second.tainted, second.sensitive) == (False, True)
    assert third.tainted and third.sensitive
    assert "was not run" in results(helper)[0].content  # the third's own call
    assert "was not run" in fourth.content
    assert house.ran == []


def test_an_agent_that_may_more_than_its_caller_may_not_for_it(house):
    """Also where another one stands between the two."""
    house.limits = DelegationConfig(max_depth=3)
    house.session = house.store.create_session(agent_name="reader")
    on = calls(errand(agent="default", goal="on"))
    reader, helper = Scripted(calls(errand()), "fine"), Scripted(on, "middle")
    runtime = house.build(default := Scripted(calls(ACT), "no"), helper)
    agents = runtime.agents
    runtime.agents = type(agents)(
        agents.get("default"),
        [replace(agents.get("reader"), provider=reader), agents.get("helper")],
    )
    runtime.run_turn(house.turn(), CancelToken(), house.emit)
    assert offered(default) == offered(helper) == ["delegate_to_agent", "look"]
    assert house.ran == []


# ------------------------------------------------------------------------------------------ money


class Dear(Scripted):
    """Uses every token that it may."""

    def stream(self, request, token):
        self.requests.append(request)
        usage = Usage(100, request.model.max_output_tokens)
        yield Completed(Message("assistant", "found"), "stop", usage)


def spent(house):
    with house.store._reading() as db:
        return [Decimal(row[0]) / 10**9 for row in db.execute("SELECT cost FROM spend")]


def test_errands_side_by_side_never_cost_more_than_their_parent_may(house):
    house.model = replace(MODEL, price_input=Decimal(100), price_output=Decimal(100))
    parent = Scripted(*[calls(*(errand(goal=f"{r} {n}") for n in range(4))) for r in (1, 2)])
    house.go(parent, Metered(Dear()), max_cost=Decimal(1))
    assert 0 < sum(spent(house)) <= 1
    assert "max_cost" in results(parent)[-1].content
    assert house.terminal()[0] == "turn_completed"


def test_an_agents_own_cap_holds_when_it_works_for_another(house):
    house.model = replace(MODEL, price_input=Decimal(100), price_output=Decimal(100))
    runtime = house.build(parent := Scripted(calls(errand()), "fine"), Metered(dear := Dear()))
    agents = runtime.agents
    capped = replace(agents.get("helper"), max_cost=Decimal("0.01"))
    runtime.agents = type(agents)(agents.get("default"), [capped])
    runtime.run_turn(house.turn(), CancelToken(), house.emit)
    (result,) = results(parent)
    assert dear.requests == [] and spent(house) == []
    assert result.is_error and "max_cost" in result.content
    assert house.terminal()[0] == "turn_completed"


def test_a_turn_tells_what_it_cost_with_all_that_worked_for_it(house):
    house.model = replace(MODEL, price_input=Decimal(100), price_output=Decimal(100))
    parent = Scripted(calls(errand(goal="one"), errand(goal="two")), "fine")
    house.go(parent, Metered(Dear()))
    usage = house.terminal()[1]["response"]["usage"]
    assert Decimal(str(usage["cost_usd"])) == sum(spent(house)) > 0


def test_people_are_told_why_a_child_gave_no_answer(house):
    parent = Scripted(calls(errand()), "fine")
    house.go(parent, Scripted(RuntimeError("secret")))
    shown = [p["call"]["summary"] for t, p in house.frames if t == "tool_event"]
    assert shown[-1].startswith("helper: Something went wrong")
