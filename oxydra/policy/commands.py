"""The rules on which commands the model may run. Pure.

The sandbox is the boundary; the allow-list is a convenience that keeps honest mistakes away, and so
it is strict. A command line is read as what it must be to be judged: simple commands, joined by
`|`, `&&`, `||`, `;` or line breaks, made of plain and quoted words. Whatever bash would make more
of (a substitution, a variable, a subshell, a redirection, an assignment, a word that can grow into
another) is not allowed, and neither is a command that starts others (`env`, `xargs`, `sh -c`, …),
unless `allow` has `*`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from oxydra.errors import PolicyDenied
from oxydra.policy.paths import visible

ANYTHING = "*"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DEFAULTS = _words(
    # that look
    "b2sum base32 base64 basename cal cat cd cksum cmp column comm cut date df diff dirname du echo"
    " egrep expand expr factor false fgrep file find fmt fold free grep head hexdump hostname id"
    " join jq ls md5sum nl nproc numfmt od paste pr printenv printf ps pwd readlink realpath rev"
    " seq sha1sum sha224sum sha256sum sha384sum sha512sum shuf sleep sort stat strings sum tac tail"
    " tr tree true tsort type uname unexpand uniq uptime wc which whoami"
    # that make or move files
    " cp mkdir mv touch"
)
"""Allowed unless `replace_defaults` is set."""

STARTERS = _words(
    "ash bash busybox chroot chrt command coproc csh dash doas env eval exec fish flock ionice"
    " ksh mksh nice nohup nsenter parallel pkexec prlimit rbash runuser script setarch setpriv"
    " setsid sh source ssh stdbuf strace su sudo taskset tcsh time timeout toybox trap unbuffer"
    " unshare watch xargs zsh . builtin enable exec alias"
)
"""They run what their arguments say, so allowing them would allow everything: only `*` does."""

RESERVED = _words(
    "! [[ ]] case do done elif else esac fi for function if in select then until while { }"
)


@dataclass(frozen=True, slots=True)
class _Forbidden:
    """Options by which a harmless command runs another, or writes where it should read."""

    short: str = ""
    long: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


FORBIDDEN = {
    "file": _Forbidden("C", ("compile",)),
    "find": _Forbidden(
        words=(
            *("-exec", "-execdir", "-ok", "-okdir", "-delete"),
            *("-fprint", "-fprint0", "-fprintf", "-fls"),
        )
    ),
    "printf": _Forbidden("v"),
    "shuf": _Forbidden("o", ("output",)),
    "sort": _Forbidden("oT", ("compress-program", "output", "temporary-directory")),
    "tree": _Forbidden("o"),
}

# Redirections that write nothing anywhere.
HARMLESS_REDIRECTION = re.compile(r"(?:2>&1|[12]?>[ \t]*/dev/null)(?=[ \t\n;|&]|\Z)")


@dataclass(frozen=True, slots=True)
class _Word:
    """`wild`: it holds a glob, so that the names of files decide what it becomes."""

    text: str
    wild: bool = False


@dataclass(slots=True)
class _Line:
    """A command line that could be read: its simple commands, and what joins them."""

    commands: list[list[_Word]] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)


class _Unreadable(Exception):
    """There is more to the line than simple commands; the message says what."""


@dataclass(frozen=True, slots=True)
class CommandRules:
    """`[tools.shell]` as it decides. An entry of `allow` and `deny` is a command, or a command and
    its first arguments (`git status`).
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    replace_defaults: bool = False
    allow_operators: bool = True

    def check(self, line: str) -> None:
        """Raises `PolicyDenied`, in words that a model can act on."""
        if not line.strip() or "\0" in line:
            raise PolicyDenied("There is no command.", remedy="Say which one to run.")
        try:
            read = _read(line)
        except _Unreadable as reason:
            self._check_unreadable(line, str(reason))
            return
        if read.operators and not self.allow_operators:
            raise _denied(f"commands may not be joined by {read.operators[0]!r} here")
        for command in read.commands:
            self._check_command(command)

    def _check_unreadable(self, line: str, reason: str) -> None:
        if ANYTHING not in self.allow:
            raise _denied(f"{reason} is not allowed in a command", "Write it without.")
        if not self.allow_operators:
            raise _denied(f"{reason} is not allowed where commands may not be joined")
        # Nobody knows what it will run: it is enough that a denied name is there.
        for entry in self.deny:
            if _mentions(line, entry):
                raise _denied(f"{entry!r} is not allowed here")

    def _check_command(self, command: list[_Word]) -> None:
        name = command[0]
        texts = [word.text for word in command]
        base = name.text.rsplit("/", 1)[-1]
        for entry in self.deny:
            started = base in STARTERS and _mentions(" ".join(texts[1:]), entry)
            if started or _begins(texts, entry) or _begins([base, *texts[1:]], entry):
                raise _denied(f"{entry!r} is not allowed here")
        if ANYTHING in self.allow:
            return
        if name.wild:
            raise _denied(f"{name.text!r} is no plain command name")
        if re.match(r"[A-Za-z_]\w*(?:\[.*\])?\+?=", name.text, re.DOTALL):
            raise _denied("setting a variable before a command is not allowed")
        if name.text in RESERVED:
            raise _denied(f"{name.text!r} is not allowed: only simple commands are")
        if base in STARTERS:
            raise _denied(f"{base!r} starts other commands, so it is not allowed")
        if any(_begins(texts, entry) for entry in self.allow):
            return
        if self.replace_defaults or name.text not in DEFAULTS:
            raise _denied(
                f"{name.text!r} is not among the allowed commands",
                "Use an allowed one or another tool; the person can add it to [tools.shell] allow.",
            )
        _check_options(command)


def _begins(texts: Sequence[str], entry: str) -> bool:
    words = entry.split()
    return bool(words) and list(texts[: len(words)]) == words


def _mentions(text: str, entry: str) -> bool:
    """Whether the command of an entry stands anywhere as a word."""
    name = re.escape(entry.split()[0]) if entry.strip() else r"(?!)"
    return bool(re.search(rf"(?<![\w.-]){name}(?![\w.-])", text))


def _check_options(command: list[_Word]) -> None:
    """Options that make a harmless command harmful; GNU lets the long ones be abbreviated."""
    name = command[0].text
    forbidden = FORBIDDEN.get(name)
    if forbidden is None:
        return
    for word in command[1:]:
        text = word.text
        if word.wild and not re.match(r"[\w./]", text):
            raise _denied(f"{name}: {text!r} could become an option", f"Write ./{text}")
        option = text.partition("=")[0]
        harmful = (
            text in forbidden.words
            or (option.startswith("--") and any(_abbreviates(option, x) for x in forbidden.long))
            or (re.match(r"-[^-]", text) and any(char in forbidden.short for char in text[1:]))
        )
        if harmful:
            raise _denied(f"{name} may not be used with {text!r}")


def _abbreviates(option: str, name: str) -> bool:
    return len(option) > 2 and name.startswith(option[2:])


def _denied(what: str, remedy: str = "") -> PolicyDenied:
    shown = visible(what if len(what) <= 300 else what[:297] + "…")
    return PolicyDenied(f"The command was not run: {shown}.", remedy=remedy)


# ---------------------------------------------------------------------------------------- reading

_PLAIN = re.compile(r"[\w%+,./:=@^!~#?*\[\]-]+")
_OPERATOR = re.compile(r"&&|\|\||[;|\n]")
_BLANK = re.compile(r"[ \t]+")


def _read(line: str) -> _Line:
    """The line as bash's grammar has it, as far as only simple commands are in it. Raises
    `_Unreadable`.
    """
    read = _Line()
    words: list[_Word] = []
    position = 0
    line = line.strip(" \t\n")
    while position < len(line):
        if blank := _BLANK.match(line, position):
            position = blank.end()
        elif redirection := HARMLESS_REDIRECTION.match(line, position):
            position = redirection.end()
        elif operator := _OPERATOR.match(line, position):
            position = operator.end()
            if not words:
                if operator.group() == "\n":
                    continue  # an empty line, or one that goes on after an operator
                raise _Unreadable(f"{operator.group()!r} without a command before it")
            read.commands.append(words)
            read.operators.append(operator.group())
            words = []
        else:
            word, position = _read_word(line, position)
            words.append(word)
    if words:
        read.commands.append(words)
    elif read.operators and read.operators[-1] in (";", "\n"):
        read.operators.pop()
    else:
        raise _Unreadable("an operator without a command after it")
    if not read.commands:
        raise _Unreadable("a line without a command")
    return read


def _read_word(line: str, position: int) -> tuple[_Word, int]:
    text: list[str] = []
    wild = False
    start = position
    while position < len(line):
        char = line[position]
        if char in " \t\n;|&":
            break
        if char == "'":
            end = line.find("'", position + 1)
            if end < 0:
                raise _Unreadable("a quotation without an end")
            text.append(line[position + 1 : end])
            position = end + 1
        elif char == '"':
            quoted = re.compile(r'"((?:[^"\\$`]|\\["\\])*)"').match(line, position)
            if quoted is None:
                raise _Unreadable("a substitution or an escape in double quotes")
            text.append(re.sub(r"\\(.)", r"\1", quoted[1]))
            position = quoted.end()
        elif char == "\\":
            if position + 1 >= len(line) or line[position + 1] == "\n":
                raise _Unreadable("a line that goes on in the next")
            text.append(line[position + 1])
            position += 2
        elif plain := _PLAIN.match(line, position):
            part = plain.group()
            if part[0] == "#" and position == start:
                raise _Unreadable("a comment")
            wild = wild or bool(re.search(r"[*?\[]", part))
            text.append(part)
            position = plain.end()
        else:
            raise _Unreadable(_NAMES.get(char, f"the character {char!r}"))
    if position < len(line) and line[position] == "&" and not line.startswith("&&", position):
        raise _Unreadable("a command in the background")
    return _Word("".join(text), wild), position


_NAMES = {
    "$": "a variable or a substitution ($)",
    "`": "a substitution (`)",
    "(": "a subshell",
    ")": "a subshell",
    "<": "a redirection",
    ">": "a redirection",
    "{": "a brace",
    "}": "a brace",
}
