"""Approvals: the rule, what is shown, waiting, answers from clients, restarts. Fails closed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra import config
from oxydra.approvals import (
    SHOWN_CHARS,
    Approvals,
    Circumstances,
    Rule,
    Rules,
    decide,
    digest,
    shown,
)
from oxydra.config import RuntimeConfig
from oxydra.errors import ConfigError, NotFoundError, StoreError, UsageError
from oxydra.gateway.frontend import Gateway
from oxydra.gateway.hub import Hub
from oxydra.runtime import Runtime
from oxydra.store import Store
from oxydra.threads import SHUTDOWN, CancelToken, Deadline, Service
from oxydra.tools.base import tool
from oxydra.tools.gate import Gate, TurnScope
from oxydra.tools.registry import ToolRegistry
from oxydra.types import ApprovalState, Json, Message, SafetyTier, Turn, TurnState
from tests.config_place import Place, write
from tests.conftest import eventually
from tests.scripted import MODEL, Scripted, calls
from tests.test_gateway import Client as GatewayClient
from tests.test_gateway import Running as RunningGateway

READ, SIDE, PRIVILEGED = SafetyTier.READ_ONLY, SafetyTier.SIDE_EFFECTING, SafetyTier.PRIVILEGED
CAGED, OPEN = Circumstances(sandboxed=True), Circumstances(sandboxed=False)
WAIT = 10.0


# ---------------------------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("tier", "circumstances", "decision"),
    [
        (READ, OPEN, "allow"),
        (SIDE, OPEN, "allow"),
        (PRIVILEGED, CAGED, "allow"),
        (PRIVILEGED, OPEN, "ask"),
        (PRIVILEGED, replace(OPEN, attended=False), "deny"),
        (SIDE, replace(OPEN, attended=False), "allow"),
        (SIDE, replace(CAGED, sensitive=True, tainted=True, egress=True), "ask"),
        (SIDE, replace(CAGED, sensitive=True, egress=True), "allow"),
        (SIDE, replace(CAGED, tainted=True, egress=True), "allow"),
        (SIDE, replace(CAGED, sensitive=True, tainted=True), "allow"),
        (SIDE, Circumstances(True, False, True, True, True), "deny"),
    ],
)
def test_defaults(tier: SafetyTier, circumstances: Circumstances, decision: str) -> None:
    verdict = decide(Rules(), "act", tier, {}, circumstances)
    assert verdict.decision == decision
    assert (verdict.reason == "") is (decision == "allow")


@pytest.mark.parametrize(
    ("pattern", "value", "applies"),
    [
        ("git status", "git status", True),
        ("git status", "git status -s", False),
        ("git *", "git status", True),
        ("git *", "x; git status", False),
        ("*rm*-rf*", "sudo rm x -rf /", True),
        ("*.py", "a.py", True),
        ("a*a", "a", False),
        ("a*a", "aba", True),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("[ab]*", "a", False),
        ("*", "two\nlines", True),
        ("", "", True),
        ("5", 5, True),
        ("true", True, True),
        ('["a"*', ["a", "b"], True),
    ],
)
def test_a_pattern_is_about_the_whole_argument(pattern: str, value: Any, applies: bool) -> None:
    rule = Rule("deny", arguments={"what": pattern})
    assert rule.applies("act", "read_only", {"what": value}) is applies
    assert not rule.applies("act", "read_only", {"other": value})


def test_a_rule_names_tool_and_tier() -> None:
    assert Rule("deny", "file_*").applies("file_read", "read_only", {})
    assert not Rule("deny", "file_*").applies("web_fetch", "read_only", {})
    assert Rule("deny", tier="privileged").applies("x", "privileged", {})
    assert not Rule("deny", tier="privileged").applies("x", "read_only", {})


def test_the_first_rule_decides_and_the_stricter_layer_counts() -> None:
    git, anything = Rule("allow", "sh", arguments={"c": "git *"}), Rule("ask", "sh")
    runner = Rules(layers=((git, anything), ()))
    assert decide(runner, "sh", PRIVILEGED, {"c": "git log"}, OPEN).decision == "allow"
    assert decide(runner, "sh", PRIVILEGED, {"c": "ls"}, CAGED).decision == "ask"
    widening = Rules(layers=((Rule("deny", "sh"),), (Rule("allow", "*"),)))
    assert decide(widening, "sh", PRIVILEGED, {"c": "ls"}, CAGED).decision == "deny"
    assert decide(widening, "other", PRIVILEGED, {}, OPEN).decision == "ask"
    narrowing = Rules(layers=((Rule("allow", "sh"),), (Rule("ask", "sh"),)))
    assert decide(narrowing, "sh", PRIVILEGED, {"c": "ls"}, CAGED).decision == "ask"


def test_exfiltration_can_only_make_it_stricter() -> None:
    both = Circumstances(True, True, True, True, True)
    denied = Rules(((Rule("deny"),), ()), exfiltration="allow")
    assert decide(denied, "web", SIDE, {}, both).decision == "deny"
    for decision in ("allow", "ask", "deny"):
        rules = Rules(((Rule("allow"),), ()), exfiltration=decision)
        assert decide(rules, "web", SIDE, {}, both).decision == decision


DECISIONS = st.sampled_from(["allow", "ask", "deny"])
LAYERS = st.lists(st.builds(Rule, DECISIONS, st.sampled_from(["*", "a", "b*"])), max_size=3).map(
    tuple
)


@given(LAYERS, LAYERS, st.sampled_from(["a", "b", "bc"]), st.booleans())
def test_no_users_file_can_widen(
    runner: tuple[Rule, ...], user: tuple[Rule, ...], name: str, sandboxed: bool
) -> None:
    order = ("allow", "ask", "deny")
    around = Circumstances(sandboxed)
    alone = decide(Rules((runner, ())), name, PRIVILEGED, {}, around).decision
    together = decide(Rules((runner, user)), name, PRIVILEGED, {}, around).decision
    assert order.index(together) >= order.index(alone)


# ---------------------------------------------------------------------------------- configuration


def test_rules_come_from_the_runner_and_the_user(tmp_path: Path) -> None:
    place = Place(tmp_path)
    runner = (
        '[users.alice]\nconfig_path = "users/alice.toml"\n[approvals]\nexpiry_secs = 60\n'
        '[[approvals.rules]]\ndecision = "deny"\ntool = "shell_exec"\n'
        'arguments = { command = "*sudo*" }\n'
    )
    user = '[approvals]\nexfiltration = "deny"\nexpiry_secs = 900\n'
    place.local_files(runner=runner, user=user)
    policy = json.loads(json.dumps(config.runtime_policy(loaded(place))))["approvals"]
    rules = Rules.from_json(policy)
    assert (rules.exfiltration, rules.expiry_secs) == ("deny", 60.0)
    arguments = {"command": "sudo ls"}
    assert decide(rules, "shell_exec", PRIVILEGED, arguments, CAGED).decision == "deny"


def loaded(place: Place) -> config.Config:
    return config.load(
        place.local / "runner.toml", env=place.env, folder=place.here, system=place.system
    )


def test_a_user_cannot_allow_what_the_runner_asks_about(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.local_files(user='[approvals]\nexfiltration = "allow"\n')
    policy = config.runtime_policy(loaded(place))["approvals"]
    assert policy["exfiltration"] == "ask"
    assert policy["rules"] == [[], []]
    assert Rules.from_json(policy) == Rules(((), ()))
    assert Rules.from_json(None) == Rules()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[[approvals.rules]]\ntool = "x"\n', "decision"),
        ('[[approvals.rules]]\ndecision = "maybe"\n', "allow"),
        ('[approvals]\nexfiltrate = "ask"\n', "exfiltration"),
        ("[approvals]\nexpiry_secs = 0\n", "at least 5"),
    ],
)
def test_a_broken_rule_refuses_to_start(tmp_path: Path, text: str, what: str) -> None:
    place = Place(tmp_path)
    place.local_files(user=text)
    with pytest.raises(ConfigError, match=what):
        loaded(place)


def test_approvals_are_not_read_from_agent_toml_or_variables(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.local_files()
    place.env["OXYDRA__APPROVALS__EXFILTRATION"] = "allow"
    with pytest.raises(ConfigError, match=r"runner\.toml"):
        loaded(place)
    del place.env["OXYDRA__APPROVALS__EXFILTRATION"]
    write(place.local / "agent.toml", '[approvals]\nexfiltration = "allow"\n')
    with pytest.raises(ConfigError, match=r"runner\.toml"):
        loaded(place)


# -------------------------------------------------------------------------------- what is shown


def test_all_arguments_are_shown_and_none_can_pose_as_another() -> None:
    text, complete = shown({"command": "ls\npath: /safe", "n": 5, "deep": {"a": "x\ny"}})
    assert complete
    assert text == 'command: \n  | ls\n  | path: /safe\nn: 5\ndeep: {"a":"x\\ny"}'


@pytest.mark.parametrize(
    "hidden",
    ["\x1b", "\r", "\t", "\x00", "\u202e", "\u200b", "\xa0", "\u3164", "\ufe0f", "\U000e0041"],
)
def test_what_cannot_be_seen_is_made_visible(hidden: str) -> None:
    text, complete = shown({f"a{hidden}": f"b{hidden}c"})
    assert complete and hidden not in text
    assert text != "a: bc"


def test_a_text_that_is_cut_says_so() -> None:
    text, complete = shown({"content": "x" * (SHOWN_CHARS + 100)})
    assert not complete
    assert "characters are not shown" in text and len(text) < SHOWN_CHARS + 100


def test_the_hash_is_of_the_exact_arguments() -> None:
    assert digest({"a": 1, "b": "x"}) == digest({"b": "x", "a": 1})
    different = [{"a": 1}, {"a": "1"}, {"a": 1.5}, {"a": [1]}, {"a": None}, {"a": "\ud800"}, {}]
    assert len({digest(arguments) for arguments in different}) == len(different)
    assert digest({}) == hashlib.sha256(b"{}").hexdigest()


# ------------------------------------------------------------------------------------ the service


ASKING = Rules(((Rule("ask", "act"),), ()))


class World:
    """A store with one turn, a gate that asks, and what it said."""

    def __init__(self, path: Path, rules: Rules = ASKING) -> None:
        self.path, self.rules = path, rules
        self.store = Store(path)
        session = self.store.create_session()
        self.turn, _ = self.store.accept_turn(session.session_id, "t1", "r1", "go")
        self.store.start_turn(self.turn)
        self.ran: list[str] = []
        self.frames: list[tuple[str, Json]] = []
        self.said = threading.Condition()
        self.token = CancelToken()
        self.begin()

    def begin(self) -> None:
        self.approvals = Approvals(self.store, self.rules, sandboxed=True)

        @tool
        def act(what: str) -> str:
            """Do something."""
            self.ran.append(what)
            return "done"

        self.gate = Gate(ToolRegistry(names=(), extra=[act]), {}, approve=self.approvals.check)

    def restart(self) -> None:
        """As after `kill -9`: another process opens the same database."""
        self.store.close()
        self.store = Store(self.path)
        self.token = CancelToken()
        self.frames.clear()
        self.begin()

    def emit(self, kind: str, payload: Json) -> None:
        with self.said:
            self.frames.append((kind, payload))
            self.said.notify_all()

    def wait_for(self, kind: str, count: int = 1) -> list[Json]:
        def found() -> list[Json]:
            return [payload for name, payload in self.frames if name == kind]

        with self.said:
            assert self.said.wait_for(lambda: len(found()) >= count, WAIT), self.frames
            return found()

    def step(self, *whats: str, **changes: Any) -> list[str]:
        """One step of the turn whose calls act on `whats`; returns the results."""
        message = calls(*(("act", json.dumps({"what": what})) for what in whats))
        self.store.add_step(self.turn, message)
        return self.again(message, **changes)

    def again(self, message: Message, **changes: Any) -> list[str]:
        journal = StoreJournal(self.store, self.turn)
        scope = TurnScope(self.turn.session_id, "t1", self.token, journal, **changes)
        outcomes = self.gate.run(message.tool_calls, scope, self.emit)
        return [outcome.message.content for outcome in outcomes]

    @contextlib.contextmanager
    def running(self, *whats: str, **changes: Any) -> Iterator[list[str]]:
        """The step on a thread of its own; its results are there when the block is left."""
        results: list[str] = []
        service = Service("step", lambda _service: results.extend(self.step(*whats, **changes)))
        service.start()
        try:
            yield results
        finally:
            eventually(lambda: not service.alive, WAIT, "the step did not end")
            assert service.stop()

    def state(self, number: int = 0) -> ApprovalState:
        payloads = [p for kind, p in self.frames if kind == "approval_request"]
        return self.store.approval(payloads[number]["approval_id"]).state


class StoreJournal:
    def __init__(self, store: Store, turn: Turn) -> None:
        self.store, self.turn = store, turn

    def calls_running(self, running: Any) -> None:
        self.store.calls_running(self.turn, running)

    def calls_finished(self, results: Any, running: Any = (), took: Any = ()) -> None:
        self.store.calls_finished(self.turn, results, running, took)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "oxydra.db")
    yield made
    made.store.close()


def test_an_allowed_call_runs(world: World) -> None:
    with world.running("x") as results:
        (request,) = world.wait_for("approval_request")
        assert world.ran == []
        assert request["tool"] == "act" and request["arguments"] == "what: x"
        assert request["arguments_sha256"] == digest({"what": "x"})
        assert request["complete"] and request["safety_tier"] == "side_effecting"
        world.approvals.answer(request["approval_id"], allow=True, by="local")
    assert (results, world.ran) == (["done"], ["x"])
    (resolved,) = world.wait_for("approval_resolved")
    assert (resolved["decision"], resolved["by"]) == ("allowed", "local")


def test_a_denied_call_does_not_run_and_the_others_do(world: World) -> None:
    with world.running("x", "y") as results:
        first, second = world.wait_for("approval_request", 2)
        world.approvals.answer(second["approval_id"], allow=True, by="local")
        world.approvals.answer(first["approval_id"], allow=False, by="local")
    assert world.ran == ["y"]
    assert "did not allow" in results[0] and results[1] == "done"


def test_an_allowance_is_for_one_call(world: World) -> None:
    for _ in range(2):
        world.frames.clear()
        with world.running("x", step=len(world.ran) + 1):
            (request,) = world.wait_for("approval_request")
            world.approvals.answer(request["approval_id"], allow=True, by="local")
    assert world.ran == ["x", "x"]


def test_an_allowance_for_the_session_covers_exactly_these_arguments(world: World) -> None:
    with world.running("x", "x", step=1):
        first = world.wait_for("approval_request", 2)[0]
        world.approvals.answer(first["approval_id"], allow=True, for_session=True, by="local")
    assert world.ran == ["x", "x"], "the second request was open when the first was answered"
    world.frames.clear()
    assert world.step("x", step=2) == ["done"]
    assert not [kind for kind, _ in world.frames if kind == "approval_request"]
    with world.running("X", step=3) as results:
        (request,) = world.wait_for("approval_request")
        world.approvals.answer(request["approval_id"], allow=False, for_session=True, by="local")
    assert "did not allow" in results[0]
    with world.running("X", step=4):
        request = world.wait_for("approval_request", 2)[1]
        world.approvals.answer(request["approval_id"], allow=False, by="local")


def test_an_unanswered_request_expires(tmp_path: Path) -> None:
    world = World(tmp_path / "db", Rules(((Rule("ask"),), ()), expiry_secs=0.05))
    assert "nobody answered" in world.step("x")[0]
    assert (world.ran, world.state()) == ([], ApprovalState.EXPIRED)
    with pytest.raises(UsageError, match="expired"):
        world.approvals.answer(
            world.wait_for("approval_request")[0]["approval_id"], allow=True, by="local"
        )
    world.store.close()


def test_a_request_ends_with_the_turns_time(world: World) -> None:
    assert "nobody answered" in world.step("x", deadline=Deadline.after(0.05))[0] or not world.ran
    assert (world.ran, world.state()) == ([], ApprovalState.EXPIRED)


def test_cancelling_the_turn_denies(world: World) -> None:
    with world.running("x"):
        world.wait_for("approval_request")
        world.token.cancel()
    assert (world.ran, world.state()) == ([], ApprovalState.DENIED)
    assert world.approvals.pending() == []


def test_nobody_is_asked_in_an_unattended_run(world: World) -> None:
    assert "Nobody is there" in world.step("x", attended=False)[0]
    assert (world.ran, world.frames[0][0]) == ([], "tool_event")


def test_an_open_request_survives_a_restart(world: World) -> None:
    with world.running("x") as results:
        (request,) = world.wait_for("approval_request")
        world.token.cancel(SHUTDOWN)
    assert results == [], "the call is left as the journal has it"
    world.restart()
    (call,) = [call for call, _state in world.store.open_calls("t1")]
    message = Message("assistant", tool_calls=(call,))
    outcome: list[str] = []
    service = Service("resumed", lambda _service: outcome.extend(world.again(message)))
    service.start()
    (again,) = world.wait_for("approval_request")
    assert again == request
    world.approvals.answer(request["approval_id"], allow=True, by="local")
    eventually(lambda: not service.alive)
    assert (outcome, world.ran) == (["done"], ["x"])


@pytest.mark.parametrize("allow", [True, False])
def test_an_answer_given_before_the_turn_resumes_counts(world: World, allow: bool) -> None:
    with world.running("x"):
        (request,) = world.wait_for("approval_request")
        world.token.cancel(SHUTDOWN)
    world.restart()
    world.approvals.answer(request["approval_id"], allow=allow, by="local")
    (call,) = [call for call, _state in world.store.open_calls("t1")]
    world.again(Message("assistant", tool_calls=(call,)))
    assert world.ran == (["x"] if allow else [])


def test_an_answer_for_other_arguments_does_not_count(world: World) -> None:
    with world.running("x"):
        (request,) = world.wait_for("approval_request")
        world.token.cancel(SHUTDOWN)
    world.restart()
    world.approvals.answer(request["approval_id"], allow=True, by="local")
    (call,) = [call for call, _state in world.store.open_calls("t1")]
    changed = replace(call, arguments='{"what": "y"}')
    world.again(Message("assistant", tool_calls=(changed,)), attended=False)
    assert world.ran == []


def test_the_first_answer_holds(world: World) -> None:
    with world.running("x"):
        (request,) = world.wait_for("approval_request")
        world.approvals.answer(request["approval_id"], allow=False, by="local")
        with pytest.raises(UsageError, match="denied already"):
            world.approvals.answer(request["approval_id"], allow=True, by="other")
    assert world.ran == []
    with pytest.raises(NotFoundError):
        world.approvals.answer("nothing", allow=True, by="local")


def test_what_was_cut_cannot_be_allowed(world: World) -> None:
    with world.running("x" * (SHOWN_CHARS + 1)):
        (request,) = world.wait_for("approval_request")
        assert not request["complete"]
        with pytest.raises(UsageError, match="too long"):
            world.approvals.answer(request["approval_id"], allow=True, by="local")
        world.approvals.answer(request["approval_id"], allow=False, by="local")
    assert world.ran == []


def test_what_cannot_be_stored_does_not_run(world: World) -> None:
    def full(*_arguments: object) -> None:
        raise StoreError("The disk is full.")

    world.gate = Gate(world.gate._registry, {}, approve=full)  # type: ignore[arg-type]
    assert "disk is full" in world.step("x")[0]
    assert world.ran == []


def test_a_denying_rule_is_told_to_the_model(tmp_path: Path) -> None:
    world = World(tmp_path / "db", Rules(((Rule("deny", arguments={"what": "bad*"}),), ())))
    assert world.step("bad", "good") == [
        "act was not run. A rule of [approvals] denies it.",
        "done",
    ]
    assert world.ran == ["good"]
    world.store.close()


# ---------------------------------------------------------------------------------- over the wire


class Asking(RunningGateway):
    """A gateway whose tool `act` is asked about."""

    scopes: tuple[str, ...] = ("chat", "approve")

    def start(self, port: int = 0) -> None:
        self.store = Store(self.path)
        self.ran: list[str] = []

        @tool
        def act(what: str) -> str:
            """Do something."""
            self.ran.append(what)
            return "done"

        registry = ToolRegistry(names=(), extra=[act])
        approvals = Approvals(self.store, Rules(((Rule("ask"),), ())), sandboxed=True)
        runtime = Runtime(
            store=self.store,
            provider=self.provider,
            model=MODEL,
            gate=Gate(registry, {}, approve=approvals.check),
            tools=registry.specs,
            config=RuntimeConfig(),
        )
        self.hub = Hub(self.store, runtime, self.config, "alice")
        listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self.port = listener.getsockname()[1]
        self.gateway = Gateway(
            listener,
            self.hub,
            self.store,
            self.config,
            [
                {"name": "local", "sha256": sha256(TOKENS[0]), "scopes": ["chat", "approve"]},
                {"name": "door", "sha256": sha256(TOKENS[1]), "scopes": ["chat"]},
            ],
            lambda: {"healthy": True},
            approvals=approvals,
        )
        self.hub.start()
        self.gateway.start()


TOKENS = ("a-token-of-sufficient-length-0123456789", "another-token-that-cannot-approve-12345")
ACT = calls(("act", '{"what": "x"}'))


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[Callable[..., Asking]]:
    started: list[Asking] = []

    def start(*steps: Any) -> Asking:
        started.append(Asking(tmp_path / "oxydra.db", Scripted(*steps)))
        return started[-1]

    yield start
    for gateway in started:
        gateway.stop()


@pytest.mark.parametrize(("decision", "ran"), [("allow", ["x"]), ("deny", [])])
def test_a_client_answers(asking: Callable[..., Asking], decision: str, ran: list[str]) -> None:
    gateway = asking(ACT, "fine")
    with gateway.client() as client:
        client.turn()
        request = client.until("approval_request")["payload"]
        assert request["turn"] == {"turn_id": "t1", "state": "running"}
        reply = client.ask("approve", approval_id=request["approval_id"], decision=decision)
        assert reply["type"] == "approval_resolved"
        assert reply["payload"]["by"] == "local"
        client.until("turn_completed")
        numbered = [f for f in client.seen if f["type"] == "approval_resolved" and "seq" in f]
        assert len(numbered) == 1
    assert gateway.ran == ran


def test_a_client_that_comes_later_is_told_of_open_requests(
    asking: Callable[..., Asking],
) -> None:
    gateway = asking(ACT, "fine")
    with gateway.client() as client:
        client.turn()
        request = client.until("approval_request")["payload"]
    with gateway.client(session_id=client.session) as other:
        told = other.until("approval_request")
        assert told["payload"]["approval_id"] == request["approval_id"]
        assert told["payload"]["session"]["session_id"] == client.session
        other.ask("approve", approval_id=request["approval_id"], decision="allow", scope="once")
        other.until("turn_completed")
    assert gateway.ran == ["x"]


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"decision": "yes"}, "usage"),
        ({"decision": "allow", "scope": "ever"}, "usage"),
        ({"decision": "allow", "approval_id": "nothing"}, "not_found"),
        ({"decision": 1}, "bad_frame"),
    ],
)
def test_a_senseless_answer_is_refused(
    asking: Callable[..., Asking], payload: Json, code: str
) -> None:
    gateway = asking(ACT, "fine")
    with gateway.client() as client:
        client.turn()
        request = client.until("approval_request")["payload"]
        reply = client.ask("approve", **{"approval_id": request["approval_id"], **payload})
        assert (reply["type"], reply["payload"]["code"]) == ("error", code)
        assert gateway.ran == []
        client.ask("approve", approval_id=request["approval_id"], decision="deny")
        client.until("turn_completed")


def test_a_token_without_the_scope_cannot_answer(asking: Callable[..., Asking]) -> None:
    gateway = asking(ACT, "fine")
    with gateway.client() as client:
        client.turn()
        request = client.until("approval_request")["payload"]
        door = GatewayClient(gateway.connect(TOKENS[1]))
        door.ask("hello", protocol_version=2, user_id="alice", session_id=client.session)
        reply = door.ask("approve", approval_id=request["approval_id"], decision="allow")
        assert (reply["type"], reply["payload"]["code"]) == ("error", "denied")
        door.ws.close()
        assert gateway.ran == []
        client.ask("approve", approval_id=request["approval_id"], decision="deny")
        client.until("turn_completed")


def test_an_open_request_survives_a_restart_of_the_daemon(
    asking: Callable[..., Asking],
) -> None:
    gateway = asking(ACT, "fine")
    with gateway.client() as client:
        client.turn()
        request = client.until("approval_request")["payload"]
    gateway.stop()
    gateway.start()
    with gateway.client(session_id=client.session) as other:
        assert other.until("approval_request")["payload"]["approval_id"] == request["approval_id"]
        other.ask("approve", approval_id=request["approval_id"], decision="allow")
        other.until("turn_completed")
    assert gateway.ran == ["x"]
    turn = gateway.store.turn("t1")
    assert turn is not None and turn.state is TurnState.COMPLETED
