"""The web tools against a server on loopback, and what keeps them away from all else there."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oxydra.config import WebSearchConfig
from oxydra.errors import PolicyDenied, ToolError
from oxydra.policy.network import Egress
from oxydra.threads import CancelToken, Deadline
from oxydra.tools import FunctionTool, web
from oxydra.tools.registry import TOOLS, ToolRegistry
from oxydra.tools.web import Web, search_routes, web_fetch, web_search
from oxydra.transport import (
    Credential,
    DirectConfig,
    DirectTransport,
    HttpRequest,
    Routes,
    line,
)
from oxydra.types import SafetyTier, ToolContext, ToolResult
from oxydra.worker import Workers
from tests.fake_web import Asked, FakeWeb, Page, serving
from tests.pdfs import pdf

PUBLIC = "93.184.215.14"


class Place:
    """The web tools with a server that only the allow-list lets them reach. `names` are what the
    resolver knows besides: host -> addresses.
    """

    def __init__(self, fake: FakeWeb, workers: Workers, allowed: list[str] | None = None) -> None:
        self.fake = fake
        self.names: dict[str, list[str]] = {}
        self.looked_up: list[str] = []
        self.credentials: dict[str, Credential] = {}
        services = [f"127.0.0.1:{fake.port}"] if allowed is None else allowed
        self.egress = Egress.parse(services)
        self.transport = DirectTransport(
            self.credentials, DirectConfig(egress=self.egress), resolve=self._resolve
        )
        self.workers = workers
        self.search = WebSearchConfig()
        self.token = CancelToken()

    def _resolve(self, host: str, port: int) -> list[Any]:
        self.looked_up.append(host)
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = []
        for address in self.names[host]:
            found += socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
        return found

    def run(self, tool: FunctionTool, seconds: float = 30, **arguments: Any) -> ToolResult:
        services = {"web": Web(self.transport, self.workers, self.egress, self.search)}
        deadline = Deadline.after(seconds)
        context = ToolContext("s", "t", "c", self.token, deadline, services)
        try:
            return tool.run(tool.validate(arguments), context)
        except ToolError as error:
            return ToolResult(str(error), is_error=True)

    def fetch(self, url: str, **arguments: Any) -> str:
        result = self.run(web_fetch, url=url, **arguments)
        assert not result.is_error, result.content
        return result.content

    def refused(self, url: str, **arguments: Any) -> str:
        result = self.run(web_fetch, url=url, **arguments)
        assert result.is_error, result.content
        return result.content

    def searched(self, query: str = "ducks", **arguments: Any) -> str:
        result = self.run(web_search, query=query, **arguments)
        assert not result.is_error, result.content
        return result.content


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.stop()


@pytest.fixture
def place(workers: Workers) -> Iterator[Place]:
    with serving() as fake:
        made = Place(fake, workers)
        yield made
        made.transport.close()


def test_what_the_tools_say_of_themselves() -> None:
    for tool in (web_fetch, web_search):
        assert tool.tier is SafetyTier.READ_ONLY and not tool.repeatable
        assert tool.egress and tool.taints and not tool.sensitive
    others = ToolRegistry(name for name in TOOLS if not name.startswith("web_"))
    assert not any(others.get(spec.name).egress for spec in others.specs)


# ----------------------------------------------------------------------------------------- reading


def test_a_page(place: Place) -> None:
    url = place.fake.add("/a/b", "<title>T</title><p>Some text with a <a href=c>link</a>.")
    assert place.fetch(url) == (
        f"{url} (text/html)\n\nTitle: T\n\nSome text with a [link]({place.fake.url}/a/c)."
    )
    assert place.fake.asked[0].headers["user-agent"].startswith("oxydra/")
    assert "authorization" not in place.fake.asked[0].headers


@pytest.mark.parametrize(
    ("kind", "body", "shown"),
    [
        ("text/plain", b"a\n<b>", "a\n<b>"),
        ("text/plain; charset=iso-8859-1", b"caf\xe9", "café"),
        ('text/plain; charset="Shift_JIS"', "日本".encode("shift_jis"), "日本"),
        ("text/plain; charset=zip_codec", b"x", "x"),
        ("text/plain; charset=utf-7", b"+AGE-", "+AGE-"),
        ("text/csv", b"\xef\xbb\xbfa,b", "a,b"),
        ("application/json", b'{"a": [1]}', '{"a": [1]}'),
        ("application/ld+json", b"{}", "{}"),
        ("application/rss+xml", b"<rss/>", "<rss/>"),
        ("text/markdown", "# é".encode(), "# é"),
        ("text/plain", b"\xff\xfea\0", "a"),
        ("text/plain", b"\x80 5", "€ 5"),
        ("", b"<!doctype html><p>sniffed", "sniffed"),
        ("", b"plain", "plain"),
        ("TEXT/HTML;charset=koi8-r", "<p>мир".encode("koi8-r"), "мир"),
        ("application/xhtml+xml", b"<html><body><p>x</p></body></html>", "x"),
        ("text/plain", b"", "(no text)"),
    ],
)
def test_texts(place: Place, kind: str, body: bytes, shown: str) -> None:
    place.fake.pages["/x"] = Page(body, kind)
    assert place.fetch(place.fake.url + "/x").split("\n\n", 1)[1] == shown


def test_pdf(place: Place) -> None:
    data = pdf("The first page", "The second")
    for kind in ("application/pdf", "application/octet-stream"):
        text = place.fetch(place.fake.add("/x.pdf", data, kind))
        assert "The first page" in text and "The second" in text
    broken = place.refused(place.fake.add("/y.pdf", b"%PDF-1.4 nothing", "application/pdf"))
    assert "PDF" in broken


def test_binaries_are_named_and_not_read(place: Place) -> None:
    url = place.fake.add("/x.png", b"\x89PNG\0\0", "image/png", length=6)
    assert "image/png, 6 bytes" in place.refused(url)
    assert "binary" in place.refused(place.fake.add("/y", b"\0\1\2", " "))
    assert "octet-stream" in place.refused(place.fake.add("/z", b"abc", "application/octet-stream"))


def test_long_pages_are_cut_and_say_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    url = place.fake.add("/long", "<p>" + "word " * 10_000)
    text = place.fetch(url, max_chars=1000)
    assert "[cut after 1,000 of 49,999 characters; max_chars shows more]" in text
    assert len(text) < 1200
    assert "cut after" not in place.fetch(url, max_chars=60_000)
    monkeypatch.setattr(web, "READ_BYTES", 1 << 20)
    huge = place.fake.add("/huge", b"x" * (3 << 20), "text/plain")
    assert "[only the first 1 MB were read]" in place.fetch(huge)
    monkeypatch.setattr(web, "PDF_BYTES", 1 << 20)
    assert "larger than" in place.refused(
        place.fake.add("/huge.pdf", b"%PDF-1.4" + b"x" * (2 << 20), "application/pdf")
    )


def test_a_compressed_bomb_is_cut(place: Place) -> None:
    bomb = gzip.compress(b"\n" * (200 << 20), 9)
    url = place.fake.add("/bomb", bomb, "text/plain", headers={"Content-Encoding": "gzip"})
    assert "[only the first 4 MB were read]" in place.fetch(url)


def test_errors_are_the_servers_words(place: Place) -> None:
    assert "answered 404 Not Found. It says: nothing here" in place.refused(place.fake.url + "/no")
    page = place.fake.add("/500", "<p>secret", status=500)
    assert place.refused(page) == "127.0.0.1 answered 500 Internal Server Error."
    assert "answered 799 unknown status" in place.refused(place.fake.add("/799", status=799))


def test_a_cancelled_fetch_ends(place: Place) -> None:
    url = place.fake.add("/slow", b"x", "text/plain", length=100)
    place.token.cancel("stop")
    assert "stop" in place.refused(url)


def test_a_server_that_never_ends_runs_into_the_deadline(place: Place) -> None:
    url = place.fake.add("/slow", b"x", "text/plain", length=100)
    result = place.run(web_fetch, seconds=0.5, url=url)
    assert result.is_error and "in time" in result.content


# --------------------------------------------------------------------------------------- redirects


def test_redirects_are_followed_and_the_last_address_is_named(place: Place) -> None:
    fake = place.fake
    fake.add("/end/page", "<p>here")
    for status in (301, 302, 303, 307, 308):
        url = fake.redirect("/start", "/end/page", status)
        assert place.fetch(url).startswith(f"{fake.url}/end/page (text/html)")


def test_redirects_end(place: Place) -> None:
    place.fake.redirect("/a", "/b")
    assert "more than 5 times" in place.refused(place.fake.redirect("/b", "/a"))
    assert len(place.fake.asked) == 6


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{other}/secret",
        "http://localhost:{port}/secret",
        "http://2130706433:{port}/secret",
        "http://[::ffff:127.0.0.1]:{port}/secret",
        "//169.254.169.254/latest/meta-data/",
        "http://user:pass@127.0.0.1:{port}/secret",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/_GET",
        "http://inner.example/secret",
        "http:\\\\127.0.0.1:{port}\\secret",
        "javascript:alert(1)",
    ],
)
def test_a_redirect_into_the_network_is_refused(place: Place, target: str) -> None:
    place.fake.add("/secret", "SECRET")
    place.names["inner.example"] = ["127.0.0.1"]
    with serving() as other:
        other.add("/secret", "SECRET")
        to = target.format(port=place.fake.port, other=other.port)
        said = place.refused(place.fake.redirect("/start", to))
        assert "SECRET" not in said and "address" in said
        assert [asked.path for asked in place.fake.asked] == ["/start"] and other.asked == []


# ------------------------------------------------------------------------------------------ inside


def test_nothing_local_is_reached_without_being_allowed(workers: Workers) -> None:
    with serving() as fake:
        fake.add("/", "SECRET")
        place = Place(fake, workers, allowed=[])
        place.names |= {"one.example": ["127.0.0.1"], "two.example": ["::1"]}
        for host in (
            *("127.0.0.1", "localhost", "0.0.0.0", "127.1", "[::1]", "[::ffff:127.0.0.1]"),
            *("one.example", "two.example", "127.0.0.1.nip.io", "0x7f000001"),
        ):
            said = place.refused(f"http://{host}:{fake.port}/")
            assert "SECRET" not in said
        assert "egress_allowlist" in place.refused(f"http://one.example:{fake.port}/")
        assert fake.asked == []


@pytest.mark.parametrize(
    "addresses", [[PUBLIC, "127.0.0.1"], ["127.0.0.1", PUBLIC], ["::1", PUBLIC]]
)
def test_one_inner_address_among_public_ones_refuses_the_name(
    place: Place, addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled: list[str] = []
    monkeypatch.setattr(line._PlainSocket, "connect", lambda _self, to: dialled.append(to[0]))
    place.names["mixed.example"] = addresses
    assert "leads to" in place.refused("http://mixed.example/")
    assert dialled == [] and place.looked_up == ["mixed.example"]


def test_a_name_that_changes_its_mind_leads_nowhere(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the address that was checked is the one that is dialled, looked up once."""
    dialled: list[str] = []

    def connect(_self: Any, to: tuple[str, int]) -> None:
        dialled.append(to[0])
        place.names["rebind.example"] = ["127.0.0.1"]  # from now on
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(line._PlainSocket, "connect", connect)
    place.names["rebind.example"] = [PUBLIC]
    assert "can't be reached" in place.refused(f"http://rebind.example:{place.fake.port}/")
    assert dialled == [PUBLIC] and place.looked_up == ["rebind.example"]
    assert "leads to 127.0.0.1" in place.refused(f"http://rebind.example:{place.fake.port}/")
    assert dialled == [PUBLIC] and place.fake.asked == []


def test_an_allowed_name_keeps_its_host_header(workers: Workers) -> None:
    with serving() as fake:
        place = Place(fake, workers, allowed=[f"wiki.internal:{fake.port}"])
        place.names["wiki.internal"] = ["127.0.0.1"]
        fake.add("/", "<p>inside")
        assert "inside" in place.fetch(f"http://WIKI.internal.:{fake.port}/")
        assert fake.asked[0].headers["host"] == f"wiki.internal:{fake.port}"
        place.transport.close()


def test_a_connection_that_was_dialled_unguarded_is_no_way_in(workers: Workers) -> None:
    """A provider on this machine leaves open connections to it; no tool may ride on one."""
    with serving() as fake:
        fake.add("/", "SECRET")
        place = Place(fake, workers, allowed=[])
        with place.transport.open(HttpRequest("GET", fake.url + "/"), CancelToken()) as stream:
            assert stream.read() == b"SECRET"
        guarded = HttpRequest("GET", fake.url + "/", guarded=True)
        with pytest.raises(PolicyDenied), place.transport.open(guarded, CancelToken()):
            pass
        assert len(fake.asked) == 1
        place.transport.close()


# --------------------------------------------------------------------------------------- searching


def results(*pairs: tuple[str, str]) -> str:
    return "".join(
        f'<div class="result"><a class="result__a" href="{url}">{title}</a>'
        f'<a class="result__snippet">about {title}</a></div>'
        for title, url in pairs
    )


def test_duckduckgo(place: Place) -> None:
    place.fake.add("/html/", results(("One", "https://a.org/"), ("Two", "https://b.org/")))
    place.search = WebSearchConfig(base_urls=(place.fake.url + "/html/",), max_results=5)
    assert place.searched("two  ducks & more") == (
        "1. One\n   https://a.org/\n   about One\n2. Two\n   https://b.org/\n   about Two"
    )
    assert place.fake.asked[0].query == {"q": "two ducks & more"}
    assert place.searched(max_results=1).count("http") == 1
    place.fake.add("/html/", "<p>No results.")
    assert place.searched() == "Nothing was found."


def test_searxng(place: Place) -> None:
    rows = [
        {"title": f"T{n}", "url": f"https://{n}.org/", "content": "c\n" * 400} for n in range(9)
    ]
    place.fake.add("/searx/search", json.dumps({"results": rows}), "application/json")
    place.search = WebSearchConfig(
        provider="searxng", base_urls=(place.fake.url + "/searx/",), max_results=3
    )
    text = place.searched()
    assert place.fake.asked[0].query == {"q": "ducks", "format": "json"}
    assert text.count("https://") == 3 and len(text) < 1200
    place.fake.add("/searx/search", "no", "text/html", status=403)
    assert "formats: [html, json]" in place.run(web_search, query="x").content


def test_google_gets_its_key_from_the_transport(place: Place) -> None:
    place.fake.add(
        "/v1", '{"items": [{"title": "T", "link": "https://x.org/"}]}', "application/json"
    )
    place.search = WebSearchConfig(
        provider="google_cse", base_urls=(place.fake.url + "/v1",), engine_id="cx1", max_results=30
    )
    place.credentials |= Routes(search_routes(place.search, "the-google-key")).credentials
    assert place.searched() == "1. T\n   https://x.org/\n   "
    (asked,) = place.fake.asked
    assert asked.query == {"q": "ducks", "cx": "cx1", "num": "10"}
    assert asked.headers["x-goog-api-key"] == "the-google-key"
    place.fake.redirect("/v1", "http://127.0.0.1:1/")
    assert "redirects" in place.run(web_search, query="x").content


def test_the_next_address_is_tried(place: Place) -> None:
    fake = place.fake
    fake.add("/one", "broken", "text/plain", status=503)
    fake.add("/two", "not json", "application/json")
    fake.add("/three/search", '{"results": []}', "application/json")
    bases = (f"{fake.url}/one", f"{fake.url}/two", f"{fake.url}/three")
    fake.pages["/one/search"] = Page(b"broken", "text/plain", 503)
    fake.pages["/two/search"] = Page(b"[1]", "application/json")
    place.search = WebSearchConfig(provider="searxng", base_urls=bases)
    assert place.searched() == "Nothing was found."
    assert [asked.path for asked in fake.asked] == ["/one/search", "/two/search", "/three/search"]


def test_when_nothing_answers_everything_that_was_tried_is_named(place: Place) -> None:
    def captcha(_: Asked) -> Page:
        return Page(b'<div class="anomaly-modal__x">ducks</div>', status=202)

    place.fake.pages["/a"] = captcha
    place.fake.add("/b", '<div class="anomaly-modal__x">ducks</div>')
    place.search = WebSearchConfig(
        base_urls=(place.fake.url + "/a", place.fake.url + "/b", "http://127.0.0.1:9/"),
    )
    result = place.run(web_search, query="x")
    assert result.is_error
    assert result.content.count("a person, not a program") == 2
    assert "egress_allowlist" in result.content
    place.search = WebSearchConfig(provider="searxng")
    assert "base_urls" in place.run(web_search, query="x").content


@pytest.mark.parametrize(
    "body", ["[]", "null", "1", '{"results": 5}', '{"results": [1]}', "[" * 99999]
)
def test_an_answer_of_another_shape_is_refused(place: Place, body: str) -> None:
    place.fake.add("/search", body, "application/json")
    place.search = WebSearchConfig(provider="searxng", base_urls=(place.fake.url,))
    assert "did not answer with search results" in place.run(web_search, query="x").content


def test_without_the_service_the_tools_say_so() -> None:
    context = ToolContext("s", "t", "c", CancelToken(), Deadline.after(5), {})
    result = web_fetch.run(web_fetch.validate({"url": "https://example.com"}), context)
    assert result.is_error and "no way to the web" in result.content


def test_bad_urls_are_refused_before_anything_starts() -> None:
    for url in ("example.com", "http://u:p@e.com", "ftp://e.com", "http://127.1/"):
        with pytest.raises(ToolError):
            web_fetch.validate({"url": url})


def test_the_documentation_names_what_there_is() -> None:
    text = (Path(__file__).parent.parent / "docs" / "web.md").read_text()
    for name in (
        "web_fetch",
        "web_search",
        "egress_allowlist",
        "google_cse",
        "searxng",
        "duckduckgo",
    ):
        assert name in text
