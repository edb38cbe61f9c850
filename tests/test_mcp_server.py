"""mcp.server and mcp.offer: one client, honest or not, on two pipes."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import Annotated

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oxydra.errors import NotFoundError, OxydraError
from oxydra.mcp.offer import Offered, Toolbox
from oxydra.mcp.protocol import MAX_MESSAGE, VERSIONS
from oxydra.mcp.server import MOST_CALLS, Server
from oxydra.tools.schema import Bounds
from tests.conftest import eventually
from tests.mcp_kit import DEADLINE, hosted

NAME = {"name": "test", "version": "1"}


class Methods:
    """What is served here; `held` waits for its release, or to be cancelled."""

    def __init__(self):
        self.release = threading.Event()
        self.running = threading.Semaphore(0)
        self.cancelled = threading.Semaphore(0)

    def held(self, _params, call):
        call.progress("begun")
        self.running.release()
        with call.token.on_cancel(self.cancelled.release):
            while not self.release.wait(0.01):
                if call.token.wait(0):
                    call.progress("never told")
                    call.token.check()
        call.progress("done")
        return {"held": True}

    def fails(self, params, _call):
        if params.get("how") == "crash":
            return 1 // 0
        raise NotFoundError("It is gone.", remedy="Look elsewhere.")

    def server(self):
        methods = {"echo": lambda params, _call: params, "held": self.held, "fails": self.fails}
        return Server(NAME, {"tools": {}}, methods, "Be kind.")


@pytest.fixture
def methods():
    return Methods()


# ----------------------------------------------------------------------------------------- greeting


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [(version, version) for version in VERSIONS]
    + [("2024-11-05", VERSIONS[0]), ("2099-01-01", VERSIONS[0]), ("", VERSIONS[0])],
)
def test_the_version_is_agreed(methods, asked, chosen):
    with hosted(methods.server(), "") as peer:
        assert peer.hello(asked) == {
            "protocolVersion": chosen,
            "capabilities": {"tools": {}},
            "serverInfo": NAME,
            "instructions": "Be kind.",
        }
        assert peer.ask("echo", {"a": 1}) == {"a": 1}


def test_nothing_but_a_ping_is_answered_before(methods):
    with hosted(methods.server(), "") as peer:
        assert peer.ask("ping") == {}
        assert peer.refused("echo") == (-32600, "The first request is `initialize`.")
        assert peer.refused("initialize", {"protocolVersion": 3})[0] == -32602
        assert peer.refused("initialize")[0] == -32602
        peer.tell("notifications/initialized")
        assert peer.refused("echo")[0] == -32600
        peer.hello()
        assert peer.ask("echo") == {}
        assert peer.refused("initialize", {"protocolVersion": VERSIONS[0]})[0] == -32600


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("line", "code", "id"),
    [
        ("{", -32700, None),
        ("\x00\x01", -32700, None),
        (b"\xff\xfe{}", -32700, None),
        ("[" * 5000, -32700, None),
        (
            '{"jsonrpc":"2.0","id":7,"method":"echo","params":' + '{"a":' * 200 + "1" + "}" * 201,
            -32700,
            None,
        ),
        ("[]", -32600, None),
        ('[{"jsonrpc":"2.0","id":7,"method":"ping"}]', -32600, None),
        ("7", -32600, None),
        ("null", -32600, None),
        ("{}", -32600, None),
        ('{"id":7,"method":"ping"}', -32600, 7),
        ('{"jsonrpc":"1.0","id":7,"method":"ping"}', -32600, 7),
        ('{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600, None),
        ('{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600, None),
        ('{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600, None),
        ('{"jsonrpc":"2.0","id":{},"method":"ping"}', -32600, None),
        ('{"jsonrpc":"2.0","id":7,"method":7}', -32600, 7),
        ('{"jsonrpc":"2.0","id":7,"method":"echo","params":[]}', -32602, 7),
        ('{"jsonrpc":"2.0","id":7,"method":"echo","params":{"a":NaN}}', -32700, None),
        ('{"jsonrpc":"2.0","id":7,"method":"mischief"}', -32601, 7),
        ('{"jsonrpc":"2.0","id":"x","method":"tools/call"}', -32601, "x"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_makes_no_sense_is_answered_and_ends_nothing(methods, line, code, id):
    with hosted(methods.server()) as peer:
        peer.say(line)
        answer = peer.receive()
        assert (answer["id"], answer["error"]["code"]) == (id, code)
        assert answer["error"]["message"]
        assert peer.ask("ping") == {}


def test_what_needs_no_answer_gets_none(methods):
    with hosted(methods.server()) as peer:
        for line in (
            "",
            "   ",
            '{"jsonrpc":"2.0","method":"mischief"}',
            '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":99}}',
            '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":{}}}',
            '{"jsonrpc":"2.0","method":"notifications/cancelled","params":{}}',
            '{"jsonrpc":"2.0","method":"initialize"}',
            '{"jsonrpc":"2.0","id":5,"result":{}}',
            '{"jsonrpc":"2.0","id":5,"error":{"code":1,"message":"x"}}',
        ):
            peer.say(line)
        assert peer.ask("ping") == {}
        assert len(peer.seen) == 2  # that, and the greeting


def test_a_line_that_is_too_long_is_left_out(methods):
    with hosted(methods.server()) as peer:
        asked = '{"jsonrpc":"2.0","id":7,"method":"echo","params":{"a":"%s"}}'
        peer.say(asked % ("x" * MAX_MESSAGE) + "\n" + asked % "short")
        first, second = peer.receive(), peer.receive()
        assert (first["id"], first["error"]["code"]) == (None, -32700)
        assert second["result"] == {"a": "short"}
        assert peer.ask("ping") == {}


LINES = st.lists(
    st.binary(max_size=40).filter(lambda line: b"\n" not in line)
    | st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["jsonrpc", "id", "method", "params", "result"]), inner
            )
        ),
        max_leaves=9,
    ).map(lambda value: json.dumps(value).encode()),
    max_size=12,
)


def test_no_input_ends_it_or_goes_unanswered(methods):
    with hosted(methods.server()) as peer:

        @settings(suppress_health_check=list(HealthCheck))
        @given(LINES)
        def say(lines):
            for line in lines:
                peer.say(line)
            assert peer.ask("ping") == {}

        say()


# ---------------------------------------------------------------------------------- what goes on


def test_failures_have_words(methods):
    with hosted(methods.server()) as peer:
        assert peer.refused("fails") == (-32603, "It is gone. Look elsewhere.")
        assert peer.refused("fails", {"how": "crash"}) == (
            -32603,
            "The server failed; see its log.",
        )
        assert peer.ask("ping") == {}


def test_others_are_answered_meanwhile_and_ids_are_unique(methods):
    with hosted(methods.server()) as peer:
        held = peer.send("held")
        assert methods.running.acquire(timeout=DEADLINE)
        assert peer.ask("echo", {"x": 1}) == {"x": 1}
        peer.say(json.dumps({"jsonrpc": "2.0", "id": held, "method": "echo"}))
        assert peer.receive()["error"]["code"] == -32600
        peer.say(json.dumps({"jsonrpc": "2.0", "id": str(held), "method": "echo"}))
        assert peer.receive() == {"jsonrpc": "2.0", "id": str(held), "result": {}}
        methods.release.set()
        assert peer.answer(held)["result"] == {"held": True}


def test_there_is_an_end_to_how_much_goes_on(methods):
    with hosted(methods.server()) as peer:
        held = [peer.send("held") for _ in range(MOST_CALLS)]
        for _ in held:
            assert methods.running.acquire(timeout=DEADLINE)
        assert peer.refused("echo")[0] == -32603
        methods.release.set()
        answered = [peer.receive()["id"] for _ in held]
        assert sorted(answered) == held
        eventually(lambda: "result" in peer.answer(peer.send("echo")))


def test_progress_is_told_to_who_wants_it(methods):
    methods.release.set()
    with hosted(methods.server()) as peer:
        peer.ask("held")
        peer.ask("held", {"_meta": {"progressToken": {}}})
        peer.ask("held", {"_meta": 7})
        assert not [m for m in peer.seen if "method" in m]
        for token in ("t", 7):
            peer.ask("held", {"_meta": {"progressToken": token}})
            told = [(one["progress"], one["message"]) for one in peer.progress(token)]
            assert told == [(1, "begun"), (2, "done")]


def test_what_is_cancelled_is_not_answered(methods):
    with hosted(methods.server()) as peer:
        held = peer.send("held", {"_meta": {"progressToken": "t"}})
        assert methods.running.acquire(timeout=DEADLINE)
        for other in (held + 1, str(held), True, None):
            peer.tell("notifications/cancelled", {"requestId": other})
        assert peer.ask("ping") == {}
        assert not methods.cancelled.acquire(blocking=False)
        peer.tell("notifications/cancelled", {"requestId": held, "reason": "enough"})
        assert methods.cancelled.acquire(timeout=DEADLINE)
        eventually(lambda: not [t for t in threading.enumerate() if t.name == "oxydra-mcp-1"])
        peer.say(json.dumps({"jsonrpc": "2.0", "id": held, "method": "echo"}))  # it is free again
        assert peer.answer(held)["result"] == {}
        assert [one["message"] for one in peer.progress("t")] == ["begun"]


# ------------------------------------------------------------------------------------------ the end


@pytest.mark.parametrize("how", ["hang up", "stop"])
def test_the_end_cancels_what_goes_on(methods, how):
    with hosted(methods.server()) as peer:
        peer.send("held")
        assert methods.running.acquire(timeout=DEADLINE)
        if how == "hang up":
            peer.hang_up()
        else:
            peer.stopper.send(b"x")
        peer.ended()
        assert methods.cancelled.acquire(blocking=False)


def test_what_was_asked_before_the_end_is_answered(methods):
    with hosted(methods.server()) as peer:
        asked = [peer.send("echo", {"n": n}) for n in range(5)]
        peer.hang_up()
        peer.ended()
        answers = [peer.receive() for _ in asked]
        assert sorted(answer["result"]["n"] for answer in answers) == [0, 1, 2, 3, 4]
        assert peer.receive() is None


def test_a_client_that_reads_nothing_does_not_keep_it_from_its_end(methods):
    with hosted(methods.server()) as peer:
        for _ in range(MOST_CALLS - 1):
            peer.send("echo", {"much": "x" * 100_000})
        eventually(lambda: [t for t in threading.enumerate() if t.name.startswith("oxydra-mcp-")])
        peer.stopper.send(b"x")
        peer.ended()


# ---------------------------------------------------------------------------------------- the tools


@dataclass(frozen=True, slots=True)
class Takes:
    """Do something
    with a word.
    """

    word: Annotated[str, Bounds(1, 8), "which"]
    times: int = 1


@dataclass(frozen=True, slots=True)
class Gives:
    words: list[str]
    note: str | None = None


def repeat(args, _call):
    if args.word == "gone":
        raise NotFoundError("It is gone.")
    return Gives([args.word] * args.times, "once" if args.times == 1 else None)


def toolbox(scopes=("ask",)):
    def may():
        if isinstance(scopes, OxydraError):
            raise scopes
        return scopes

    one = Offered("repeat", "Repeat", Takes, Gives, repeat, frozenset({"ask", "chat"}))
    plain = Offered(
        *("plain", "Plain", Takes, Gives, repeat, frozenset({"chat"}), {"readOnlyHint": True}),
        texts=lambda given: [" ".join(given.words)],
    )
    return Server(NAME, {"tools": {}}, Toolbox([one, plain], may).methods())


def test_tools_are_listed_by_scope():
    with hosted(toolbox()) as peer:
        assert peer.ask("tools/list")["tools"] == [
            {
                "name": "repeat",
                "title": "Repeat",
                "description": "Do something with a word.",
                "inputSchema": {
                    "type": "object",
                    "properties": {
                        "word": {
                            "type": "string",
                            "minLength": 1,
                            "maxLength": 8,
                            "description": "which",
                        },
                        "times": {"type": "integer", "default": 1},
                    },
                    "required": ["word"],
                    "additionalProperties": False,
                },
                "outputSchema": {
                    "type": "object",
                    "properties": {
                        "words": {"type": "array", "items": {"type": "string"}},
                        "note": {"type": "string"},
                    },
                    "required": ["words"],
                    "additionalProperties": False,
                },
                "annotations": {"title": "Repeat"},
            }
        ]
        assert peer.refused("tools/list", {"cursor": "x"})[0] == -32602
    with hosted(toolbox(("chat",))) as peer:
        assert [one["name"] for one in peer.ask("tools/list")["tools"]] == ["repeat", "plain"]
    with hosted(toolbox(())) as peer:
        assert peer.ask("tools/list") == {"tools": []}
    with hosted(toolbox(OxydraError("The token is not known."))) as peer:
        assert peer.refused("tools/list") == (-32603, "The token is not known.")


@pytest.mark.parametrize("version", VERSIONS)
def test_calls_and_what_is_wrong_with_them(version):
    with hosted(toolbox(), version) as peer:
        given = {"words": ["a", "a"]}
        assert peer.ask(
            "tools/call", {"name": "repeat", "arguments": {"word": "a", "times": 2}}
        ) == {
            "content": [{"type": "text", "text": '{"words":["a","a"]}'}],
            "structuredContent": given,
        }
        said = peer.ask("tools/call", {"name": "plain", "arguments": {"word": "a"}})
        assert said["content"] == [{"type": "text", "text": "a"}]
        assert said["structuredContent"] == {"words": ["a"], "note": "once"}
        assert peer.fails("repeat", word="gone") == "It is gone."
        assert peer.refused("tools/call", {"name": "other"}) == (-32602, "Unknown tool: 'other'.")
        for wrong in ({}, {"name": 7}, {"name": "repeat", "arguments": []}):
            assert peer.refused("tools/call", wrong)[0] == -32602
        for arguments in ({}, {"word": ""}, {"word": "a", "more": 1}, {"word": "a", "times": "x"}):
            if version == "2025-06-18":  # protocol errors, there
                wrong = {"name": "repeat", "arguments": arguments}
                code, text = peer.refused("tools/call", wrong)
                assert code == -32602
            else:
                text = peer.fails("repeat", **arguments)
            assert text.startswith("Wrong arguments for repeat: ")
