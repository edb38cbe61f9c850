"""A whole conversation as one text: Markdown, JSON, or a page that can be opened anywhere. Pure but
for what it reads from the store.

A page is one file without scripts, in which what others wrote stays text: a model, a file or a web
page that was read may hold any markup. HTML in Markdown is shown as it was written, links lead to
`http`, `https` and `mailto` only, images are named and not fetched, and a policy in the page itself
forbids everything but its own style sheet. The Markdown parser is markdown-it-py, imported when the
first page is made.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

from oxydra.errors import UsageError
from oxydra.frames import compact, event_json, real_call, session_json
from oxydra.scrub import unsteering
from oxydra.store import Store
from oxydra.types import RECALLED, Event, Json, Message, Session

if TYPE_CHECKING:
    from markdown_it.renderer import RendererHTML

PAGE = 500  # events read at once
LONGEST = 200_000  # characters of a message that are formatted; a longer one is shown as it is
LINK = re.compile(r"(?:https?://|mailto:)[!-~]{1,2000}", re.IGNORECASE)


def document(store: Store, session: Session, wanted: str, most: int | None = None) -> Json:
    """The session's row of `session_list` with its `format` and `text`, of which there may be
    `most` characters. Raises `UsageError`.
    """
    write = FORMATS.get(wanted)
    if write is None:
        raise UsageError(
            f"There is no format {wanted[:32]!r}.", remedy=f"There are: {', '.join(FORMATS)}."
        )
    text = write(session, _events(store, session.session_id, most))
    if most is not None and len(text) > most:
        raise _too_long(most)
    return {**session_json(session), "format": wanted, "text": text}


def _events(store: Store, session_id: str, most: int | None) -> list[Event]:
    pages: list[list[Event]] = []
    before, size, more = None, 0, True
    while more:
        page, more = store.history(session_id, before_sequence=before, limit=PAGE)
        pages.append(page)
        size += sum(len(event.message.content) for event in page)
        if most is not None and size > most:
            raise _too_long(most)
        before = page[0].sequence if page else None
    return [event for page in reversed(pages) for event in page]


def _too_long(most: int) -> UsageError:
    return UsageError(
        f"The conversation is over {most >> 20} MB.",
        remedy="`oxydra-runner export` writes it whole while the daemon is stopped; `history`"
        " frames give it in parts.",
    )


# ---------------------------------------------------------------------------- JSON and Markdown

_TITLES = {"user": "You", "assistant": "Oxydra", "tool": "Result"}


def _json(session: Session, events: Sequence[Event]) -> str:
    rows = [event_json(event) for event in events]
    return compact({"session": session_json(session), "events": rows})


def _markdown(session: Session, events: Sequence[Event]) -> str:
    title = session.display_name or session.session_id
    parts = [f"# {title}", *(_markdown_of(event) for event in events)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _markdown_of(event: Event) -> str:
    message = event.message
    head = f"## {_title(event)} · {event.created_at}"
    body = [_fenced(message.content) if message.role == "tool" else message.content]
    calls = map(real_call, message.tool_calls)
    body += [f"- called `{call.name}`\n\n{_fenced(call.arguments)}" for call in calls]
    body += [f"*Attached: {_attached(message)}*"] if message.attachments else []
    text = "\n\n".join(filter(None, body))
    return f"{head}\n\n{text}" if text else ""


def _title(event: Event) -> str:
    if event.turn_id.startswith(RECALLED):
        return "Recalled"
    return _TITLES.get(event.message.role, event.message.role)


def _attached(message: Message) -> str:
    return ", ".join(a.name or a.sha256[:16] for a in message.attachments)


def _fenced(text: str) -> str:
    """A code block that the text can't end."""
    longest = max((len(run) for run in text.split("\n") if run and not run.strip("`")), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}" if text else ""


# ----------------------------------------------------------------------------------------- a page

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff; overflow-wrap: anywhere; }
header { border-bottom: 1px solid #bbb; } h1 { font-size: 1.5rem; }
article { margin: 1.25rem 0; padding: .25rem 1rem; border-left: .25rem solid #bbb; }
article.user { border-color: #2a6fdb; } article.assistant { border-color: #2d8a4e; }
h2 { font-size: .95rem; margin: .25rem 0; } h2 small, header p { color: #666; font-weight: normal; }
pre { background: #f4f4f4; padding: .6rem; white-space: pre-wrap; font-size: .85rem; }
table { border-collapse: collapse; } td, th { border: 1px solid #bbb; padding: .2rem .5rem; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #161616; }
  pre { background: #242424; } a { color: #8ab4f8; } }
"""


@cache
def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _html(session: Session, events: Sequence[Event]) -> str:
    title = escape(session.display_name or " ".join(session.title.split()) or session.session_id)
    about = (
        f"Session {session.session_id} · {session.agent_name} · from {session.created_at} to"
        f" {session.last_active_at}"
    )
    lines = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_policy())}">',
        '<meta name="referrer" content="no-referrer">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
        f"<header><h1>{title}</h1>\n<p>{escape(about)}</p></header>",
        *(_article(event) for event in events),
        "</body>\n</html>\n",
    ]
    return unsteering("\n".join(lines))


def _article(event: Event) -> str:
    message = event.message
    role = message.role if message.role in _TITLES else "other"
    name = f" of {message.name}" if message.role == "tool" and message.name else ""
    marks = [
        said
        for said, holds in (
            ("failed", message.is_error),
            ("from outside", message.tainted),
            ("private", message.sensitive),
        )
        if holds
    ]
    about = " · ".join((event.created_at, *marks))
    body = [f"<h2>{escape(_title(event) + name)} <small>{escape(about)}</small></h2>"]
    if message.content:
        as_it_is = message.role == "tool" or len(message.content) > LONGEST
        body.append(_pre(message.content) if as_it_is else _rendered(message.content))
    for call in map(real_call, message.tool_calls):
        body.append(f"<p>called <code>{escape(call.name)}</code></p>\n{_pre(call.arguments)}")
    if message.attachments:
        body.append(f"<p><em>Attached: {escape(_attached(message))}</em></p>")
    return "\n".join((f'<article class="{role}">', *body, "</article>"))


def _pre(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def _rendered(markdown: str) -> str:
    text: str = _parser().render(markdown)
    return text


@cache
def _parser() -> Any:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "breaks": True})
    parser.enable(["table", "strikethrough"])
    parser.validateLink = lambda url: LINK.fullmatch(url) is not None  # type: ignore[method-assign]
    parser.add_render_rule("image", _image)
    parser.add_render_rule("link_open", _link)
    return parser


def _image(
    _renderer: RendererHTML, tokens: Sequence[Any], at: int, _options: object, _env: object
) -> str:
    """What it shows and where it is; it is not fetched."""
    said = tokens[at].content or "without a description"
    return escape(f"[image: {said}] ({tokens[at].attrs.get('src', '')})")


def _link(
    _renderer: RendererHTML, tokens: Sequence[Any], at: int, _options: object, _env: object
) -> str:
    address = escape(str(tokens[at].attrs.get("href", "")))
    return f'<a href="{address}" title="{address}" rel="noopener noreferrer nofollow">'


FORMATS: dict[str, Callable[[Session, Sequence[Event]], str]] = {
    "markdown": _markdown,
    "json": _json,
    "html": _html,
}
