"""The shape of the tree: layers, file lengths, and what only certain files may do."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "oxydra"

# A file imports only from lower layers; a package is one node and may import within itself. Inside
# layer 0 the order is errors, threads, types; in layer 1 the log stands on scrub,
# the configuration on budget; in layer 9 the library's front on the runner and the guest.
LAYERS = {
    "version": -1,
    "errors": 0.0,
    "threads": 0.1,
    "types": 0.2,
    "walk": 0.3,
    "scrub": 0.9,
    "budget": 0.9,
    "config": 1,
    "catalog": 1,
    "arguments": 1,
    "cadence": 1,
    "policy": 1,
    "skills": 2,
    "frames": 1,
    "log": 1,
    "cage": 1,
    "disk": 1,
    "mux": 1,
    "media": 1,
    "relay": 2,
    "store": 2,
    "transport": 2,
    "worker": 2,
    "stream": 3,
    "embed": 3,
    "providers": 3,
    "tools": 3,
    "memory": 4,
    "mcp": 4,
    "approvals": 4,
    "runtime": 5,
    "scheduler": 6,
    "gateway": 7,
    "channels": 8,
    "tui": 8,
    "tiers": 8,
    "broker": 8,
    "vm": 9,
    "runner": 9,
    "agent": 9.5,
    "doctor": 10,
    "cli": 11,
}
STDLIB_ONLY = ("errors", "threads", "types", "walk", "frames", "scrub", "cage", "mux")
MAX_LINES = 750

MODULES = sorted(PACKAGE.rglob("*.py"))
NODES = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} - {"__init__"}
LAZY = re.compile(r"if TYPE_CHECKING:|_FROM = |def __getattr__\(")  # only in oxydra/__init__.py
REGISTRY_ENTRY = re.compile(r"(oxydra(?:\.\w+)+):\w+")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All of it, walked once for all rules."""
    return list(ast.walk(tree(path)))


def dotted(path: Path) -> str:
    """`oxydra/tools/files.py` -> `oxydra.tools.files`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def node_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


NAMES = {dotted(path) for path in MODULES}


@cache
def imports(path: Path) -> list[tuple[str, int]]:
    """Every module that `path` imports, at the top or inside a function, with its line."""
    return list(_imports(path))


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    for item in nodes(path):
        if isinstance(item, ast.Import):
            for alias in item.names:
                yield alias.name, item.lineno
        elif isinstance(item, ast.ImportFrom):
            assert item.level == 0, f"{path}:{item.lineno}: imports are absolute"
            for alias in item.names:
                name = f"{item.module}.{alias.name}"
                yield (name if name in NAMES else item.module or ""), item.lineno


@cache
def for_type_checkers(path: Path) -> set[int]:
    """The lines of what only type checkers see."""
    return {
        line
        for item in tree(path).body
        if isinstance(item, ast.If) and ast.unparse(item.test) == "TYPE_CHECKING"
        for line in range(item.lineno, (item.end_lineno or item.lineno) + 1)
    }


def registry_entries(path: Path) -> Iterator[tuple[str, int]]:
    """The modules named by strings `package.module:Class`, which are imported when needed."""
    for item in nodes(path):
        if isinstance(item, ast.Constant) and isinstance(item.value, str):
            match = REGISTRY_ENTRY.fullmatch(item.value)
            if match:
                yield match.group(1), item.lineno


def calls(path: Path) -> Iterator[tuple[str, int]]:
    """`a.b(…)` as `a.b`, `c(…)` as `c`, with their lines."""
    for item in nodes(path):
        if isinstance(item, ast.Call):
            yield ast.unparse(item.func), item.lineno


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


each_module = pytest.mark.parametrize("path", MODULES, ids=relative)
each_program = pytest.mark.parametrize(
    "path",
    [*MODULES, *sorted(p for d in ("bin", "guest") for p in (ROOT / d).iterdir() if p.is_file())],
    ids=relative,
)


# ------------------------------------------------------------------------------------------- layers


def test_every_node_has_a_layer() -> None:
    assert not NODES - set(LAYERS), "a new node needs its row in LAYERS and in the guidebook"


@each_module
def test_imports_only_from_lower_layers(path: Path) -> None:
    node = node_of(dotted(path))
    wrong = []
    for module, line in [*imports(path), *registry_entries(path)]:
        if not module.startswith("oxydra.") or node_of(module) == node:
            continue
        if node and LAYERS[node_of(module)] >= LAYERS[node]:
            wrong.append(f"{relative(path)}:{line} imports {module}")
        if not node and node_of(module) != "version" and line not in for_type_checkers(path):
            wrong.append(f"{relative(path)}:{line}: importing oxydra must stay free of charge")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("node", sorted(NODES))
def test_no_cycle_inside_a_package(node: str) -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        if node_of(dotted(path)) == node:
            inside = {module for module, _ in imports(path) if node_of(module) == node}
            graph[dotted(path)] = inside - {dotted(path)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {' -> '.join(error.args[1])}")


@each_module
def test_a_registry_entry_names_a_class_of_the_same_package(path: Path) -> None:
    for module, line in registry_entries(path):
        assert module in NAMES, f"{relative(path)}:{line}: there is no {module}"


@each_module
def test_a_package_only_reexports(path: Path) -> None:
    if path.name != "__init__.py":
        return
    for item in tree(path).body:
        if path == PACKAGE / "__init__.py" and LAZY.match(ast.unparse(item)):
            continue
        docstring = isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)
        names = isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == "__all__"
        assert docstring or names or isinstance(item, ast.ImportFrom), (
            f"{relative(path)}:{item.lineno}: logic belongs into a module with a name"
        )


@pytest.mark.parametrize("node", STDLIB_ONLY)
def test_the_bottom_needs_the_standard_library_only(node: str) -> None:
    for path in MODULES:
        if node_of(dotted(path)) == node:
            for module, line in imports(path):
                top = module.split(".")[0]
                assert top == "oxydra" or top in sys.stdlib_module_names, (
                    f"{relative(path)}:{line} imports {module}"
                )


def test_the_guidebook_has_every_node_on_its_layer() -> None:
    text = (ROOT / "docs" / "guidebook" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", text, re.MULTILINE)
    told = {name: int(layer) for layer, names in rows for name in re.findall(r"`(\w+)[./]", names)}
    assert told == {node: int(LAYERS[node] + 0.1) for node in NODES - {"version"}}


# -------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "path",
    sorted(
        path
        for folder in ("oxydra", "bin", "guest", "tests", "examples")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix in ("", ".py")
    ),
    ids=relative,
)
def test_file_length(path: Path) -> None:
    limit = 40 if path.parent.name == "bin" else MAX_LINES
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= limit, f"{lines} lines: split it by responsibility"


@each_module
def test_a_file_says_what_it_owns(path: Path) -> None:
    assert ast.get_docstring(tree(path)), f"{relative(path)} has no docstring"


@each_module
def test_nothing_in_the_package_is_a_script(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not source.startswith("#!")
    assert not any(
        isinstance(item, ast.If) and "__name__" in ast.unparse(item.test)
        for item in tree(path).body
    ), f"{relative(path)}: scripts live in bin/ and guest/"


@each_program
def test_nothing_is_left_open(path: Path) -> None:
    words = r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]) + r")\b"
    found = re.search(words + "|NotImplemented" + "Error", path.read_text(encoding="utf-8"))
    assert not found, f"{relative(path)} leaves something open: {found and found.group()}"


def test_the_tree_stands_alone() -> None:
    """Nothing refers to a place outside of the repository."""
    outside = [".." + "/shared" + suffix for suffix in ("/", " ", "`", '"', "'")] + ["/wo" + "rk/"]
    skipped = {".git", ".oxydra", "build", "dist", "__pycache__"}
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        generated = any(p in skipped or p.startswith(".venv") or "_cache" in p for p in parts)
        if generated or ".hypothesis" in parts or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for place in outside:
            assert place not in text, f"{relative(path)} refers to {place}"


# ----------------------------------------------------------------- what only certain files may do


@each_module
def test_only_threads_py_builds_threads(path: Path) -> None:
    if path == PACKAGE / "threads.py":
        return
    modules = {"concurrent.futures", "multiprocessing", "_thread", "asyncio", "sched"}
    for module, line in imports(path):
        assert module not in modules, f"{relative(path)}:{line} imports {module}"
    for item in nodes(path):
        if isinstance(item, ast.Attribute | ast.Name):
            name = ast.unparse(item)
            assert name not in ("threading.Thread", "threading.Timer", "Thread", "Timer"), (
                f"{relative(path)}:{item.lineno}: use Service or parallel"
            )


@each_module
def test_nothing_sleeps(path: Path) -> None:
    for name, line in calls(path):
        assert name not in ("time.sleep", "sleep"), f"{relative(path)}:{line} sleeps"
    for item in nodes(path):
        if isinstance(item, ast.ImportFrom) and item.module == "time":
            assert all(alias.name != "sleep" for alias in item.names)


@each_module
def test_only_the_front_ends_print(path: Path) -> None:
    if node_of(dotted(path)) in ("cli", "tui"):
        return
    for name, line in calls(path):
        assert name != "print", f"{relative(path)}:{line} prints: log, or return it"


# Everything that leaves the machine passes transport; a client of our own gateway is no such thing.
NETWORK = ("requests", "urllib3", "urllib.request", "http.client", "websocket", "ftplib", "smtplib")
MAY_IMPORT = {"transport": set(NETWORK), "tui": {"websocket"}}


@each_module
def test_every_outbound_request_passes_transport(path: Path) -> None:
    allowed = MAY_IMPORT.get(node_of(dotted(path)), set())
    for module, line in imports(path):
        for network in NETWORK:
            if module == network or module.startswith(network + "."):
                assert network in allowed, f"{relative(path)}:{line} imports {module}"
    if "requests" in allowed:
        return
    for name, line in calls(path):
        assert not name.endswith("create_connection") or "websocket" in allowed, (
            f"{relative(path)}:{line} opens a connection"
        )


def handler_is_bare(handler: ast.ExceptHandler) -> bool:
    swallows = all(isinstance(item, ast.Pass) for item in handler.body)
    broad = handler.type is not None and ast.unparse(handler.type) in ("Exception", "BaseException")
    return handler.type is None or (broad and swallows)


@each_module
def test_no_error_is_swallowed(path: Path) -> None:
    for item in nodes(path):
        if isinstance(item, ast.ExceptHandler):
            assert not handler_is_bare(item), f"{relative(path)}:{item.lineno} swallows errors"
