"""The web tools: `web_fetch` reads one page, `web_search` asks a search service.

Both read, but neither counts as harmless: what they ask leaves the machine (`egress`), what comes
back was written by strangers (`taints`), and after a crash they are not repeated. Every request is
guarded (see `oxydra/policy/network.py`), redirects are followed here, each checked like a first
address, and HTML and PDF are read by a tool worker. They run on the turn's threads.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import urlencode

from oxydra.config import WebSearchConfig
from oxydra.errors import (
    Cancelled,
    OxydraError,
    PolicyDenied,
    ToolError,
    TransportError,
)
from oxydra.policy.network import Egress, Url, check_url, follow, parse_url
from oxydra.threads import Deadline
from oxydra.tools.base import tool
from oxydra.tools.schema import Bounds, Parse
from oxydra.transport.base import Credential, HttpRequest, HttpStream, Transport
from oxydra.transport.route import Route
from oxydra.types import Json, SafetyTier, ToolContext, ToolResult
from oxydra.worker import Workers
from oxydra.worker.readable import decode

SHOWN_CHARS = 14_000  # of a page, if nobody says otherwise; stays under the gate's cap
READ_BYTES = 4 << 20  # of a page or a text; the rest is left
PDF_BYTES = 16 << 20  # a PDF is whole or nothing
ANSWER_BYTES = 2 << 20  # of a search service
MAX_REDIRECTS = 5
IDLE_SECONDS = 15.0
PARSE_SECONDS = 20.0
TIMEOUT = 45.0
SNIPPET_CHARS = 300

ACCEPT = "text/html,application/xhtml+xml,text/plain;q=0.9,application/json;q=0.9,*/*;q=0.5"
TEXT_TYPES = re.compile(
    r"text/.*|application/(?:.*\+)?(?:json|xml|yaml|x-yaml|toml|javascript|ecmascript|x-ndjson|sql)"
)

DUCKDUCKGO = ("https://html.duckduckgo.com/html/", "https://lite.duckduckgo.com/lite/")
GOOGLE = ("https://www.googleapis.com/customsearch/v1",)
GOOGLE_MOST = 10  # results it gives to one request


@dataclass(frozen=True, slots=True)
class Web:
    """What the web tools work with: the service `web` of a call's context."""

    transport: Transport
    workers: Workers
    egress: Egress
    search: WebSearchConfig


def web_of(context: ToolContext) -> Web:
    web = context.services.get("web")
    if not isinstance(web, Web):
        raise ToolError("There is no way to the web here.")
    return web


# ----------------------------------------------------------------------------------------- fetching


@tool(tier=SafetyTier.READ_ONLY, repeatable=False, timeout=TIMEOUT, egress=True, taints=True)
def web_fetch(
    context: ToolContext,
    url: Annotated[Url, Parse(parse_url)],
    max_chars: Annotated[int, Bounds(200, 400_000)] = SHOWN_CHARS,
) -> ToolResult:
    """Fetch a web page, text, JSON or PDF and read it as Markdown or text."""
    web = web_of(context)
    page = _Fetch(web, context).get(url)
    text, total, note = _readable(page, web, context, max_chars)
    if page.cut:
        note += f"[only the first {READ_BYTES >> 20} MB were read]"
    shown = text[:max_chars]
    if total > len(shown):
        note += f"[cut after {len(shown):,} of {total:,} characters; max_chars shows more]"
    parts = [f"{page.url} ({page.kind or 'no type'})", "", shown.strip() or "(no text)"]
    if note:
        parts += ["", note]
    return ToolResult("\n".join(parts), summary=f"fetched {page.url} ({len(page.data):,} bytes)")


@dataclass(slots=True)
class _Page:
    """What was fetched: `kind` is its MIME type, `cut` says that there was more."""

    url: Url
    kind: str
    charset: str
    data: bytes
    cut: bool = False


class _Fetch:
    """One address, through its redirects."""

    def __init__(self, web: Web, context: ToolContext) -> None:
        self._web = web
        self._context = context

    def get(self, url: Url) -> _Page:
        """Raises `PolicyDenied`, `ToolError`, `TransportError` or `Cancelled`."""
        for _ in range(MAX_REDIRECTS + 1):
            check_url(url, self._web.egress)
            try:
                with self._web.transport.open(self._request(url), self._context.token) as stream:
                    return self._read(url, stream)
            except TransportError as error:
                if error.kind != "redirect":
                    raise
                url = follow(url, error.location)
        raise ToolError(f"{url.host} redirects more than {MAX_REDIRECTS} times.")

    def _request(self, url: Url) -> HttpRequest:
        return HttpRequest(
            "GET",
            str(url),
            headers={"Accept": ACCEPT, "Accept-Encoding": "gzip", "Accept-Language": "en,*;q=0.5"},
            idle_timeout=IDLE_SECONDS,
            deadline=self._context.deadline,
            max_bytes=1 << 40,  # what is too long is cut below instead
            guarded=True,
        )

    def _read(self, url: Url, stream: HttpStream) -> _Page:
        kind, charset = _content_type(stream.headers.get("content-type", ""))
        if stream.status >= 400:
            raise _refused(url, stream, kind)
        page = _Page(url, kind, charset, b"")
        parts: list[bytes] = []
        size = 0
        for chunk in stream:
            if not parts:
                page.kind = kind = kind or _sniffed(chunk)
                _require_readable(page, chunk, stream)
            limit = PDF_BYTES if _is_pdf(kind, parts[0] if parts else chunk) else READ_BYTES
            parts.append(chunk[: limit - size])
            size += len(chunk)
            if size > limit:
                page.cut = True
                break
        page.data = b"".join(parts)
        if page.cut and _is_pdf(kind, page.data):
            raise ToolError(f"The PDF at {url} is larger than {PDF_BYTES >> 20} MB.")
        return page


def _readable(page: _Page, web: Web, context: ToolContext, limit: int) -> tuple[str, int, str]:
    """The page's text, how many characters it has in all, and what is to be said about it."""
    if _is_pdf(page.kind, page.data):
        return _pdf(page, web, context, limit)
    if page.kind not in ("text/html", "application/xhtml+xml"):
        text = decode(page.data, page.charset)
        return text, len(text), ""
    found = web.workers.run(
        "html_to_markdown",
        {"url": str(page.url), "charset": page.charset, "limit": limit},
        page.data,
        lane="web",
        seconds=PARSE_SECONDS,
        deadline=context.deadline,
        token=context.token,
    )
    text = _titled(found)
    note = "[the page builds its text by scripts, which are not run]" if found["scripted"] else ""
    return text, len(text) + max(0, found["length"] - limit), note


def _pdf(page: _Page, web: Web, context: ToolContext, limit: int) -> tuple[str, int, str]:
    found = web.workers.run(
        "pdf_to_text",
        {"limit": limit},
        page.data,
        lane="web",
        seconds=PARSE_SECONDS,
        deadline=context.deadline,
        token=context.token,
    )
    text = _titled(found)
    pages, read = found["pages"], found["read"]
    note = f"[{read} of {pages} pages were read; max_chars shows more]" if read != pages else ""
    return text, len(text), note


def _titled(found: Json) -> str:
    return f"Title: {found['title']}\n\n{found['text']}" if found["title"] else found["text"]


def _content_type(header: str) -> tuple[str, str]:
    """The MIME type and the charset, in lower case; "" where there is none."""
    kind, *parameters = header.lower().split(";")
    kind = kind.strip()
    charset = ""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset":
            charset = value.strip().strip("\"'")
    if not re.fullmatch(r"[a-z0-9.+-]+/[a-z0-9.+-]+", kind):
        kind = ""
    return kind, charset


def _sniffed(head: bytes) -> str:
    """The MIME type of what came without one."""
    if re.match(rb"(?i)\s*(?:<!--.*?-->\s*)*<(?:!doctype html|html|head|body)\b", head[:1024]):
        return "text/html"
    return "" if b"\0" in head else "text/plain"


def _is_pdf(kind: str, head: bytes) -> bool:
    return kind == "application/pdf" or (
        kind in ("", "application/octet-stream") and head.startswith(b"%PDF-")
    )


def _require_readable(page: _Page, head: bytes, stream: HttpStream) -> None:
    kind = page.kind
    if _is_pdf(kind, head) or (kind and TEXT_TYPES.fullmatch(kind)) or kind.endswith("xhtml+xml"):
        return
    size = stream.headers.get("content-length", "")
    shown = f", {int(size):,} bytes" if size.isdecimal() and len(size) < 16 else ""
    raise ToolError(
        f"{page.url} is no text but {kind or 'binary data'}{shown}.",
        remedy="Pages, texts, JSON and PDFs can be read.",
        code="binary",
    )


def _refused(url: Url, stream: HttpStream, kind: str) -> ToolError:
    """An answer that is an error; a short text of the server's goes with it."""
    try:
        phrase = HTTPStatus(stream.status).phrase
    except ValueError:
        phrase = "unknown status"
    said = ""
    if kind in ("text/plain", "application/json", "application/problem+json"):
        said = " ".join(stream.text(600)[:600].split())
    detail = f" It says: {said}" if said else ""
    return ToolError(f"{url.host} answered {stream.status} {phrase}.{detail}", code="http_status")


# ---------------------------------------------------------------------------------------- searching


@dataclass(frozen=True, slots=True)
class _Hit:
    title: str
    url: str
    snippet: str


@tool(tier=SafetyTier.READ_ONLY, repeatable=False, timeout=TIMEOUT, egress=True, taints=True)
def web_search(
    context: ToolContext,
    query: Annotated[str, Bounds(1, 300)],
    max_results: Annotated[int | None, Bounds(1, 50)] = None,
) -> ToolResult:
    """Search the web: titles, addresses, snippets. Read a page with web_fetch."""
    web = web_of(context)
    count = max_results or web.search.max_results
    query = " ".join(query.split())
    failures: list[str] = []
    for base in _bases(web.search):
        try:
            hits = _ask(web, context, base, query, count)
        except Cancelled:
            raise
        except OxydraError as error:
            failures.append(f"{base.host}: {error.message}")
            if isinstance(error, PolicyDenied):
                failures[-1] += f" {error.remedy}"
            continue
        lines = [
            f"{n}. {hit.title}\n   {hit.url}\n   {hit.snippet}" for n, hit in enumerate(hits, 1)
        ]
        return ToolResult(
            "\n".join(lines) or "Nothing was found.", summary=f"{len(hits)} results for {query}"
        )
    raise ToolError(
        f"No search service answered ({'; '.join(failures)})",
        remedy="Fetch a known page instead, or tell the person: [tools.web_search] configures it.",
    )


def search_routes(search: WebSearchConfig, key: str) -> list[Route]:
    """The search service with its key, under the names by which `web_search` asks the transport for
    it.
    """
    routes = []
    for base in _bases(search):
        credential = Credential("X-Goog-Api-Key", key, base.origin)
        path = re.escape(base.path.partition("?")[0])
        routes.append(Route(_key_name(base.origin), base.origin, path, ("GET",), credential))
    return routes


def _key_name(origin: str) -> str:
    return f"web_search:{origin}"


def _bases(search: WebSearchConfig) -> list[Url]:
    """The addresses to ask, in order."""
    own = {"duckduckgo": DUCKDUCKGO, "google_cse": GOOGLE, "searxng": ()}[search.provider]
    bases = [parse_url(base) for base in search.base_urls or own]
    if not bases:
        raise ToolError(
            "There is no address for the search service.",
            remedy=f"The person has to set [tools.web_search] base_urls for {search.provider}.",
        )
    return bases


def _ask(web: Web, context: ToolContext, base: Url, query: str, count: int) -> list[_Hit]:
    """The first `count` results of one service, fewer if it gives fewer."""
    search = web.search
    credential = ""
    if search.provider == "google_cse":
        wanted = {"q": query, "cx": search.engine_id, "num": str(min(count, GOOGLE_MOST))}
        url = _with_query(str(base), wanted)
        credential = _key_name(base.origin)
    elif search.provider == "searxng":
        place = str(base).rstrip("/").removesuffix("/search") + "/search"
        url = _with_query(place, {"q": query, "format": "json"})
    else:
        url = _with_query(str(base), {"q": query})
    asked = parse_url(url)
    check_url(asked, web.egress)
    request = HttpRequest(
        "GET",
        str(asked),
        headers={"Accept": "*/*", "Accept-Encoding": "gzip"},
        credential=credential,
        idle_timeout=IDLE_SECONDS,
        deadline=Deadline.after(context.deadline.timeout(TIMEOUT / 2)),
        max_bytes=ANSWER_BYTES,
        guarded=True,
    )
    with web.transport.open(request, context.token) as stream:
        if stream.status != 200:
            raise _service_refused(search.provider, asked, stream)
        data = stream.read()
    if search.provider == "duckduckgo":
        return _from_page(web, context, data, count)
    return _from_json(data, search.provider)[:count]


def _with_query(url: str, fields: dict[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(fields)}"


def _service_refused(provider: str, url: Url, stream: HttpStream) -> ToolError:
    if provider == "duckduckgo" and stream.status == 202:
        return ToolError("it wants to see a person, not a program; try later")
    if provider == "searxng" and stream.status == 403:
        return ToolError("it gives no JSON: its settings need `search: formats: [html, json]`")
    return _refused(url, stream, _content_type(stream.headers.get("content-type", ""))[0])


def _from_page(web: Web, context: ToolContext, data: bytes, count: int) -> list[_Hit]:
    found = web.workers.run(
        "duckduckgo_results",
        {"limit": count},
        data,
        lane="web",
        seconds=PARSE_SECONDS,
        deadline=context.deadline,
        token=context.token,
    )
    if found.get("blocked"):
        raise ToolError("it wants to see a person, not a program; try later")
    return [_hit(*(str(part) for part in row)) for row in found["results"]]


def _from_json(data: bytes, provider: str) -> list[_Hit]:
    """What SearxNG and Google answer. Raises `ToolError` for anything else."""
    rows, names = ("items", ("title", "link", "snippet"))
    if provider == "searxng":
        rows, names = ("results", ("title", "url", "content"))
    try:
        answer: Any = json.loads(data)
        found: list[Json] = answer.get(rows) or []
        return [_hit(*(str(row.get(name) or "") for name in names)) for row in found]
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise ToolError("it did not answer with search results") from None


def _hit(title: str, url: str, snippet: str) -> _Hit:
    def line(text: str, most: int) -> str:
        text = " ".join(text.split())
        return text if len(text) <= most else text[: most - 1] + "…"

    return _Hit(line(title, 200), line(url, 1000), line(snippet, SNIPPET_CHARS))
