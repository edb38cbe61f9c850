"""On which line a TOML text says something: tomli tells that for syntax errors only. Pure.

`key_lines` reads what tomli has accepted, so it need not judge: it only has to tell keys from
values, wherever strings, comments, arrays and inline tables may put a `=` or a `]`.
"""

from __future__ import annotations

import re

KeyPath = tuple[str, ...]

_TOKEN = r"""(?P<skip>[ \t\r]+|\#[^\n]*)
    |(?P<string>\"{3}(?:[^\\]|\\.)*?\"{3,5}|'{3}.*?'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')
    |(?P<mark>[\n\[\]{}=,.])
    |(?P<bare>[^\s\[\]{}=,.\#"']+)"""


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line, from 1, where each table and key of a valid TOML text first stands.

    A dotted key and a table's header stand for all their parents too; keys in an array of tables
    or in an array's inline tables are told apart by no index: the first one counts.
    """
    reader = _Reader(text.replace("\r\n", "\n"))
    reader.document()
    return reader.found


class _Reader:
    def __init__(self, text: str) -> None:
        self.found: dict[KeyPath, int] = {}
        self._tokens: list[tuple[str, str, int]] = []
        self._at = 0
        line = 1
        for match in re.finditer(_TOKEN, text, re.VERBOSE | re.DOTALL):
            if match.lastgroup != "skip":
                self._tokens.append((match.lastgroup or "", match.group(), line))
            line += match.group().count("\n")

    def _peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _skip(self, *marks: str) -> None:
        while self._peek() and self._peek() in marks:
            self._at += 1

    def document(self) -> None:
        table: KeyPath = ()
        self._skip("\n")
        while self._peek():
            if self._peek() == "[":
                self._skip("[")
                table = self._key(())
                self._skip("]")
            else:
                self._pair(table)
            self._skip("\n")

    def _key(self, table: KeyPath) -> KeyPath:
        """A dotted key below `table`, and where each of its parts stands."""
        path = table
        while self._at < len(self._tokens):
            kind, token, line = self._tokens[self._at]
            if kind == "mark" and token != ".":
                break
            if token != ".":
                path = (*path, _unquoted(token) if kind == "string" else token)
                self.found.setdefault(path, line)
            self._at += 1
        return path

    def _pair(self, table: KeyPath) -> None:
        path = self._key(table)
        self._at += 1  # the equals sign
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        opening = self._peek()
        self._at += 1
        if opening in ("[", "{"):
            self._skip("\n", ",")
            while self._peek() and self._peek() not in ("]", "}"):
                if opening == "{":
                    self._pair(path)
                else:
                    self._value(path)
                self._skip("\n", ",")
            self._at += 1
            return
        while self._peek() and self._peek() not in ("\n", ",", "]", "}"):
            self._at += 1


def _unquoted(token: str) -> str:
    if token.startswith("'"):
        return token[1:-1]
    import json

    try:
        return str(json.loads(token))
    except ValueError:  # an escape that only TOML has
        return token[1:-1]
