"""`completion SHELL`: what makes bash, zsh and fish complete `oxydra-runner`, made of its parser.

All three are told the same: where on the line a command stands, which options that command has, and
what may follow an option. Names of sessions and the like are not looked up: a Tab asks no daemon.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from oxydra.cli.parser import build_parser

FILES = ("F", "FILE", "FOLDER", "URL|FILE")  # the metavars of what is a path


@dataclass(frozen=True, slots=True)
class Word:
    """A command or an option, with what is said of it. An option that takes a `value` is followed
    by one of `choices`, a path where it is a `file`, or anything.
    """

    name: str
    help: str = ""
    value: bool = False
    choices: tuple[str, ...] = ()
    file: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """`path` is how it is reached: "" is the program, "session export" a command of `session`."""

    path: str
    commands: tuple[Word, ...]
    options: tuple[Word, ...]
    values: tuple[str, ...]  # of what stands without an option
    file: bool  # whether a path may


def completion(options: argparse.Namespace) -> int:
    """Print the script."""
    known = list(commands(build_parser()))
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell](known), end="")
    return 0


def commands(parser: argparse.ArgumentParser, path: str = "") -> Iterator[Command]:
    """The program and all its commands."""
    found: list[Word] = []
    options: list[Word] = []
    values: list[str] = []
    file = False
    below: list[Command] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                found.append(Word(name, _plain(told.get(name, ""))))
                below += commands(command, f"{path} {name}".strip())
        elif action.option_strings:
            options += [_option(action, name) for name in action.option_strings]
        else:
            values += map(str, action.choices or ())
            file = file or _is_file(action)
    yield Command(path, tuple(found), tuple(options), tuple(values), file)
    yield from below


def _option(action: argparse.Action, name: str) -> Word:
    choices = tuple(map(str, action.choices or ()))
    return Word(name, _plain(action.help or ""), action.nargs != 0, choices, _is_file(action))


def _is_file(action: argparse.Action) -> bool:
    return action.type is Path or action.metavar in FILES


def _plain(text: str) -> str:
    """Of what is said of a word, what stands in quotes without any trouble."""
    return "".join(char for char in text if char not in "'\"\\$`")


# -------------------------------------------------------------------------- bash and zsh, the same


def _cases(known: list[Command]) -> str:
    """Shell code for both: from `words`, the words before the one that is completed, it finds the
    command `at` and the option `after` which a value is asked, and sets `offered` and `files`.
    """
    paths = [f"'{one.path}'" for one in known if one.path]
    valued = [f"'{one.path}|{o.name}'" for one in known for o in one.options if o.value]
    code = ["    local at='' after='' offered='' files='' word"]
    code += ['    for word in "${before[@]}"; do', "        if [[ -n $after ]]; then"]
    code += ["            after=''", "            continue", "        fi"]
    code += ['        case "$at|$word" in', f"            {'|'.join(valued)}) after=$word ;;"]
    code += ["        esac", '        case "${at:+$at }$word" in']
    code += [f"            {'|'.join(paths)}) at=${{at:+$at }}$word ;;", "        esac", "    done"]
    code += ['    case "$at|$after" in']
    for one in known:
        for option in one.options:
            if option.value:
                offer = f"offered='{' '.join(option.choices)}'"
                offer += " files=1" if option.file else ""
                code.append(f"        '{one.path}|{option.name}') {offer} ;;")
        names = [word.name for word in (*one.commands, *one.options)]
        offer = f"offered='{' '.join((*names, *one.values))}'"
        offer += " files=1" if one.file else ""
        code.append(f"        '{one.path}|') {offer} ;;")
    return "\n".join([*code, "    esac"])


def _bash(known: list[Command]) -> str:
    return f"""# bash completion for oxydra-runner: made by `oxydra-runner completion bash`
_oxydra_runner() {{
    local before=("${{COMP_WORDS[@]:1:COMP_CWORD-1}}") typed=${{COMP_WORDS[COMP_CWORD]}}
{_cases(known)}
    COMPREPLY=($(compgen -W "$offered" -- "$typed"))
    if [[ -n $files && $typed != -* ]]; then
        compopt -o filenames 2>/dev/null
        COMPREPLY+=($(compgen -f -- "$typed"))
    fi
}}
complete -F _oxydra_runner oxydra-runner
"""


def _zsh(known: list[Command]) -> str:
    return f"""#compdef oxydra-runner
# zsh completion for oxydra-runner: made by `oxydra-runner completion zsh`
_oxydra_runner() {{
    local -a before
    before=("${{(@)words[2,CURRENT-1]}}")
{_cases(known)}
    compadd -- ${{=offered}}
    [[ -n $files ]] && _files
    return 0
}}
if [[ ${{funcstack[1]-}} == _oxydra-runner ]]; then
    _oxydra_runner "$@"
else
    compdef _oxydra_runner oxydra-runner
fi
"""


# ---------------------------------------------------------------------------------------- fish


def _fish(known: list[Command]) -> str:
    valued = [f"'{one.path}|{o.name}'" for one in known for o in one.options if o.value]
    paths = [f"'{one.path}'" for one in known if one.path]
    rows = [
        f"""# fish completion for oxydra-runner: made by `oxydra-runner completion fish`
function __oxydra_at
    set -l words (commandline -opc)
    set -l at ''
    set -l skip ''
    for word in $words[2..-1]
        if test -n "$skip"
            set skip ''
            continue
        end
        if contains -- "$at|$word" {" ".join(valued)}
            set skip 1
        else if contains -- (string trim -- "$at $word") {" ".join(paths)}
            set at (string trim -- "$at $word")
        end
    end
    test "$at" = "$argv[1]"
end
complete -c oxydra-runner -f"""
    ]
    for one in known:
        start = f"complete -c oxydra-runner -n \"__oxydra_at '{one.path}'\""
        for word in one.commands:
            rows.append(f"{start} -a {word.name} -d '{word.help}'")
        if one.values:
            rows.append(f"{start} -a '{' '.join(one.values)}'")
        if one.file:
            rows.append(f"{start} -F")
        for word in one.options:
            name = word.name.lstrip("-")
            row = f"{start} {'-l' if word.name.startswith('--') else '-s'} {name}"
            row += f" -d '{word.help}'" if word.help else ""
            if word.value:
                row += " -r -F" if word.file else " -x"
            if word.choices:
                row += f" -a '{' '.join(word.choices)}'"
            rows.append(row)
    return "\n".join(rows) + "\n"
