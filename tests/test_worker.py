"""Tool workers: that jobs are done, that nothing makes one hang its caller, and what cages hold."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oxydra.cage import Features
from oxydra.errors import Cancelled, DeadlineExceeded, ToolError
from oxydra.threads import CancelToken, Deadline, Service
from oxydra.worker import Workers, pool
from oxydra.worker.pool import WorkerConfig
from tests.conftest import eventually
from tests.pdfs import bomb, pdf

FOREVER = {"pattern": "(a+)+$", "ignore_case": False, "limit": 5, "line_chars": 100}
TRAP = b"a" * 60 + b"b"
PAGE = {"url": "https://example.org/a/b", "charset": "utf-8", "limit": 100_000}


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(WorkerConfig(children=2))
    yield made
    made.stop()


def run(
    workers: Workers,
    job: str,
    arguments: dict[str, Any],
    data: bytes | str = b"",
    *,
    lane: Any = "web",
    seconds: float = 60,
    token: CancelToken | None = None,
) -> dict[str, Any]:
    raw = data.encode() if isinstance(data, str) else data
    forever = Deadline.after(None)
    token = token or CancelToken()
    return workers.run(
        job, arguments, raw, lane=lane, seconds=seconds, deadline=forever, token=token
    )


def search(workers: Workers, pattern: str, data: bytes, **more: Any) -> list[Any]:
    arguments = {**FOREVER, "pattern": pattern, **more.pop("arguments", {})}
    return list(run(workers, "regex_search", arguments, data, **more)["hits"])


def pids(workers: Workers) -> list[int]:
    return [child._process.pid for child in workers._all]


# ---------------------------------------------------------------------------------------- the jobs


def test_regex_search(workers: Workers) -> None:
    data = b"one\r\ntwo 22\nthree \xff 333\nfour 4444"
    assert search(workers, r"\d{2,}$", data) == [
        [2, "two 22"],
        [3, "three \ufffd 333"],
        [4, "four 4444"],
    ]
    assert search(workers, "ONE", data) == []
    assert search(workers, "ONE", data, arguments={"ignore_case": True}) == [[1, "one"]]
    assert len(search(workers, ".", data, arguments={"limit": 2})) == 2
    long = b"x" * 1000 + b"needle" + b"y" * 1000
    (hit,) = search(workers, "ne+dle", long)
    assert "needle" in hit[1] and len(hit[1]) <= 100
    with pytest.raises(ToolError, match="unterminated"):
        search(workers, "(a", data)


def markdown(workers: Workers, html: str | bytes, **more: Any) -> dict[str, Any]:
    return run(workers, "html_to_markdown", {**PAGE, **more}, html)


def test_a_page_becomes_markdown(workers: Workers) -> None:
    found = markdown(
        workers,
        """<!doctype html><title> A &amp; B </title><style>p{}</style>
        <script>let x = "<p>no"</script>
        <nav><a href=/n>Navigation</a></nav><main><h1>Head <small>line</small></h1>
        <p>Some <b>bold</b>, <i>slanted</i> and <code>code</code> text, a <a href="c?d=1#e">link</a>
        and <a href="javascript:alert(1)">none</a>.<br>Next line.</p>
        <ul><li>one<ul><li>inner</ul><li>two</ul><ol start=3><li>c<li>d</ol>
        <blockquote><p>quoted</blockquote><pre><code>if x:
    y()</code></pre>
        <table><tr><th>a<th>b<tr><td>1|2<td><a href=/q>q</a></table>
        <img src=x.png alt="a picture"><p hidden>HIDDEN</p><p style="display:none">HIDDEN</p>
        <noscript>HIDDEN</noscript><template>HIDDEN</template><svg><text>HIDDEN</text></svg></main>
        <footer>Footer</footer>""",
    )
    assert found["title"] == "A & B"
    assert found["text"] == "\n".join(
        [
            "# Head line",
            "",
            "Some **bold**, *slanted* and `code` text, a [link](https://example.org/a/c?d=1#e) "
            "and none.",
            "Next line.",
            "",
            *("- one", "  - inner", "- two", "", "3. c", "4. d", "", "> quoted", ""),
            *("```", "if x:", "    y()", "```", ""),
            *("| a | b |", "| --- | --- |", "| 1\\|2 | [q](https://example.org/q) |", ""),
            "[image: a picture]",
        ]
    )


def test_the_part_of_a_page_that_says_something_is_taken(workers: Workers) -> None:
    said = "A sentence that says something. " * 10
    page = f"<body><nav>NAV</nav><div><article><p>{said}</article></div><p>RELATED</body>"
    assert markdown(workers, page)["text"] == said.strip()
    two = f"<nav>NAV</nav><article>{said}</article><article>other</article><footer>F</footer>"
    text = markdown(workers, two)["text"]
    assert "other" in text and "NAV" not in text
    small = "<main></main><nav>only a menu</nav>"
    assert markdown(workers, small)["text"] == "only a menu"
    scripted = markdown(workers, "<div id=app></div><script src=app.js></script>")
    assert scripted["scripted"] and scripted["text"] == ""


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>a<b>b</p>c</b>d", "a**b**\n\n**c**d"),
        ("<table><td>x</table>y", "x\n\ny"),
        ("<li>loose<li>items", "- loose\n- items"),
        ("</p></div></a>z", "z"),
        ("<a href='http://[::1'>broken</a> <a href=''>empty</a>", "broken empty"),
        ("<a href=x><p>block</p></a>after", "block\n\nafter"),
        ("<table><tr><td><table><tr><td>in</table></table>out", "in\n\nout"),
        ("<h2></h2><p>  a \n b  </p><b></b>", "a b"),
        ("&#0;&#xD800;&#x202e;x", "\ufffd\ufffd\u202ex"),
        ("", ""),
    ],
)
def test_broken_html_is_read_all_the_same(workers: Workers, html: str, text: str) -> None:
    assert markdown(workers, html)["text"] == text


def test_charsets(workers: Workers) -> None:
    assert markdown(workers, "é".encode("latin-1"), charset="iso-8859-1")["text"] == "é"
    declared = b'<meta charset="koi8-r"><p>' + "мир".encode("koi8-r")
    assert markdown(workers, declared, charset="")["text"] == "мир"
    assert markdown(workers, b"\xef\xbb\xbfx", charset="")["text"] == "x"


def test_a_deeply_nested_page_costs_no_more_than_its_time(workers: Workers) -> None:
    assert markdown(workers, "<div>" * 3000 + "deep")["text"] == "deep"
    assert "deep" in markdown(workers, "<ul><li>" * 1000 + "deep")["text"]
    assert "deep" in markdown(workers, "<blockquote>" * 1000 + "deep")["text"]


def test_pdf(workers: Workers) -> None:
    found = run(workers, "pdf_to_text", {"limit": 10_000}, pdf("Hello page one", "And two"))
    assert (found["pages"], found["read"]) == (2, 2)
    assert "Hello page one" in found["text"] and "--- page 2 of 2 ---\nAnd two" in found["text"]
    cut = run(workers, "pdf_to_text", {"limit": 5}, pdf("Hello page one", "And two"))
    assert (cut["pages"], cut["read"]) == (2, 1)
    for broken in (b"%PDF-1.7 nonsense", pdf("x")[:-200], b"", os.urandom(5000)):
        try:
            run(workers, "pdf_to_text", {"limit": 5}, broken)
        except ToolError as error:
            assert "PDF" in str(error)


def test_search_results(workers: Workers) -> None:
    html = """<div class="result results_links result--ad"><h2><a class="result__a"
      href="//duckduckgo.com/y.js?ad_domain=x.com&u3=https%3A%2F%2Fx.com">An ad</a></h2></div>
    <div class="result"><h2><a rel="nofollow" class="result__a"
      href="//duckduckgo.com/l/?uddg=https%3A%2F%2Fexample.org%2Fa%3Fb%3Dc&amp;rut=1"
      >One <b>title</b></a></h2>
      <a class="result__snippet" href="//duckduckgo.com/l/?uddg=x">What <b>it</b> says</a></div>
    <div class="result"><a class="result__a" href="https://other.org/">Two</a></div>
    <a class="result__a" href="javascript:x">Three</a><a class="result__a" href="http://[::1">4</a>"""
    found = run(workers, "duckduckgo_results", {"limit": 10}, html)
    assert found["results"] == [
        ["One title", "https://example.org/a?b=c", "What it says"],
        ["Two", "https://other.org/", ""],
    ]
    blocked = '<div class="anomaly-modal__mask">Select all squares with a duck</div>'
    assert run(workers, "duckduckgo_results", {"limit": 10}, blocked) == {
        "results": [],
        "blocked": True,
    }


# ----------------------------------------------------------------------------------- their keeper


def test_nothing_starts_before_it_is_needed_and_nothing_is_left(workers: Workers) -> None:
    assert pids(workers) == [] and workers.level in ("cage", "rlimits")
    assert pids(workers) == []
    search(workers, "a", b"a")
    search(workers, "a", b"a")
    (pid,) = pids(workers)
    assert workers.level in ("cage", "rlimits")
    workers.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ToolError, match="stopping"):
        search(workers, "a", b"a")
    workers.stop()


def test_a_pattern_without_an_end_is_killed_and_the_next_search_works(workers: Workers) -> None:
    search(workers, "a", b"a")
    (pid,) = pids(workers)
    with pytest.raises(DeadlineExceeded):
        run(workers, "regex_search", FOREVER, TRAP, seconds=0.3)
    assert pid not in pids(workers)
    assert search(workers, "a", b"a") == [[1, "a"]]


@pytest.mark.parametrize(
    ("job", "arguments", "data"),
    [
        ("html_to_markdown", PAGE, b"<div>" * 300_000),
        ("html_to_markdown", PAGE, b"<" * 5_000_000),
        ("html_to_markdown", PAGE, b"<a href=x>" * 200_000),
        ("pdf_to_text", {"limit": 10_000}, bomb(64 << 20)),
    ],
    ids=["nested", "open", "links", "pdf"],
)
def test_a_bomb_is_killed_and_the_next_job_works(
    workers: Workers, job: str, arguments: dict[str, Any], data: bytes
) -> None:
    search(workers, "a", b"a")
    (pid,) = pids(workers)
    with pytest.raises(DeadlineExceeded):
        run(workers, job, arguments, data, seconds=0.5)
    assert pid not in pids(workers)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert search(workers, "a", b"a") == [[1, "a"]]


def test_cancelling_ends_a_job_at_once(workers: Workers) -> None:
    token = CancelToken()
    failures: list[BaseException] = []

    def work(_: Service) -> None:
        try:
            run(workers, "regex_search", FOREVER, TRAP, token=token)
        except Cancelled as error:
            failures.append(error)

    service = Service("search", work).start()
    eventually(lambda: any(child.jobs for child in list(workers._all)), what="the job began")
    token.cancel("changed my mind")
    assert service.stop(10)
    assert len(failures) == 1 and pids(workers) == []
    with pytest.raises(Cancelled):
        run(workers, "regex_search", FOREVER, TRAP, token=token)


def test_there_are_never_more_children_than_allowed(workers: Workers) -> None:
    most = 0
    done: list[Any] = []
    lock = threading.Lock()

    def work(_: Service) -> None:
        nonlocal most
        for _turn in range(5):
            found = search(workers, "a+", b"aaa", lane="files")
            with lock:
                done.append(found)
                most = max(most, len(pids(workers)))

    services = [Service(f"search-{n}", work).start() for n in range(6)]
    assert all(service.stop(60) for service in services)
    assert done == [[[1, "aaa"]]] * 30 and most <= 2


def test_waiting_for_a_child_ends_with_the_deadline_and_with_stop(workers: Workers) -> None:
    def work(_: Service) -> None:
        with pytest.raises((ToolError, DeadlineExceeded)):
            run(workers, "regex_search", FOREVER, TRAP)

    services = [Service(f"busy-{n}", work).start() for n in range(2)]
    eventually(lambda: sum(child.jobs for child in list(workers._all)) == 2, what="both are busy")
    with pytest.raises(DeadlineExceeded, match="free"):
        run(workers, "regex_search", FOREVER, b"a", seconds=0.1)
    workers.stop()
    assert all(service.stop(10) for service in services)


def test_lanes_do_not_share_a_child(workers: Workers) -> None:
    search(workers, "a", b"a", lane="web")
    search(workers, "a", b"a", lane="files")
    assert len(pids(workers)) == 2
    only = Workers(WorkerConfig(children=1))
    try:
        search(only, "a", b"a", lane="web")
        first = pids(only)
        search(only, "a", b"a", lane="files")
        assert len(pids(only)) == 1 and pids(only) != first
    finally:
        only.stop()


def test_a_child_that_died_meanwhile_is_replaced_unnoticed(workers: Workers) -> None:
    search(workers, "a", b"a")
    (pid,) = pids(workers)
    os.kill(pid, 9)
    assert search(workers, "a", b"a") == [[1, "a"]]
    assert pids(workers) != [pid]


def test_an_idle_child_ends_by_itself() -> None:
    workers = Workers(WorkerConfig(idle_seconds=0.05))

    def found() -> bool:
        try:
            return search(workers, "a", b"a") == [[1, "a"]]
        except ToolError:  # a new one had been idle for that long before it was asked
            return False

    try:
        eventually(found)
        (child,) = workers._all
        assert child._process.wait(60) == 0
        eventually(found)
    finally:
        workers.stop()


def test_a_child_is_replaced_after_many_jobs(
    monkeypatch: pytest.MonkeyPatch, workers: Workers
) -> None:
    monkeypatch.setattr(pool, "JOBS_PER_CHILD", 2)
    search(workers, "a", b"a")
    first = pids(workers)
    search(workers, "a", b"a")
    assert pids(workers) == []
    search(workers, "a", b"a")
    assert pids(workers) != first


def test_what_needs_too_much_memory_fails_and_no_more() -> None:
    workers = Workers(WorkerConfig(memory=64 << 20))
    try:
        with pytest.raises((ToolError, DeadlineExceeded)):
            search(workers, "a", b"\n" * (60 << 20), seconds=60)
        assert search(workers, "a", b"a") == [[1, "a"]]
    finally:
        workers.stop()


# --------------------------------------------------------------------------------------- the cage

ATTEMPTS = '''
import os, socket, subprocess, sys, threading, ctypes, signal

def attempt(arguments, data):
    """Do one thing that a job must not be able to do; {"done": ...} if it could."""
    what, path, pid = arguments["what"], arguments["path"], arguments["pid"]
    try:
        return {"done": repr(globals()[what](path, pid))}
    except (OSError, RuntimeError, ValueError, MemoryError, ImportError) as error:
        return {"refused": type(error).__name__}

def read(path, pid): return open(path).read()
def listing(path, pid): return os.listdir(os.path.dirname(path))
def passwd(path, pid): return open("/etc/passwd").read()
def through_proc(path, pid): return open("/proc/self/root" + path).read()
def environ(path, pid): return open(f"/proc/{pid}/environ", "rb").read()
def memory(path, pid): return open(f"/proc/{pid}/mem", "rb").read(1)
def descriptors(path, pid): return os.listdir(f"/proc/{pid}/fd")
def write(path, pid): return open(path, "w")
def create(path, pid): return open(path + ".new", "w")
def scratch(path, pid): return open("/tmp/oxydra-escape", "w")
def remove(path, pid): return os.unlink(path)
def rename(path, pid): return os.rename(path, path + ".moved")
def link(path, pid): return os.link(path, path + ".link")
def chmod(path, pid): return os.chmod(path, 0o777)
def times(path, pid): return os.utime(path)
def truncate(path, pid): return os.truncate(path, 0)
def tcp(path, pid): return socket.socket(socket.AF_INET)
def udp(path, pid): return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
def tcp6(path, pid): return socket.socket(socket.AF_INET6)
def unix(path, pid): return socket.socket(socket.AF_UNIX)
def vsock(path, pid): return socket.socket(40, socket.SOCK_STREAM)
def netlink(path, pid): return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
def raw(path, pid): return socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
def run(path, pid): return subprocess.run(["/bin/true"])
def become(path, pid): return os.execv("/bin/true", ["true"])
def kill(path, pid): return os.kill(pid, signal.SIGKILL)
def stop(path, pid): return os.kill(pid, signal.SIGSTOP)
def trace(path, pid):
    if ctypes.CDLL(None).ptrace(16, pid, 0, 0) < 0: raise OSError
def namespace(path, pid):
    if ctypes.CDLL(None).unshare(0x10000000) < 0: raise OSError
def much(path, pid): return len(bytearray(1 << 30))
def fork(path, pid):
    child = os.fork()
    if child == 0: os._exit(0)
    os.waitpid(child, 0)
def thread(path, pid):
    t = threading.Thread(target=int); t.start(); t.join()
'''
EVERYWHERE = ("fork", "thread")  # root is not bound by RLIMIT_NPROC
NAMES = [
    line.split()[1].split("(")[0]
    for line in ATTEMPTS.splitlines()
    if line.startswith("def ") and "(path, pid)" in line
]


class Caged:
    """One child that does what a test's own file says."""

    def __init__(self, folder: Path, cage: str = "") -> None:
        jobs = folder / "attempts.py"
        jobs.write_text(ATTEMPTS)
        folder.chmod(0o755)
        self.secret = folder / "secret.txt"
        self.secret.write_text("the secret")
        ours, theirs = socket.socketpair()
        self.stream = ours
        setup = {**pool._setup(), "fd": theirs.fileno(), "memory": 256 << 20, "idle_seconds": 30}
        setup["cage"] = cage or setup["cage"]
        setup["jobs"] = {"attempt": [str(jobs), "attempt"]}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-IS", str(pool._program()), json.dumps(setup)],
                env={},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self.level = self.answer()["level"]

    def attempt(self, what: str) -> dict[str, Any]:
        arguments = {"what": what, "path": str(self.secret), "pid": os.getpid()}
        head = json.dumps({"job": "attempt", "arguments": arguments, "seconds": 20}).encode()
        self.stream.sendall(struct.pack(">II", len(head), 0) + head)
        answer = self.answer()
        return dict(answer.get("result", answer))

    def answer(self) -> dict[str, Any]:
        file = self.stream.makefile("rb")
        head = file.read(8)
        if len(head) < 8:
            return {"error": "it ended"}
        found: dict[str, Any] = json.loads(file.read(struct.unpack(">II", head)[0]))
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stream.close()


@pytest.fixture(scope="module")
def caged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caged]:
    made = Caged(tmp_path_factory.mktemp("caged"))
    yield made
    made.close()


def test_what_does_not_hold_is_said(monkeypatch: pytest.MonkeyPatch, caged: Caged) -> None:
    assert Workers().level == caged.level  # as a child finds it, though none was started
    monkeypatch.setattr("oxydra.cage.probe", lambda: Features(landlock=0, seccomp=True))
    weak = Workers()
    assert weak.level == "rlimits"
    assert [row["code"] for row in weak.degraded()] == ["workers_uncaged"]
    monkeypatch.setattr("oxydra.cage.probe", lambda: Features(landlock=1, seccomp=True))
    strong = Workers()
    assert (strong.level, strong.degraded()) == ("cage", [])


@pytest.mark.parametrize("what", NAMES)
def test_a_broken_job_gets_nowhere(caged: Caged, what: str) -> None:
    if caged.level != "cage":
        pytest.skip("this kernel has no Landlock or no seccomp")
    if what in EVERYWHERE and os.geteuid() == 0:
        pytest.skip("root is not bound by RLIMIT_NPROC")
    answer = caged.attempt(what)
    assert "done" not in answer, f"{what} was possible: {answer}"
    assert caged.secret.read_text() == "the secret"
    assert sorted(path.name for path in caged.secret.parent.iterdir()) == [
        "attempts.py",
        "secret.txt",
    ]
    if caged.process.poll() is not None:  # it was ended for it, which is as good
        pytest.fail(f"{what} ended the child: {answer}")


NO_CAGE = """
class Limits:
    def __init__(self, **_): pass
class probe:
    files = seccomp = False
def limit(_): pass
def forbid_privileges(): pass
"""


def test_the_attempts_are_real(tmp_path: Path) -> None:
    """Without a cage they succeed: a refusal above is the cage's doing."""
    (tmp_path / "cage.py").write_text(NO_CAGE)
    free = Caged(tmp_path, str(tmp_path / "cage.py"))
    try:
        assert free.level == "rlimits"
        for what in ("passwd", "tcp", "udp", "unix", "run", "fork", "thread"):
            assert "done" in free.attempt(what), what
    finally:
        free.close()


def test_a_child_knows_no_secret(monkeypatch: pytest.MonkeyPatch, workers: Workers) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789")
    search(workers, "a", b"a")
    (pid,) = pids(workers)
    if not Path("/proc/self/environ").exists():
        pytest.skip("no /proc")
    assert b"canary" not in Path(f"/proc/{pid}/environ").read_bytes()
    open_files = {os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")}
    assert {name.split(":")[0] for name in open_files} == {"/dev/null", "socket"}


def test_it_runs_without_the_libraries_of_others(workers: Workers) -> None:
    """The jobs' two libraries are all that a child can import besides the standard library."""
    setup = pool._setup()
    assert set(setup["libraries"]) == set(pool.LIBRARIES)
    assert all(Path(folder, "__init__.py").is_file() for folder in setup["libraries"].values())
