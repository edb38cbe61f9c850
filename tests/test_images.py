"""The guests' images: what decides their names, what the builder refuses, and what they hold."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

from oxydra.errors import OxydraError
from oxydra.tiers import images, machine_images, recipe, rootfs
from oxydra.version import VERSION
from tests.conftest import REAL_ENVIRONMENT, ROOT
from tests.docker_images import agent_image, build_images, run, shell_image

NOWHERE = "unix:///nonexistent/docker.sock"


@contextmanager
def program(name: str) -> Iterator[Any]:
    """guest/<name> as a module."""
    module = types.ModuleType(name.replace("-", "_"))
    sys.modules[module.__name__] = module  # where dataclasses look
    path, before = list(sys.path), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        loader = SourceFileLoader(module.__name__, str(ROOT / "guest" / name))
        module.__file__ = loader.path
        loader.exec_module(module)
        yield module
    finally:
        sys.path[:], sys.dont_write_bytecode = path, before
        del sys.modules[module.__name__]


@pytest.fixture(scope="module")
def builder() -> Iterator[Any]:
    with program("build-images") as module:
        yield module


@pytest.fixture
def options(builder: Any) -> Any:
    return builder.Options(arch="amd64", base="mmdebstrap")


# ------------------------------------------------------------------------------ what goes into them


def what_runs(tree: ast.AST) -> Iterator[ast.AST]:
    """All of a module but what only a type checker reads."""
    for item in ast.iter_child_nodes(tree):
        if isinstance(item, ast.If) and ast.unparse(item.test) == "TYPE_CHECKING":
            continue
        yield item
        yield from what_runs(item)


def test_the_agent_image_holds_what_its_modules_import_and_no_part_of_the_host() -> None:
    held = images.files("agent")
    assert held["oxydra/vm.py"] == ROOT / "oxydra" / "vm.py"
    assert held["guest/oxydra-vm"] == ROOT / "guest" / "oxydra-vm"
    assert "oxydra/data/models.json" in held
    assert not [name for name in held if name.startswith("oxydra/tui/")]
    inside = (name.removesuffix(".py").removesuffix("/__init__") for name in held)
    modules = {name.replace("/", ".") for name in inside}
    for path in held.values():
        if path.suffix != ".py":
            continue
        for item in what_runs(ast.parse(path.read_text())):
            if isinstance(item, ast.ImportFrom) and (item.module or "").startswith("oxydra."):
                assert item.module in modules, f"{path} imports {item.module}, which is on the host"


def test_what_other_builds_and_templates_left_is_removed(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = machine_images.folder()
    for folder in (place, place.with_name("older")):
        saved = machine_images.cache() / "templates" / folder.name
        for made in (folder, saved):
            made.mkdir(parents=True)
        (folder / machine_images.MANIFEST).write_text('{"identity": "a"}')
        about = {"images": str(folder), "identity": "a"}
        (saved / "about.json").write_text(json.dumps(about))
        os.utime(saved, (0, 0))  # nobody is making it
    with program("build-microvm") as build:
        options = build.Options((), (), None, None, "", False, 0)
        build.Builder(options, tmp_path, build.recipe.Report(io.StringIO())).prune()
    for name in ("images", "templates"):
        left = (machine_images.cache() / name).iterdir()
        assert [path.name for path in left] == [place.name]


def test_the_hash_of_the_code_follows_the_files(tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "x.py"
    monkeypatch.setattr(images, "files", lambda role: {"x.py": file})
    seen = set()
    for text in ("a = 1\n", "a = 2\n"):
        file.write_text(text)
        seen.add(images.code("agent"))
        assert images.code("agent") in seen
    assert len(seen) == 2


def test_inputs_follow_everything_that_was_asked_for(builder: Any, options: Any) -> None:
    first = builder.inputs(options, "agent")
    assert re.fullmatch(r"[0-9a-f]{12}", first) and builder.inputs(options, "agent") == first
    others = [
        builder.inputs(options, "shell"),
        builder.inputs(options, "agent", "sha256:1234"),
        *(
            builder.inputs(replace(options, **change), "agent")
            for change in (
                {"arch": "arm64"},
                {"base": "debootstrap"},
                {"extras": ("telegram",)},
                {"in_docker": True},
                {"mirror": "http://mirror.example/debian"},
                {"epoch": 1},
            )
        ),
    ]
    assert len({first, *others}) == len(others) + 1
    more = replace(options, extra_packages=("vim",))
    assert builder.inputs(more, "agent") == first  # they are the shell's
    assert builder.inputs(more, "shell") != builder.inputs(options, "shell")
    assert builder.inputs(replace(options, tag="x", rebuild=True), "agent") == first


def test_packages_by_option(builder: Any, options: Any) -> None:
    assert "libgomp1" not in options.packages("agent")
    assert "libgomp1" in replace(options, extras=("embeddings",)).packages("agent")
    assert "vim" in replace(options, extra_packages=("vim",)).packages("shell")
    for program in ("bash", "coreutils", "curl", "git", "jq", "python3", "ripgrep"):
        assert program in options.packages("shell")


def test_requirements_are_those_of_setup_cfg_without_the_hosts(builder: Any) -> None:
    plain = {re.split(r"[>;]", row)[0] for row in builder.requirements(())}
    assert plain >= {"apsw", "requests", "pypdf"} and not plain & set(recipe.NOT_IN_GUESTS)
    more = {re.split(r"[>;]", row)[0] for row in builder.requirements(("telegram",))}
    assert more - plain == {"pytelegrambotapi"}


def test_the_wheel_is_the_same_twice(builder: Any, tmp_path: Path) -> None:
    built = []
    for name in "ab":
        (tmp_path / name).mkdir()
        built.append(builder.wheel(tmp_path / name, ["apsw>=3"]).read_bytes())
    assert built[0] == built[1]


def test_files_that_were_one_stay_one() -> None:
    layer, content = rootfs.Layer(7), b"much " * 1000
    for name in ("usr/bin/b", "usr/bin/a"):
        layer.add(name, content, 0o755)
    with tarfile.open(fileobj=io.BytesIO(layer.tar())) as archive:
        assert archive.getmember("usr/bin/a").isreg()
        assert archive.getmember("usr/bin/b").linkname == "usr/bin/a"
        assert archive.getmember("usr/bin").isdir() and archive.getmember("usr/bin").mtime == 7


def test_what_an_image_keeps_of_a_tree(tmp_path: Path) -> None:
    tree = tmp_path / "tree.tar"
    with tarfile.open(tree, "w") as archive:
        for name, mode in (
            ("./bin/su", 0o4755),
            ("./usr/bin/python3.11", 0o755),
            ("./usr/lib/x86_64-linux-gnu/libz.so.1", 0o644),
            ("./usr/lib/x86_64-linux-gnu/gconv/X.so", 0o644),
            ("./lib/ld-linux-aarch64.so.1", 0o755),
            ("./usr/share/man/man1/su.1.gz", 0o644),
            ("./etc/hostname", 0o644),
            ("./etc/shadow-", 0o600),
        ):
            member = tarfile.TarInfo(name)
            member.mode, member.size = mode, 4
            archive.addfile(member, io.BytesIO(b"host"))
    files = {role: rootfs.file_system(tree, role, 7) for role in images.REPOSITORIES}
    for layer in files.values():
        assert layer.names() >= {"usr/bin/python3.11", "bin", "shared", "etc/passwd", "tmp"}
        assert "usr/lib/ld-linux-aarch64.so.1" in layer.names()
        assert not layer.names() & {"usr/share/man/man1/su.1.gz", "etc/shadow-", "bin/su"}
        assert layer.content("etc/hostname") == b"oxydra\n"
        assert b"nobody:x:65534:" in (layer.content("etc/passwd") or b"")
    library, useless = "usr/lib/x86_64-linux-gnu/libz.so.1", "usr/lib/x86_64-linux-gnu/gconv/X.so"
    assert files["agent"].names() & {library, useless, "usr/bin/su"} == {library}
    assert files["shell"].names() >= {library, useless, "usr/bin/su"}
    with tarfile.open(fileobj=io.BytesIO(files["shell"].tar())) as archive:
        assert archive.getmember("usr/bin/su").mode == 0o755


def test_an_archive_of_an_image_says_what_it_is_for(tmp_path: Path) -> None:
    layer = rootfs.Layer(7)
    layer.add("opt/x", b"x")
    for name in ("once", "again"):
        rootfs.write_image(tmp_path / name, layer.tar(), "mine:1", "arm64", 7)
    assert (tmp_path / "once").read_bytes() == (tmp_path / "again").read_bytes()
    with tarfile.open(tmp_path / "once") as archive:
        found = {name: archive.extractfile(name).read() for name in archive.getnames()}  # type: ignore[union-attr]
    [row] = json.loads(found["manifest.json"])
    config = json.loads(found[row["Config"]])
    assert (row["RepoTags"], config["architecture"], config["os"]) == (["mine:1"], "arm64", "linux")
    [name] = row["Layers"]
    digest = hashlib.sha256(found[name]).hexdigest()
    assert config["rootfs"]["diff_ids"] == [f"sha256:{digest}"]


def test_a_layer_is_the_same_whatever_the_order() -> None:
    made = []
    for names in ("ab", "ba"):
        layer = rootfs.Layer(7)
        for name in names:
            layer.add(f"opt/{name}", b"x", 0o4755)
        made.append(layer.tar())
    assert made[0] == made[1]
    assert b"opt/a" in made[0]


@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        ("usr/share/doc/git/changelog.gz", True),
        ("usr/share/doc/git/copyright", False),
        ("usr/share/doc/git/", False),
        ("usr/share/man/man1/git.1.gz", True),
        ("usr/share/zoneinfo/right/UTC", True),
        ("usr/share/zoneinfo/UTC", False),
        ("usr/lib/python3.11/__pycache__/os.cpython-311.pyc", True),
        ("var/lib/dpkg/status", False),
        ("var/lib/dpkg/status-old", True),
        ("etc/passwd", False),
        ("etc/passwd-", True),
        ("etc/hostname", True),
        ("dev/null", True),
    ],
)
def test_what_is_dropped(name: str, dropped: bool) -> None:
    assert bool(rootfs.DROPPED.match(name)) is dropped


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./", ""),
        ("./bin", "bin"),
        ("./bin/tar", "usr/bin/tar"),
        ("./lib64/ld.so", "usr/lib64/ld.so"),
        ("./usr/bin/x", "usr/bin/x"),
        ("./library/x", "library/x"),
    ],
)
def test_bin_and_lib_are_in_usr(name: str, expected: str) -> None:
    assert rootfs.inside(name) == expected


def test_the_dockerfiles_start_what_the_images_hold() -> None:
    whole = (ROOT / "guest" / "Dockerfile").read_text()
    for role in images.REPOSITORIES:
        last = (ROOT / "guest" / f"Dockerfile.{role}").read_text()
        (entry,) = re.findall(r"^ENTRYPOINT (.+)$", last, flags=re.M)
        assert f"ENTRYPOINT {entry}" in whole and f"AS {role}" in whole
        *python, program = json.loads(entry)
        assert python == ["/usr/bin/python3", "-I", "-S", "-B"]
        assert program.removeprefix("/opt/oxydra/") in images.files(role)


# ------------------------------------------------------------------------------ what the tier asks


def labels(**other: str) -> dict[str, str]:
    made = {
        images.VERSION_LABEL: VERSION,
        images.ROLE_LABEL: "shell",
        images.CODE_LABEL: images.code("shell"),
        images.PACKAGES_LABEL: "nano,vim",
    }
    return made | {f"org.oxydra.{name}": value for name, value in other.items()}


def test_an_image_of_this_version_is_taken() -> None:
    images.check("shell", "shell-vm:x", labels(), ["vim"])


@pytest.mark.parametrize(
    ("found", "extra", "said"),
    [
        (None, [], "is not in the Docker engine"),
        ({}, [], "is not an image of the shell guest"),
        (labels(role="agent"), [], "is not an image of the shell guest"),
        (labels(version="0.0.1"), [], f"was built by another version (0.0.1, this is {VERSION})"),
        (labels(code="1234"), [], "holds other code"),
        (labels(), ["emacs", "vim"], "was built without the extra packages emacs"),
    ],
)
def test_an_image_that_does_not_fit_is_refused_with_the_remedy(
    found: dict[str, str] | None, extra: list[str], said: str
) -> None:
    with pytest.raises(OxydraError) as caught:
        images.check("shell", "shell-vm:x", found, extra)
    assert said in caught.value.message and "shell-vm:x" in caught.value.message
    assert "guest/build-images" in caught.value.remedy
    assert caught.value.code == ("image_missing" if found is None else "image_outdated")
    if extra:
        assert "--extra-packages emacs,vim" in caught.value.remedy


# ------------------------------------------------------------------------------------- the command


@pytest.fixture
def docker(tmp_path: Path) -> Any:
    """A PATH with a `docker` that says it is amd64 and refuses everything else."""
    script = tmp_path / "docker"
    script.write_text('#!/bin/sh\n[ "$1" = version ] && echo amd64\n')
    script.chmod(0o755)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arch", "riscv64"], "invalid choice"),
        (["a b"], "can't be an image's tag"),
        (["--extra-packages", "vim,a b"], "is not the name of a package"),
        (["--extra-packages", "--force-yes"], "expected one argument"),
        (["--extras", "everything"], "there is no extra 'everything'; there is: telegram"),
        (["--in-docker"], "--in-docker builds on an image with apt"),
        (["--in-docker", "--base", "mmdebstrap"], "Add --base IMAGE"),
        (["--base", "x", "--extras", "embeddings", "--arch", "arm64"], "do not exist for arm64"),
        ([], "Neither mmdebstrap nor debootstrap is here."),
    ],
)
def test_usage_errors(docker: str, arguments: list[str], said: str) -> None:
    done = build_images(*arguments, PATH=docker)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr


def test_no_docker_command(tmp_path: Path) -> None:
    done = build_images(PATH=str(tmp_path))
    assert done.returncode == 1
    assert "There is no command `docker` here. Install it" in done.stderr


@pytest.mark.docker
def test_no_engine() -> None:
    done = build_images(DOCKER_HOST=NOWHERE)
    assert done.returncode == 1
    assert f"No Docker engine answers at {NOWHERE}" in done.stderr
    assert "DOCKER_HOST" in done.stderr and "Traceback" not in done.stderr


def test_last_words_are_the_errors(builder: Any) -> None:
    output = b"Get:1\n\x1b[91mE: no such package\n\x1b[0mRemoving\nreturned code 1\n"
    assert builder.last_words(output) == "E: no such package"
    assert builder.last_words(b"one.\ntwo.\n") == "one. / two"
    assert builder.last_words(b"") == "it said nothing"


def test_every_option_is_in_the_documentation(builder: Any) -> None:
    text = (ROOT / "docs" / "images.md").read_text()
    for name in re.findall(r"--[a-z][a-z-]+", builder.parser().format_usage()):
        assert f"`{name}" in text or f" {name}" in text, f"docs/images.md says nothing of {name}"


def test_build_is_the_program(capfd: pytest.CaptureFixture[str]) -> None:
    assert images.build(["--help"]) == 0
    assert "oxydra-vm" in capfd.readouterr().out


# ------------------------------------------------------------------------------------- the images

IMPORTS = """
import importlib, os, pkgutil, sys, zoneinfo
sys.path.insert(0, "/opt/oxydra")
import oxydra
names = [module.name for module in pkgutil.walk_packages(oxydra.__path__, "oxydra.")]
names += "apsw requests sseclient simple_websocket_server justhtml pypdf idna tomli".split()
for name in [*names, "telebot"]:
    importlib.import_module(name)
zoneinfo.ZoneInfo("Europe/Berlin")
cached = [getattr(module, "__cached__", None) for module in sys.modules.values()]
print(sum(map(bool, cached)), [path for path in cached if path and not os.path.exists(path)])
"""


def docker_says(*arguments: str, **options: Any) -> str:
    """What the command prints; it must succeed."""
    done = subprocess.run(
        ["docker", *arguments], env=REAL_ENVIRONMENT, capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def inspect(reference: str) -> Any:
    return json.loads(docker_says("image", "inspect", reference))[0]


@pytest.mark.docker
class TestImages:
    @pytest.mark.parametrize("role", images.REPOSITORIES)
    def test_labels(self, role: str) -> None:
        reference = agent_image() if role == "agent" else shell_image()
        found = inspect(reference)["Config"]["Labels"]
        images.check(role, reference, found)
        assert reference == f"{images.REPOSITORIES[role]}:{VERSION}-{found[images.INPUTS_LABEL]}"

    def test_nothing_is_built_twice(self) -> None:
        reference = agent_image()
        done = build_images("--only", "agent", "tests")
        assert done.returncode == 0
        assert f"{reference} is already there, made from the same inputs" in done.stdout

    def test_the_agent_starts_read_only_as_any_user(self) -> None:
        program = ("/usr/bin/python3", "-I", "-S", "-B", "/opt/oxydra/guest/oxydra-vm", "--help")
        done = run(agent_image(), *program)
        assert done.returncode == 0, done.stderr
        assert "--bootstrap-stdin" in done.stdout

    def test_the_agent_imports_everything_as_bytecode(self) -> None:
        done = run(agent_image(), "/usr/bin/python3", "-I", "-S", "-B", "-c", IMPORTS)
        assert done.returncode == 0, done.stderr
        count, _, uncompiled = done.stdout.partition(" ")
        assert int(count) > 200 and uncompiled.strip() == "[]"

    def test_the_agent_has_no_shell(self) -> None:
        done = run(agent_image(), "/bin/sh", "-c", "true")
        assert done.returncode == 127, done.stderr

    @pytest.mark.parametrize(
        "command",
        [
            *("git --version", "curl --version", "jq --version", "rg --version", "bash --version"),
            *("ps -e", "less --version", "awk --version", "file /bin/bash", "unzip -v"),
            *("xz --version", "patch --version", "diff --version", "tar --version"),
            "python3 -c 'import ssl; assert ssl.create_default_context().get_ca_certs()'",
            "test -s /etc/ssl/certs/ca-certificates.crt",
            "git init -q /tmp/x",
        ],
    )
    def test_a_command_of_the_shell_image(self, command: str) -> None:
        done = run(shell_image(), "/bin/bash", "-c", command, options=("--tmpfs", "/tmp"))
        assert done.returncode == 0, done.stderr

    def test_the_shell_daemon_is_there(self) -> None:
        program = ("/usr/bin/python3", "-I", "-S", "-B", "/opt/oxydra/shell-daemon", "--help")
        done = run(shell_image(), *program)
        assert done.returncode == 0 and "--cage" in done.stdout, done.stderr
        look = "cat /opt/oxydra/cage.py"
        assert (
            run(shell_image(), "/bin/bash", "-c", look).stdout
            == (ROOT / "oxydra" / "cage.py").read_text()
        )

    def test_nothing_is_setuid_and_nothing_can_be_written(self) -> None:
        look = "find / -xdev \\( -perm /6000 -o -writable -not -type l \\) -not -path '/tmp*' 2>&-"
        found = run(shell_image(), "/bin/bash", "-c", look).stdout.split()
        allowed = ("/proc", "/dev", "/sys", "/var/tmp")
        assert not [path for path in found if not path.startswith(allowed)]


@pytest.mark.docker
@pytest.mark.slow
class TestBuilding:
    def test_a_second_build_has_the_same_layers(self) -> None:
        first = inspect(agent_image())
        done = build_images("--only", "agent", "--rebuild", "tests")
        assert done.returncode == 0, done.stderr
        assert "packages of oxydra-vm" in done.stdout  # it was built
        second = inspect("oxydra-vm:tests")
        assert second["RootFS"]["Layers"] == first["RootFS"]["Layers"]

    def test_in_docker(self, tmp_path: Path) -> None:
        """On an image with apt that mmdebstrap makes, whose network is the host's."""
        if shutil.which("mmdebstrap") is None:
            pytest.skip("mmdebstrap is not installed: there is no image with apt to build on")
        base, tree = f"oxydra-test-apt:{os.getpid()}", tmp_path / "apt.tar"
        made = ["mmdebstrap", "--quiet", "--variant=minbase", "bookworm", str(tree)]
        subprocess.run(made, env=REAL_ENVIRONMENT, check=True, stdin=subprocess.DEVNULL)
        docker_says("import", str(tree), base)
        reference = ""
        try:
            given = ("--in-docker", "--base", base, "--network", "host", "--only", "agent")
            done = build_images(*given, "tests-in-docker")
            assert done.returncode == 0, done.stderr
            reference = re.search(r" = (\S+),", done.stdout)[1]  # type: ignore[index]
            done = run(reference, "/usr/bin/python3", "-I", "-S", "-B", "-c", IMPORTS)
            assert done.returncode == 0 and done.stdout.endswith(" []\n"), done.stdout
            images.check("agent", reference, inspect(reference)["Config"]["Labels"])
        finally:
            for name in ("oxydra-vm:tests-in-docker", reference, base):
                subprocess.run(["docker", "image", "rm", name], env=REAL_ENVIRONMENT)
