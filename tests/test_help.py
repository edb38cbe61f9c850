"""`--help` of every command, and `completion` in the shells that are installed."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxydra import cli
from oxydra.cli.completion import commands
from oxydra.cli.examples import EXAMPLES, OTHERS, lines
from tests.conftest import ROOT

PARSER = cli.build_parser()
PATHS = [one.path for one in commands(PARSER)]
FOREIGN = ("images build",)  # its help is another program's
each_shell = pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])


def parser_of(path: str) -> argparse.ArgumentParser:
    parser = PARSER
    for name in path.split():
        (below,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        parser = below.choices[name]
    return parser


def arguments(line: str) -> Iterator[list[str]]:
    """Of each `oxydra-…` in a line of a shell, without what is redirected."""
    for part in re.split(r" \| ", line):
        words = shlex.split(re.split(r" [<>] ", part)[0])
        if words[0].startswith("oxydra-"):
            yield words


@pytest.mark.parametrize("path", PATHS)
def test_the_help_of_a_command_has_examples(path: str) -> None:
    if path in FOREIGN:
        return
    text = parser_of(path).format_help()
    assert path in EXAMPLES, "oxydra/cli/examples.py says nothing of it"
    for line in lines("oxydra-runner", path):
        assert f"\n  {line}\n" in text
        for program, *words in arguments(line):
            assert program == "oxydra-runner"
            PARSER.parse_args(words)
            assert path == "" or set(path.split()) <= set(words), "an example of something else"


def test_nothing_is_shown_of_what_there_is_not() -> None:
    assert not set(EXAMPLES) - set(PATHS)


@pytest.mark.parametrize("program", OTHERS)
def test_the_help_of_the_other_programs_has_examples(program: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        getattr(cli, program.removeprefix("oxydra-"))(["--help"])
    for line in lines(program):
        assert f"\n  {line}\n" in out.getvalue()


# ---------------------------------------------------------------------------------- completion


def script(shell: str, tmp_path: Path) -> Path:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.runner(["completion", shell]) == 0
    path = tmp_path / f"completion.{shell}"
    path.write_text(out.getvalue())
    return path


BASH = """
source {file}
COMP_WORDS=({words}) COMP_CWORD={last}
_oxydra_runner
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
ZSH = """
compdef() {{ :; }}
compadd() {{
    shift
    for one in "$@"; do [[ $one == {typed}* ]] && print -r -- $one; done
}}
_files() {{ print -rl -- {typed}*(N) }}
source {file}
words=({words}) CURRENT={last}
_oxydra_runner
"""
FISH = """
source {file}
complete -C {line}
"""


def completed(shell: str, file: Path, folder: Path, *words: str) -> set[str]:
    """What is offered for the last of `words`."""
    quoted = " ".join(shlex.quote(word) for word in ("oxydra-runner", *words))
    told = {
        "bash": BASH.format(file=file, words=quoted, last=len(words)),
        "zsh": ZSH.format(file=file, words=quoted, last=len(words) + 1, typed=words[-1]),
        "fish": FISH.format(file=file, line=shlex.quote(" ".join(("oxydra-runner", *words)))),
    }[shell]
    flags = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"}
    done = subprocess.run(
        [shell, *flags, "-c", told],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not done.stderr, done.stderr
    return {line.split("\t")[0] for line in done.stdout.splitlines() if line}


@each_shell
def test_a_shell_completes(shell: str, tmp_path: Path) -> None:
    file = script(shell, tmp_path)
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "runner-of-mine.toml").touch()
    (folder / "notes.jsonl").touch()

    def offers(*words: str) -> set[str]:
        return completed(shell, file, folder, *words)

    assert offers("st") == {"start", "status", "stop"}
    assert offers("session", "e") == {"export"}
    assert {"--format", "--raw"} <= offers("session", "export", "--")
    assert "--detach" not in offers("session", "export", "--")
    assert offers("session", "export", "--format", "") == {"md", "markdown", "json", "html"}
    assert offers("--user", "start", "sto") == {"stop"}, "start is a user here"
    assert offers("--config", "runner-o") == {"runner-of-mine.toml"}
    assert "notes.jsonl" in offers("memory", "import", "no")
    assert offers("completion", "z") == {"zsh"}
    assert offers("logs", "--role", "shell", "--fo") == {"--follow"}


def test_completion_is_documented() -> None:
    text = (ROOT / "README.md").read_text()
    for line in lines("oxydra-runner", "completion"):
        assert line in text
