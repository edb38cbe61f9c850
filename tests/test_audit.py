"""What a hostile guest leaves in its folders: walked, never followed; found, and measured."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxydra.config import Mount, Mounts
from oxydra.runner.audit import MAX_CONFIG, audit, dangerous_keys, leads_out
from oxydra.runner.workspace import Workspace
from oxydra.walk import MAX_DEPTH, Walk, measure, opened
from tests.test_daemon import Home

SECRET = "the secret of somebody else"


@pytest.fixture
def workspace(tmp_path):
    made = Workspace(tmp_path / "users", "alice")
    made.prepare()
    return made


@pytest.fixture
def shared(workspace):
    return workspace.shared


def put(path: Path, text: str = "x", mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def found(workspace, *kinds):
    """The findings by path; of some kinds only, if they are named."""
    rows = [row for row in audit(workspace) if not kinds or row.kind in kinds]
    return {row.path: row.detail for row in rows}


# --------------------------------------------------------------------------------------- the walker


def walked(folder, **limits):
    with opened(folder) as top:
        walk = Walk(top, **limits)
        return [entry.path for entry in walk], walk


def test_every_entry_is_seen_once_and_a_folder_after_what_is_in_it(shared):
    for name in ("a/b/c", "a/d", "e"):
        put(shared / name)
    paths, walk = walked(shared)
    assert sorted(paths) == ["a", "a/b", "a/b/c", "a/d", "e"]
    assert paths.index("a/b/c") < paths.index("a/b") < paths.index("a")
    assert walk.complete and walk.skipped == []


def test_no_link_is_followed(shared, tmp_path):
    put(tmp_path / "outside" / "secret")
    (shared / "link").symlink_to(tmp_path / "outside")
    (shared / "loop").symlink_to(".")
    assert sorted(walked(shared)[0]) == ["link", "loop"]
    with pytest.raises(OSError), opened(shared / "link"):
        pass


def test_depth_and_number_are_bounded_and_said(shared):
    for name in ("a/b/c/d", "e", "f"):
        put(shared / name)
    paths, walk = walked(shared, depth=2)
    assert "a/b/c" in paths and "a/b/c/d" not in paths
    assert not walk.complete and walk.skipped == [("a/b/c", "it is too deep")]
    paths, walk = walked(shared, entries=3)
    assert len(paths) <= 3 and not walk.complete


def test_a_very_deep_tree_ends(workspace, shared):
    top = os.open(shared, os.O_RDONLY)
    for _ in range(3 * MAX_DEPTH):
        os.mkdir("d", dir_fd=top)
        deeper = os.open("d", os.O_RDONLY, dir_fd=top)
        os.close(top)
        top = deeper
    os.close(top)
    paths, walk = walked(shared)
    assert len(paths) == MAX_DEPTH + 1 and not walk.complete
    assert "it is too deep" in found(workspace, "not_seen").values()
    assert measure([shared], 1 << 30) == (1 << 30) + 1


def test_what_was_replaced_is_not_opened(shared, tmp_path):
    put(tmp_path / "outside", SECRET)
    put(shared / "file")
    with opened(shared) as top:
        (entry,) = Walk(top)
        (shared / "file").unlink()
        for trick in (
            lambda path: path.symlink_to(tmp_path / "outside"),
            lambda path: path.write_text("another"),
            lambda path: os.link(tmp_path / "outside", path),
            os.mkfifo,
        ):
            put(shared / "keep")  # so that the inode is not the same again
            trick(shared / "file")
            with pytest.raises(OSError):
                os.close(entry.open())
            (shared / "file").unlink()


def test_a_folder_that_becomes_a_link_while_it_is_walked(shared, tmp_path):
    put(tmp_path / "outside" / "secret")
    for name in ("a", "b"):
        put(shared / name / "inner")
    with opened(shared) as top:
        paths = []
        for entry in Walk(top):
            paths.append(entry.path)
            if len(paths) == 1:
                other = shared / ("b" if entry.path.startswith("a") else "a")
                (other / "inner").unlink()
                other.rmdir()
                other.symlink_to(tmp_path / "outside")
    assert not any("secret" in path for path in paths)


# --------------------------------------------------------------------------------------- the size


def test_the_size_is_what_lies_on_the_disk(shared, workspace):
    put(shared / "big", "x" * 300_000)
    os.link(shared / "big", shared / "again")
    (shared / "sparse").touch()
    os.truncate(shared / "sparse", 1 << 40)
    (shared / "link").symlink_to("/usr")
    assert 300_000 <= measure([shared, workspace.tmp], 1 << 40) < 400_000
    assert measure([shared / "nothing"], 10) == 0
    assert measure([shared], 1000) > 1000


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_closed_folder_hides_nothing_from_the_limit(shared, workspace):
    put(shared / "a" / "file").parent.chmod(0)
    assert measure([shared], 1 << 30) == (1 << 30) + 1
    assert "Permission denied" in found(workspace, "not_seen")["/shared/a"]


# -------------------------------------------------------------------------------------- the audit


def test_an_ordinary_workspace_has_nothing(workspace, shared):
    put(shared / "notes.txt")
    put(shared / "src" / "main.py")
    (shared / "latest").symlink_to("src/main.py")
    (shared / "src" / "up").symlink_to("../notes.txt")
    put(shared / "repo" / ".git" / "config", "[core]\n\tbare = false\n\tfsmonitor = true\n")
    put(shared / "repo" / ".git" / "hooks" / "pre-commit.sample")
    put(workspace.tmp / "x")
    assert audit(workspace) == []


@pytest.mark.parametrize(
    ("path", "target", "out"),
    [
        ("link", "file", False),
        ("link", "a/b/../c", True),
        ("link", "..", True),
        ("link", "../alice/shared/file", True),
        ("link", "/etc/passwd", True),
        ("link", "/shared/file", True),
        ("a/link", "..", False),
        ("a/link", "../..", True),
        ("a/link", "./../b", False),
        ("a/b/link", "../../c", False),
        ("a/b/link", "../../../c", True),
        ("a/b/link", "..//..//c/./d", False),
        ("link", "", False),
    ],
)
def test_which_links_lead_out(path, target, out):
    assert leads_out(path, target) is out


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "a/c", "b/c", "a/d"]),
            st.lists(st.sampled_from(["..", "a", "b", "c", "."]), min_size=1, max_size=4),
        ),
        max_size=4,
    ),
)
def test_what_is_said_to_stay_inside_does(tmp_path_factory, links):
    top = tmp_path_factory.mktemp("top")
    for folder in ("a", "b"):
        (top / folder).mkdir()
    inside = []
    for path, parts in links:
        target, free = "/".join(parts), not os.path.lexists(top / path)
        if free and not leads_out(path, target):
            os.symlink(target, top / path)
            inside.append(path)
    for path in inside:
        assert Path(os.path.realpath(top / path)).is_relative_to(top)


def test_links_names_and_special_files(workspace, shared, tmp_path):
    outside = put(tmp_path / "outside")
    (shared / "link").symlink_to(outside)
    (shared / "dangling").symlink_to("../../bob/shared")
    os.link(outside, workspace.tmp / "hard")
    put(shared / "suid", mode=0o4755)
    put(shared / "sgid", mode=0o2700)
    os.mkfifo(shared / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(shared / "sock"))
        rows = {(row.kind, row.path): row.detail for row in audit(workspace)}
    assert str(outside) in rows["outward_link", "/shared/link"]
    assert ("outward_link", "/shared/dangling") in rows
    assert "2 names" in rows["hard_link", "/tmp/hard"]
    assert "4755" in rows["setuid", "/shared/suid"] and ("setuid", "/shared/sgid") in rows
    assert rows["special_file", "/shared/fifo"] == "is a FIFO"
    assert rows["special_file", "/shared/sock"] == "is a socket"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device(workspace, shared):
    try:
        os.mknod(shared / "dev", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this root may make no device")
    assert found(workspace) == {"/shared/dev": "is a character device"}


def test_programs_are_new_once(workspace, shared):
    program = put(shared / "run.sh", "#!/bin/sh\n", 0o700)
    put(shared / "data")
    assert found(workspace) == {"/shared/run.sh": "is new since the last audit"}
    assert found(workspace) == {}
    program.write_text("#!/bin/sh\nrm -rf ~\n")
    assert found(workspace) == {"/shared/run.sh": "was changed since the last audit"}
    put(workspace.tmp / "run.sh", mode=0o701)
    assert found(workspace) == {"/tmp/run.sh": "is new since the last audit"}
    (workspace.ipc / "audit.json").write_text("[broken")
    assert set(found(workspace)) == {"/shared/run.sh", "/tmp/run.sh"}
    assert stat.S_IMODE((workspace.ipc / "audit.json").stat().st_mode) == 0o600


def test_what_tools_of_the_host_act_upon(workspace, shared):
    put(shared / ".envrc")
    put(shared / "a" / ".vscode" / "tasks.json")
    put(shared / "a" / ".git" / "hooks" / "post-checkout")
    (shared / "b").mkdir()
    put(shared / "b" / ".git", "gitdir: /somewhere")
    put(shared / "c" / ".git" / "modules" / "m" / "config", "[core]\nsshCommand = evil\n")
    for name in ("HEAD", "objects/x", "refs/x"):
        put(shared / "bare" / name)
    put(shared / "bare" / "config", "[core]\nfsmonitor = evil\n")
    put(shared / "config", "[core]\nfsmonitor = evil\n")  # in no repository
    rows = {(row.kind, row.path): row.detail for row in audit(workspace)}
    assert set(rows) == {
        ("envrc", "/shared/.envrc"),
        ("editor_task", "/shared/a/.vscode/tasks.json"),
        ("git_hook", "/shared/a/.git/hooks/post-checkout"),
        ("git_config", "/shared/b/.git"),
        ("git_config", "/shared/c/.git/modules/m/config"),
        ("git_config", "/shared/bare/config"),
    }
    assert rows["git_config", "/shared/bare/config"] == "core.fsmonitor = evil"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[core]\n\thooksPath = x", "core.hookspath"),
        ("[CORE]\nHooksPath=x", "core.hookspath"),
        ("[core] hooksPath = x", "core.hookspath"),
        ("[core]\nhooks\\\nPath = x", "core.hookspath"),
        ("[core]\nfsmonitor = .git/x", "core.fsmonitor"),
        ("[core]\nsshCommand = x", "core.sshcommand"),
        ('[filter "lfs"]\nclean = x', "filter.lfs.clean"),
        ('[filter "a\\"b"]\nsmudge = x', 'filter.a\\"b.smudge'),
        ("[filter.x]\nprocess = x", "filter.x.process"),
        ("[alias]\nst = !sh -c x", "alias.st"),
        ('[alias]\nst = "!sh"', "alias.st"),
        ('[includeIf "gitdir:/"]\npath = x', "includeif.gitdir:/.path"),
        ('[url "https://evil/"]\ninsteadOf = https://good/', "url.https://evil/.insteadof"),
        ('[credential "https://x"]\nhelper = !x', "credential.https://x.helper"),
        ("[credential]\nhelper = store", "credential.helper"),
        ('[submodule "x"]\nupdate = !x', "submodule.x.update"),
        ('[remote "o"]\nuploadpack = x', "remote.o.uploadpack"),
        ('[diff "x"]\ntextconv = x', "diff.x.textconv"),
        ("[gpg]\nprogram = x", "gpg.program"),
    ],
)
def test_dangerous_keys(text, key):
    assert [found for found, _ in dangerous_keys(text)] == [key]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[core]\nfsmonitor = true",
        "[core]\nfsmonitor",
        "# [core]\n; hooksPath = x",
        "[alias]\nst = status",
        '[remote "o"]\nurl = https://x\nfetch = +refs/*:refs/*',
        '[branch "main"]\nremote = o',
        "[user]\nname = x",
        "garbage \0 [",
    ],
)
def test_harmless_keys(text):
    assert list(dangerous_keys(text)) == []


def test_a_hostile_configuration_takes_no_time(workspace, shared):
    """A pattern that goes back and forth over a long name would not end today."""
    name = "filter" + ".x.clea" * 30_000
    headers = "[a]" * 10_000
    put(
        shared / ".git" / "config",
        f'{headers}\n[filter "{name}"]\nclea = x\n[a "{"(" * 100_000}\nb = c\n',
    )
    assert list(found(workspace)) == ["/shared/.git/config"]
    put(shared / ".git" / "config", f"#{'#' * MAX_CONFIG}\n[core]\nhooksPath = x\n")
    assert "too long" in found(workspace, "not_seen")["/shared/.git/config"]


def test_names_can_not_deceive(workspace, shared):
    put(shared / "a\n\x1b[2J" / ".envrc")
    put(shared / os.fsdecode(b"\xff") / ".envrc")
    for row in audit(workspace):
        assert row.path.isprintable()
        json.dumps(row.to_json())


def test_writable_mounts_are_looked_into_and_others_are_not(tmp_path):
    for name in ("own", "code", "papers"):
        put(tmp_path / name / ".envrc")
    base = Mounts.of(tmp_path / "users" / "alice")
    extra = (Mount(tmp_path / "code", "src", True), Mount(tmp_path / "papers", "papers", False))
    workspace = Workspace(
        tmp_path / "users", "alice", Mounts(tmp_path / "own", base.tmp, base.vault, extra)
    )
    workspace.prepare()
    assert set(found(workspace)) == {"/shared/.envrc", "/mnt/src/.envrc"}
    assert workspace.counted == (base.tmp,)


# ------------------------------------------------------------------------------- the command line


def test_the_commands(tmp_path):
    home = Home(tmp_path)
    home.init()
    assert home.run("workspace", "audit") == ""
    put(home.workspace / "shared" / ".envrc")
    put(home.workspace / "tmp" / "big", "x" * 3_000_000)
    assert home.run("workspace", "audit", code=1).startswith("envrc         /shared/.envrc: ")
    (row,) = json.loads(home.run("workspace", "audit", "--json", code=1))
    assert (row["kind"], row["path"]) == ("envrc", "/shared/.envrc")
    size = json.loads(home.run("workspace", "size", "--json"))
    assert 3_000_000 <= size["bytes"] < 4_000_000 and size["limit"] == 4096 << 20
    put(home.workspace / "tmp" / "bigger", "x" * 30_000_000)
    home.add("users/alice.toml", "")
    text = (home.folder / "users" / "alice.toml").read_text()
    (home.folder / "users" / "alice.toml").write_text(
        text.replace("[resources]", "[resources]\nmax_workspace_mib = 16")
    )
    assert "of 16 MiB" in home.run("workspace", "size", code=1)
