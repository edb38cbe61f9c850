"""The input box: text, a cursor, and what was sent before. Pure.

Every edit gives a new `Editor`. The cursor counts code points and always stands between clusters,
so that one press of an arrow moves over one character as a person sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from oxydra.tui.cells import clusters
from oxydra.tui.keys import Key

REMEMBERED = 500  # messages


@dataclass(frozen=True, slots=True)
class Editor:
    """`recalled` is the place in `history` that is shown, None for one's own `draft`. `killed` is
    what was cut last; `killing` that the last key cut it, so that the next cut is added to it.
    """

    text: str = ""
    cursor: int = 0
    history: tuple[str, ...] = ()
    recalled: int | None = None
    draft: str = ""
    killed: str = ""
    killing: bool = False

    @property
    def before(self) -> str:
        return self.text[: self.cursor]

    @property
    def after(self) -> str:
        return self.text[self.cursor :]

    def insert(self, text: str) -> Editor:
        return self.set(self.before + text + self.after, self.cursor + len(text))

    def set(self, text: str, cursor: int | None = None) -> Editor:
        """Replace the text; the cursor goes to its end if no place is given."""
        return replace(self, text=text, cursor=len(text) if cursor is None else cursor)

    def take(self) -> Editor:
        """Empty, with the text remembered."""
        history = self.history
        if self.text and (not history or history[-1] != self.text):
            history = (*history, self.text)[-REMEMBERED:]
        return Editor(history=history, killed=self.killed)


def edit(editor: Editor, key: Key) -> Editor | None:
    """The editor after `key`; None if the key is not an editor's."""
    if key.name in ("text", "paste"):
        return replace(editor, killing=False).insert(key.text)
    action = _ACTIONS.get(key.name)
    if action is None:
        return None
    return replace(action(editor), killing=action in _KILLS)


# ------------------------------------------------------------------------------------------ actions


def _left(editor: Editor) -> Editor:
    return replace(editor, cursor=editor.cursor - _last(editor.before))


def _right(editor: Editor) -> Editor:
    return replace(editor, cursor=editor.cursor + _first(editor.after))


def _backspace(editor: Editor) -> Editor:
    start = editor.cursor - _last(editor.before)
    return editor.set(editor.text[:start] + editor.after, start)


def _delete(editor: Editor) -> Editor:
    end = editor.cursor + _first(editor.after)
    return editor.set(editor.before + editor.text[end:], editor.cursor)


def _home(editor: Editor) -> Editor:
    return replace(editor, cursor=_line_start(editor))


def _end(editor: Editor) -> Editor:
    return replace(editor, cursor=_line_end(editor))


def _kill(editor: Editor, start: int, end: int) -> Editor:
    """Cut what is between; several cuts in a row are put back as one."""
    cut = editor.text[start:end]
    if editor.killing:
        cut = editor.killed + cut if start == editor.cursor else cut + editor.killed
    edited = editor.set(editor.text[:start] + editor.text[end:], start)
    return replace(edited, killed=cut or editor.killed)


def _kill_to_end(editor: Editor) -> Editor:
    """To the line's end; at its end, the line break."""
    end = editor.cursor + 1 if editor.after[:1] == "\n" else _line_end(editor)
    return _kill(editor, editor.cursor, end)


def _kill_to_start(editor: Editor) -> Editor:
    return _kill(editor, _line_start(editor), editor.cursor)


def _kill_word(editor: Editor) -> Editor:
    """Back to the white space before the cursor."""
    kept = editor.before.rstrip()
    while kept and not kept[-1].isspace():
        kept = kept[:-1]
    return _kill(editor, len(kept), editor.cursor)


def _kill_word_back(editor: Editor) -> Editor:
    return _kill(editor, _word_start(editor), editor.cursor)


def _kill_word_on(editor: Editor) -> Editor:
    return _kill(editor, editor.cursor, _word_end(editor))


def _yank(editor: Editor) -> Editor:
    return editor.insert(editor.killed)


def _word_left(editor: Editor) -> Editor:
    return replace(editor, cursor=_word_start(editor))


def _word_right(editor: Editor) -> Editor:
    return replace(editor, cursor=_word_end(editor))


def _newline(editor: Editor) -> Editor:
    return editor.insert("\n")


def _up(editor: Editor) -> Editor:
    """A line up; from the first line, to what was sent before."""
    start = _line_start(editor)
    if start:
        above = editor.text.rfind("\n", 0, start - 1) + 1
        return replace(editor, cursor=_snap(editor, above, start - 1, editor.cursor - start))
    place = len(editor.history) if editor.recalled is None else editor.recalled
    if place == 0:
        return editor
    draft = editor.text if editor.recalled is None else editor.draft
    shown = editor.history[place - 1]
    return replace(editor.set(shown), recalled=place - 1, draft=draft)


def _down(editor: Editor) -> Editor:
    """A line down; from the last line, to what was sent after, and at last to one's own draft."""
    end = _line_end(editor)
    if end < len(editor.text):
        column = editor.cursor - _line_start(editor)
        below = editor.text.find("\n", end + 1)
        limit = len(editor.text) if below < 0 else below
        return replace(editor, cursor=_snap(editor, end + 1, limit, column))
    if editor.recalled is None:
        return editor
    place = editor.recalled + 1
    if place == len(editor.history):
        return replace(editor.set(editor.draft), recalled=None, draft="")
    return replace(editor.set(editor.history[place]), recalled=place)


_ACTIONS: dict[str, Callable[[Editor], Editor]] = {
    "left": _left,
    "ctrl-b": _left,
    "right": _right,
    "ctrl-f": _right,
    "home": _home,
    "ctrl-a": _home,
    "end": _end,
    "ctrl-e": _end,
    "up": _up,
    "ctrl-p": _up,
    "down": _down,
    "ctrl-n": _down,
    "backspace": _backspace,
    "delete": _delete,
    "ctrl-d": _delete,
    "ctrl-k": _kill_to_end,
    "ctrl-u": _kill_to_start,
    "ctrl-w": _kill_word,
    "alt-backspace": _kill_word_back,
    "ctrl-backspace": _kill_word_back,
    "alt-d": _kill_word_on,
    "ctrl-delete": _kill_word_on,
    "ctrl-y": _yank,
    "alt-b": _word_left,
    "alt-left": _word_left,
    "ctrl-left": _word_left,
    "alt-f": _word_right,
    "alt-right": _word_right,
    "ctrl-right": _word_right,
    "newline": _newline,
    "alt-enter": _newline,
    "ctrl-j": _newline,
}


_KILLS = (_kill_to_end, _kill_to_start, _kill_word, _kill_word_back, _kill_word_on)


def _word_start(editor: Editor) -> int:
    """Where the word before the cursor begins."""
    at = editor.cursor
    seen = False
    for part in reversed(_parts(editor.before)):
        if seen and not part[0].isalnum():
            break
        seen = seen or part[0].isalnum()
        at -= len(part)
    return at


def _word_end(editor: Editor) -> int:
    """Where the word behind the cursor ends."""
    at = editor.cursor
    seen = False
    for part in _parts(editor.after):
        if seen and not part[0].isalnum():
            break
        seen = seen or part[0].isalnum()
        at += len(part)
    return at


def _parts(text: str) -> list[str]:
    """The clusters of several lines, and the newlines between."""
    parts: list[str] = []
    for number, line in enumerate(text.split("\n")):
        parts += ["\n", *clusters(line)] if number else clusters(line)
    return parts


def _line_start(editor: Editor) -> int:
    return editor.text.rfind("\n", 0, editor.cursor) + 1


def _line_end(editor: Editor) -> int:
    end = editor.text.find("\n", editor.cursor)
    return len(editor.text) if end < 0 else end


def _last(text: str) -> int:
    """Code points of the last cluster."""
    if text[-1:] == "\n":
        return 1
    tail = clusters(text.rpartition("\n")[2])
    return len(tail[-1]) if tail else 0


def _first(text: str) -> int:
    """Code points of the first cluster."""
    if text[:1] == "\n":
        return 1
    head = clusters(text.partition("\n")[0])
    return len(head[0]) if head else 0


def _snap(editor: Editor, start: int, end: int, column: int) -> int:
    """The place between clusters nearest to `column` of the line from `start` to `end`."""
    at = start
    for cluster in clusters(editor.text[start:end]):
        if at + len(cluster) > start + column:
            break
        at += len(cluster)
    return at
