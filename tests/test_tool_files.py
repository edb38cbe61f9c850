"""The file tools and the walker under them, against whoever runs commands in the same workspace."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oxydra.errors import PolicyDenied, ToolError
from oxydra.policy import parse_virtual
from oxydra.threads import CancelToken, Deadline, Service
from oxydra.tools import FunctionTool, Workspace, confine, files
from oxydra.types import Folder, ToolContext, ToolResult

SECRET = "the secret outside"


class Place:
    """A workspace on disk, with something outside it that must stay untouched and unread."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.outside = base / "outside"
        for folder in (
            self.outside,
            *(base / "user" / name for name in ("shared", "tmp", "vault")),
        ):
            folder.mkdir(parents=True)
        self.shared = base / "user" / "shared"
        self.tmp = base / "user" / "tmp"
        self.vault = base / "user" / "vault"
        self.secret = self.outside / "secret.txt"
        self.secret.write_text(SECRET)
        self.workspace = Workspace.at(base / "user")
        self.token = CancelToken()

    def context(self, seconds: float = 60) -> ToolContext:
        deadline = Deadline.after(seconds)
        return ToolContext("s", "t", "c", self.token, deadline, {"workspace": self.workspace})

    def run(self, tool: FunctionTool, **arguments: Any) -> ToolResult:
        """As the gate does it; a refusal is a failed result here."""
        try:
            result = tool.run(tool.validate(arguments), self.context())
        except ToolError as error:
            result = ToolResult(str(error), is_error=True)
        assert str(self.base) not in result.content + result.summary
        return result

    def ok(self, tool: FunctionTool, **arguments: Any) -> str:
        result = self.run(tool, **arguments)
        assert not result.is_error, result.content
        return result.content

    def refused(self, tool: FunctionTool, **arguments: Any) -> str:
        result = self.run(tool, **arguments)
        assert result.is_error, result.content
        assert SECRET not in result.content
        return result.content


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    open_files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    yield made
    if open_files:
        assert len(os.listdir("/proc/self/fd")) == open_files, "a descriptor leaked"
    assert made.secret.read_text() == SECRET
    assert [entry.name for entry in made.outside.iterdir()] == ["secret.txt"]
    assert not list(made.base.rglob(".oxydra-*")), "a temporary file was left"
    made.workspace.close()
    made.workspace.close()


# --------------------------------------------------------------------------------------- reading


def test_read_gives_the_text_as_it_is(place: Place) -> None:
    (place.shared / "a.txt").write_bytes("één\r\nzwei\n\ttrois".encode())
    assert place.ok(files.file_read, path="a.txt") == "één\r\nzwei\n\ttrois"
    assert place.ok(files.file_read, path="/shared/a.txt", end_line=9) == "één\r\nzwei\n\ttrois"
    (place.shared / "empty").touch()
    assert place.ok(files.file_read, path="empty") == "(an empty file)"


def test_read_lines(place: Place) -> None:
    (place.shared / "n.txt").write_text("".join(f"{n}\n" for n in range(1, 101)))
    text = place.ok(files.file_read, path="n.txt", start_line=3, end_line=5)
    assert text == "3\n4\n5\n[lines 3-5 of 100; go on with start_line=6]"
    text = place.ok(files.file_read, path="n.txt", start_line=99)
    assert text == "99\n100\n[lines 99-100 of 100]"
    assert "only 100 lines" in place.refused(files.file_read, path="n.txt", start_line=101)
    assert "before" in place.refused(files.file_read, path="n.txt", start_line=5, end_line=4)
    assert "start_line" in place.refused(files.file_read, path="n.txt", start_line=0)


def test_following_the_notes_reads_a_long_file_whole(place: Place) -> None:
    lines = [f"{n} {'é' * (n % 90)}\n" for n in range(3000)]
    (place.shared / "long.txt").write_text("".join(lines))
    read, start = "", 1
    while start:
        text = place.ok(files.file_read, path="long.txt", start_line=start)
        assert len(text.encode()) < 16 * 1024
        body, _, note = text.rpartition("[lines ")
        read += body
        start = int(note.rpartition("start_line=")[2].rstrip("]")) if "start_line" in note else 0
    assert read == "".join(lines)


def test_a_line_without_an_end_is_cut(place: Place) -> None:
    (place.shared / "wide").write_text("é" * 200_000 + "\nsecond\n")
    text = place.ok(files.file_read, path="wide")
    assert text.startswith("éé") and len(text.encode()) < 16 * 1024
    assert "[lines 1-1 of 2; this line is longer than" in text
    assert place.ok(files.file_read, path="wide", start_line=2).startswith("second\n")


def test_a_huge_file_costs_no_more_than_its_range(place: Place) -> None:
    with (place.shared / "huge").open("wb") as file:
        file.write(b"first\n" + b"more\n" * 2000)
        file.truncate(1 << 40)  # sparse
    text = place.ok(files.file_read, path="huge", end_line=1)
    assert (
        text == "first\n[lines 1-1 of a file of 1,099,511,627,776 bytes; go on with start_line=2]"
    )


def test_reading_on_for_ever_ends_with_the_deadline_or_the_token(place: Place) -> None:
    with (place.shared / "huge").open("wb") as file:
        file.write(b"text" * 4096)
        file.truncate(1 << 40)
    result = files.file_read.run(
        files.file_read.validate({"path": "huge", "start_line": 5}), place.context(seconds=0.05)
    )
    assert result.is_error and "did not finish in time" in result.content
    place.token.cancel("by hand")
    result = place.run(files.file_read, path="huge", start_line=5)
    assert result.is_error and "by hand" in result.content


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n" + b"x" * 50, "a PNG image"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\xff\xfeh\0i\0", "UTF-16"),
        (b"abc\0def", "binary data (7 bytes)"),
    ],
)
def test_binaries_are_named_not_shown(place: Place, data: bytes, kind: str) -> None:
    (place.shared / "b").write_bytes(data)
    assert kind in place.refused(files.file_read, path="b")


def test_text_that_is_not_utf8_is_shown_with_a_note(place: Place) -> None:
    (place.shared / "latin").write_bytes(b"caf\xe9\n")
    assert place.ok(files.file_read, path="latin") == (
        "caf�\n[it is not all UTF-8: � stands for what could not be read]"
    )
    assert "UTF-8" in place.refused(files.file_edit, path="latin", old="caf", new="tea")


def test_what_is_missing_is_named_with_what_is_near(place: Place) -> None:
    (place.shared / "docs").mkdir()
    (place.shared / "docs" / "readme.md").touch()
    text = place.refused(files.file_read, path="docs/readme.txt")
    assert text == "/shared/docs/readme.txt does not exist. Did you mean /shared/docs/readme.md?"
    text = place.refused(files.file_read, path="dosc/readme.md")
    assert text == "/shared/dosc does not exist. Did you mean /shared/docs?"
    assert "is not a folder" in place.refused(files.file_read, path="docs/readme.md/x")
    assert "is a folder" in place.refused(files.file_read, path="docs")
    assert "is a folder" in place.refused(files.file_read, path="/shared")


# --------------------------------------------------------------------------------------- writing


def test_write_creates_and_replaces(place: Place) -> None:
    text = place.ok(files.file_write, path="new/deep/a.txt", content="één")
    assert text == "Created /shared/new/deep/a.txt (5 bytes)."
    assert (place.shared / "new/deep/a.txt").read_bytes() == "één".encode()
    text = place.ok(files.file_write, path="/shared/new/deep/a.txt", content="")
    assert text == "Replaced /shared/new/deep/a.txt (0 bytes)."
    assert (place.shared / "new/deep/a.txt").read_bytes() == b""
    place.ok(files.file_write, path="/tmp/x", content="scratch")
    assert (place.tmp / "x").read_text() == "scratch"


def test_permissions_are_kept_but_for_setuid(place: Place) -> None:
    script = place.shared / "run.sh"
    script.write_text("old")
    script.chmod(0o4751)
    place.ok(files.file_write, path="run.sh", content="new")
    assert stat.S_IMODE(script.stat().st_mode) == 0o751
    place.ok(files.file_edit, path="run.sh", old="new", new="newer")
    assert stat.S_IMODE(script.stat().st_mode) == 0o751 and script.read_text() == "newer"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_makes_belongs_to_the_folders_owner(place: Place) -> None:
    os.chown(place.shared, 1234, 1235)
    place.ok(files.file_write, path="a/b/c.txt", content="x")
    for made in ("a", "a/b", "a/b/c.txt"):
        status = (place.shared / made).stat()
        assert (status.st_uid, status.st_gid) == (1234, 1235)
    os.chown(place.shared / "a/b/c.txt", 1236, 1237)
    place.ok(files.file_write, path="a/b/c.txt", content="y")
    status = (place.shared / "a/b/c.txt").stat()
    assert (status.st_uid, status.st_gid) == (1236, 1237)


def test_a_reader_sees_the_old_file_or_the_new_one(place: Place) -> None:
    """Replacing is atomic: no reader ever finds a part."""
    contents = [letter * 200_000 for letter in "ab"]
    place.ok(files.file_write, path="f", content=contents[0])
    stop = threading.Event()

    def write() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            place.workspace.write(parse_virtual("f"), contents[turn % 2].encode())

    with background(write, stop):
        for _ in range(100):
            with place.workspace.open(parse_virtual("f")) as file:
                assert file.read().decode() in contents


def test_edit_replaces_the_only_place_and_shows_the_diff(place: Place) -> None:
    (place.shared / "f.py").write_text("a\nb\nc\nd\ne\nf\ng\n")
    diff = place.ok(files.file_edit, path="f.py", old="d", new="D\nDD")
    assert diff == (
        "--- /shared/f.py\n+++ /shared/f.py\n@@ -1,7 +1,8 @@\n a\n b\n c\n-d\n+D\n+DD\n e\n f\n g"
    )
    assert (place.shared / "f.py").read_text() == "a\nb\nc\nD\nDD\ne\nf\ng\n"


def test_edit_refuses_to_guess(place: Place) -> None:
    (place.shared / "f").write_text("x = 1\n  y = 2\nx = 1\nlong line number four\n")
    text = place.refused(files.file_edit, path="f", old="x = 1", new="z")
    assert "2 times, on lines 1, 3" in text and "replace_all" in text
    assert "Line 2 reads like" in place.refused(files.file_edit, path="f", old="\ty = 2\n", new="z")
    text = place.refused(files.file_edit, path="f", old="long lime number four", new="z")
    assert "The nearest is line 4: 'long line number four'" in text
    assert "Nothing in it is similar" in place.refused(files.file_edit, path="f", old="§§§", new="")
    assert "nothing to change" in place.refused(files.file_edit, path="f", old="x", new="x")
    assert "old: expected a string" in place.refused(files.file_edit, path="f", old="", new="z")
    assert (place.shared / "f").read_text().startswith("x = 1\n  y = 2\n")
    place.ok(files.file_edit, path="f", old="x = 1", new="z", replace_all=True)
    assert (place.shared / "f").read_text() == "z\n  y = 2\nz\nlong line number four\n"


def test_overlapping_places_are_not_unique(place: Place) -> None:
    (place.shared / "f").write_text("aaa")
    assert "2 times" in place.refused(files.file_edit, path="f", old="aa", new="b")


def test_edit_keeps_line_ends(place: Place) -> None:
    (place.shared / "dos").write_bytes(b"one\r\ntwo\r\nthree\r\n")
    diff = place.ok(files.file_edit, path="dos", old="two\nthree", new="2\n3")
    assert (place.shared / "dos").read_bytes() == b"one\r\n2\r\n3\r\n"
    assert "\r" not in diff


def test_edit_notices_a_change_meanwhile(place: Place) -> None:
    path = parse_virtual("f")
    place.workspace.write(path, b"one")
    with place.workspace.open(path) as file:
        status = os.fstat(file.fileno())
    (place.shared / "f").write_text("another")
    with pytest.raises(ToolError, match="changed by someone else"):
        place.workspace.write(path, b"two", expect=status)
    (place.shared / "f").unlink()
    with pytest.raises(ToolError, match="changed by someone else"):
        place.workspace.write(path, b"two", expect=status)


def test_edit_refuses_what_is_too_large(place: Place) -> None:
    (place.shared / "big").write_bytes(b"a" * (files.EDIT_BYTES + 1))
    assert "too large to edit" in place.refused(files.file_edit, path="big", old="a", new="b")


def test_delete(place: Place) -> None:
    (place.shared / "d").mkdir()
    (place.shared / "d" / "f").touch()
    assert "is not empty" in place.refused(files.file_delete, path="d")
    assert place.ok(files.file_delete, path="d/f") == "Deleted the file /shared/d/f."
    assert place.ok(files.file_delete, path="d") == "Deleted the folder /shared/d."
    assert not (place.shared / "d").exists()
    for root in ("/shared", "/tmp", "."):
        assert "can't be deleted" in place.refused(files.file_delete, path=root)


def test_the_vault_is_read_only(place: Place) -> None:
    (place.vault / "v").write_text("kept")
    assert place.ok(files.file_read, path="/vault/v") == "kept"
    assert "v 4" in place.ok(files.file_list, path="/vault")
    for refused in (
        place.refused(files.file_write, path="/vault/v", content="x"),
        place.refused(files.file_write, path="/vault/new", content="x"),
        place.refused(files.file_edit, path="/vault/v", old="kept", new="x"),
        place.refused(files.file_delete, path="/vault/v"),
    ):
        assert "read-only to tools" in refused
    with pytest.raises(PolicyDenied):
        place.workspace.write(parse_virtual("/vault/v"), b"x")
    with pytest.raises(PolicyDenied):
        place.workspace.delete(parse_virtual("/vault/v"))
    assert (place.vault / "v").read_text() == "kept" and len(list(place.vault.iterdir())) == 1


# ---------------------------------------------------------------------------- listing, searching


def test_list(place: Place) -> None:
    (place.shared / "b").mkdir()
    (place.shared / "b" / "inner").write_text("123")
    (place.shared / "a.txt").write_text("12")
    (place.shared / ".git").mkdir()
    (place.shared / ".git" / "config").touch()
    (place.shared / "link").symlink_to(place.outside)
    os.mkfifo(place.shared / "pipe")
    assert place.ok(files.file_list).split("\n") == [
        ".git/", "a.txt 2", "b/", "link (link)", "pipe (no regular file)",
    ]  # fmt: skip
    assert place.ok(files.file_list, path=".", recursive=True).split("\n") == [
        ".git/ (not entered)", "a.txt 2", "b/", "b/inner 3", "link (link)",
        "pipe (no regular file)",
    ]  # fmt: skip
    assert place.ok(files.file_list, path="/tmp") == "/tmp is empty."
    assert place.ok(files.file_list, path="a.txt").startswith("/shared/a.txt: file, 2 bytes, modif")
    limited = place.ok(files.file_list, limit=2)
    assert limited == ".git/\na.txt 2\n[only the first 2; list a folder below, or raise limit]"


def test_names_no_one_can_see_are_escaped(place: Place) -> None:
    for name in (b"new\nline", b"esc\x1b[2J", b"caf\xe9", "bidi\u202ecod.exe".encode()):
        with (Path(os.fsdecode(os.fsencode(place.shared) + b"/" + name))).open("w") as file:
            file.write("needle")
    listed = place.ok(files.file_list)
    assert listed.split("\n") == [
        "bidi\\u{202e}cod.exe 6", "caf\\xe9 6", "esc\\x1b[2J 6", "new\\x0aline 6",
    ]  # fmt: skip
    found = place.ok(files.file_search, pattern="needle")
    assert found.count("needle") == 4 and "\x1b" not in found and "\u202e" not in found


def test_search(place: Place) -> None:
    (place.shared / "src" / "deep").mkdir(parents=True)
    (place.shared / "src" / "a.py").write_text("x\nNeedle here\n")
    (place.shared / "src" / "deep" / "b.py").write_text("needle a.*b(\n")
    (place.shared / "c.md").write_text("needle\n" * 3)
    (place.shared / "binary").write_bytes(b"needle\0")
    (place.shared / "node_modules").mkdir()
    (place.shared / "node_modules" / "n.py").write_text("needle")

    def hits(**arguments: Any) -> list[str]:
        return place.ok(files.file_search, **arguments).split("\n")

    assert hits(pattern="needle", glob="*.py") == ["/shared/src/deep/b.py:1: needle a.*b("]
    assert hits(pattern="NEEDLE", ignore_case=True, path="src") == [
        "/shared/src/a.py:2: Needle here",
        "/shared/src/deep/b.py:1: needle a.*b(",
    ]
    assert hits(pattern="a.*b(") == ["/shared/src/deep/b.py:1: needle a.*b("]
    assert hits(pattern="", glob="*.py") == ["/shared/src/a.py", "/shared/src/deep/b.py"]
    assert hits(pattern="", glob="src/**/*.py") == ["/shared/src/a.py", "/shared/src/deep/b.py"]
    assert hits(pattern="", glob="deep/*", path="/shared/src") == ["/shared/src/deep/b.py"]
    assert hits(pattern="needle", path="c.md", limit=2) == [
        "/shared/c.md:1: needle", "/shared/c.md:2: needle", "[stopped at 2 hits]",
    ]  # fmt: skip
    assert hits(pattern="absent") == ["[nothing found below /shared in 4 files]"]
    assert "line break" in place.refused(files.file_search, pattern="a\nb")


def test_search_passes_over_what_it_may_not_read(place: Place) -> None:
    os.link(place.secret, place.shared / "hard")
    with (place.shared / "huge").open("wb") as file:
        file.truncate(files.SEARCH_BYTES + 1)
    (place.shared / "soft").symlink_to(place.secret)
    found = place.ok(files.file_search, pattern="secret")
    assert found.startswith("[nothing found") and "2 files passed over" in found
    os.unlink(place.shared / "hard")


def test_search_keeps_what_it_has_when_time_is_up(place: Place) -> None:
    (place.shared / "f").write_text("needle")
    arguments = files.file_search.validate({"pattern": "needle"})
    result = files.file_search.run(arguments, place.context(seconds=0))
    assert not result.is_error and "time was up" in result.content


def test_the_search_shows_the_part_of_a_long_line(place: Place) -> None:
    (place.shared / "f").write_text("x" * 10_000 + "needle" + "y" * 10_000)
    found = place.ok(files.file_search, pattern="needle")
    assert "needle" in found and len(found) < 300


# ----------------------------------------------------------------------------------------- traps

TOUCH: list[Callable[[Place, str], str]] = [
    lambda place, path: place.refused(files.file_read, path=path),
    lambda place, path: place.refused(files.file_write, path=path, content="changed"),
    lambda place, path: place.refused(files.file_edit, path=path, old="the", new="changed"),
]


@pytest.mark.parametrize("touch", TOUCH)
def test_links_are_not_followed(place: Place, touch: Callable[[Place, str], str]) -> None:
    (place.shared / "file").symlink_to(place.secret)
    (place.shared / "relative").symlink_to("../../outside/secret.txt")
    (place.shared / "folder").symlink_to(place.outside)
    (place.shared / "root").symlink_to("/")
    (place.shared / "proc").symlink_to("/proc/self/root")
    (place.shared / "inside").symlink_to("real")
    (place.shared / "real").write_text("the real one")
    (place.shared / "dangling").symlink_to(place.outside / "new")
    (place.shared / "loop").symlink_to("loop")
    (place.shared / "deep").mkdir()
    (place.shared / "deep" / "up").symlink_to("..")
    for path in ("file", "relative", "inside", "dangling", "loop"):
        assert "symbolic link" in touch(place, path)
    for path in ("folder/secret.txt", "root/etc/hostname", "proc/etc/hostname", "deep/up/real"):
        assert "symbolic link" in touch(place, path)
    assert (place.shared / "real").read_text() == "the real one"


def test_links_are_not_entered_by_lists_and_searches(place: Place) -> None:
    (place.shared / "folder").symlink_to(place.outside)
    (place.shared / "deep").mkdir()
    (place.shared / "deep" / "up").symlink_to("..")
    assert "symbolic link" in place.refused(files.file_list, path="folder")
    assert "symbolic link" in place.refused(files.file_search, path="folder", pattern="secret")
    assert place.ok(files.file_list, recursive=True) == "deep/\ndeep/up (link)\nfolder (link)"
    assert "nothing found" in place.ok(files.file_search, pattern="secret")


def test_deleting_a_link_leaves_what_it_points_to(place: Place) -> None:
    (place.shared / "file").symlink_to(place.secret)
    (place.shared / "folder").symlink_to(place.outside)
    os.link(place.secret, place.shared / "hard")
    assert place.ok(files.file_delete, path="file") == "Deleted the link /shared/file."
    assert place.ok(files.file_delete, path="folder") == "Deleted the link /shared/folder."
    assert place.ok(files.file_delete, path="hard") == "Deleted the file /shared/hard."
    assert place.secret.stat().st_nlink == 1
    (place.shared / "folder").symlink_to(place.outside)
    assert "symbolic link" in place.refused(files.file_delete, path="folder/secret.txt")


@pytest.mark.parametrize("touch", TOUCH)
def test_hard_links_are_refused(place: Place, touch: Callable[[Place, str], str]) -> None:
    os.link(place.secret, place.shared / "hard")
    assert "2 names (hard links)" in touch(place, "hard")
    os.unlink(place.shared / "hard")


@pytest.mark.parametrize("touch", TOUCH)
def test_pipes_sockets_and_devices_are_refused(
    place: Place, touch: Callable[[Place, str], str]
) -> None:
    os.mkfifo(place.shared / "pipe")
    assert "no regular file" in touch(place, "pipe")
    here = os.getcwd()
    os.chdir(place.shared)  # socket addresses are short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
            assert "no regular file" in touch(place, "socket")
    finally:
        os.chdir(here)
    if os.geteuid() == 0:
        try:
            os.mknod(place.shared / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        except PermissionError:
            return  # root of a container that may make no devices
        assert "no regular file" in touch(place, "zero")


@pytest.mark.parametrize(
    "path",
    ["/proc/self/environ", "/proc/self/root/etc/passwd", "/dev/stdin", "../outside/secret.txt",
     "/shared/../../outside/secret.txt", "/tmp/../../outside/secret.txt", "//etc/passwd",
     "/shared\0/../x", "a/../../../outside/secret.txt"],
)  # fmt: skip
def test_places_outside_are_refused_by_every_tool(place: Place, path: str) -> None:
    for touch in TOUCH:
        touch(place, path)
    place.refused(files.file_list, path=path)
    place.refused(files.file_search, path=path, pattern="secret")
    place.refused(files.file_delete, path=path)


def test_a_root_that_is_a_link_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "shared").symlink_to("real")
    with pytest.raises(OSError):
        Workspace([Folder("shared", str(tmp_path / "shared"), writable=True)])
    with (
        Workspace([Folder("shared", str(tmp_path / "real"), writable=True)]) as workspace,
        pytest.raises(ToolError, match="There is no /tmp"),
    ):
        workspace.scan(parse_virtual("/tmp"))


def test_special_and_missing_workspaces(place: Place) -> None:
    context = ToolContext("s", "t", "c", CancelToken(), Deadline.after(1), {})
    result = files.file_list.run({}, context)
    assert result.is_error and "no workspace" in result.content


# ----------------------------------------------------------------------------------------- races


class background:
    """Run something over and over on another thread for the length of a block."""

    def __init__(self, body: Callable[[], None], stop: threading.Event) -> None:
        self.stop = stop
        self.failure: list[BaseException] = []
        self.service = Service("attacker", lambda _service: body(), on_death=self.failure.append)

    def __enter__(self) -> None:
        self.service.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        assert self.service.stop(10)
        assert not self.failure


def attacking(stop: threading.Event, attempt: Callable[[], None]) -> Callable[[], None]:
    """Keep on, whatever the tools did to the files meanwhile."""

    def body() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                attempt()

    return body


def test_a_folder_swapped_for_a_link_while_it_is_used(place: Place) -> None:
    """`/shared/dir` is by turns a folder and a link to the folder outside."""
    real, link, path = place.base / "real", place.base / "link", place.shared / "dir"
    real.mkdir()
    (real / "secret.txt").write_text("harmless")
    link.symlink_to(place.outside)
    stop = threading.Event()

    def swap() -> None:
        os.rename(real, path)
        os.rename(path, real)
        os.rename(link, path)
        os.rename(path, link)

    seen: set[str] = set()
    with background(attacking(stop, swap), stop):
        for turn in range(1500):
            seen.add(place.run(files.file_read, path="dir/secret.txt").content)
            place.run(files.file_search, path="dir", pattern="secret")
            place.run(files.file_list, path="dir")
            if turn % 10 == 0:
                place.run(files.file_edit, path="dir/secret.txt", old="harm", new="harm")
                place.run(files.file_delete, path="dir/none")
    assert not any(SECRET in text for text in seen)
    assert any("symbolic link" in text for text in seen), "the race never happened"
    assert "harmless" in seen, "the race never left room for success"


def test_a_folder_swapped_for_a_link_while_it_is_written_to(place: Place) -> None:
    real, link, path = place.base / "real", place.base / "link", place.shared / "dir"
    stop = threading.Event()

    def swap() -> None:
        shutil.rmtree(path, ignore_errors=True)
        real.mkdir(exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(place.outside)
        for _ in range(20):
            for source, target in ((real, path), (path, real), (link, path), (path, link)):
                with contextlib.suppress(OSError):
                    os.rename(source, target)
        path.unlink()

    answers: set[bool] = set()
    with background(attacking(stop, swap), stop):
        for turn in range(400):
            written = place.run(files.file_write, path="dir/secret.txt", content=f"{turn}")
            answers.add(written.is_error)
            place.run(files.file_write, path=f"dir/sub{turn % 3}/new.txt", content="x")
            place.run(files.file_delete, path="dir/secret.txt")
    assert answers == {True, False}, "the race never happened"
    # the fixture looks at what lies outside


def test_a_file_swapped_for_links_while_it_is_used(place: Place) -> None:
    """`/shared/f` is by turns a file, a link to the secret and a hard link of it."""
    path, made = place.shared / "f", place.base / "made"
    stop = threading.Event()

    def swap() -> None:
        made.unlink(missing_ok=True)
        made.write_text("harmless")
        os.rename(made, path)
        made.symlink_to(place.secret)
        os.rename(made, path)
        path.unlink()
        os.link(place.secret, path)
        path.unlink()

    with background(attacking(stop, swap), stop):
        for turn in range(3000):
            assert SECRET not in place.run(files.file_read, path="f").content
            place.run(files.file_search, path="f", pattern="the")
            if turn % 20 == 0:
                place.run(files.file_write, path="f", content="changed")
                place.run(files.file_edit, path="f", old="the", new="changed")
                place.run(files.file_delete, path="f")
    path.unlink(missing_ok=True)


def as_link(place: Place) -> None:
    (place.shared / "f").unlink()
    (place.shared / "f").symlink_to(place.secret)


def as_hard_link(place: Place) -> None:
    (place.shared / "f").unlink()
    os.link(place.secret, place.shared / "f")


def as_pipe(place: Place) -> None:
    (place.shared / "f").unlink()
    os.mkfifo(place.shared / "f")


def gone(place: Place) -> None:
    (place.shared / "f").unlink()


@pytest.mark.parametrize(
    ("before", "after"),
    [(as_link, None), (as_hard_link, None), (as_pipe, None), (as_hard_link, gone), (None, as_link)],
)
def test_a_swap_at_the_very_moment_of_opening(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[[Place], None] | None,
    after: Callable[[Place], None] | None,
) -> None:
    """What the races hit by luck, hit on purpose: right before and right after the `open`."""
    (place.shared / "f").write_text("harmless")
    real = os.open

    def swapping_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if path != "f":
            return real(path, flags, *args, **kwargs)
        monkeypatch.undo()
        if before is not None:
            before(place)
        fd = real(path, flags, *args, **kwargs)
        if after is not None:
            after(place)
        return fd

    monkeypatch.setattr(os, "open", swapping_open)
    place.refused(files.file_read, path="f")
    assert os.open is real, "the swap did not happen"
    (place.shared / "f").unlink(missing_ok=True)


# ------------------------------------------------------------------------------------- full disks

CHILD = """
import resource, signal, sys
from pathlib import Path
from oxydra.errors import ToolError
from oxydra.policy import parse_virtual
from oxydra.tools.confine import Workspace
workspace = Workspace.at(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    workspace.write(parse_virtual("f"), b"x" * 200_000)
except ToolError as error:
    print(error.code, error)
"""


def test_a_write_that_finds_no_space_leaves_nothing_behind(place: Place) -> None:
    (place.shared / "f").write_text("old")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(place.base / "user")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=Path(__file__).parent.parent,
    )
    assert child.stdout.startswith("disk_full /shared/f was not written: no space is left.")
    assert (place.shared / "f").read_text() == "old"
    assert [entry.name for entry in place.shared.iterdir()] == ["f"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("mounting a small disk takes root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    (small_disk / "shared").mkdir()
    with Workspace([Folder("shared", str(small_disk / "shared"), writable=True)]) as workspace:
        assert workspace.write(parse_virtual("f"), b"old")
        for _ in range(3):
            with pytest.raises(ToolError, match="no space is left") as caught:
                workspace.write(parse_virtual("f"), b"x" * 1_000_000)
            assert caught.value.code == "disk_full"
        with workspace.open(parse_virtual("f")) as file:
            assert file.read() == b"old"
        assert [entry.name for entry in workspace.scan(parse_virtual("."))] == ["f"]
        assert not workspace.write(parse_virtual("f"), b"new")


def test_too_much_at_once_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine, "MAX_WRITE_BYTES", 10)
    assert "too many to write" in place.refused(files.file_write, path="f", content="x" * 11)
    assert not list(place.shared.iterdir())
