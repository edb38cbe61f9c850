"""The container tier: what its containers can and can't do, what is left of them, which engines it
takes, and a whole daemon in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from oxydra.config.schema import GuestImagesConfig
from oxydra.errors import ConfigError, OxydraError
from oxydra.tiers import door, engine, registry
from oxydra.tiers.container import how_it_ended, leftovers, remove
from oxydra.tiers.engine import Engine, EngineError
from oxydra.types import Folder
from tests.conftest import REAL_ENVIRONMENT, ROOT, eventually
from tests.docker_images import agent_image, shell_image
from tests.fake_model import FakeModel, Reply
from tests.sandbox import UID, Sandbox, isolation, sandbox
from tests.test_daemon import SCRIPT, Home
from tests.test_escape import guest_processes, memory_holds

LEVEL = "container+cage"
docker = pytest.mark.docker


@pytest.fixture
def client():
    there = Engine.find().client()
    yield there
    there.close()


@pytest.fixture
def box(tmp_path):
    with sandbox(tmp_path, LEVEL, isolation=isolation(tmp_path, max_memory_mib=160)) as there:
        yield there


def found(client, box: Sandbox):
    """What the engine says of a sandbox's container."""
    (row,) = leftovers(client, box.folder)
    return client.inspect_container(row["Id"])


# ------------------------------------------------------------------------------------------ engines


class FakeEngine(socketserver.ThreadingUnixStreamServer):
    """Answers on a Unix socket with `answers`: a status and an object by the end of the path."""

    daemon_threads = False

    def __init__(self, path: Path, answers: dict[str, tuple[int, object]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                path = self.path.partition("?")[0]
                known = [value for name, value in answers.items() if path.endswith(name)]
                status, said = known[0] if known else (404, {"message": "no such thing"})
                body = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_DELETE = answer

            def address_string(self) -> str:
                return "local"

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(str(path), Handler)
        self.thread = threading.Thread(target=self.serve_forever)
        self.thread.start()

    def end(self) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Start an engine that gives these answers, and have DOCKER_HOST name it."""
    pytest.importorskip("docker")
    with contextlib.ExitStack() as stack:

        def start(**answers: tuple[int, object]) -> None:
            known: dict[str, tuple[int, object]] = {
                "/version": (200, {"ApiVersion": "1.41"}),
                "/info": (200, {"KernelVersion": os.uname().release, "NCPU": 1}),
                **{f"/{name.replace('_', '/')}": value for name, value in answers.items()},
            }
            path = tmp_path / "engine.sock"
            stack.callback(FakeEngine(path, known).end)
            monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")

        yield start


@pytest.mark.parametrize("host", ["tcp://10.0.0.1:2376", "ssh://me@there", "npipe:////./x", "x"])
def test_an_engine_that_is_not_here_is_refused_with_the_reason(monkeypatch, host):
    monkeypatch.setenv("DOCKER_HOST", host)
    with pytest.raises(EngineError, match="does not cross a network") as refused:
        Engine.find()
    assert "unix://" in refused.value.remedy and "process" in refused.value.remedy


def test_where_the_engine_is(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", "unix:///somewhere/docker.sock")
    assert engine.socket_path() == "/somewhere/docker.sock"
    monkeypatch.delenv("DOCKER_HOST")
    (tmp_path / "docker.sock").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(engine, "SOCKET", str(tmp_path / "none.sock"))
    assert engine.socket_path() == str(tmp_path / "docker.sock")


def test_no_engine(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(EngineError, match="not running"):
        Engine.find()
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(dead))
    with pytest.raises(EngineError, match="not running"):
        engine.check_socket(str(dead))
    monkeypatch.delenv("DOCKER_HOST")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="installed") as refused:
        engine.check_socket(str(tmp_path / "none.sock"))
    assert "apt install docker.io" in refused.value.remedy


@pytest.mark.skipif(os.geteuid() != 0, reason="root makes the other user")
def test_an_engine_of_others(tmp_path):
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        path.chmod(0o600)
        for parent in tmp_path.parents:
            parent.chmod(parent.stat().st_mode | 0o011)
        tmp_path.chmod(0o711)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setresuid(UID, UID, UID)
            try:
                engine.check_socket(str(path))
            except EngineError as error:
                os.write(writing, str(error).encode())
            os._exit(0)
        os.close(writing)
        os.waitpid(pid, 0)
        with os.fdopen(reading) as pipe:
            assert "usermod -aG docker" in pipe.read()


def test_an_engine_that_is_too_old(fake):
    fake(version=(200, {"ApiVersion": "1.12"}))
    with pytest.raises(EngineError, match=r"too old.*1\.24") as refused:
        Engine.find()
    assert "Update" in refused.value.remedy


def test_an_engine_in_a_virtual_machine(fake):
    fake(info=(200, {"KernelVersion": "6.1.0-linuxkit", "OperatingSystem": "Docker Desktop"}))
    with pytest.raises(EngineError, match=r"another kernel \(Docker Desktop, 6\.1\.0-linuxkit\)"):
        Engine.find()


def test_an_engine_that_talks_nonsense(fake):
    fake(version=(500, {"message": "panic"}))
    with pytest.raises(EngineError, match="panic"):
        Engine.find()


def test_what_an_engine_cannot_limit(fake):
    limits = {"MemoryLimit": False, "PidsLimit": False, "CpuCfsQuota": True}
    fake(info=(200, {"KernelVersion": os.uname().release, "NCPU": 1, **limits}))
    (row,) = registry.create("container").degraded()
    assert row["code"] == "totals_uncapped" and "memory and processes" in row["detail"]
    assert Engine.find().cpus(2.0) == 1_000_000_000  # no more than there are


def test_as_whom_a_guest_runs():
    info = {"KernelVersion": "x"}
    assert Engine("", "", info).user(5, 6) == (5, 6)
    rootless = Engine("", "", {**info, "SecurityOptions": ["name=seccomp", "name=rootless"]})
    assert rootless.user(5, 6) == (0, 0)  # there root is the engine's own user
    assert Engine("", "", {**info, "SecurityOptions": ["name=userns"]}).remapped


def test_a_full_disk(fake):
    full = "mkdir /var/lib/docker/overlay2/x: no space left on device"
    fake(containers_create=(500, {"message": full}))
    there = Engine.find().client()
    try:
        with pytest.raises(OxydraError) as refused, engine.telling("It can't be made"):
            there.create_container("some", [])
    finally:
        there.close()
    assert refused.value.code == "disk_full" and "docker system df" in refused.value.remedy


@pytest.mark.parametrize(
    ("state", "how"),
    [
        ({"ExitCode": 3}, "exit 3"),
        ({"ExitCode": 137}, "killed by SIGKILL"),
        ({"ExitCode": 143}, "killed by SIGTERM"),
        (
            {"ExitCode": 137, "OOMKilled": True},
            "killed by SIGKILL, after it had run out of memory (limit 64 MiB)",
        ),
        ({"ExitCode": 0, "OOMKilled": True}, "exit 0"),  # a command was, long before
    ],
)
def test_how_it_ended(state, how):
    assert how_it_ended({"State": state, "HostConfig": {"Memory": 64 << 20}}) == how


def test_a_tier_that_there_is_not():
    with pytest.raises(ConfigError, match=r"there is: container, micro_vm, process"):
        registry.create("jail")


# -------------------------------------------------------------------------------------------- doors


def test_a_door_lets_one_in(tmp_path):
    way_in = door.Door(tmp_path, "agent", os.geteuid(), os.getegid())
    path = way_in.path
    assert path.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        one.connect(str(path))
        with way_in.accept(5) as stream:
            stream.sendall(b"x")
            assert one.recv(1) == b"x"
        assert not path.exists()
        with pytest.raises(OSError):
            two.connect(str(path))


def test_a_door_for_somebody_else(tmp_path):
    way_in = door.Door(tmp_path, "agent", os.geteuid(), os.getegid())
    way_in._uid += 1
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(str(way_in.path))
        with pytest.raises(PermissionError):
            way_in.accept(5)


def test_a_door_that_nobody_comes_through(tmp_path):
    way_in = door.Door(tmp_path, "agent", os.geteuid(), os.getegid())
    with pytest.raises(TimeoutError):
        way_in.accept(0.05)
    assert not list(tmp_path.iterdir())
    (tmp_path / ("x" * 90)).mkdir()  # a path that no socket address holds
    way_in = door.Door(tmp_path / ("x" * 90), "agent", os.geteuid(), os.getegid())
    waker = threading.Timer(0.05, way_in.wake)
    waker.start()
    with pytest.raises(OSError):
        way_in.accept(60)
    waker.join()
    door.Door(tmp_path, "shell", os.geteuid(), os.getegid())._listener.close()
    (tmp_path / ".bootstrap-0123456789abcdef").touch()
    (tmp_path / "gateway-token").touch()
    door.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["gateway-token"]


# --------------------------------------------------------------------------------------- containers


@docker
def test_the_limits_are_set(client, box):
    there = found(client, box)
    host = there["HostConfig"]
    assert host["NetworkMode"] == "none" and host["ReadonlyRootfs"] and host["Init"]
    assert host["CapDrop"] == ["ALL"] and not host["CapAdd"] and not host["Privileged"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Memory"] == host["MemorySwap"] == 160 << 20
    assert host["PidsLimit"] == 256 and host["NanoCpus"] == min(2, os.cpu_count() or 1) * 10**9
    assert {row["Name"] for row in host["Ulimits"]} == {"core", "msgqueue", "nofile"}
    assert host["IpcMode"] == "private" and host["LogConfig"]["Type"] == "none"
    assert there["Config"]["User"] == f"{UID}:{UID if os.geteuid() == 0 else os.getegid()}"
    labels = there["Config"]["Labels"]
    assert labels["org.oxydra.user"] == box.folder.name
    assert labels["org.oxydra.workspace"] == str(box.folder)
    assert labels["org.oxydra.role"] == "shell"
    mounted = {row["Destination"]: row["Source"] for row in there["Mounts"]}
    assert set(mounted) == {"/shared", "/tmp", "/run/oxydra/stream"}
    assert not list((box.folder / "ipc").iterdir())  # its door is gone


@docker
def test_the_limits_hold(box):
    assert box.text("id -u; id -g").split()[0] == str(UID)
    assert box.text("cat /proc/net/dev | tail -n +3 | wc -l") == "1\n"  # lo
    assert set(box.text("grep Cap /proc/self/status | cut -f2").split()) == {"0" * 16}
    assert "NoNewPrivs:\t1" in box.text("grep NoNewPrivs /proc/self/status")
    for place in ("/", "/usr", "/opt/oxydra", "/etc", "/run", "/dev"):
        assert box.run(f"touch {place}/x").exit_code != 0, place
    full = box.text("head -c 80000000 /dev/zero > /var/tmp/x; stat -c %s /var/tmp/x")
    assert int(full.split()[-1]) <= 64 << 20
    box.run("rm /var/tmp/x")
    shm = box.text("head -c 80000000 /dev/zero > /dev/shm/x; stat -c %s /dev/shm/x; rm /dev/shm/x")
    assert int(shm.split()[-1]) <= 16 << 20
    ran = box.run("python3 -c 'x = bytearray(1 << 29)'; echo code $?")
    assert b"code 137" in ran.output  # killed by the kernel: memory is full
    assert 100 < int(box.text(f"python3 -c '{CROWD}'", seconds=30)) < 256
    assert box.text("echo still here", conversation="other") == "still here\n"


@docker
def test_the_walls_hold_without_the_cage(client, box):
    """What the container alone stops, for a process that nothing else holds."""

    def run(code: str) -> str:
        made = client.exec_create(
            found(client, box)["Id"], ["python3", "-I", "-S", "-c", code], user=str(UID)
        )
        return client.exec_start(made["Id"]).decode()

    assert 100 < int(run(CROWD)) < 256
    assert run("import os; print(os.listdir('/sys/class/net'))") == "['lo']\n"
    assert "Network is unreachable" in run(CONNECT)
    assert "Read-only file system" in run("open('/opt/x', 'w')")
    assert "Permission denied" in run("open('/run/x', 'w')")
    assert "not permitted" in run("import os; os.setuid(0)")
    assert "No space left" in run("open('/var/tmp/x', 'wb').write(bytes(80 << 20))")
    assert run("x = bytearray(400 << 20); print(len(x))") == ""


CROWD = """
import os, time
count = 0
try:
    while count < 400:
        if os.fork() == 0:
            time.sleep(3)
            os._exit(0)
        count += 1
except BlockingIOError:
    pass
for _ in range(count):  # they count until somebody has waited for them
    os.wait()
print(count)
"""
CONNECT = "import socket; socket.create_connection(('172.17.0.1', 80), 2)"


@docker
@pytest.mark.parametrize("how", ["kill", "signal"])
def test_killed_from_outside(client, box, how):
    if how == "kill":
        client.kill(found(client, box)["Id"])
    else:
        os.kill(box.process.pid, signal.SIGKILL)
    assert box.process.wait() == "killed by SIGKILL"
    box.process.stop()
    box.process.stop()
    assert not leftovers(client, box.folder)


@docker
def test_it_ends_with_its_runner(tmp_path, client):
    """By the end of its line alone, whoever was holding that."""
    box = Sandbox(tmp_path, LEVEL)
    try:
        box.process._control.shutdown(socket.SHUT_RDWR)
        assert box.process.wait() == "exit 0"
    finally:
        box.close()
    assert not leftovers(client, tmp_path)


@docker
def test_what_was_left_behind_is_removed_and_nothing_else(tmp_path, client):
    mine, other = tmp_path / "alice", tmp_path / "elsewhere" / "alice"
    mine.mkdir()
    other.mkdir(parents=True)
    dead, living = Sandbox(mine, LEVEL), Sandbox(other, LEVEL)
    try:
        before = found(client, dead)["Id"]
        with sandbox(mine, LEVEL) as again:
            assert again.text("echo here") == "here\n"
            assert [row["Id"] for row in leftovers(client, mine)] != [before]
            assert len(leftovers(client, mine)) == 1
            assert living.text("echo there") == "there\n"
        remove(client, before)  # what is gone is no error
    finally:
        dead.close()
        living.close()
    assert not leftovers(client, mine) and not leftovers(client, other)


@docker
def test_an_image_that_is_missing_or_another(tmp_path, client):
    from dataclasses import replace

    given = isolation(tmp_path)
    for image, code in (("no-such:image", "image_missing"), (agent_image(), "image_outdated")):
        wrong = replace(given, guest_images=GuestImagesConfig(shell=image))
        with pytest.raises(OxydraError) as refused, sandbox(tmp_path, LEVEL, isolation=wrong):
            pytest.fail("it started")
        assert refused.value.code == code and "build-images" in refused.value.remedy
    assert not leftovers(client, tmp_path)
    assert not list((tmp_path / "ipc").iterdir())


@docker
def test_a_guest_that_ends_at_once(tmp_path, client):
    """Its folder is gone: nothing is left of the attempt, and the reason is told."""
    gone = [Folder(name, str(tmp_path / "nowhere" / name), True) for name in ("shared", "tmp")]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Sandbox(tmp_path, LEVEL, folders=gone)
    assert not leftovers(client, tmp_path)


# ----------------------------------------------------------------------------------- a whole daemon


def in_containers(home):
    """Have a home's daemon start its guests as containers of this checkout."""
    if "DOCKER_HOST" in REAL_ENVIRONMENT:
        home.env["DOCKER_HOST"] = REAL_ENVIRONMENT["DOCKER_HOST"]
    text = home.config.read_text().replace('default_tier = "process"', 'default_tier = "container"')
    images = f'[guest_images]\nagent = "{agent_image()}"\nshell = "{shell_image()}"'
    home.config.write_text(text.replace("[guest_images]", images))


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path)
    home.init()
    in_containers(home)
    home.env["OXYDRA__TOOLS__SHELL__ALLOW"] = "*"
    yield home
    done = home.command("stop")
    assert done.returncode in (0, 2, 3), done.stderr


def ask(home, tool, **arguments):
    return home.run("ask", SCRIPT % json.dumps([{"tool": tool, "arguments": arguments}]))


def came_back(home, name, before):
    def back():
        status = json.loads(home.command("status", "--json").stdout or "{}")
        startup = status.get("startup_status", {})
        return status.get(name) not in (None, 0, before) and startup.get("shell_available")

    eventually(back)


@docker
def test_a_daemon(home, client):
    begun = time.monotonic()
    home.run("start", "--detach")
    print(f"ready after {time.monotonic() - begun:.2f} s")
    status = home.status()
    startup = status["startup_status"]
    assert startup["sandbox_tier"] == "container" and startup["sandbox_level"] == LEVEL
    assert startup["agent_level"] == LEVEL
    assert {row["code"] for row in startup["degraded_reasons"]} <= {"no_model", "totals_uncapped"}
    rows = leftovers(client, home.workspace)
    assert {row["Labels"]["org.oxydra.role"] for row in rows} == {"agent", "shell"}
    for row in rows:
        places = {mount["Destination"] for mount in row["Mounts"]}
        inside = {"/shared", "/tmp", "/mnt/skills", "/run/oxydra/stream"}
        if row["Labels"]["org.oxydra.role"] == "agent":
            inside |= {"/vault", "/internal", "/run/oxydra/bootstrap"}
        assert places == inside

    (home.workspace / "shared" / "notes.txt").write_text("from outside\n")
    assert "from outside" in home.run("ask", "read the file /shared/notes.txt")
    ask(home, "file_write", path="/shared/made.txt", content="by a tool")
    said = ask(home, "shell_exec", command="cat /shared/made.txt; pwd; ls /vault /internal")
    assert "by a tool" in said and "/shared" in said and "No such file" in said
    assert (home.workspace / "shared" / "made.txt").read_text() == "by a tool"
    skill = "/mnt/skills/daily-report/SKILL.md"
    said = ask(home, "shell_exec", command=f"head -2 {skill}; echo x > {skill} && echo spoiled")
    assert "name: daily-report" in said and "Read-only file system" in said

    home.run("stop")
    assert not leftovers(client, home.workspace)
    assert not [p.name for p in (home.workspace / "ipc").iterdir() if p.name.startswith(".")]


@docker
@pytest.mark.parametrize("kind", ["openai", "openai_responses", "anthropic", "gemini"])
def test_a_provider_is_asked_through_the_broker(home, kind):
    """Whatever a guest imports for it lies where its cage lets it read; so for tool workers."""
    recorded = {"openai_responses": "responses"}.get(kind, kind)
    body = (ROOT / "tests" / "fixtures" / f"{recorded}_text.sse").read_bytes()
    with FakeModel() as fake:
        home.add(
            "providers.toml",
            f'[providers.registry.mine]\nprovider_type = "{kind}"\n'
            f'base_url = "{fake.origin}/v1"\napi_key = "sk-of-the-runners-own"\n',
        )
        (home.folder / "providers.toml").chmod(0o600)
        home.env |= {"OXYDRA__SELECTION__PROVIDER": "mine", "OXYDRA__SELECTION__MODEL": "m"}
        fake.send(Reply([body]))
        home.run("start", "--detach")
        assert home.run("ask", "hello").strip()
        sent = fake.requests[0]
        assert "sk-of-the-runners-own" in str(sent.headers)
        assert b"hello" in sent.raw


@docker
def test_a_tool_worker_works_in_a_container(home):
    home.run("start", "--detach")
    (home.workspace / "shared" / "notes.txt").write_text("needle 42\n")
    assert "notes.txt" in ask(home, "file_search", pattern="need.e [0-9]+", regex=True)
    assert home.status()["startup_status"]["worker_level"] == "cage"


@docker
def test_containers_that_are_killed_come_back(home, client):
    home.run("start", "--detach")
    for role, name in (("shell", "shell_pid"), ("agent", "guest_pid")):
        before = home.status()[name]
        (row,) = (
            row
            for row in leftovers(client, home.workspace)
            if row["Labels"]["org.oxydra.role"] == role
        )
        client.kill(row["Id"])
        came_back(home, name, before)
        assert "here" in ask(home, "shell_exec", command="echo here")
    status = home.status()
    assert (status["guest_restarts"], status["shell_restarts"]) == (1, 1)
    assert "SIGKILL" in status["last_guest_end"]
    assert len(leftovers(client, home.workspace)) == 2


@docker
def test_a_killed_runner(home, client):
    home.run("start", "--detach")
    status = home.status()
    session = json.loads(home.run("ask", "hello", "--json"))["session"]["session_id"]
    os.kill(status["runner_pid"], signal.SIGKILL)
    home.run("start", "--detach")
    assert home.status()["healthy"]
    again = json.loads(home.run("ask", "hello", "--json", "--session", session))
    assert again["session"]["session_id"] == session
    assert len(leftovers(client, home.workspace)) == 2
    os.kill(home.status()["runner_pid"], signal.SIGKILL)

    def ended():
        return all(row["State"] == "exited" for row in leftovers(client, home.workspace))

    eventually(ended)  # by themselves
    for row in leftovers(client, home.workspace):
        remove(client, row["Id"])


@docker
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may search another process's memory")
def test_no_key_is_in_any_guest(home):
    """Not in an environment, a file, the arguments, or the memory of any process."""
    canary = "".join(["7f3a", "91bc", "e2d4", "0c55"])
    key = f"sk-{canary}"
    home.env["OPENAI_API_KEY"] = key
    home.run("start", "--detach")
    home.command("ask", "hello")  # the request with the key is the broker's
    status = home.status()
    assert status["model"]["provider"] == "openai"
    seen = 0
    for root in (status["guest_pid"], status["shell_pid"]):
        for pid in guest_processes(root):
            seen += 1
            assert not memory_holds(pid, canary.encode()), pid
            for name in ("environ", "cmdline", "mountinfo", "status"):
                assert canary.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
        for place in ("shared", "tmp", "internal", "vault", "run", "var/tmp", "dev/shm", "etc"):
            for folder, _folders, files in os.walk(f"/proc/{root}/root/{place}"):
                for name in files:
                    path = Path(folder, name)
                    if path.is_file() and not path.is_symlink():
                        assert canary.encode() not in path.read_bytes(), path
    assert seen >= 4
    assert memory_holds(status["runner_pid"], canary.encode())  # the search finds what is there


@docker
def test_the_engine_is_gone(home, tmp_path):
    given = dict(home.env)
    home.env["DOCKER_HOST"] = f"unix://{tmp_path}/none.sock"
    assert "engine is not running" in home.fails("start", "--detach")
    assert not list((home.workspace / "ipc").glob(".*"))
    home.env["DOCKER_HOST"] = "tcp://127.0.0.1:9"
    assert "does not cross a network" in home.fails("start", "--detach")
    home.env = given
    config = home.config.read_text()
    home.config.write_text(config.replace(agent_image(), "no-such:image"))
    assert "guest/build-images" in home.fails("start", "--detach")
    home.config.write_text(config)
    home.run("start", "--detach")
    assert home.status()["healthy"]
