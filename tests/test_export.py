"""A conversation written out: what hostile messages make of a page, and the command itself."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import stat
from html.parser import HTMLParser
from pathlib import Path

import pytest

from oxydra.errors import UsageError
from oxydra.gateway.export import LONGEST, document
from oxydra.store import Store
from oxydra.types import CallState, Message, ToolCall, TurnState
from tests.test_daemon import Home, home, running

__all__ = ["home", "running"]  # the fixtures

HOSTILE = (
    "<script>alert(1)</script>",
    "</pre></article><script src=https://evil.example/x.js></script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)><iframe srcdoc='<script>1</script>'></iframe>",
    "</title></style><script>alert(1)</script>",
    "--><meta http-equiv=refresh content='0;url=https://evil.example'><base href=//evil.example>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](<javascript:alert(1)>)",
    "[x]: data:text/html;base64,PHNjcmlwdD4=\n\n[x]",
    "[x](vbscript:1) <javascript:alert(1)> <data:text/html,1>",
    "[x](file:///etc/passwd) [y](//evil.example) [z](https://a'onmouseover='alert(1))",
    '[x](https://ok.example "\\" onclick=alert(1) \\"")',
    "![x](https://evil.example/pixel.png) ![y](javascript:alert(1))",
    '![" onerror="alert(1)](https://evil.example/"onerror="alert(1))',
    "```\"><script>alert(1)</script>\n</code></pre><script>1</script>\n```",
    "``` x\" onclick=alert(1) \"\ncode\n```",
    "| a |\n|---|\n| <script>alert(1)</script> |",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;script&#62;",
    "a \x1b[2J \u202e reversed &#8238; &#27;[2J \ud800",
    "> " * 300 + "deep",
    "*a " * 3000,
)  # fmt: skip
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "article", "h1", "h2", "h3"),
    *("small", "p", "pre", "code", "em", "strong", "s", "a", "ul", "ol", "li", "blockquote"),
    *("table", "thead", "tbody", "tr", "th", "td", "hr", "br"),
}
ATTRIBUTES = {
    "html": {"lang"},
    "meta": {"charset", "http-equiv", "content", "name"},
    "article": {"class"},
    "a": {"href", "title", "rel"},
    "code": {"class"},
    "ol": {"start"},
    "th": {"style"},
    "td": {"style"},
}


class Page(HTMLParser):
    """A page as a browser takes it apart; raises at whatever should not be in it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[str] = []
        self.text: list[str] = []
        self.metas: list[dict[str, str | None]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        assert {name for name, _ in attrs} <= ATTRIBUTES.get(tag, set()), (tag, attrs)
        if tag == "a":
            self.links.append(str(dict(attrs)["href"]))
        if tag == "meta":
            self.metas.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def conversation(store: Store, text: str, name: str = "") -> str:
    """A session in which everybody said `text`."""
    session = store.create_session(display_name=name)
    turn, _ = store.accept_turn(session.session_id, "t1", "r1", text)
    store.start_turn(turn)
    call = ToolCall("c1", text[:60], text)
    store.add_step(turn, Message("assistant", text, tool_calls=(call,)))
    result = Message("tool", text, tool_call_id="c1", name=text[:60], tainted=True)
    store.calls_finished(turn, [(CallState.DONE, result)])
    store.finish_turn(turn, TurnState.COMPLETED, {}, Message("assistant", text))
    return session.session_id


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    store = Store(tmp_path / "oxydra.db")
    yield store
    store.close()


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_what_was_said_stays_text(store: Store, number: int) -> None:
    text = HOSTILE[number]
    named = store.create_session(display_name=text).session_id
    for session_id in (conversation(store, text), named):  # the first's title is what was said
        found = document(store, store.session(session_id), "html")["text"]
        page = Page(found)
        for link in page.links:
            assert link.startswith(("https://", "http://", "mailto:")), link
        (policy,) = [meta["content"] for meta in page.metas if "http-equiv" in meta]
        assert policy is not None and policy.startswith("default-src 'none'; style-src 'sha256-")
        assert not set(found) & set("\x1b\u202e\x00\ud800")


def test_a_page_is_formatted(store: Store) -> None:
    text = "# Plan\n\n- **one** [here](https://ok.example/a?b=1&c=2)\n\n"
    text += "| a | b |\n|---|:-:|\n| 1 | 2 |\n"
    session = store.session(conversation(store, text, "plans & more"))
    found = document(store, session, "html")["text"]
    assert "<title>plans &amp; more</title>" in found
    assert "<strong>one</strong>" in found and "<td>1</td>" in found
    assert Page(found).links == ["https://ok.example/a?b=1&c=2"] * 3  # not in the tool's result
    assert "from outside" in found
    assert (
        "[image: x] (https://a.example/b.png)"
        in (
            document(
                store,
                store.session(conversation_of(store, "![x](https://a.example/b.png)")),
                "html",
            )["text"]
        )
    )


def conversation_of(store: Store, text: str) -> str:
    session = store.create_session()
    turn, _ = store.accept_turn(session.session_id, f"t-{session.session_id}", "r", text)
    store.start_turn(turn)
    return session.session_id


def test_the_style_sheet_is_the_one_that_the_policy_names(store: Store) -> None:
    found = document(store, store.session(conversation_of(store, "x")), "html")["text"]
    match = re.search("<style>(.*)</style>", found, re.DOTALL)
    assert match is not None
    digest = base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()
    assert f"&#x27;sha256-{digest}&#x27;" in found


def test_a_very_long_message_is_shown_as_it_is(store: Store) -> None:
    text = "**x** " * (LONGEST // 6 + 1)
    found = document(store, store.session(conversation_of(store, text)), "html")["text"]
    assert "<strong>" not in found and "**x** **x**" in found


def test_an_unknown_format_and_a_bound(store: Store) -> None:
    session = store.session(conversation_of(store, "long " * 100))
    with pytest.raises(UsageError, match="markdown, json, html"):
        document(store, session, "pdf")
    with pytest.raises(UsageError, match="while the daemon is stopped"):
        document(store, session, "markdown", 100)
    assert len(document(store, session, "markdown")["text"]) > 500


def test_the_command_with_a_daemon_and_without_one(running: Home, tmp_path: Path) -> None:
    answer = json.loads(running.run("ask", "hello <b>there</b>", "--json"))
    session = answer["session"]["session_id"]
    texts = {form: running.run("export", session, "--format", form) for form in ("md", "html")}
    assert "&lt;b&gt;there&lt;/b&gt;" in texts["html"]
    Page(texts["html"])
    page = tmp_path / "page.html"
    running.run("export", session, "--format", "html", "-o", str(page))
    assert page.read_text() == texts["html"]
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    running.run("stop")
    assert running.run("export", session[:6]) == texts["md"]
    assert running.run("session", "export", session) == texts["md"]
    assert running.run("export", session, "--format", "html") == texts["html"]
    rows = json.loads(running.run("export", session, "--format", "json"))
    assert rows["events"][0]["message"]["content"] == "hello <b>there</b>"
    assert "is there already" in running.fails("export", session, "-o", str(page), code=2)
    assert "no session" in running.fails("export", "nothing-like-it")
