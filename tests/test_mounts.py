"""Folders of the person's own: what tools and commands reach in them, and what stays as it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from oxydra.cage import NAMESPACED
from oxydra.errors import OxydraError, PolicyDenied, ToolError
from oxydra.policy import parse_virtual
from oxydra.runner.guards import MAX_GUARDS, Unguardable, guards
from oxydra.runner.shell import for_commands
from oxydra.scrub.guest import GuestScrubber
from oxydra.tiers import ladder
from oxydra.tiers.base import Guard
from oxydra.tiers.container import ContainerTier
from oxydra.tiers.microvm import MicroVmTier
from oxydra.tools.confine import Workspace
from oxydra.types import Folder
from tests.sandbox import IN_MACHINE, UID, missing, sandbox
from tests.test_container import in_containers
from tests.test_daemon import SCRIPT, Home, tool_results

MOUNTING = [
    pytest.param("bwrap+cage"),
    pytest.param("container+cage", marks=pytest.mark.docker),
    IN_MACHINE,
]


def put(path: Path, text: str = "as it was") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def given(path: Path, uid: int = UID) -> None:
    """Make all of a folder somebody's."""
    for place in (path, *path.rglob("*")):
        os.chown(place, uid, -1, follow_symlinks=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of the person's, with all that programs act upon."""
    top = tmp_path / "project"
    for name in (
        *(".envrc", ".git/config", ".git/hooks/pre-commit", ".git/HEAD", ".git/objects/x"),
        *(".git/refs/heads/config", ".vscode/tasks.json", "src/a.py"),
        *("sub/.git/HEAD", "sub/.git/config", "sub/.git/refs/x", "sub/.git/objects/x"),
        *("linked/.git", "linked/b.py"),
    ):
        put(top / name)
    return top


def folder(path: Path, root: str = "mnt/project", writable: bool = True) -> Folder:
    return Folder(root, str(path), writable, guarded=True)


# ---------------------------------------------------------------------------------------- guards


def test_what_stays_as_it_is(project: Path) -> None:
    found = guards(folder(project))
    assert [(guard.path, guard.writable) for guard in found] == [
        (".envrc", False),
        (".git", True),
        (".git/config", False),
        (".git/hooks", False),
        (".vscode", False),
        ("linked", True),
        ("linked/.git", False),
        ("sub", True),
        ("sub/.git", True),
        ("sub/.git/config", False),
        ("sub/.git/hooks", False),  # made, for there was none
    ]
    assert (project / "sub" / ".git" / "hooks").is_dir()
    assert found[0] == Guard("mnt/project", ".envrc")


def test_a_bare_repository_has_guards_whatever_its_name_is(tmp_path: Path) -> None:
    for name in ("HEAD", "config", "objects/x", "refs/x", "hooks/x"):
        put(tmp_path / "store" / name)
    paths = [guard.path for guard in guards(folder(tmp_path))]
    assert paths == ["store", "store/config", "store/hooks"]


def test_what_cant_be_guarded(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".envrc").symlink_to("/etc/passwd")
    with pytest.raises(Unguardable, match="neither a file nor a folder"):
        guards(folder(tmp_path))
    (tmp_path / "deep" / ".envrc").unlink()
    for number in range(MAX_GUARDS):
        put(tmp_path / str(number) / ".envrc")
    with pytest.raises(Unguardable, match="more than 200"):
        guards(folder(tmp_path))
    with pytest.raises(Unguardable, match="can't be looked at"):
        guards(folder(tmp_path / "missing"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs commands as somebody else")
def test_what_is_somebody_elses_can_only_be_read(tmp_path: Path) -> None:
    mine, roots, closed = (tmp_path / name for name in ("mine", "roots", "closed"))
    for path in (mine, roots, closed):
        path.mkdir(mode=0o700 if path is closed else 0o755)
    given(mine)
    tmp_path.chmod(0o755)
    folders = [folder(path, f"mnt/{path.name}") for path in (mine, roots, closed)]
    vault = Folder("vault", str(closed), writable=False)
    had, found, rows = for_commands([*folders, vault], UID, UID)
    assert [(f.root, f.writable) for f in had] == [
        ("mnt/mine", True),
        ("mnt/roots", False),
        ("mnt/closed", False),
    ]
    assert found == []
    assert [row["code"] for row in rows] == [
        "folder_read_only",
        "folder_read_only",
        "folder_closed",
    ]
    assert "/mnt/roots" in rows[0]["detail"] and str(tmp_path) not in json.dumps(rows)


# ------------------------------------------------------------------------------------------ tools


def test_tools_keep_off_what_programs_act_upon(project: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    own = Folder("shared", str(tmp_path / "own"), writable=True)
    with Workspace([own, folder(project), folder(project, "mnt/papers", False)]) as workspace:
        assert workspace.write(parse_virtual("/mnt/project/src/new.py"), b"new")
        assert workspace.write(parse_virtual("/shared/.git/hooks/x"), b"the workspace's own")
        for name in (
            *(".envrc", "x/.envrc", ".git/hooks/x", ".git/config", "new/.git", "a/.GIT/x"),
            *(".vscode/tasks.json", ".Vscode/x", "bare.git/hooks/x", "linked/.git"),
        ):
            path = parse_virtual(f"/mnt/project/{name}")
            for attempt in (lambda p: workspace.write(p, b"bad"), workspace.delete):
                with pytest.raises(PolicyDenied, match="act upon"):
                    attempt(path)
        with pytest.raises(PolicyDenied, match="/mnt/papers is read-only"):
            workspace.write(parse_virtual("/mnt/papers/x"), b"bad")
        with pytest.raises(ToolError, match=r"no /mnt/other here.*/mnt/papers"):
            workspace.write(parse_virtual("/mnt/other/x"), b"bad")
        assert workspace.open(parse_virtual("/mnt/papers/.git/config")).read() == b"as it was"
    for path in ("/mnt", "/mnt/", "/mntx/y", "/mnt/../etc"):
        with pytest.raises(PolicyDenied):
            parse_virtual(path)


def test_a_full_workspace_is_not_written_to(tmp_path: Path) -> None:
    full = ["it is full"]
    (tmp_path / "shared").mkdir()
    own = Folder("shared", str(tmp_path / "shared"), writable=True)
    with Workspace([own], lambda: full[0]) as workspace:
        with pytest.raises(ToolError, match="it is full"):
            workspace.write(parse_virtual("x"), b"x")
        full[0] = ""
        assert workspace.write(parse_virtual("x"), b"x")


def test_host_paths_become_the_models() -> None:
    places = {"/w/alice": "", "/home/al/files": "/shared", "/home/al": "/mnt/home", "/tmp": "/tmp"}
    scrubber = GuestScrubber({}, places)
    for text, shown in {
        "/home/al/files/a b": "/shared/a b",
        "'/home/al/files'": "'/shared'",
        "/home/al/x, /home/alice": "/mnt/home/x, /home/alice",
        "/w/alice/internal": "/internal",
        "/w/alice": "/",
        "/tmp/x": "/tmp/x",
        "/etc/home/al/x": "/etc/home/al/x",
    }.items():
        assert scrubber.shown(text) == shown
        assert scrubber.shown(shown) == shown


# --------------------------------------------------------------------------------------- commands

ATTACKS = """
cd "$MNT_PROJECT" || exit 9
try() { "$@" 2>/dev/null && echo "DONE: $*"; }
put() { echo bad 2>/dev/null > "$1" && echo "WROTE: $1"; }
for name in .envrc .git/config .git/hooks/pre-commit .vscode/tasks.json sub/.git/config \
        linked/.git; do
    put $name; try rm -r $name; try mv $name moved; try chmod 777 $name; try ln -sf /bin/true $name
    try touch $name; try truncate -s 0 $name; try cp src/a.py $name
done 2>/dev/null
for name in .git/hooks/new .vscode/new sub/.git/hooks/new; do
    put $name; try mkdir $name; try ln -s /bin/true $name; try ln src/a.py $name
done 2>/dev/null
for name in .git .git/hooks .vscode sub sub/.git linked; do
    try mv $name moved; try rmdir $name; try mv -T src $name
done
try python3 -c 'import os; os.rename("sub", "gone")'
try python3 -c 'import os; os.rename(".git", "gone")'
try python3 -c 'import os; os.link(".git/config", "other"); open("other", "w").write("bad")'
try python3 -c 'import os; os.chmod(".git/hooks", 0o777); open(".git/hooks/x", "w").write("bad")'
try umount .git/hooks; try mount --bind src .git/hooks; try mount -o remount,rw .git/hooks
echo done
"""


@pytest.mark.parametrize("level", MOUNTING)
def test_commands_work_in_a_project_and_plant_nothing(
    level: str, project: Path, tmp_path: Path
) -> None:
    if why := missing(level):
        pytest.skip(why)
    given(project)
    papers = put(tmp_path / "papers" / "letter").parent
    put(tmp_path / "outside")
    given(papers)
    folders = [
        *(Folder(name, str(tmp_path / "w" / name), writable=True) for name in ("shared", "tmp")),
        folder(project),
        folder(papers, "mnt/papers", False),
    ]
    (tmp_path / "w").mkdir()
    before = contents(project)
    options = {"folders": folders, "guards": guards(folder(project))}
    with sandbox(tmp_path / "w", level, **options) as box:
        assert (
            box.text("cd /mnt/project && echo new > src/a.py && mkdir x && echo y > .git/z") == ""
        )
        assert box.text("cat /mnt/papers/letter; ls -1 /mnt; ls -1 $MNT_PAPERS") == (
            "as it waspapers\nproject\nletter\n"
        )
        said = box.text("echo bad > /mnt/papers/letter; touch /mnt/papers/new")
        assert said.count("Read-only file system") == 2
        assert box.text(ATTACKS, seconds=60).splitlines() == ["done"]
        assert "as it was" in box.text("cat /mnt/project/.git/config /mnt/project/.envrc")
    assert (project / "src" / "a.py").read_text() == "new\n"
    (project / "src" / "a.py").write_text("as it was")
    (project / ".git" / "z").unlink()
    (project / "moved").unlink(missing_ok=True)  # a copy
    (project / "x").rmdir()
    assert contents(project) == before | {"sub/.git/hooks": None}
    assert contents(papers) == {"letter": "as it was"}


def contents(top: Path) -> dict[str, str | None]:
    return {
        str(path.relative_to(top)): path.read_text() if path.is_file() else None
        for path in top.rglob("*")
    }


@pytest.mark.parametrize("level", MOUNTING)
def test_git_still_works_in_a_project(level: str, tmp_path: Path) -> None:
    if why := missing(level):
        pytest.skip(why)
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    project = tmp_path / "project"
    project.mkdir()
    subprocess.run(["git", "init", "-q", "-b", "main", str(project)], check=True)
    with open(project / ".git" / "config", "a") as file:
        file.write("[user]\n\tname = P\n\temail = p@example.org\n")
    put(project / "a")
    given(project)
    (tmp_path / "w").mkdir()
    folders = [
        *(Folder(name, str(tmp_path / "w" / name), writable=True) for name in ("shared", "tmp")),
        folder(project),
    ]
    options = {"folders": folders, "guards": guards(folder(project))}
    with sandbox(tmp_path / "w", level, **options) as box:
        ran = box.run(
            "cd /mnt/project && git add a && git commit -qm one && git checkout -qb side"
            " && git mv a b && git commit -qm two && git checkout -q main && git merge -q side"
            " && git log --format=%s && git gc -q && git status --short"
        )
    assert (ran.exit_code, ran.output.decode()) == (0, "two\none\n")


@pytest.mark.parametrize("level", MOUNTING)
@pytest.mark.parametrize("when", ["before", "while"])
@pytest.mark.parametrize("name", [".vscode", "sub"])
def test_a_guard_that_becomes_a_link_lets_nothing_in(
    level: str, when: str, name: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the mount."""
    if why := missing(level):
        pytest.skip(why)
    given(project)
    secrets = tmp_path / "secrets"
    put(secrets / ".git" / "config", "private")
    (secrets / ".git" / "hooks").mkdir()
    given(secrets)
    found = guards(folder(project))
    (tmp_path / "w").mkdir()
    folders = [
        *(Folder(name, str(tmp_path / "w" / name), writable=True) for name in ("shared", "tmp")),
        folder(project),
    ]
    seen = []

    def swap(target: Callable[..., Any], *arguments: Any) -> Any:
        """What a hostile process does at the worst moment."""
        if not seen:
            seen.append(name)
            (project / name).rename(tmp_path / "aside")
            (project / name).symlink_to(secrets)
        return target(*arguments)

    if when == "before":
        swap(int)
    else:
        monkeypatch.setattr(ladder, "_mounts", partial(swap, ladder._mounts))
        for tier, step in ((ContainerTier, "_start"), (MicroVmTier, "_machine")):
            started = getattr(tier, step)
            monkeypatch.setattr(tier, step, lambda *a, started=started: swap(started, *a))
    with (
        pytest.raises((OxydraError, OSError)),
        sandbox(tmp_path / "w", level, folders=folders, guards=found),
    ):
        pass
    assert seen == [name]


def test_without_mounts_a_project_can_only_be_read(project: Path, tmp_path: Path) -> None:
    if why := missing("cage"):
        pytest.skip(why)
    given(project)
    plain = tmp_path / "plain"
    plain.mkdir()
    given(plain)
    (tmp_path / "w").mkdir()
    folders = [
        *(Folder(name, str(tmp_path / "w" / name), writable=True) for name in ("shared", "tmp")),
        folder(project),
        folder(plain, "mnt/plain-1"),
    ]
    options = {"folders": folders, "guards": guards(folder(project))}
    with sandbox(tmp_path / "w", "cage", **options) as box:
        assert box.text('cat "$MNT_PROJECT/src/a.py"') == "as it was"
        assert "ermission denied" in box.text('echo bad > "$MNT_PROJECT/src/a.py"')
        assert box.text('echo fine > "$MNT_PLAIN_1/x"; cd "$MNT_PLAIN_1"; pwd') == "/mnt/plain-1\n"
    assert (plain / "x").read_text() == "fine\n"
    assert contents(project)["src/a.py"] == "as it was"


# --------------------------------------------------------------------------------- a whole daemon


def mounted(home: Home, text: str) -> None:
    user = home.folder / "users" / "alice.toml"
    user.write_text(user.read_text().replace("[mounts]", f"[mounts]\n{text}"))


@pytest.fixture
def home(tmp_path: Path):
    there = Home(tmp_path / "home")
    there.path.mkdir()
    there.init()
    yield there
    there.command("stop")


STEPS = [
    {"tool": "file_read", "arguments": {"path": "/mnt/papers/letter"}},
    {"tool": "file_write", "arguments": {"path": "/mnt/papers/x", "content": "bad"}},
    {"tool": "file_write", "arguments": {"path": "/mnt/code/y", "content": "by a tool"}},
    {"tool": "file_write", "arguments": {"path": "/mnt/code/.git/hooks/y", "content": "bad"}},
    {"tool": "file_list", "arguments": {"path": "/mnt/code"}},
    {"tool": "shell_exec", "arguments": {"command": "cat /mnt/papers/letter"}},
    {"text": "done"},
]


@pytest.mark.parametrize("tier", ["process", pytest.param("container", marks=pytest.mark.docker)])
def test_folders_of_ones_own_in_a_daemon(home: Home, tier: str) -> None:
    if tier == "container":
        in_containers(home)
    put(home.path / "letters" / "letter", "dear me")
    put(home.path / "code" / ".git" / "config")
    given(home.path / "code")
    if os.geteuid() == 0:  # who owns the workspace is whom commands run as
        given(home.workspace)
        for parent in (home.path, *home.path.parents):
            parent.chmod(parent.stat().st_mode | 0o011)
    mounted(
        home,
        'extra = [{ path = "~/letters", name = "papers" }, { path = "~/code", mode = "rw" }]',
    )
    home.run("start", "--detach")
    session = json.loads(home.run("ask", SCRIPT % json.dumps(STEPS), "--json"))["session"]
    results = tool_results(home, session["session_id"])
    assert "dear me" in results[0]
    assert "/mnt/papers is read-only" in results[1]
    assert (home.path / "code" / "y").read_text() == "by a tool"
    assert "act upon" in results[3]
    assert ".git" in results[4] and "y" in results[4]
    if home.status()["startup_status"]["sandbox_level"] in NAMESPACED:
        assert "dear me" in results[5]
    assert str(home.path) not in json.dumps(results)
    assert not (home.path / "code" / ".git" / "hooks").joinpath("y").exists()
