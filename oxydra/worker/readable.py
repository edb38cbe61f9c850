"""HTML as a model reads it, by justhtml. Runs in a tool worker only.

justhtml parses as a browser does; what is kept of the tree, and how it is written as Markdown, is
decided here. Trees may be nested as deeply as their author likes, so nothing here recurses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

Node = Any  # justhtml is imported in the child only, and its nodes are told apart by their names

NEVER = frozenset(
    (
        *("script", "style", "noscript", "template", "svg", "math", "iframe", "object", "embed"),
        *("canvas", "audio", "video", "head", "select", "button", "input", "textarea", "dialog"),
    )
)
FRAME = frozenset(("nav", "footer", "aside"))  # around what a page is about
BLOCKS = frozenset(
    (
        *(
            "address",
            "article",
            "aside",
            "body",
            "caption",
            "center",
            "dd",
            "details",
            "dialog",
            "div",
        ),
        *(
            "dl",
            "dt",
            "fieldset",
            "figcaption",
            "figure",
            "footer",
            "form",
            "header",
            "hgroup",
            "html",
        ),
        *(
            "legend",
            "main",
            "nav",
            "p",
            "section",
            "summary",
            "table",
            "tbody",
            "td",
            "tfoot",
            "th",
        ),
        *("thead", "tr"),
    )
)
HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
MARKS = {"b": "**", "strong": "**", "i": "*", "em": "*", "del": "~~", "s": "~~"}
CODE = frozenset(("code", "kbd", "samp", "tt"))
HIDDEN = re.compile(r"(?i)(?:display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0\b)")
SPACE = re.compile(r"[ \t\n\r\f\v]+")

META = re.compile(rb"(?i)<meta[^>]{1,200}?charset\s*=\s*[\"']?\s*([a-z0-9_.:-]{1,40})")
# Only these names are looked up: Python also knows codecs that are no charsets or dangerously slow.
CHARSETS = re.compile(
    r"utf-?(?:8|16(?:-?[lb]e)?)|iso-?8859-\d{1,2}|windows-?\d{3,4}|cp\d{3,4}|koi8-[ru]|tis-620"
    r"|shift[-_]jis|euc-(?:jp|kr)|iso-2022-jp|gbk|gb18030|big5(?:-hkscs)?|macintosh"
)
SUPERSETS = {  # what a page means that names these (WHATWG Encoding, 4.2)
    **dict.fromkeys(
        ("ascii", "us-ascii", "iso-8859-1", "iso8859-1", "latin1", "latin-1"), "cp1252"
    ),
    **dict.fromkeys(("gb2312", "gbk"), "gb18030"),
    **dict.fromkeys(("shift_jis", "shift-jis"), "cp932"),
    "euc-kr": "cp949",
}

LITTLE = 200  # characters: so little text that another part of the page is tried
MAX_LINK = 400  # characters of an address that is worth showing
MAX_DEPTH = 12  # of lists and quotations that are shown as such


def html_to_markdown(arguments: dict[str, Any], data: bytes) -> dict[str, Any]:
    """`title` and `text` of a page, `length` the number of characters before `text` was cut to
    `limit`, `scripted` if it has scripts and hardly any text. `url` is what links are relative to,
    `charset` what the server said.
    """
    document = _parse(data, arguments["charset"])
    base = arguments["url"]
    titles = base_tags = ""
    for element in _elements(document.root):
        if element.name == "title" and not titles:
            titles = _squeeze(element.to_text())
        elif element.name == "base" and not base_tags:
            base_tags = (element.attrs or {}).get("href") or ""
    base = _absolute(base, base_tags) or base
    text = ""
    for part, skipped in _parts(document.root):
        text = _Markdown(base, skipped).write(part)
        if len(text) >= LITTLE:
            break
    scripted = len(text) < LITTLE and b"<script" in data
    return {
        "title": titles[:300],
        "text": text[: arguments["limit"]],
        "length": len(text),
        "scripted": scripted,
    }


def duckduckgo_results(arguments: dict[str, Any], data: bytes) -> dict[str, Any]:
    """What DuckDuckGo's page without scripts found: `results` of [title, url, snippet], and
    `blocked` if it shows its test for robots instead.
    """
    document = _parse(data, "utf-8")
    results: list[list[str]] = []
    blocked = False
    for element in _elements(document.root):
        attrs = element.attrs or {}
        classes = (attrs.get("class") or "").split()
        blocked = blocked or any(name.startswith("anomaly-modal") for name in classes)
        if "result__a" in classes or "result-link" in classes:
            url = _target(attrs.get("href") or "")
            if url:
                results.append([_squeeze(element.to_text()), url, ""])
        elif ("result__snippet" in classes or "result-snippet" in classes) and results:
            results[-1][2] = results[-1][2] or _squeeze(element.to_text())
    return {"results": results[: arguments["limit"]], "blocked": blocked and not results}


def _target(href: str) -> str:
    """Where a result leads: DuckDuckGo wraps it in a redirect of its own. "" for its advertisements
    and for what is no web address.
    """
    try:
        parts = urlsplit(urljoin("https://duckduckgo.com/", href))
        host = parts.hostname or ""
    except ValueError:
        return ""
    if host == "duckduckgo.com" or host.endswith(".duckduckgo.com"):
        wrapped = parse_qs(parts.query).get("uddg", [""])[0] if parts.path == "/l/" else ""
        return wrapped if wrapped.startswith(("http://", "https://")) else ""
    return parts.geturl() if parts.scheme in ("http", "https") else ""


# ---------------------------------------------------------------------------------------- the tree


def _parse(data: bytes, charset: str) -> Any:
    from justhtml import JustHTML

    declared = META.search(data[:2048])
    if declared and not charset:
        charset = declared[1].decode("ascii").lower()
        if charset.startswith("utf-16"):
            charset = "utf-8"  # what could be read so far was no UTF-16
    return JustHTML(decode(data, charset), sanitize=False)


def decode(data: bytes, charset: str) -> str:
    """Bytes as text: by their byte order mark, else `charset` (lower case, from a stranger), else
    as UTF-8, else as Windows wrote it. What does not fit is U+FFFD.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    charset = SUPERSETS.get(charset, charset)
    if CHARSETS.fullmatch(charset) and not data.startswith(b"\xef\xbb\xbf"):
        try:
            return data.decode(charset, "replace")
        except LookupError:
            pass  # a name of the right form that is none
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":  # only the last character was cut in two
            return data[: error.start].decode("utf-8-sig")
        return data.decode("cp1252", "replace")


def _elements(root: Node) -> Iterator[Node]:
    """Every element below `root`, in the order of the document."""
    pending = [root]
    while pending:
        node = pending.pop()
        if node.name[:1] not in ("#", "!"):
            yield node
        pending.extend(reversed(node.children or ()))


def _parts(root: Node) -> Iterator[tuple[Node, frozenset[str]]]:
    """The parts of a page that may hold what it is about, the best guess first; each with the
    elements to leave out.
    """
    articles = []
    body = root
    for element in _elements(root):
        if element.name == "main" or (element.attrs or {}).get("role") == "main":
            yield element, frozenset(("nav", "footer"))
        elif element.name == "article":
            articles.append(element)
        elif element.name == "body":
            body = element
    if len(articles) == 1:
        yield articles[0], frozenset(("nav", "footer"))
    yield body, FRAME
    yield body, frozenset()


def _is_hidden(attrs: dict[str, str | None]) -> bool:
    return (
        "hidden" in attrs
        or attrs.get("aria-hidden") == "true"
        or bool(HIDDEN.search(attrs.get("style") or ""))
    )


def _is_data(table: Node) -> bool:
    """Whether a table holds data: rows of several cells, and in these nothing but lines."""
    rows = cells = 0
    for element in _elements(table):
        if element is table:
            continue
        if element.name in ("table", "ul", "ol", "pre", "form", "blockquote", *HEADINGS):
            return False
        rows += element.name == "tr"
        cells += element.name in ("td", "th")
    return rows > 1 and cells >= 2 * rows


def _squeeze(text: str) -> str:
    return SPACE.sub(" ", text).strip()


def _absolute(base: str, href: str) -> str:
    """A link's whole address; "" for one that leads nowhere a model could go."""
    if not href or href.startswith("#"):
        return ""
    try:
        url = urljoin(base, href.strip())
        scheme = urlsplit(url).scheme
    except ValueError:
        return ""
    return url if scheme in ("http", "https", "mailto") and len(url) <= MAX_LINK else ""


# ------------------------------------------------------------------------------------- the writing


class _Markdown:
    """Writes one part of a page: a walk that meets each node on the way in and on the way out."""

    def __init__(self, base: str, skipped: frozenset[str]) -> None:
        self.base = base
        self.skipped = NEVER | skipped
        self.lines: list[str] = []
        self.line: list[str] = []  # the pieces of the line that is being written
        self.indent: list[str] = []  # what each line below begins with
        self.marker = ""  # what the next line begins with instead: "- ", "## "
        self.lists: list[int] = []  # the number of the next item; 0 in a list without numbers
        self.links: list[tuple[int, str]] = []  # where in `line` a link began, and its address
        self.pre = 0
        self.code = 0
        self.rows: list[list[str]] | None = None  # of the data table that is being read
        self.cell = 0  # where in `line` its cell began

    def write(self, root: Node) -> str:
        pending: list[tuple[Node, bool]] = [(root, False)]
        while pending:
            node, done = pending.pop()
            if node.name == "#text":
                self._text(node.data or "")
            elif done:
                self._leave(node)
            elif node.name[:1] not in ("#", "!") and (
                node.name in self.skipped or _is_hidden(node.attrs or {})
            ):
                continue
            else:
                self._enter(node)
                pending.append((node, True))
                pending.extend((child, False) for child in reversed(node.children or ()))
        self._end_line()
        text = "\n".join(self.lines)
        return re.sub(r"\n(?:[> ]*\n){2,}", "\n\n", text).strip("\n")

    # ------------------------------------------------------------------------------- elements

    def _enter(self, node: Node) -> None:
        name, attrs = node.name, node.attrs or {}
        if name == "a":
            self.links.append((len(self.line), _absolute(self.base, attrs.get("href") or "")))
        elif name in MARKS and not self.code:
            self.line.append(MARKS[name])
        elif name in CODE:
            self.code += 1
            if not self.pre:
                self.line.append("`")
        elif name == "img":
            if alt := _squeeze(attrs.get("alt") or ""):
                self._text(f"[image: {alt}]")
        elif name == "br":
            self._break() if not self.rows else self._text(" ")
        elif self.rows is not None:
            self._enter_table_part(name)
        elif name in HEADINGS:
            self._gap()
            self.marker = HEADINGS[name]
        elif name in ("ul", "ol"):
            if not self.lists:
                self._gap()
            self._end_line()
            self.lists.append(_number(attrs.get("start")) if name == "ol" else 0)
            self._indent("  " if len(self.lists) > 1 else "")
        elif name == "li":
            self._end_line()
            self.marker = self._bullet()
        elif name == "blockquote":
            self._gap()
            self._indent("> ")
        elif name == "pre":
            self._gap()
            self._put("```")
            self.pre += 1
        elif name == "hr":
            self._gap()
            self._put("---")
            self._gap()
        elif name == "table" and _is_data(node):
            self._gap()
            self.rows = []
        elif name in ("td", "th"):
            self._text(" ")
        elif name in BLOCKS:
            self._block(name)

    def _leave(self, node: Node) -> None:
        name = node.name
        if name == "a":
            self._end_link(*self.links.pop())
        elif name in MARKS and not self.code:
            self._close(MARKS[name])
        elif name in CODE:
            self.code -= 1
            if not self.pre:
                self._close("`")
        elif self.rows is not None:
            self._leave_table_part(name)
        elif name in HEADINGS:
            self._gap()
            self.marker = ""
        elif name in ("ul", "ol"):
            self._end_line()
            self.lists.pop()
            self.indent.pop()
            if not self.lists:
                self._gap()
        elif name == "li":
            self._end_line()
            self.marker = ""
        elif name == "blockquote":
            self._gap()
            self.indent.pop()
        elif name == "pre":
            self._end_line()
            self.pre -= 1
            self._put("```")
            self._gap()
        elif name in BLOCKS and name not in ("td", "th"):
            self._block(name)

    def _block(self, name: str) -> None:
        if self.lists or name == "tr":
            self._end_line()
        else:
            self._gap()

    def _enter_table_part(self, name: str) -> None:
        assert self.rows is not None
        if name == "tr":
            self.rows.append([])
        elif name in ("td", "th"):
            self.cell = len(self.line)
        elif name in BLOCKS:
            self._text(" ")

    def _leave_table_part(self, name: str) -> None:
        assert self.rows is not None
        if name in ("td", "th") and self.rows:
            text = _squeeze("".join(self.line[self.cell :])).replace("|", "\\|")
            self.rows[-1].append(text)
            del self.line[self.cell :]
        elif name == "table":
            rows, self.rows = [row for row in self.rows if row], None
            self._end_line()
            for index, row in enumerate(rows):
                self._put(f"| {' | '.join(row)} |")
                if index == 0:
                    self._put("|" + " --- |" * len(row))
            self._gap()

    # ------------------------------------------------------------------------------ the line

    def _text(self, text: str) -> None:
        if self.pre:
            first, *rest = text.split("\n")
            self.line.append(first)
            for line in rest:
                self._end_line(keep=True)
                self.line.append(line)
            return
        text = SPACE.sub(" ", text)
        if text.startswith(" ") and (not self.line or self.line[-1].endswith(" ")):
            text = text[1:]
        if text:
            self.line.append(text)

    def _close(self, mark: str) -> None:
        """End an emphasis; one around nothing is taken back."""
        if self.line and self.line[-1] == mark:
            self.line.pop()
        else:
            self.line.append(mark)

    def _end_link(self, start: int, url: str) -> None:
        text = "".join(self.line[start:])
        if url and text.strip() and not self.pre:
            shown = text.strip()
            self.line[start:] = [f"[{shown}]({url})" if shown != url else f"<{url}>"]
            if text.endswith(" "):
                self.line.append(" ")

    def _break(self) -> None:
        if self.line:
            self._end_line()

    def _end_line(self, keep: bool = False) -> None:
        text = "".join(self.line)
        self.line.clear()
        self.links = [(0, url) for _, url in self.links]  # a link goes on in the next line
        if not self.pre:
            text = text.strip()
        if text or keep:
            self._put(text)

    def _put(self, text: str) -> None:
        self.lines.append(("".join(self.indent) + self.marker + text).rstrip())
        if self.marker and self.lists:
            self.marker = " " * len(self.marker)  # an item's further lines stand below its first
        else:
            self.marker = ""

    def _gap(self) -> None:
        self._end_line()
        if self.lines and self.lines[-1] and self.rows is None:
            self.lines.append("".join(self.indent).rstrip())

    def _indent(self, what: str) -> None:
        self.indent.append(what if len(self.indent) < MAX_DEPTH else "")

    def _bullet(self) -> str:
        if not self.lists or not self.lists[-1]:
            return "- "
        self.lists[-1] += 1
        return f"{self.lists[-1] - 1}. "


def _number(start: str | None) -> int:
    return int(start) if start and start.isdecimal() and 0 < int(start[:6]) == int(start) else 1
