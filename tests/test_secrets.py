"""scrub: no known secret survives in any form, nothing else is touched, no text makes it slow."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra.scrub.exact import MARKER, ExactScrubber
from oxydra.scrub.guest import GuestScrubber, describe, introduces_marker
from oxydra.threads import CancelToken
from oxydra.tools.base import tool
from oxydra.tools.confine import Workspace
from oxydra.tools.gate import Gate, TurnScope
from oxydra.tools.registry import ToolRegistry
from oxydra.types import Json, Marks, ToolCall, ToolResult

KEY = "sk-demo/4+" + "Zx9Qw7Lm" * 3 + "=="
ODD = 'pä ss"w\\ord/100%'
SECRETS = [KEY, ODD]


def lower_hex(text: str) -> str:
    return re.sub("%..", lambda m: m.group().lower(), text)


def escaped_slashes(text: str) -> str:
    return json.dumps(text)[1:-1].replace("/", "\\/")


FORMS: dict[str, Callable[[str], str]] = {
    "exact": str,
    "url": lambda s: quote(s, safe=""),
    "url, slashes kept": quote,
    "url, lower case": lambda s: lower_hex(quote(s, safe="")),
    "url, every byte": lambda s: "".join(f"%{b:02x}" for b in s.encode()),
    "query": quote_plus,
    "url, twice": lambda s: quote(quote(s, safe=""), safe=""),
    "json": lambda s: json.dumps(s)[1:-1],
    "json, as it is": lambda s: json.dumps(s, ensure_ascii=False)[1:-1],
    "json, slashes": escaped_slashes,
    "json in json": lambda s: json.dumps(json.dumps(s))[1:-1],
    "json, every character": lambda s: re.sub("(....)", r"\\u\1", s.encode("utf-16-be").hex()),
    "url in json": lambda s: json.dumps(quote(s, safe="") + '"')[1:-3],
    "hex": lambda s: s.encode().hex(),
    "HEX": lambda s: s.encode().hex().upper(),
}
for before in range(3):
    for name, encode in (("std", base64.b64encode), ("urlsafe", base64.urlsafe_b64encode)):
        FORMS[f"base64 {name}, {before} before"] = lambda s, before=before, encode=encode: encode(
            b"\xff" * before + s.encode() + b"\xfe"
        ).decode()


# ------------------------------------------------------------------------- known values: the runner


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("secret", SECRETS, ids=["key", "odd"])
def test_every_form_of_a_known_secret_goes(secret: str, form: str) -> None:
    encoded = FORMS[form](secret)
    scrubber = ExactScrubber(SECRETS)
    text = f"before {encoded} after"
    scrubbed = scrubber.text(text)
    assert MARKER in scrubbed
    assert scrubbed.startswith("before ") and scrubbed.endswith(" after")
    assert encoded[4:-4] not in scrubbed
    assert scrubber.text(scrubbed) == scrubbed
    assert scrubber.data(text.encode()) == scrubbed.encode()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("secret", [KEY, "schlüssel-🔑-0123456789"], ids=["key", "wide"])
def test_a_secret_cut_anywhere_by_chunks_goes(secret: str, form: str) -> None:
    scrubber = ExactScrubber([secret, ODD])
    data = f"before {FORMS[form](secret)} after".encode()
    for cut in range(1, len(data)):
        stream = scrubber.stream()
        assert stream.feed(data[:cut]) + stream.feed(data[cut:]) + stream.close() == (
            scrubber.data(data)
        )
    stream = scrubber.stream()
    parts = [stream.feed(bytes([byte])) for byte in data]
    assert b"".join((*parts, stream.close())) == scrubber.data(data)


def test_a_stream_keeps_back_only_what_may_become_a_secret() -> None:
    stream = ExactScrubber(SECRETS).stream()
    assert stream.feed(b'data: {"delta": "Hello"}\n\n') == b'data: {"delta": "Hello"}\n\n'
    assert stream.feed(b"and " + KEY[:9].encode()) == b"and "
    assert stream.feed(b"no more") == KEY[:9].encode() + b"no more"
    assert stream.close() == b""


@given(st.text(), st.lists(st.text(min_size=1), max_size=4))
def test_nothing_else_is_touched_and_the_second_pass_changes_nothing(
    text: str, secrets: list[str]
) -> None:
    scrubber = ExactScrubber(secrets)
    scrubbed = scrubber.text(text)
    assert scrubber.text(scrubbed) == scrubbed
    data = text.encode("utf-8", "surrogatepass")
    if not scrubber.spans(data):
        assert scrubbed is text
        stream = scrubber.stream()
        assert stream.feed(data[:3]) + stream.feed(data[3:]) + stream.close() == data


NOISE = st.text(alphabet=st.sampled_from('abZ09 "\\%u/+=\n{}é'), max_size=40)
LETTERS = st.characters(codec="utf-8", exclude_categories=["Cs"])


@given(
    secret=st.text(alphabet=LETTERS, min_size=8, max_size=40),
    form=st.sampled_from(sorted(FORMS)),
    before=NOISE,
    after=NOISE,
    cuts=st.lists(st.integers(0, 400), max_size=6),
)
def test_no_secret_survives(
    secret: str, form: str, before: str, after: str, cuts: list[int]
) -> None:
    if secret in MARKER or MARKER in secret:
        return
    scrubber = ExactScrubber([secret])
    encoded = FORMS[form](secret)
    # an encoder never leaves a loose backslash or percent sign before what it wrote
    text = f"{before} |{encoded}| {after}"
    scrubbed = scrubber.text(text)
    assert MARKER in scrubbed
    if form not in ("url, twice", "json in json") and "base64" not in form:
        assert encoded not in scrubbed
    data = text.encode()
    stream, parts, done = scrubber.stream(), [], 0
    for cut in sorted(cuts):
        parts.append(stream.feed(data[done:cut]))
        done = max(done, min(cut, len(data)))
    parts += (stream.feed(data[done:]), stream.close())
    streamed = b"".join(parts)
    assert not scrubber.spans(streamed.replace(MARKER.encode(), b"\n"))
    assert MARKER.encode() in streamed


def test_what_is_too_short_is_no_secret() -> None:
    assert ExactScrubber(["", "a", "test", "secret!"]).text("a test, no secret!") == (
        "a test, no secret!"
    )


def test_secrets_that_overlap_go_together() -> None:
    scrubber = ExactScrubber(["abcdefghij", "ghijklmnop"])
    assert scrubber.text("x abcdefghijklmnop y") == f"x {MARKER} y"


# ------------------------------------------------------------------- known values: a guest's hashes


def guest(*secrets: str, root: str = "") -> GuestScrubber:
    return GuestScrubber(json.loads(json.dumps(describe(secrets))), {root: ""})


@pytest.mark.parametrize(
    "around",
    [
        *("{}", " {} ", '"{}"', "'{}'", "({})", "<{}>", "key={}", "key: {}", "{}, and", "a:{}@b"),
        *("https://x/?q={}&b=1", "/{}/x", "[{}]", "{}\n", "x={};", "`{}`", "bob:{}", "{}.", "-{}-"),
    ],
)
@pytest.mark.parametrize(
    "form", [str, lambda s: quote(s, safe=""), lambda s: base64.b64encode(s.encode()).decode()]
)
def test_a_guest_recognises_a_configured_secret(around: str, form: Callable[[str], str]) -> None:
    secret = "Tz/8gP2+qLw0nRvX5yBd"
    text = around.format(form(secret))
    for method in (guest(secret).contents, guest(secret).shown, guest(secret).logged):
        scrubbed = method(text)
        assert form(secret).rstrip("=") not in scrubbed
        assert MARKER in scrubbed
        assert method(scrubbed) == scrubbed


def test_hashes_tell_nothing_and_differ_each_time() -> None:
    one, other = describe([KEY]), describe([KEY])
    assert KEY not in json.dumps(one)
    assert {row["digest"] for row in one["secrets"]}.isdisjoint(
        row["digest"] for row in other["secrets"]
    )


def test_a_secret_that_could_be_guessed_is_not_sent() -> None:
    assert describe(["hunter2", "0123456789abcde"])["secrets"] == []


# --------------------------------------------------------------------------- labels and key formats

LABELLED = [
    ("password=hunter2", "hunter2"),
    ("DB_PASSWORD = 'correct horse'", "correct horse"),
    ('{"api_key": "abcd1234"}', "abcd1234"),
    (r'{"text": "{\"client_secret\": \"s3cr3t!x\"}"}', "s3cr3t!x"),
    ("Authorization: Bearer abc.def-123456", "abc.def-123456"),
    ("authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    ("curl -H 'X-Api-Key: 0123abcd4567'", "0123abcd4567"),
    ("-H 'Authorization: token 0123456789'", "0123456789"),
    ("Cookie: session=abc123; theme=dark", "session=abc123"),
    ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI/K7MDENG"),
    ("access-token := ya6tz8rr", "ya6tz8rr"),
    ("passphrase => open-sesame", "open-sesame"),
    ("https://bob:pa55@example.org/x", "pa55"),
    ("postgresql://app:s3cret@db:5432/app", "s3cret"),
    ("sent Bearer 0123456789abcdef0123", "0123456789abcdef0123"),
]
KEYS = [
    "sk-" + "a1B2" * 12,
    "sk-proj-" + "a1_B" * 20,
    "sk-ant-api03-" + "x-Y9" * 20,
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "a1_B" * 15,
    "glpat-" + "a1B2" * 5,
    "xoxb-1234567890-abcdefghij",
    "AIza" + "a1B2-" * 7,
    "hf_" + "aBcD" * 9,
    "sk_live_" + "a1B2" * 6,
    "123456789:AA" + "x_Y-9" * 6 + "abc",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAK=\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN OPENSSH PRIVATE KEY-----\\nb3BlbnNza\\n-----END OPENSSH PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANB",  # cut off
]


@pytest.mark.parametrize(("text", "secret"), LABELLED)
def test_a_labelled_secret_goes(text: str, secret: str) -> None:
    scrubbed = guest().shown(f"x\n{text}\ny")
    assert secret not in scrubbed and MARKER in scrubbed
    assert scrubbed.startswith("x\n") and scrubbed.endswith("\ny")
    assert guest().shown(scrubbed) == scrubbed


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key[:12])
@pytest.mark.parametrize("around", ["{}", "see {} there", '"{}",', "({})"])
def test_a_known_format_goes(key: str, around: str) -> None:
    text = around.format(key)
    for method in (guest().shown, guest().logged):
        scrubbed = method(text)
        assert key not in scrubbed and MARKER in scrubbed
        assert method(scrubbed) == scrubbed
    assert guest().contents(text) == text, "what a file holds reaches the model as it is"


@pytest.mark.parametrize(
    "text",
    [
        "password = getpass.getpass()",
        "token = os.environ['TOKEN']",
        "api_key=${API_KEY}",
        "api_key: <your key>",
        "password: null",
        "def login(user: str, password: str) -> None:",
        "max_tokens: 4096, prompt_tokens=17",
        "The password is what you make of it.",
        "Basic understanding of the bearer of good news",
        "https://example.org/a:b/c@d",
        "sk-short, AKIA, ghp_, eyJ and xoxb-",
        "commit 3c53f11d0a4b8e9f6a7b8c9d0e1f2a3b4c5d6e7f",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "key=value; keyboard: qwerty",
        "cat: /etc/passwd: Permission denied",
        "cat: /run/secrets/cookie: Permission denied",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert guest().shown(text) == text
    assert guest().logged(text) == text


def test_random_text_goes_from_logs_only() -> None:
    random = "q8ZrT1vXw0LmN5bYc7Kd2HsJ4fGp"
    assert guest().logged(f"got {random} back") == f"got {MARKER} back"
    assert guest().shown(f"got {random} back") == f"got {random} back"
    plain = "5f2b6c0e-7a61-4d52-9b5e-3c1f8f0d2a77 " + "0123456789abcdef" * 4
    assert guest().logged(plain) == plain
    assert guest().logged("AbstractSingletonProxyFactoryBean2") == (
        "AbstractSingletonProxyFactoryBean2"
    )


def test_host_paths_become_virtual_ones() -> None:
    scrubber = guest(root="/srv/ox/workspaces/alice")
    assert scrubber.shown("open /srv/ox/workspaces/alice/shared/a b.txt: no") == (
        "open /shared/a b.txt: no"
    )
    assert scrubber.logged("'/srv/ox/workspaces/alice/tmp'") == "'/tmp'"
    assert scrubber.shown("in /srv/ox/workspaces/alice.") == "in /."
    assert scrubber.shown("/srv/ox/workspaces/alice.bak/x") == "/srv/ox/workspaces/alice.bak/x"
    assert scrubber.shown("/srv/ox/workspaces/alice2/shared") == "/srv/ox/workspaces/alice2/shared"
    assert scrubber.shown("/mnt/srv/ox/workspaces/alice/x") == "/mnt/srv/ox/workspaces/alice/x"
    text = "cd /srv/ox/workspaces/alice/shared"
    assert scrubber.contents(text) == text


PIECES = st.sampled_from(
    [
        *(text for text, _secret in LABELLED),
        *KEYS,
        *("password=", "token: ", '"', "'", "\\", "://", "@", ":", "=", " ", "\n", "abcd", MARKER),
        *("Bearer ", "/w/u", "/", "sk-", "eyJ", ".", "-----", "BEGIN ", "Tz/8gP2+qLw0nRvX5yBd"),
    ]
)
HOSTILE = GuestScrubber(describe(["Tz/8gP2+qLw0nRvX5yBd"]), {"/w/u": ""})


@given(st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text()))
def test_a_second_pass_changes_nothing(text: str) -> None:
    for method in (HOSTILE.contents, HOSTILE.shown, HOSTILE.logged):
        once = method(text)
        assert method(once) == once


# ------------------------------------------------------------------------------------------- time

REPEATED = [
    *(
        "sk-",
        "eyJ",
        "eyJaaaaaaaaa.",
        "-----BEGIN PRIVATE KEY-----",
        "://",
        "://a:",
        "password=",
        "a",
    ),
    *('password:"', "\\", "a.", "-", "12345678:AA", "bearer ", "cookie=", "/w/u", "secret", "xox"),
    *("ghp_", "a" * 30 + " ", "%25", "\\u0041", "\\\\u", "%", "github_pat_", "token token=", "-a"),
]


@pytest.mark.parametrize("piece", REPEATED, ids=repr)
def test_time_is_linear_in_hostile_text(piece: str) -> None:
    """Eight times the text may take eight times as long; were it quadratic, it would be 64."""
    exact = ExactScrubber([*SECRETS, "a" * 20, "/w/u/w/u/w/u"])

    def seconds(size: int) -> float:
        text = (piece * size)[:size]
        best = float("inf")
        for _ in range(3):
            began = time.process_time()
            exact.text(text)
            HOSTILE.logged(text)
            best = min(best, time.process_time() - began)
        return best

    assert seconds(40_000) < 24 * seconds(5_000) + 0.05


# ----------------------------------------------------------------------------------------- markers


@pytest.mark.parametrize(
    ("before", "after", "introduces"),
    [
        ("", "plain", False),
        ("key = abc", f"key = {MARKER}", True),
        (f"a {MARKER}", f"b {MARKER}", False),
        (f"a {MARKER}", f"{MARKER} b {MARKER}", True),
        (f"a {MARKER}", "a", False),
    ],
)
def test_a_new_marker_is_noticed(before: str, after: str, introduces: bool) -> None:
    assert introduces_marker(before, after) is introduces


def test_a_broken_envelope_is_no_scrubber() -> None:
    broken: dict[str, Any] = {"key": "zz", "secrets": []}
    with pytest.raises(ValueError):
        GuestScrubber(broken)


# ----------------------------------------------------------------------------------- in the gate


class Desk:
    """A gate over a workspace with one configured secret."""

    secret = "Tz8gP2qLw0nRvX5yBdKj"

    def __init__(self, root: Path) -> None:
        for name in ("shared", "tmp", "vault"):
            (root / name).mkdir()
        self.shared = root / "shared"
        self.workspace = Workspace.at(root)
        self.frames: list[Json] = []

        @tool
        def say(text: str) -> ToolResult:
            """Say something."""
            return ToolResult(text, is_error=text.startswith("error"))

        self.gate = Gate(
            ToolRegistry(["file_read", "file_write", "file_edit", "file_search"], extra=[say]),
            {"workspace": self.workspace},
            scrubber=guest(self.secret, root=str(root)),
        )

    def calls_running(self, running: object) -> None: ...

    def calls_finished(self, results: object, running: object = (), took: object = ()) -> None: ...

    def marks_of(self, paths: object) -> Marks:
        return Marks()

    def mark_files(self, paths: object, marks: Marks) -> None: ...

    def run(self, name: str, **arguments: object) -> str:
        scope = TurnScope("s", "t", CancelToken(), self)
        call = ToolCall("c1", name, json.dumps(arguments))
        self.frames.clear()

        def emit(_kind: str, payload: Json) -> None:
            self.frames.append(payload)

        (outcome,) = self.gate.run([call], scope, emit)
        return outcome.message.content


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.workspace.close()


def test_a_result_is_scrubbed_for_the_model_and_for_people(desk: Desk) -> None:
    text = f"password=hunter2 in {desk.shared}/x, and {desk.secret}"
    expected = f"password={MARKER} in /shared/x, and {MARKER}"
    assert desk.run("say", text=text) == expected
    assert desk.run("say", text=f"error: {text}") == f"error: {expected}"
    told = json.dumps(desk.frames)
    assert "hunter2" not in told and desk.secret not in told and str(desk.shared) not in told


def test_no_half_of_a_secret_is_left_where_a_long_result_is_cut(desk: Desk) -> None:
    for shift in range(0, 24, 4):
        said = desk.run("say", text="x " * (5461 - shift // 2) + desk.secret + " y" * 9000)
        assert desk.secret[:8] not in said
    (saved,) = (desk.shared.parent / "tmp" / "outputs").iterdir()
    assert desk.secret not in saved.read_text()


def test_a_file_is_read_as_it_is_but_for_configured_secrets(desk: Desk) -> None:
    text = f"password=hunter2\npath={desk.shared}/x\nkey = {desk.secret}\n"
    (desk.shared / "env").write_text(text)
    assert desk.run("file_read", path="env") == text.replace(desk.secret, MARKER)
    assert "password=hunter2" in desk.run("file_search", pattern="hunter")
    desk.run("file_edit", path="env", old="hunter2", new="hunter3")
    assert (desk.shared / "env").read_text() == text.replace("hunter2", "hunter3")


def test_a_redaction_is_not_written_over_a_secret(desk: Desk) -> None:
    text = f"key = {desk.secret}\n"
    (desk.shared / "env").write_text(text)
    assert "was not changed" in desk.run("file_write", path="env", content=f"key = {MARKER}\n")
    edit = desk.run("file_edit", path="env", old="key = ", new=f"old = {MARKER}\nkey = ")
    assert "was not changed" in edit
    assert "was not changed" in desk.run("file_write", path="new", content=f"{MARKER}\n")
    assert (desk.shared / "env").read_text() == text
    assert not (desk.shared / "new").exists()


def test_a_file_about_redaction_can_be_edited(desk: Desk) -> None:
    (desk.shared / "code.py").write_text(f'MARKER = "{MARKER}"\n')
    assert "Replaced" in desk.run("file_write", path="code.py", content=f"M = '{MARKER}'\n")
    assert "+N" in desk.run("file_edit", path="code.py", old="M", new="N")


def test_what_a_tool_writes_is_what_was_given(desk: Desk) -> None:
    content = f"password=hunter2\nkey = {desk.secret}\n"
    desk.run("file_write", path="env", content=content)
    assert (desk.shared / "env").read_text() == content
    assert desk.secret not in json.dumps(desk.frames)


def test_the_working_directory_is_no_password() -> None:
    said = "PWD=/shared/project\nOLDPWD=/tmp\n"
    assert guest().shown(said) == said
    assert "hunter2" not in guest().shown("pwd=hunter2!x")
