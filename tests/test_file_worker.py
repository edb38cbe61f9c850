"""What the file tools do with help: regular expressions, PDFs, and copying out of the vault."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oxydra.errors import ToolError
from oxydra.threads import CancelToken, Deadline
from oxydra.tools import FunctionTool, Workspace, files
from oxydra.tools.files import file_read, file_search, vault_copyto
from oxydra.types import SafetyTier, ToolContext, ToolResult
from oxydra.worker import Workers
from tests.pdfs import pdf


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.stop()


class Place:
    def __init__(self, base: Path, workers: Workers) -> None:
        for name in ("shared", "tmp", "vault"):
            (base / name).mkdir()
        self.shared, self.tmp, self.vault = base / "shared", base / "tmp", base / "vault"
        self.services: dict[str, Any] = {"workspace": Workspace.at(base), "workers": workers}

    def run(self, tool: FunctionTool, **arguments: Any) -> ToolResult:
        context = ToolContext("s", "t", "c", CancelToken(), Deadline.after(60), self.services)
        try:
            return tool.run(tool.validate(arguments), context)
        except ToolError as error:
            return ToolResult(str(error), is_error=True)

    def ok(self, tool: FunctionTool, **arguments: Any) -> str:
        result = self.run(tool, **arguments)
        assert not result.is_error, result.content
        return result.content

    def refused(self, tool: FunctionTool, **arguments: Any) -> str:
        result = self.run(tool, **arguments)
        assert result.is_error, result.content
        return result.content


@pytest.fixture
def place(tmp_path: Path, workers: Workers) -> Iterator[Place]:
    made = Place(tmp_path, workers)
    yield made
    made.services["workspace"].close()


# -------------------------------------------------------------------------------------- searching


def test_search_by_regular_expression(place: Place) -> None:
    (place.shared / "a.py").write_text("def one():\n    return 1\ndef two(): pass\n")
    (place.shared / "b.txt").write_text("Define it\n")
    (place.shared / "c.bin").write_bytes(b"def \0 three():")
    found = place.ok(file_search, pattern=r"^def \w+\(", regex=True)
    assert found == "/shared/a.py:1: def one():\n/shared/a.py:3: def two(): pass"
    assert "b.txt:1" in place.ok(file_search, pattern="^def", regex=True, ignore_case=True)
    assert "nothing found" in place.ok(file_search, pattern=r"^def \w+\(")
    assert "stopped at 1 hits" in place.ok(file_search, pattern="def", regex=True, limit=1)
    assert place.ok(file_search, pattern="", regex=True).count("/shared/") == 3
    assert "regular expression" in place.refused(file_search, pattern="(", regex=True)


def test_a_pattern_without_an_end_is_an_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "REGEX_SECONDS", 0.3)
    (place.shared / "trap.txt").write_text("a" * 60 + "b")
    said = place.refused(file_search, pattern="(a+)+$", regex=True)
    assert "took too long on /shared/trap.txt" in said and "simpler" in said
    assert "trap.txt:1" in place.ok(file_search, pattern="a+b", regex=True)


def test_without_a_worker_there_is_no_regular_expression(place: Place) -> None:
    (place.shared / "a").write_text("x")
    del place.services["workers"]
    assert "no tool worker" in place.refused(file_search, pattern="x", regex=True)


# ------------------------------------------------------------------------------------------ PDFs


def test_a_pdf_is_read_as_text(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.vault / "x.pdf").write_bytes(pdf("The first page", "The second page"))
    text = place.ok(file_read, path="/vault/x.pdf")
    assert "--- page 1 of 2 ---\nThe first page" in text and "The second page" in text
    assert place.ok(file_read, path="/vault/x.pdf", start_line=2, end_line=2).startswith(
        "The first"
    )
    monkeypatch.setattr(files, "PDF_CHARS", 5)
    assert "only the first 1 of 2 pages" in place.ok(file_read, path="/vault/x.pdf")
    monkeypatch.setattr(files, "PDF_BYTES", 50)
    assert "too large" in place.refused(file_read, path="/vault/x.pdf")


def test_a_broken_pdf_is_an_answer(place: Place) -> None:
    (place.shared / "x.pdf").write_bytes(b"%PDF-1.7\n" + os.urandom(3000))
    assert "PDF" in place.refused(file_read, path="x.pdf")
    (place.shared / "y.pdf").write_bytes(pdf("x", encrypt=True))
    assert "PDF" in place.refused(file_read, path="y.pdf")
    del place.services["workers"]
    assert "a PDF document" in place.refused(file_read, path="x.pdf")


# --------------------------------------------------------------------------------------- the vault


def test_copying_out_of_the_vault(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    assert vault_copyto.tier is SafetyTier.PRIVILEGED
    assert vault_copyto.sensitive and not vault_copyto.repeatable and not vault_copyto.egress
    (place.vault / "k.bin").write_bytes(b"\0\1private")
    with caplog.at_level(logging.INFO, "oxydra.audit"):
        said = place.ok(vault_copyto, path="/vault/k.bin", destination="in/k.bin")
    assert said == "Copied /vault/k.bin to /shared/in/k.bin (9 bytes)."
    assert (place.shared / "in" / "k.bin").read_bytes() == b"\0\1private"
    read, written = (record.getMessage() for record in caplog.records)
    assert read.startswith("vault read: /vault/k.bin, 9 bytes, sha256 ")
    assert written.startswith("vault copy written: /shared/in/k.bin, 9 bytes, sha256 ")
    assert [path.name for path in (place.shared / "in").iterdir()] == ["k.bin"]


def test_a_copy_never_replaces_anything(place: Place) -> None:
    (place.vault / "a").write_text("new")
    (place.shared / "a").write_text("old")
    assert "already exists" in place.refused(vault_copyto, path="/vault/a", destination="a")
    os.symlink("/etc/passwd", place.shared / "link")
    assert "link" in place.refused(vault_copyto, path="/vault/a", destination="link")
    os.mkdir(place.shared / "folder")
    assert "folder" in place.refused(vault_copyto, path="/vault/a", destination="folder")
    assert (place.shared / "a").read_text() == "old"
    assert sorted(path.name for path in place.shared.iterdir()) == ["a", "folder", "link"]


def test_what_is_refused_leaves_a_trace_of_the_first_step_only(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    (place.vault / "a").write_text("new")
    (place.shared / "a").write_text("old")
    with caplog.at_level(logging.INFO, "oxydra.audit"):
        place.refused(vault_copyto, path="/vault/a", destination="a")
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["vault read"]


@pytest.mark.parametrize(
    ("path", "destination"),
    [
        ("/shared/a", "b"),
        ("a", "b"),
        ("/vault/../vault/a", "b"),
        ("/vault/missing", "b"),
        ("/vault", "b"),
        ("/vault/link", "b"),
        ("/vault/hard", "b"),
        ("/vault/a", "/vault/b"),
        ("/vault/a", "/etc/b"),
        ("/vault/a", "../b"),
        ("/vault/a", "/shared"),
    ],
)
def test_only_out_of_the_vault_and_only_into_the_workspace(
    place: Place, path: str, destination: str, tmp_path: Path
) -> None:
    (place.vault / "a").write_text("x")
    (place.shared / "a").write_text("x")
    outside = tmp_path / "outside"
    outside.write_text("SECRET")
    os.symlink(outside, place.vault / "link")
    os.link(outside, place.vault / "hard")
    place.refused(vault_copyto, path=path, destination=destination)
    assert [found.name for found in place.shared.iterdir()] == ["a"]


def test_what_is_too_large_is_not_copied(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_WRITE_BYTES", 10)
    (place.vault / "a").write_bytes(b"x" * 11)
    assert "too large" in place.refused(vault_copyto, path="/vault/a", destination="a")
