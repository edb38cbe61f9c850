"""The documentation: its links resolve, its commands parse, its tables are what the code says.

What is generated (the fields of docs/protocol.md, the tables of docs/access.md and
docs/benchmarks.md, docs/commands.md, the escape attempts of the guidebook's security chapter) is
written anew by
`REGENERATE=1 make test ARGS=tests/test_docs.py`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxydra import cli, frames
from oxydra.cli.examples import lines
from oxydra.doctor import registry
from tests.bench.book import Book

ROOT = Path(__file__).resolve().parent.parent
DOCS = [p for p in (ROOT / "README.md", ROOT / "CHANGELOG.md") if p.exists()]
DOCS += [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples" / "README.md"]
PROTOCOL = ROOT / "docs" / "protocol.md"

each_document = pytest.mark.parametrize("path", DOCS, ids=lambda p: p.relative_to(ROOT).as_posix())


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.M):
        words = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(words.strip().replace(" ", "-"))
    return found


@each_document
def test_relative_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path.name}: {target} does not exist"
        assert file.is_relative_to(ROOT), f"{path.name}: {target} leaves the repository"
        assert not anchor or anchor in anchors(file), f"{path.name}: {target} has no such heading"


@each_document
def test_paths_in_code_spans_exist(path: Path) -> None:
    for span in re.findall(r"`([^`\n]+)`", path.read_text(encoding="utf-8")):
        if re.fullmatch(r"(oxydra|bin|guest|tests|examples|docs)/[\w./-]+", span):
            assert (ROOT / span).exists(), f"{path.name}: there is no {span}"


def code_lines(text: str) -> Iterator[str]:
    """Every line of a fenced block and every inline span, with continued lines joined."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, flags=re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip().removeprefix("$ ")
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
        yield span.strip()


@each_document
def test_every_make_target_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for line in code_lines(path.read_text(encoding="utf-8")):
        match = re.match(r"(?:\w+=\S+ )*make((?: [\w=./-]+)*)$", line)
        for word in match.group(1).split() if match else ():
            assert "=" in word or word in targets, f"{path.name}: make has no target {word}"


PLACEHOLDER = re.compile(r"[\[\]<>…]|\.\.\.")


def commands(path: Path) -> Iterator[list[str]]:
    """The arguments of every `oxydra-runner` command that could be typed as it stands."""
    for line in code_lines(path.read_text(encoding="utf-8")):
        for part in re.split(r"\s(?:\||&&|;|>)\s", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:
                continue
            while words and re.fullmatch(r"\w+=.*", words[0]):
                del words[0]
            if len(words) < 2 or not words[0].endswith("oxydra-runner"):
                continue
            if not PLACEHOLDER.search(part):
                yield words[1:]


@each_document
def test_every_command_is_accepted(path: Path) -> None:
    parser = cli.build_parser()
    for arguments in commands(path):
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                parser.parse_args(arguments)
                code: object = 0
            except SystemExit as stop:
                code = stop.code
        assert not code, f"{path.name}: oxydra-runner {shlex.join(arguments)}: {said.getvalue()}"


# ------------------------------------------------------------------------------------ generated


def field_table(table: dict[str, tuple[frames.Field, ...]]) -> str:
    """A row for each frame; a field that may be absent has a question mark."""
    rows = ["| type | payload |", "|---|---|"]
    for name, fields in table.items():
        listed = ", ".join(f"{f.name}{'' if f.required else '?'}: {f.type}" for f in fields)
        rows.append(f"| `{name}` | {listed} |")
    return "\n".join(rows)


def regenerated(text: str) -> str:
    for marker, table in (("client", frames.CLIENT), ("server", frames.SERVER)):
        block = f"<!-- {marker} frames, generated -->\n{field_table(table)}\n<!-- end -->"
        text, count = re.subn(
            rf"<!-- {marker} frames, generated -->.*?<!-- end -->", block, text, flags=re.S
        )
        assert count == 1, f"docs/protocol.md has lost its {marker} table"
    return text


def test_the_protocol_tables_are_those_of_the_code() -> None:
    written = PROTOCOL.read_text(encoding="utf-8")
    current = regenerated(written)
    if os.environ.get("REGENERATE") == "1":
        PROTOCOL.write_text(current, encoding="utf-8")
        return
    assert written == current, "REGENERATE=1 make test ARGS=tests/test_docs.py writes them anew"


@pytest.mark.parametrize("name", [*frames.CLIENT, *frames.SERVER])
def test_every_frame_is_explained(name: str) -> None:
    prose = re.sub(r"<!-- \w+ frames, .*?<!-- end -->", "", PROTOCOL.read_text(), flags=re.S)
    assert f"`{name}`" in prose, f"docs/protocol.md has a row for {name} but no word on it"


def test_the_guidebook_index_lists_every_chapter() -> None:
    folder = ROOT / "docs" / "guidebook"
    index = (folder / "README.md").read_text(encoding="utf-8")
    for chapter in folder.glob("*.md"):
        assert chapter.name == "README.md" or f"({chapter.name})" in index


# --------------------------------------------------------------------------------------- access


def access_tables() -> str:
    """Which scopes each route, frame and command needs."""
    from oxydra.gateway import access

    def said(need: frozenset[str] | None) -> str:
        if need is None:
            return "no token"
        if not need:
            return "any token"
        names = [f"`{scope}`" for scope in access.SCOPES if scope in need]
        return "any scope" if len(names) == len(access.SCOPES) else " or ".join(names)

    rows = ["| what | needs |", "|---|---|"]
    for (method, path), route in access.ROUTES.items():
        rows.append(f"| `{method} {path}` | {said(route.need)} |")
    rows += [f"| frame `{name}` | {said(need)} |" for name, need in access.FRAMES.items()]
    rows += [f"| command `{name}` | {said(need)} |" for name, need in access.COMMANDS.items()]
    return "\n".join(rows) + "\n"


def holds(page: Path, what: str, current: str) -> None:
    """The block of a page that is generated is what it would be now."""
    text = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {what}, generated -->\n", "<!-- end -->"
    head, found, rest = text.partition(begin)
    assert found, f"{page.name} has lost the place of its {what}"
    written, _, tail = rest.partition(end)
    if os.environ.get("REGENERATE"):
        page.write_text(head + begin + current + end + tail, encoding="utf-8")
        return
    assert written == current, "REGENERATE=1 make test ARGS=tests/test_docs.py writes it anew"


def test_the_benchmarks_are_those_that_were_measured_last() -> None:
    holds(ROOT / "docs" / "benchmarks.md", "figures", Book.read().shown() + "\n")


def test_the_access_tables_are_what_the_code_says() -> None:
    holds(ROOT / "docs" / "access.md", "access tables", access_tables())


# ------------------------------------------------------------------------------------- commands


def pages_of(parser: argparse.ArgumentParser, path: str = "") -> Iterator[str]:
    """Each command with what follows it and how it is typed; one without any of its own is left
    out, since its commands have theirs.
    """
    below: dict[str, argparse.ArgumentParser] = {}
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below = action.choices
            continue
        if isinstance(action, argparse._HelpAction):
            continue
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        choices = "\\|".join(map(str, action.choices or ()))
        if not action.option_strings:
            name = choices or name
        elif action.nargs != 0:
            name += f" {choices or action.metavar or action.dest.upper()}"
        rows.append(f"| `{name}` | {(action.help or '').replace('%%', '%')} |")
    if rows or not below:
        yield f"## {path or 'oxydra-runner'}\n"
        if path:
            yield f"{parser.description or ''}\n"
        if rows:
            yield "\n".join(["| argument | meaning |", "|---|---|", *rows]) + "\n"
        yield "\n".join(f"    {line}" for line in lines("oxydra-runner", path)) + "\n"
    for name, command in below.items():
        yield from pages_of(command, f"{path} {name}".strip())


def test_the_page_of_commands_is_what_the_parser_says() -> None:
    current = "\n" + "\n".join(pages_of(cli.build_parser())) + "\n"
    holds(ROOT / "docs" / "commands.md", "commands", current)


# ------------------------------------------------------------------------------------ guidebook


def names_of_the_tree() -> set[str]:
    """Every class, type and constant of a module, and members of classes as `Class.name`."""
    found = set()
    for path in (ROOT / "oxydra").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found.add(node.name)
                for member in node.body:
                    if isinstance(member, ast.FunctionDef):
                        found.add(f"{node.name}.{member.name}")
                    elif isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                        found.add(f"{node.name}.{member.target.id}")
            elif isinstance(node, ast.Assign):
                found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    return found


def test_the_names_in_the_guidebook_are_those_of_the_tree() -> None:
    known = names_of_the_tree()
    for path in (ROOT / "docs" / "guidebook").glob("*.md"):
        for part in re.findall(
            r"^\*\*Types\.\*\* .*$", path.read_text(encoding="utf-8"), flags=re.M
        ):
            for name in re.findall(r"`([A-Z][A-Za-z]*(?:\.[a-z_]+)?)[^`]*`", part):
                assert name in known, f"{path.name}: there is no {name} in the tree"


def escape_attempts() -> str:
    """What `guest/escape-attempts` tries, by kind, from its own sections."""
    text = (ROOT / "guest" / "escape-attempts").read_text(encoding="utf-8")
    rows = ["| kind | tries | what |", "|---|--:|---|"]
    total = 0
    for section in re.split(r"^# -{20,} ", text, flags=re.M)[1:]:
        kind = section.partition("\n")[0]
        names = re.findall(r"^    (\w+)=lambda|^@attempt\ndef (\w+)", section, flags=re.M)
        names = [(one or other).replace("_", " ") for one, other in names]
        if names:
            rows.append(f"| {kind} | {len(names)} | {'; '.join(names)} |")
            total += len(names)
    return "\n".join([*rows, f"| all | {total} | |"]) + "\n"


def test_the_escape_table_is_what_is_tried() -> None:
    holds(ROOT / "docs" / "guidebook" / "security.md", "escape attempts", escape_attempts())


def test_every_check_of_doctor_is_described() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = text.partition("## doctor")[2].partition("\n## ")[0]
    described = re.findall(r"^\| `([a-z][a-z-]+)` \|", table, flags=re.M)
    assert described == [*registry.MACHINE, *registry.USER]


def test_every_part_has_its_chapter_with_its_tests() -> None:
    """Each package and the modules beside them stand in a chapter, and each chapter names tests."""
    folder = ROOT / "docs" / "guidebook"
    chapters = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    told = "".join(chapters.values())
    parts = [path.name for path in (ROOT / "oxydra").iterdir() if (path / "__init__.py").is_file()]
    for part in parts:
        assert f"`oxydra/{part}/" in told or f"`{part}/`" in told, f"no chapter is about {part}"
    for name, text in chapters.items():
        if "**Invariants.**" in text:
            for word in ("**Owns.**", "**Threads.**", "**Tests.**", "`tests/test_"):
                assert word in text, f"{name} has no {word}"
