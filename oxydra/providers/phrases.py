"""Plain English requests as tool calls, for the offline provider. Pure.

`understand` knows a few sentences and is honest about the rest. Arguments are fitted to the schema
of the tool that is offered, so that a renamed parameter does not break a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from oxydra.types import Json, ToolSpec


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tool that a sentence asks for, with arguments by their usual names."""

    tool: str
    arguments: Json


REMINDER = "Remind the user: "  # begins the goal of a schedule that only reminds
MAX_SENTENCE = 4000  # characters; what is longer is no plain request

# Other names a schema may have for an argument.
_SYNONYMS = {
    "query": ("pattern", "text", "regex", "q"),
    "content": ("text", "note", "contents"),
    "old_text": ("old", "old_string", "search", "find"),
    "new_text": ("new", "new_string", "replacement", "replace"),
    "goal": ("prompt", "message", "task", "text"),
    "path": ("directory", "file", "root"),
}

_QUOTED = r"(?:\"(?P<{0}d>[^\"]*)\"|'(?P<{0}s>[^']*)'|`(?P<{0}b>[^`]*)`|“(?P<{0}t>[^”]*)”)"
_PATH = r"(?:\"(?P<pd>[^\"]+)\"|'(?P<ps>[^']+)'|`(?P<pb>[^`]+)`|(?P<pw>[^\s\"'`,;]+))"
_FILE = (
    r"(?:(?:the|my|a|that)\s+)?(?:new\s+)?(?:text\s+)?(?:(?:file|document|note)\s+)?"
    r"(?:(?:called|named)\s+)?"
)
_FOLDER = r"(?:(?:the|my)\s+)?(?:(?:folder|directory|dir)\s+)?"
_POLITE = re.compile(
    r"^(?:(?:hey|hi|hello|ok|okay|please|now|then)\b[\s,]*|(?:can|could|would|will) you\s+"
    r"|i(?:'d| would) like you to\s+|i want you to\s+)+",
    re.IGNORECASE,
)
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SPAN = (
    r"(?P<n>\d+|an?|one|half an)\s*(?P<unit>s|sec(?:ond)?s?|m|min(?:ute)?s?|h|hours?|days?|weeks?)"
)
_CLOCK = r"(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?\s*(?P<half>am|pm)?"


def understand(text: str, now: datetime) -> Wanted | None:
    """The tool call a sentence asks for, None if it is none of the known sentences. `now` has a
    time zone, and is what `in 10 minutes` counts from.
    """
    if len(text) > MAX_SENTENCE:
        return None
    sentence = _POLITE.sub("", text.strip()).strip()
    for pattern, build in _SENTENCES:
        if match := pattern.match(sentence):
            wanted = build(match, now)
            if wanted is not None:
                return wanted
    return None


def fitted(arguments: Mapping[str, object], tool: ToolSpec) -> Json:
    """`arguments` under the names that the tool's schema has; what it doesn't know is left out."""
    known = tool.parameters.get("properties", {})
    fitting: Json = {}
    for name, value in arguments.items():
        for candidate in (name, *_SYNONYMS.get(name, ())):
            if candidate in known and candidate not in fitting:
                fitting[candidate] = value
                break
    return fitting


def at_path(written: str) -> str:
    """A path as tools take it: what is not absolute lies in `/shared`."""
    path = written.strip().rstrip(".,;:!?") or "/shared"
    path = path if path.startswith("/") else f"/shared/{path.removeprefix('./')}"
    return path.rstrip("/") or "/shared"


def _group(match: re.Match[str], *names: str) -> str:
    """The first of some alternative groups that took part."""
    groups = match.groupdict()
    return next((groups[name] for name in names if groups.get(name) is not None), "")


def _quoted(match: re.Match[str], name: str) -> str:
    return _group(match, *(f"{name}{kind}" for kind in ("d", "s", "b", "t", "w")))


def _path(match: re.Match[str]) -> str:
    return at_path(_quoted(match, "p"))


def _names_a_file(match: re.Match[str]) -> bool:
    """Whether it is clear that a path is meant: a bare word needs a dot, a slash, or to be called a
    file or folder.
    """
    word = match.groupdict().get("pw")
    clear = re.compile(r"\b(?:ls|dir|files?|folders?|directory|document)\b", re.IGNORECASE)
    return word is None or bool(re.search(r"[./]\w|^/", word) or clear.search(match[0]))


def _list(match: re.Match[str], now: datetime) -> Wanted | None:
    return Wanted("file_list", {"path": _path(match)}) if _names_a_file(match) else None


def _read(match: re.Match[str], now: datetime) -> Wanted | None:
    return Wanted("file_read", {"path": _path(match)}) if _names_a_file(match) else None


def _delete(match: re.Match[str], now: datetime) -> Wanted | None:
    return Wanted("file_delete", {"path": _path(match)}) if _names_a_file(match) else None


def _look_in(match: re.Match[str], now: datetime) -> Wanted:
    tool = "file_read" if re.search(r"\.\w+$", _path(match)) else "file_list"
    return Wanted(tool, {"path": _path(match)})


def _write(match: re.Match[str], now: datetime) -> Wanted | None:
    """Words without quotes are text only where they can't be a description of it."""
    words = match.groupdict().get("tw")
    if not _names_a_file(match) or (words and re.match(r"(?:an?|the|some|my|me)\s", words, re.I)):
        return None
    return Wanted("file_write", {"path": _path(match), "content": _quoted(match, "t")})


def _edit(match: re.Match[str], now: datetime) -> Wanted:
    old, new = _quoted(match, "o"), _quoted(match, "n")
    return Wanted("file_edit", {"path": _path(match), "old_text": old, "new_text": new})


def _search(match: re.Match[str], now: datetime) -> Wanted:
    return Wanted("file_search", {"query": _quoted(match, "t"), "path": _path(match)})


def _run(match: re.Match[str], now: datetime) -> Wanted | None:
    words = match.groupdict().get("tw")
    if words and re.match(r"(?:an?|all|my|some|it)\b", words, re.I):
        return None  # a description, no command
    return Wanted("shell_exec", {"command": _quoted(match, "t").strip()})


def _remember(match: re.Match[str], now: datetime) -> Wanted:
    return Wanted("memory_save", {"content": match["text"].strip()})


def _recall(match: re.Match[str], now: datetime) -> Wanted:
    return Wanted("memory_search", {"query": match["text"].strip().rstrip("?.!")})


def _remind(match: re.Match[str], now: datetime) -> Wanted:
    goal = f"{REMINDER}{match['goal'].strip().rstrip('.!')}"
    if match.groupdict().get("unit"):
        word = match["n"].lower()
        number = 0.5 if word.startswith("half") else float(word) if word.isdigit() else 1.0
        at = now + timedelta(seconds=number * _UNIT_SECONDS[match["unit"][0].lower()])
    else:
        hour = int(match["hour"]) % 24
        if (match["half"] or "").lower() == "pm" and hour < 12:
            hour += 12
        elif (match["half"] or "").lower() == "am" and hour == 12:
            hour = 0
        at = now.replace(hour=hour, minute=int(match["minute"] or 0), second=0, microsecond=0)
        if at <= now:
            at += timedelta(days=1)
    value = at.replace(microsecond=0).isoformat()
    return Wanted("schedule_create", {"goal": goal, "cadence_type": "once", "cadence_value": value})


_TEXT = _QUOTED.format("t")
_TO = r"\s*,?\s*(?:to|that|about|of)?\s+(?P<goal>.+)$"
_TO_BEFORE = r"remind me (?:to|that|about|of)?\s*(?P<goal>.+?)\s+"
_SHELL = r"(?:run|execute)\s+(?:the\s+(?:shell\s+)?command\s*:?\s*)?"
_IN_FOLDER = rf"(?:\s+in\s+{_FOLDER}{_PATH})?"
_END = r"\s*[.!?]*\s*$"

# Tried in order; a builder may decline by returning None.
_SENTENCES = [
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), build)
    for pattern, build in (
        (rf"remind me in {_SPAN}{_TO}", _remind),
        (rf"remind me at {_CLOCK}{_TO}", _remind),
        (rf"{_TO_BEFORE}in {_SPAN}{_END}", _remind),
        (rf"{_TO_BEFORE}at {_CLOCK}{_END}", _remind),
        (r"(?:what |)do you (?:remember|recall|know) (?:about|of) (?P<text>.+)$", _recall),
        (r"(?:recall|search (?:your |my )?(?:memory|notes) for)\s+(?P<text>.+)$", _recall),
        (r"(?:remember|memorize|note)(?: that|:)?\s+(?P<text>.+)$", _remember),
        (rf"{_SHELL}{_TEXT}{_END}", _run),
        (rf"{_SHELL}(?P<tw>(?!the\b).+)$", _run),
        (r"[$!]\s*(?P<tw>.+)$", _run),
        (
            rf"(?:replace|change)\s+{_QUOTED.format('o')}\s+(?:with|by|to|into)\s+"
            rf"{_QUOTED.format('n')}\s+in\s+{_FILE}{_PATH}{_END}",
            _edit,
        ),
        (rf"(?:write|save|put)\s+{_TEXT}\s+(?:in|to|into|as)\s+{_FILE}{_PATH}{_END}", _write),
        (
            rf"(?:write|create|make|save)\s+{_FILE}{_PATH}\s*,?\s*"
            rf"(?:with|containing|saying|that says)\s+(?:the\s+)?(?:text|contents?|line)?\s*:?\s*"
            rf"(?:{_TEXT}{_END}|(?P<tw>.+)$)",
            _write,
        ),
        (rf"(?:write|save|put)\s+(?P<tw>.+?)\s+(?:in|to|into)\s+{_FILE}{_PATH}{_END}", _write),
        (rf"(?:search|grep|look|find)\s+(?:for\s+)?{_TEXT}{_IN_FOLDER}{_END}", _search),
        (
            r"(?:search|grep|look)\s+(?:in\s+)?(?:the\s+|my\s+)?(?:files?\s+)?for\s+"
            rf"(?:{_TEXT}|(?P<tw>\S+?)){_IN_FOLDER}{_END}",
            _search,
        ),
        (rf"(?:delete|remove|erase|rm)\s+{_FILE}{_PATH}{_END}", _delete),
        (
            r"(?:list|show|which|what|ls)\s+(?:me\s+)?(?:all\s+)?(?:the\s+|my\s+)?"
            r"(?:files|folders|contents?|everything)\b(?:\s+and folders)?"
            r"(?:\s+(?:are|is))?(?:\s+there)?"
            rf"(?:\s+(?:in|of|under|inside|from)\s+{_FOLDER}{_PATH})?{_END}",
            _list,
        ),
        (rf"(?:list|ls|dir)(?:\s+{_FOLDER}{_PATH})?{_END}", _list),
        (rf"what(?:'s| is| are)\s+in\s+{_FOLDER}(?P<pw>/\S*?){_END}", _look_in),
        (
            r"(?:read|show|print|cat|open|display|view|what(?:'s| is) in|what does)\s+(?:me\s+)?"
            rf"(?:the\s+contents?\s+of\s+)?{_FILE}{_PATH}(?:\s+(?:say|contain))?{_END}",
            _read,
        ),
    )
]
