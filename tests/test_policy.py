"""Virtual paths: what a model may name, whatever it writes."""

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from oxydra.errors import PolicyDenied
from oxydra.policy import (
    MAX_DEPTH,
    ROOTS,
    VirtualPath,
    parse_virtual,
    parse_writable,
    visible,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/shared/a.txt", "/shared/a.txt"),
        ("a.txt", "/shared/a.txt"),
        ("./a//b/./c/", "/shared/a/b/c"),
        ("", "/shared"),
        (".", "/shared"),
        ("/shared", "/shared"),
        ("//tmp///x", "/tmp/x"),
        ("/vault/key.pem", "/vault/key.pem"),
        ("tmp/x", "/shared/tmp/x"),
        ("...", "/shared/..."),
        ("..a/b..", "/shared/..a/b.."),
        ("~backup", "/shared/~backup"),
        ("a/~", "/shared/a/~"),
        ("Grüße 日本.txt", "/shared/Grüße 日本.txt"),
        ("👩\u200d💻.txt", "/shared/👩\u200d💻.txt"),
        ("C:\\x", "/shared/C:\\x"),
        ("%2e%2e/x", "/shared/%2e%2e/x"),
        ("-rf", "/shared/-rf"),
    ],
)
def test_accepted(text: str, shown: str) -> None:
    assert str(parse_virtual(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        *(
            "..",
            "../x",
            "a/..",
            "a/../b",
            "/..",
            "/../etc/passwd",
            "/shared/..",
            "/shared/../vault/x",
        ),
        *("/tmp/../../etc/passwd", "./..", "a/./../..", "/shared//..//..//etc"),
        *(
            "/",
            "/etc/passwd",
            "/proc/self/environ",
            "/proc/self/root/etc",
            "/dev/sda",
            "/sys",
            "/root",
        ),
        *(
            "/sharedx/a",
            "/Shared/a",
            "/SHARED",
            "/ shared/a",
            "/workspace/a",
            "/home/x",
            "/internal/db",
        ),
        *("~", "~/x", "~/.ssh/id_rsa", "./~/x"),
        *(
            "a\0b",
            "/shared/a\0/../../etc/passwd",
            "a\nb",
            "a\rb",
            "a\tb",
            "a\x1b[2Jb",
            "a\x7fb",
            "a\x85b",
        ),
        *(
            "a\u202eb",
            "a\u2066b",
            "a\u200fb",
            "a\u061cb",
            "a\u2028b",
            "a\u2029b",
            "a\ufeffb",
            "a\u200bb",
        ),
        *("a\U000e0041b", "a\xadb", "a\ud800b", "a\udc80b"),
        *("x" * 256, "é" * 128, "a/" * 1100, "/".join("a" * (MAX_DEPTH + 1)), "界" * 700),
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(PolicyDenied) as caught:
        parse_virtual(text)
    assert str(caught.value).isprintable() and caught.value.remedy


def test_the_refusal_names_the_roots() -> None:
    with pytest.raises(PolicyDenied, match=r"/shared/….*/tmp/….*/vault/…"):
        parse_virtual("/etc/passwd")


@pytest.mark.parametrize("path", ["/vault/x", "/vault", "/vault//a/b", "//vault/x"])
def test_the_vault_is_read_only(path: str) -> None:
    assert parse_virtual(path).root == "vault"
    with pytest.raises(PolicyDenied, match="read-only"):
        parse_writable(path)


def test_parent_and_child() -> None:
    path = parse_virtual("/tmp/a/b")
    assert path.name == "b" and str(path.parent) == "/tmp/a" and path.parent.child("b") == path
    root = VirtualPath("tmp")
    assert root.name == "tmp" and root.parent == root


def test_names_from_disk_are_made_visible() -> None:
    assert visible("grün.txt") == "grün.txt"
    assert visible("a\nb\x1b\u202e") == "a\\x0ab\\x1b\\u{202e}"
    assert visible(os.fsdecode(b"caf\xe9")) == "caf\\xe9"
    assert str(VirtualPath("shared", ("a\n",))) == "/shared/a\\x0a"


pieces = st.sampled_from(
    [
        "/",
        "//",
        ".",
        "..",
        "shared",
        "tmp",
        "vault",
        "a",
        "b.txt",
        "~",
        " ",
        "\0",
        "é",
        "\u202e",
        "…",
    ]
)


@given(st.one_of(st.text(), st.lists(pieces).map("".join)))
@example("/shared/a/..")
def test_anything_is_a_place_in_the_workspace_or_refused(text: str) -> None:
    try:
        path = parse_virtual(text)
    except PolicyDenied:
        return
    assert path.root in ROOTS
    for part in path.parts:
        assert part not in ("", ".", "..") and "/" not in part and "\0" not in part
        assert len(part.encode()) <= 255
    assert parse_virtual(str(path)) == path
    # the same by the text-only rules of POSIX: nothing above the root
    host = os.path.normpath("/host/" + str(path))
    assert host == "/host/" + path.root or host.startswith(f"/host/{path.root}/")
