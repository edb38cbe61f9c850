"""The examples for systemd and cron: their commands are tried as they stand."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from oxydra import cli
from tests.conftest import ROOT
from tests.test_daemon import Home

SYSTEMD = ROOT / "examples" / "systemd"
UNITS = sorted(SYSTEMD.iterdir())
DAEMONS = [SYSTEMD / name for name in ("oxydra.service", "oxydra@.service")]
CRONTAB = ROOT / "examples" / "cron" / "oxydra"
SETTING = re.compile(r"[A-Z]+=\S+")

each_unit = pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read(path)
    return parser


def cron_rows() -> list[tuple[str, str]]:
    """When, and which command."""
    rows = []
    for line in CRONTAB.read_text().splitlines():
        if not line or line.startswith("#") or SETTING.fullmatch(line):
            continue
        match = re.fullmatch(r"(@reboot|(?:[\d*/,-]+\s+){4}[\d*/,-]+)\s+(\S.*)", line)
        assert match, f"no line of a crontab: {line}"
        assert "%" not in line, "cron takes % for the end of the command"
        rows.append((match[1], match[2]))
    return rows


@pytest.fixture
def home(tmp_path):
    """A home with a configuration, and the programs where the examples expect them."""
    home = Home(tmp_path)
    home.init()
    programs = tmp_path / ".local" / "bin"
    programs.mkdir(parents=True)
    for name in ("oxydra-runner", "oxydra-health"):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/bin/{name} "$@"\n')
        (programs / name).chmod(0o755)
    home.env["PATH"] = f"{programs}:/usr/bin:/bin"
    yield home
    assert home.command("stop").returncode in (0, 3)


@each_unit
def test_a_unit_is_one_that_systemd_takes(path: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / path.name.replace("@.", "@alice.")
    program = re.compile(r"^ExecStart=\S+", re.M)
    copy.write_text(program.sub(f"ExecStart={ROOT}/bin/oxydra-runner", path.read_text()))
    if path.suffix == ".timer":
        service = path.with_suffix(".service")
        name = "oxydra-health" if "health" in path.name else "oxydra-runner"
        text = program.sub(f"ExecStart={ROOT}/bin/{name}", service.read_text())
        (tmp_path / service.name).write_text(text)
    scope = "--system" if "@" in path.name else "--user"
    command = [analyze, scope, "--man=no", "verify", str(copy)]
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    ours = [line for line in done.stderr.splitlines() if "oxydra" in line]
    assert not ours, done.stderr


def test_systemd_would_say_what_is_wrong(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    wrong = tmp_path / "oxydra.service"
    wrong.write_text("[Service]\nExecStart=/nonexistent/oxydra\nRestrat=on-failure\n")
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    command = [analyze, "--user", "--man=no", "verify", str(wrong)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert "Restrat" in done.stderr and "/nonexistent/oxydra" in done.stderr


@pytest.mark.parametrize("path", DAEMONS, ids=lambda path: path.name)
def test_a_unit_says_what_it_should(path: Path) -> None:
    service = unit(path)["Service"]
    cli.build_parser().parse_args(shlex.split(service["ExecStart"])[1:])
    assert "--detach" not in service["ExecStart"], "systemd watches the runner itself"
    assert service["RestartPreventExitStatus"] == "2"
    assert service["KillMode"] == "mixed"
    for name in ("RestrictNamespaces", "ProtectKernelTunables", "ProtectProc"):
        assert name not in service, "the guests' sandbox could not be built"


def test_the_command_of_the_users_unit_runs_until_systemd_stops_it(home) -> None:
    command = unit(ROOT / "examples" / "systemd" / "oxydra.service")["Service"]["ExecStart"]
    daemon = subprocess.Popen(
        shlex.split(command.replace("%h", str(home.path))),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=home.env,
        cwd="/",
        text=True,
    )
    try:
        assert daemon.stdout.readline().startswith("Oxydra is ready at")
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(timeout=60) == 0
    finally:
        daemon.kill()
        daemon.communicate()
    home.folder.joinpath("runner.toml").write_text("nonsense = 1\n")
    done = subprocess.run(
        shlex.split(command.replace("%h", str(home.path))),
        capture_output=True,
        env=home.env,
        timeout=60,
    )
    assert done.returncode == 2, "what RestartPreventExitStatus is about"
    home.folder.joinpath("runner.toml").unlink()
    home.run("init")


def test_the_command_that_the_timer_has_run(home) -> None:
    timer = unit(SYSTEMD / "oxydra-health.timer")
    assert timer["Timer"]["OnCalendar"] == "*:0/10"
    service = unit(SYSTEMD / "oxydra-health.service")["Service"]
    assert service["Type"] == "oneshot"

    def look() -> subprocess.CompletedProcess[str]:
        command = shlex.split(service["ExecStart"].replace("%h", str(home.path)))
        return subprocess.run(
            command, capture_output=True, text=True, cwd="/", env=home.env, timeout=60
        )

    assert look().returncode == 2
    home.run("start", "--detach")
    done = look()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_that_makes_a_backup_every_night(home) -> None:
    assert unit(SYSTEMD / "oxydra-backup.timer")["Timer"]["Persistent"] == "true"
    service = unit(SYSTEMD / "oxydra-backup.service")["Service"]
    for command in (service["ExecStartPre"], service["ExecStart"]):
        words = shlex.split(command.replace("%h", str(home.path)))
        subprocess.run(words, check=True, capture_output=True, cwd="/", env=home.env, timeout=60)
    folder = home.path / "oxydra-backups"
    (made,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700 and made.stat().st_mode & 0o777 == 0o600


def test_the_commands_of_the_crontab(home) -> None:
    def cron(command):
        return subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=home.path,
            env=home.env,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    start, health, audit, backup = (command for _, command in cron_rows())
    down = cron(health)
    assert down.returncode == 2 and "alice daemon: down" in down.stdout
    for command in (start, health, audit, backup):
        done = cron(command)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), command
    (made,) = (home.path / "oxydra-backups").iterdir()
    assert "as they were written" in home.run("backup", "--verify", str(made))
    (home.workspace / "shared" / ".envrc").write_text("")
    assert "/shared/.envrc" in cron(audit).stdout
