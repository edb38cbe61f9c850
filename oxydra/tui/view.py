"""The TUI's face: a state becomes lines of exactly the terminal's width. Pure.

Styles are symbols; `app` knows what a terminal makes of them. Each entry of the transcript is
wrapped once and kept by the `View`, and only what is in sight is wrapped at all. Everything from
outside goes through `cells.clean`.

From top to bottom: the transcript, a line for what is wrong, the rule with the input's title, the
input, the status line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from oxydra.tui import approvals, find, markdown, pick, transcript
from oxydra.tui.cells import clean, clip, fold, hanging, one_line, width, wrap
from oxydra.tui.listing import local
from oxydra.tui.spans import Line, Span, exactly
from oxydra.tui.state import Anchor, Entry, Scrolled, State
from oxydra.tui.transcript import DIFFS

MIN_WIDTH, MIN_HEIGHT = 20, 5
NARROW = 48  # columns below which the gutter is two cells
AIRY = 12  # rows from which entries are set apart
INPUT_ROWS = 10
SHORT, LONG = 8, 400  # lines of a diff, and of a call's details
PROMPT = "❯ "
PLACEHOLDER = "Write a message, or /help"
WELCOME = " Ask for anything: files, commands, reminders. Enter sends, Alt+Enter starts a new line."

_LABELS: dict[str, tuple[str, str, str]] = {  # style, wide label, narrow label
    "user": ("you", "    you ▸ ", "❯ "),
    "assistant": ("oxydra", " oxydra ▸ ", "◆ "),
}
_MARKS: dict[str, tuple[str, str]] = {
    "notice": ("dim", "· "),
    "warning": ("warn", "! "),
    "error": ("bad", "✗ "),
    "started": ("oxydra", "◦ "),
    "finished": ("good", "✓ "),
    "failed": ("bad", "✗ "),
    "unknown": ("dim", "? "),
}
_WORK = ("tool", "reasoning")
_JOINS = "joins the running turn before the model is asked again"
_WAITING = {
    "sending": "not sent yet",
    "queued": "queued: its turn comes after the running one",
    "refused": "not accepted",
}


@dataclass(frozen=True, slots=True)
class Screen:
    """What is to be seen: `lines` from the top, each exactly as wide as the terminal, and the
    cursor's column and row, None if it is hidden.
    """

    lines: tuple[Line, ...]
    cursor: tuple[int, int] | None


@dataclass(slots=True)
class _Wrapped:
    """An entry as it was wrapped last. Text that only grew is wrapped from `stable` on."""

    entry: Entry
    columns: int
    details: bool
    stable: int  # characters up to the last line break
    stable_lines: list[list[Span]]
    lines: list[list[Span]]


class View:
    """Draws states. Holds nothing but what it wrapped."""

    def __init__(self) -> None:
        self._wrapped: dict[int, _Wrapped] = {}

    def render(self, state: State, columns: int, rows: int) -> Screen:
        """What `state` looks like on a terminal of `columns` by `rows` cells."""
        if columns < MIN_WIDTH or rows < MIN_HEIGHT:
            first = exactly(columns, ("", clip("terminal too small", columns)))
            return Screen((first, *[exactly(columns)] * (rows - 1)), None)
        below, (column, row) = _below(state, columns, rows)
        if state.picker is not None:
            history = _choices(state, columns, rows - len(below))
        else:
            history = self._history(state, columns, rows - len(below), rows >= AIRY)
        return Screen((*history, *below), (column, len(history) + row))

    def scroll(self, state: State, columns: int, rows: int, pages: float) -> Scrolled:
        """Where `pages` down (up if negative) leads; 0 is the newest line."""
        if columns < MIN_WIDTH or rows < MIN_HEIGHT or not pages:
            return Scrolled(None, False)
        height = rows - len(_below(state, columns, rows)[0])
        step = max(1, round(abs(pages) * (height - 1)))
        if pages > 0:
            return Scrolled(self._down(state, columns, rows >= AIRY, step), False)
        places: list[Anchor] = []  # from the newest line in sight upwards
        for entry_id, line, _ in self._upwards(state, columns, rows >= AIRY):
            places.append(Anchor(entry_id, line))
            if len(places) == step + height:
                return Scrolled(places[step], False)
        if len(places) <= height:
            return Scrolled(state.anchor, True)
        return Scrolled(places[len(places) - height], True)

    # ---------------------------------------------------------------------------------- transcript

    def _history(self, state: State, columns: int, height: int, airy: bool) -> list[Line]:
        if len(self._wrapped) > 2 * len(state.entries) + 100:
            kept = {entry.id for entry in state.entries}
            self._wrapped = {i: w for i, w in self._wrapped.items() if i in kept}
        blank = exactly(columns)
        lines = [blank] if airy and state.anchor is None else []
        if not state.entries:
            lines.append(exactly(columns, ("dim", clip(WELCOME, columns))))
        for _, _, line in self._upwards(state, columns, airy):
            if len(lines) == height:
                break
            lines.append(line)
        lines += [blank] * (height - len(lines))
        lines.reverse()
        return lines

    def _upwards(self, state: State, columns: int, airy: bool) -> Iterator[tuple[int, int, Line]]:
        """Lines from the newest in sight to the oldest, each with its entry and its place there."""
        entries = state.entries
        index, limit = len(entries) - 1, None
        if state.anchor is not None:
            while index >= 0 and entries[index].id != state.anchor.entry_id:
                index -= 1
            if index < 0:
                index = len(entries) - 1
            else:
                limit = state.anchor.line + 1
        while index >= 0:
            block = self._block(state, index, columns, airy)
            for place in range(len(block[:limit]) - 1, -1, -1):
                yield entries[index].id, place, block[place]
            index, limit = index - 1, None

    def _down(self, state: State, columns: int, airy: bool, step: int) -> Anchor | None:
        """`step` lines below the anchor; None if that is the newest line."""
        anchor, entries = state.anchor, state.entries
        index = next((i for i, e in enumerate(entries) if anchor and e.id == anchor.entry_id), None)
        if anchor is None or index is None:
            return None
        line = anchor.line + step
        while index < len(entries):
            size = len(self._block(state, index, columns, airy))
            if line < size - (index == len(entries) - 1):
                return Anchor(entries[index].id, line)
            index, line = index + 1, line - size
        return None

    def _block(self, state: State, index: int, columns: int, airy: bool) -> list[Line]:
        """An entry's lines, with the empty one that sets it apart."""
        entries = state.entries
        entry = entries[index]
        before = entries[index - 1].kind if index else None
        apart = airy and before is not None and not (entry.kind in _WORK and before in _WORK)
        lines = [exactly(columns)] if apart else []
        if entry.kind in _WORK:
            head = _tool(entry, columns, state.now) if entry.kind == "tool" else None
            lines.append(head or _thought(entry, columns, state.details))
            label = _indent(columns) + "  "
            for spans in self._details(entry, columns - width(label), state.details):
                lines.append(exactly(columns, ("", label), *spans))
            return lines
        if entry.kind in _LABELS:
            style, wide, narrow = _LABELS[entry.kind]
            label = narrow if columns < NARROW else wide
            style_of_text = ""
        else:
            style, mark = _MARKS[entry.kind]
            label = _indent(columns) + mark
            style_of_text = "" if style == "bad" else style
        room = columns - width(label)
        for spans in self._wrap(entry, room, style_of_text):
            lines.append(exactly(columns, (style, label), *spans))
            label = " " * width(label)
        for name in entry.files:
            said = clip(f"▤ {one_line(name)}", room)
            lines.append(exactly(columns, ("", " " * width(label)), ("dim", said)))
        if entry.state in _WAITING:
            joins = entry.steers and entry.state == "queued"
            waits = _JOINS if joins else _WAITING[entry.state]
            lines.append(exactly(columns, ("", label), ("dim", clip(waits, room))))
        return lines

    def _wrap(self, entry: Entry, columns: int, style: str) -> list[list[Span]]:
        kept = self._wrapped.get(entry.id)
        stable = 0
        stable_lines: list[list[Span]] = []
        if kept is not None and kept.columns == columns and kept.entry.state == entry.state:
            if kept.entry is entry or kept.entry.text == entry.text:
                return kept.lines
            if entry.text.startswith(kept.entry.text[: kept.stable]):
                stable, stable_lines = kept.stable, kept.stable_lines
        text = entry.text
        if entry.kind == "assistant" and not entry.state and len(text) <= markdown.LONGEST:
            lines = markdown.formatted(text, columns)
        else:
            fit = hanging if entry.kind in _MARKS else wrap
            cut = text.rfind("\n") + 1
            if cut > stable:
                grown = fit(clean(text[stable : cut - 1]), columns)
                stable, stable_lines = cut, stable_lines + [[(style, line)] for line in grown]
            rest = fit(clean(text[stable:]), columns)
            lines = stable_lines + [[(style, line)] for line in rest]
        while len(lines) > 1 and not any(text for _, text in lines[-1]):
            lines.pop()
        self._wrapped[entry.id] = _Wrapped(entry, columns, False, stable, stable_lines, lines)
        return lines

    def _details(self, entry: Entry, columns: int, details: bool) -> list[list[Span]]:
        """What stands below the line of a call or of reasoning."""
        kept = self._wrapped.get(entry.id)
        wanted = (entry, columns, details)
        if kept is not None and (kept.entry, kept.columns, kept.details) == wanted:
            return kept.lines
        if entry.kind == "reasoning":
            lines = _plain("dim", entry.text, columns) if details else []
        elif entry.tool in DIFFS and entry.state == "finished" and entry.result:
            lines = _diff(entry.result, columns, LONG if details else SHORT)
        elif details:
            lines = _call(entry, columns)
        else:
            lines = []
        self._wrapped[entry.id] = _Wrapped(entry, columns, details, 0, [], lines)
        return lines


# -------------------------------------------------------------------------------------------- lines


def _below(state: State, columns: int, rows: int) -> tuple[list[Line], tuple[int, int]]:
    """Everything below the transcript, and the cursor's column and row in it."""
    above = [*_banner(state, columns, rows), _title(state, columns)]
    lines, (column, row) = _input(state, columns, rows)
    return [*above, *lines, _status(state, columns, rows)], (column, len(above) + row)


def _banner(state: State, columns: int, rows: int) -> list[Line]:
    """The gravest problem in one line; where that is too much, the status line has a mark."""
    problems = state.health.problems if state.health else ()
    if not problems or rows < AIRY:
        return []
    more = f" (+{len(problems) - 1}: /status)" if len(problems) > 1 else ""
    text = clip(one_line(problems[0]), columns - 2 - len(more))
    return [exactly(columns, ("warn", f"▲ {text}{more}"))]


def _indent(columns: int) -> str:
    """What stands before a mark, so that the text behind it is level with the messages'."""
    return "" if columns < NARROW else " " * 8


def _tool(entry: Entry, columns: int, now: float) -> Line:
    style, mark = _MARKS.get(entry.state, _MARKS["unknown"])
    head = _indent(columns) + mark
    facts = [_took(entry.elapsed_ms)] if entry.elapsed_ms is not None else []
    if entry.state == "started" and now - entry.since >= 1.0:
        facts.append(f"{int(now - entry.since)} s")
    if entry.size is not None:
        facts.append(transcript.size(entry.size))
    took = f"  {' · '.join(facts)}" if facts else ""
    name = clip(one_line(entry.tool) or "tool", max(1, columns - width(head) - len(took)))
    room = columns - width(head) - width(name) - len(took) - 2
    summary = clip(one_line(entry.text), room) if room > 3 else ""
    gap = "  " if summary else ""
    return exactly(columns, (style, head), ("", name), ("dim", gap + summary + took))


def _thought(entry: Entry, columns: int, details: bool) -> Line:
    what = "thinking" if entry.state == "open" else "thought"
    keys = "" if details else " · Ctrl+O shows it"
    said = f"∴ {what}, {_count(len(entry.text))} characters{keys}"
    return exactly(columns, ("", _indent(columns)), ("dim", said))


def _plain(style: str, text: str, columns: int) -> list[list[Span]]:
    return [[(style, line)] for line in wrap(clean(text), columns)]


def _diff(text: str, columns: int, most: int) -> list[list[Span]]:
    """A unified diff, without the names of its file."""
    shown = [line for line in text.split("\n") if not line.startswith(("--- ", "+++ "))]
    lines: list[list[Span]] = []
    for line in shown[:most]:
        style = {"+": "good", "-": "bad", "@": "dim"}.get(line[:1], "")
        lines += [[(style, piece)] for piece in fold(clean(line), columns)]
    return [*lines, *_more(len(shown) - most, most)]


def _call(entry: Entry, columns: int) -> list[list[Span]]:
    """All arguments of a call and its result."""
    lines: list[list[Span]] = []
    for style, text in (("", _pretty(entry.arguments)), ("dim", entry.result or "")):
        shown = text.rstrip("\n").split("\n")
        if text:
            lines += _plain(style, "\n".join(shown[:LONG]), columns)
            lines += _more(len(shown) - LONG, LONG)
    return lines


def _pretty(arguments: str) -> str:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    if not isinstance(value, dict):
        return arguments
    return "\n".join(
        f"{name}: {said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)}"
        for name, said in value.items()
    )


def _more(count: int, most: int) -> list[list[Span]]:
    keys = " (Ctrl+O shows them)" if most == SHORT else ""
    return [[("dim", f"… {count:,} more lines{keys}")]] if count > 0 else []


def _took(milliseconds: int) -> str:
    return f"{milliseconds} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def _choices(state: State, columns: int, height: int) -> list[Line]:
    """The sessions to choose from, the newest at the top."""
    rows = pick.matching(state)
    chosen = state.picker.row if state.picker else 0
    first = max(0, min(chosen - height // 2, len(rows) - height))
    lines = [exactly(columns, ("dim", clip(" No session is called so.", columns)))][: not rows]
    for number, session in enumerate(rows[first : first + height], first):
        mark = "●" if session.session_id == state.session_id else " "
        when = local(session.last_active_at)
        name = one_line(session.name) or session.session_id[:8]
        here = number == chosen
        text = clip(one_line(f"{name} · {session.agent} · {when}"), columns - 4)
        style = "chosen" if here else ""
        lines.append(exactly(columns, (style, f"{'❯' if here else ' '}{mark} {text}")))
    return [*lines, *[exactly(columns)] * (height - len(lines))]


def _title(state: State, columns: int) -> Line:
    """The rule above the input, with what is going on."""
    active = state.active
    style = "bold"
    if state.picker is not None:
        title = pick.title(state.picker)
    elif state.search is not None:
        title = find.title(state.search)
    elif state.hint:
        title, style = state.hint, "warn"
    elif not state.link.connected:
        title, style = f"no connection: {state.link.detail}", "warn"
    elif state.asked:
        title, style = approvals.title(state), "warn"
    elif active is not None:
        elapsed = max(0, int(state.now - active.since))
        what = "cancelling" if active.cancelling else active.activity or "working"
        clock = f"{elapsed // 60}:{elapsed % 60:02}"
        room = columns - 6 - len(clock) - 3
        keys = " · Ctrl+C cancels" if not active.cancelling else ""
        keys = keys if room - width(what) > len(keys) else ""
        title = f"{clip(one_line(what), room)} · {clock}{keys}"
    elif state.anchor is not None:
        title = "reading back · Esc returns"
    else:
        return exactly(columns, ("rule", "─" * columns))
    title = clip(one_line(title), columns - 6)
    rest = columns - 4 - width(title)
    return exactly(columns, ("rule", "── "), (style, title), ("rule", " " + "─" * rest))


def _input(state: State, columns: int, rows: int) -> tuple[list[Line], tuple[int, int]]:
    """The input's lines, and the column and row of the cursor in them."""
    room = columns - width(PROMPT) - 1  # the cursor stands behind the last cell at most
    shown = max(1, min(INPUT_ROWS, rows // 3))
    lines = fold(clean(state.editor.text), room)
    before = fold(clean(state.editor.before), room)
    row = min(len(before), len(lines)) - 1
    column = min(width(before[-1]), room)
    first = min(max(0, row - shown + 1), max(0, len(lines) - shown))
    label = PROMPT if first == 0 else "⋮ "
    out: list[Line] = []
    for text in lines[first : first + shown]:
        out.append(exactly(columns, ("you", label), ("", text)))
        label = " " * width(PROMPT)
    if not state.editor.text:
        out = [exactly(columns, ("you", PROMPT), ("dim", clip(PLACEHOLDER, room)))]
    return out, (width(PROMPT) + column, row - first)


def _status(state: State, columns: int, rows: int) -> Line:
    """What matters most comes first; what finds no room is left out."""
    health = state.health
    problem = health is not None and bool(health.problems)
    dot: Span = ("good", "● ") if state.link.connected else ("bad", "○ ")
    if state.active is not None:
        turn = "cancelling" if state.active.cancelling else "working"
    else:
        turn = "ready" if state.link.connected else "offline"
    queued = sum(1 for entry in state.entries[-50:] if entry.state == "queued")
    facts = [
        f"{turn}, {queued} queued" if queued else turn,
        _session(state),
        one_line(health.model) if health else "",
        "/".join(part for part in (health.tier, health.level) if part) if health else "",
        f"{_count(state.tokens)} tokens" if state.tokens else "",
        f"context {min(100, 100 * state.filled // state.window)}%" if state.window > 0 else "",
        f"${state.cost:.4f}" if state.cost else "",
        one_line(state.agent),
    ]
    mark = "▲ " if problem and rows < AIRY else ""
    text = ""
    for fact in facts:
        joined = f"{text} · {clip(fact, 32)}" if text else fact
        if fact and 2 + width(mark) + width(joined) <= columns:
            text = joined
    return exactly(columns, dot, ("warn", mark), ("dim", text))


def _session(state: State) -> str:
    """The session's name, else what was said first, else the beginning of its id."""
    first = "" if state.more else next((e.text for e in state.entries if e.kind == "user"), "")
    return one_line(state.session_name) or one_line(first[:80]) or state.session_id[:8]


def _count(number: int) -> str:
    if number < 1000:
        return str(number)
    return f"{number / 1000:.1f}k" if number < 1_000_000 else f"{number / 1_000_000:.1f}M"
