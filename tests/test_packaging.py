"""What a user gets: the Makefile's decisions, and what a built distribution holds and runs."""

from __future__ import annotations

import ast
import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import REAL_ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "tests" / "constraints.txt"
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def lines(section: str, key: str) -> list[str]:
    return SETUP[section][key].split("\n")[1:]


# ------------------------------------------------------------------------------------ setup.cfg


def test_every_package_is_listed() -> None:
    found = {"oxydra.guest"} | {
        ".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("oxydra/**/__init__.py")
    }
    assert lines("options", "packages") == sorted(found)


def test_every_folder_with_modules_is_a_package() -> None:
    for path in ROOT.glob("oxydra/**/*.py"):
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"


def test_every_console_script_has_its_function() -> None:
    for line in lines("options.entry_points", "console_scripts"):
        module, _, function = line.partition(" = ")[2].partition(":")
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
        defined = {item.name for item in tree.body if isinstance(item, ast.FunctionDef)}
        assert function in defined, f"{line}: there is no such function"


def test_every_dependency_has_its_row_in_the_documentation() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text().lower()
    for extra in ("telegram", "embeddings"):
        assert extra in SETUP["options.extras_require"]
    wanted = lines("options", "install_requires")
    for section in SETUP["options.extras_require"]:
        wanted += lines("options.extras_require", section)
    for requirement in wanted:
        name = requirement.split(">")[0].split("[")[0]
        assert name == "oxydra" or f"| {name.lower()} |" in text, f"{name} has no row"


def test_the_versions_that_were_tested_are_those_that_are_asked_for() -> None:
    """`tests/constraints.txt` has one of each dependency, that setup.cfg takes."""
    pinned = {}
    for line in CONSTRAINTS.read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pinned[canonicalize_name(name)] = version
    wanted = lines("options", "install_requires")
    for extra in ("telegram", "embeddings", "test"):
        wanted += lines("options.extras_require", extra)
    for text in wanted:
        requirement = Requirement(text)
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: {version} is pinned"


# ------------------------------------------------------------------------------------- Makefile

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

FAKE_PYTHON = """\
#!/bin/sh
echo "$@" >> "{log}"
case "$*" in
  *status*) exit {status} ;;
  *init*) mkdir -p .oxydra && : > .oxydra/runner.toml ;;
esac
"""


def make(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make as a user would, whatever make this test itself runs under."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME")}
    command = ["make", "--no-print-directory", "-C", str(where), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with the Makefile and nothing that would need the network."""
    for name in ("Makefile", "setup.cfg"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def fake_environment(tree: Path, status: int) -> Path:
    """An environment that is up to date, with a Python that writes down how it was called."""
    log = tree / "calls"
    python = script(tree / ".venv" / "bin" / "python", FAKE_PYTHON.format(log=log, status=status))
    newer = max(python.stat().st_mtime, (tree / "setup.cfg").stat().st_mtime) + 10
    for stamp in (".deps", ".test"):
        (tree / ".venv" / stamp).touch()
        os.utime(tree / ".venv" / stamp, (newer, newer))
    return log


@needs_make
class TestMakefile:
    def test_help_lists_every_target(self, tree: Path) -> None:
        listed = {line.split()[0] for line in make(tree).stdout.splitlines()}
        assert listed >= {"run", "test", "check", "lint", "types", "bench", "clean", "wheel"}
        phony = next(x for x in (tree / "Makefile").read_text().splitlines() if ".PHONY" in x)
        assert listed == set(phony.split()[1:])

    def test_run_for_the_first_time(self, tree: Path) -> None:
        log = fake_environment(tree, status=3)
        assert make(tree, "run").returncode == 0
        runner = "bin/oxydra-runner --config .oxydra/runner.toml"
        assert log.read_text().splitlines() == [
            "bin/oxydra-runner init",
            f"{runner} status",
            f"{runner} start --detach",
            f"{runner} --tui",
        ]

    def test_run_again_installs_nothing_and_starts_no_second_daemon(self, tree: Path) -> None:
        log = fake_environment(tree, status=0)
        (tree / ".oxydra").mkdir()
        (tree / ".oxydra" / "runner.toml").touch()
        assert make(tree, "run").returncode == 0
        assert [line.split()[-1] for line in log.read_text().splitlines()] == ["status", "--tui"]

    def test_a_change_of_setup_cfg_installs_again(self, tree: Path) -> None:
        log = fake_environment(tree, status=0)
        later = (tree / ".venv" / ".deps").stat().st_mtime + 10
        os.utime(tree / "setup.cfg", (later, later))
        assert make(tree, "run").returncode == 0
        assert "-m pip install" in log.read_text()

    def test_what_is_installed_is_what_was_tested_or_what_can_be_had(self, tree: Path) -> None:
        log = fake_environment(tree, status=0)
        (tree / "tests").mkdir()
        lock = script(tree / "tests" / "constraints.txt", "")
        later = (tree / ".venv" / ".deps").stat().st_mtime + 10
        os.utime(lock, (later, later))
        assert make(tree, "run").returncode == 0
        locked = "-m pip install -q --disable-pip-version-check -r .venv/requirements.txt"
        asked = [line for line in log.read_text().splitlines() if line.startswith(locked)]
        assert asked == [f"{locked} -c tests/constraints.txt"]
        os.utime(lock, (later + 20, later + 20))
        python = tree / ".venv" / "bin" / "python"
        python.write_text(python.read_text() + 'case "$*" in *" -c tests/"*) exit 1 ;; esac\n')
        log.write_text("")
        done = make(tree, "run")
        assert done.returncode == 0, done.stderr
        assert "without the versions of the lock" in done.stderr
        asked = [line for line in log.read_text().splitlines() if line.startswith(locked)]
        assert asked == [f"{locked} -c tests/constraints.txt", locked]

    def test_an_environment_without_its_interpreter_is_made_anew(self, tree: Path) -> None:
        fake_environment(tree, status=0)
        (tree / ".venv" / "bin" / "python").unlink()
        (tree / ".venv" / "bin" / "python").symlink_to(tree / "removed-by-an-upgrade")
        done = make(tree, "run", "PYTHON=none")
        assert done.returncode != 0
        assert "Oxydra needs Python 3.11 or newer" in done.stderr

    def test_no_python_that_is_new_enough(self, tree: Path) -> None:
        old = script(tree / "old-python", "#!/bin/sh\nexit 1\n")
        done = make(tree, "test", f"PYTHON={old} no-such-python")
        assert done.returncode != 0
        assert "Oxydra needs Python 3.11 or newer" in done.stderr
        assert "apt install python3 python3-venv" in done.stderr

    def test_a_python_that_cannot_make_environments(self, tree: Path) -> None:
        bare = script(
            tree / "bare-python",
            '#!/bin/sh\ncase "$2" in *ensurepip*) exit 1 ;; *print*) echo 3.11 ;; esac\n',
        )
        done = make(tree, "test", f"PYTHON={bare}")
        assert done.returncode != 0
        assert "its venv or ensurepip module is missing" in done.stderr
        assert "apt install python3-venv" in done.stderr and "python3.11-venv" in done.stderr

    def test_slow_reaches_pytest(self, tree: Path) -> None:
        log = fake_environment(tree, status=0)
        python = tree / ".venv" / "bin" / "python"
        python.write_text(python.read_text() + f'echo "SLOW=$SLOW" >> "{log}"\n')
        os.utime(python, (0, 0))
        assert make(tree, "test", "SLOW=1").returncode == 0
        assert log.read_text().splitlines() == ["-m pytest -n 0 --dist loadfile", "SLOW=1"]


# -------------------------------------------------------------------------------- distributions


def run(
    command: list[str | Path], environment: dict[str, str], **options: object
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def copy_of_the_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that a clone has, so that a build leaves nothing in the checkout."""
    target = tmp_path_factory.mktemp("tree")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    for name in ("oxydra", "guest"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    return target


@pytest.fixture(scope="module")
def dist(copy_of_the_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist, and the wheel that was built of it."""
    folder = tmp_path_factory.mktemp("dist")
    environment = REAL_ENVIRONMENT | {"HOME": str(folder)}
    environment.pop("PYTHONPATH", None)
    run([sys.executable, "-m", "build", "--outdir", folder, copy_of_the_tree], environment)
    return folder


@pytest.mark.slow
def test_wheel_and_sdist_hold_what_they_should(dist: Path) -> None:
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    held = set(zipfile.ZipFile(wheel).namelist())
    for path in [
        *ROOT.glob("oxydra/**/*.py"),
        *(path for path in ROOT.glob("oxydra/data/**/*") if path.is_file()),
        ROOT / "oxydra/py.typed",
    ]:
        assert path.relative_to(ROOT).as_posix() in held
    for path in ROOT.glob("guest/*"):
        assert not path.is_file() or f"oxydra/guest/{path.name}" in held
    assert not any(name.startswith(("tests", "docs", "bin", "guest/")) for name in held)
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "setup.cfg",
        "LICENSE",
        "README.md",
        "guest/oxydra-vm",
        "oxydra/cli/main.py",
    } <= in_sdist


def interpreter(version: str) -> str:
    """One of this version that can make environments. Skips the test where there is none."""
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = [sys.executable] if version == own else []
    found += [f"/usr/bin/python{version}"]
    found += map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    found += map(str, Path("/root/.pyenv/versions").glob(f"{version}.*/bin/python{version}"))
    for candidate in found:
        if Path(candidate).exists():
            command = [candidate, "-c", "import ensurepip, venv"]
            if subprocess.run(command, capture_output=True, timeout=60).returncode == 0:
                return candidate
    pytest.skip(f"Python {version} is not installed here")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_the_wheel_works_in_an_empty_environment(
    version: str, dist: Path, tmp_path: Path, real_environment: dict[str, str]
) -> None:
    python = interpreter(version)
    environment = real_environment | {"HOME": str(tmp_path)}
    environment.pop("PYTHONPATH", None)
    (wheel,) = dist.glob("*.whl")
    place = tmp_path / "venv"
    run([python, "-m", "venv", place], environment)
    install = [place / "bin" / "python", "-m", "pip", "install", "-q", "-c", CONSTRAINTS]
    extras = f"oxydra[all] @ {wheel.as_uri()}"
    run([*install, extras if version == "3.12" else wheel], environment)
    if version == "3.12":
        there = "import numpy, sqlite_vss, telebot, tokenizers, wordllama"
        run([place / "bin" / "python", "-c", there], environment)
    if version == "3.13":  # where wheels come last; the suite itself has the extras on 3.11
        run([*install, "--dry-run", extras], environment)
    elsewhere = {"cwd": tmp_path}
    for command in ("oxydra-runner", "oxydra-tui", "oxydra-health"):
        assert "usage" in run([place / "bin" / command, "--help"], environment, **elsewhere).stdout
    listing = "import oxydra.guest; print(oxydra.guest.__path__[0])"
    where = run([place / "bin" / "python", "-c", listing], environment, **elsewhere).stdout.strip()
    assert (Path(where) / "oxydra-vm").is_file()
    shutil.copy(ROOT / "examples" / "library.py", tmp_path)
    said = run([place / "bin" / "python", "library.py"], environment, **elsewhere).stdout
    assert "Milk, bread, and a new bell." in said
    converse(place, tmp_path, environment)


def converse(place: Path, folder: Path, environment: dict[str, str]) -> None:
    """From `init` to an answer and `stop`, with the installed commands alone."""
    runner: list[str | Path] = [place / "bin" / "oxydra-runner"]
    run([*runner, "init"], environment, cwd=folder)
    configured = [*runner, "--config", folder / ".oxydra" / "runner.toml"]
    run([*configured, "start", "--detach"], environment, cwd=folder)
    try:
        answer = run(
            [*configured, "ask", "list the files in /shared"], environment, cwd=folder
        ).stdout
        assert answer.strip()
    finally:
        run([*configured, "stop"], environment, cwd=folder)
