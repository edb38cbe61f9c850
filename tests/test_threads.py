"""threads: deadlines, cancellation, inboxes, services, parallel jobs."""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxydra import threads
from oxydra.errors import Cancelled, DeadlineExceeded
from oxydra.threads import CancelToken, Deadline, Inbox, InboxClosed, Service, parallel

ROOT = Path(__file__).resolve().parent.parent
LONG = 20.0  # seconds nothing here should ever take


class TestDeadline:
    def test_none_never_comes(self) -> None:
        deadline = Deadline.after(None)
        assert not deadline.expired
        assert deadline.timeout() is None
        assert deadline.timeout(3.0) == 3.0
        deadline.check("nothing")

    def test_past(self) -> None:
        deadline = Deadline.after(-1)
        assert deadline.expired
        assert deadline.remaining() == 0.0
        assert deadline.timeout(3.0) == 0.0
        with pytest.raises(DeadlineExceeded, match="the tea did not finish"):
            deadline.check("the tea")

    def test_the_nearer_of_limit_and_deadline(self) -> None:
        assert Deadline.after(1000).timeout(5) == 5
        left = Deadline.after(1000).timeout(5000)
        assert left is not None and left <= 1000

    def test_a_far_deadline_is_a_valid_timeout(self) -> None:
        event = threading.Event()
        event.set()
        assert event.wait(Deadline.after(1e15).timeout())


class TestCancelToken:
    def test_first_reason_stays(self) -> None:
        token = CancelToken()
        token.check()
        token.cancel("the user pressed stop")
        token.cancel("later")
        assert token.cancelled
        with pytest.raises(Cancelled, match="the user pressed stop"):
            token.check()

    def test_wait(self) -> None:
        token = CancelToken()
        assert token.wait(0) is False
        token.cancel()
        assert token.wait(LONG) is True

    def test_wakes_a_blocked_read(self) -> None:
        near, far = socket.socketpair()
        token, blocked = CancelToken(), threading.Event()
        got: list[bytes] = []

        def read(_service: Service) -> None:
            with token.on_cancel(lambda: near.shutdown(socket.SHUT_RDWR)):
                blocked.set()
                got.append(near.recv(1))

        with near, far:
            reader = Service("reader", read).start()
            assert blocked.wait(LONG)
            token.cancel()
            assert reader.stop(LONG)
        assert got == [b""]

    def test_wake_is_called_at_once_when_already_cancelled(self) -> None:
        token, calls = CancelToken(), []
        token.cancel()
        with token.on_cancel(lambda: calls.append(1)):
            assert calls == [1]
        assert calls == [1]

    def test_no_wake_after_the_block(self) -> None:
        token, calls = CancelToken(), []
        with token.on_cancel(lambda: calls.append(1)):
            pass
        token.cancel()
        assert calls == []

    def test_each_wake_once_however_often_cancelled(self) -> None:
        token, calls = CancelToken(), []
        with token.on_cancel(lambda: calls.append(1)), token.on_cancel(lambda: calls.append(2)):
            token.cancel()
            token.cancel()
        assert sorted(calls) == [1, 2]

    def test_a_failing_wake_does_not_keep_the_others(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        token, calls = CancelToken(), []

        def fail() -> None:
            raise OSError("already closed")

        with token.on_cancel(fail), token.on_cancel(lambda: calls.append(1)):
            token.cancel()
        assert calls == [1]
        assert "already closed" in caplog.text

    def test_leaving_the_block_waits_for_a_wake_under_way(self) -> None:
        token = CancelToken()
        in_wake, release, left = threading.Event(), threading.Event(), threading.Event()
        entered = threading.Event()
        order: list[str] = []

        def wake() -> None:
            in_wake.set()
            release.wait(LONG)
            order.append("woken")

        def block(_service: Service) -> None:
            with token.on_cancel(wake):
                entered.set()
                in_wake.wait(LONG)
            order.append("left")
            left.set()

        blocker = Service("blocker", block).start()
        assert entered.wait(LONG)
        canceller = Service("canceller", lambda _s: token.cancel()).start()
        assert in_wake.wait(LONG)
        assert not left.wait(0.05)
        release.set()
        assert blocker.stop(LONG) and canceller.stop(LONG)
        assert order == ["woken", "left"]

    def test_child_follows_parent_not_the_reverse(self) -> None:
        parent = CancelToken()
        with parent.child() as child, parent.child() as sibling:
            child.cancel("alone")
            assert not parent.cancelled and not sibling.cancelled
            parent.cancel("all")
            assert child.reason == "alone"
            assert sibling.cancelled and sibling.reason == "all"
        with parent.child() as late:
            assert late.cancelled and late.reason == "all"

    def test_a_child_outlives_its_block_untouched(self) -> None:
        parent = CancelToken()
        with parent.child() as child:
            pass
        parent.cancel()
        assert not child.cancelled


class TestInbox:
    def test_order_and_bound(self) -> None:
        inbox: Inbox[int] = Inbox(2)
        assert inbox.put(1) and inbox.put(2)
        assert not inbox.put(3)
        assert len(inbox) == 2
        assert [inbox.get(), inbox.get()] == [1, 2]
        with pytest.raises(TimeoutError):
            inbox.get(0)

    def test_closing_keeps_what_is_in_it(self) -> None:
        inbox: Inbox[int] = Inbox(5)
        inbox.put(1)
        inbox.close()
        inbox.close()
        assert not inbox.put(2)
        assert inbox.get() == 1
        with pytest.raises(InboxClosed):
            inbox.get()

    def test_closing_wakes_every_waiter(self) -> None:
        inbox: Inbox[int] = Inbox(1)
        ended: list[int] = []

        def take(_service: Service) -> None:
            with pytest.raises(InboxClosed):
                inbox.get()
            ended.append(1)

        takers = [Service(f"taker-{i}", take).start() for i in range(3)]
        inbox.close()
        assert all(taker.stop(LONG) for taker in takers)
        assert ended == [1, 1, 1]

    def test_nothing_is_lost_or_doubled_between_threads(self) -> None:
        inbox: Inbox[int] = Inbox(10_000)
        taken: list[int] = []
        lock = threading.Lock()

        def take(_service: Service) -> None:
            try:
                while True:
                    item = inbox.get()
                    with lock:
                        taken.append(item)
            except InboxClosed:
                return

        takers = [Service(f"taker-{i}", take).start() for i in range(4)]
        parallel(
            "put", [lambda i=i: [inbox.put(i * 1000 + n) for n in range(1000)] for i in (0, 1)]
        )
        inbox.close()
        assert all(taker.stop(LONG) for taker in takers)
        assert sorted(taken) == list(range(2000))


class TestService:
    def test_runs_named_and_stops(self) -> None:
        names: list[str] = []

        def run(service: Service) -> None:
            names.append(threading.current_thread().name)
            service.stopping.wait()

        service = Service("parrot", run)
        assert not service.alive and service.ident is None
        assert service.start() is service
        assert service.alive and service.ident is not None
        assert service.stop(LONG)
        assert service.stop(LONG), "a second stop says the same"
        assert not service.alive
        assert names == ["oxydra-parrot"]

    def test_start_waits_for_setup_which_runs_on_the_thread(self) -> None:
        idents: list[int | None] = []
        service = Service(
            "s",
            lambda s: s.stopping.wait(),  # type: ignore[arg-type, return-value]
            setup=lambda: idents.append(threading.get_ident()),
        ).start()
        assert idents == [service.ident]
        assert service.stop(LONG)

    def test_start_raises_what_setup_raised_and_leaves_nothing(self) -> None:
        ran: list[int] = []

        def setup() -> None:
            raise OSError("the port is taken")

        service = Service("s", lambda _s: ran.append(1), setup=setup)
        with pytest.raises(OSError, match="the port is taken"):
            service.start()
        assert not service.alive and ran == []
        assert service.stop(LONG)

    def test_a_late_setup_finds_stopping_set(self) -> None:
        release = threading.Event()
        found: list[bool] = []
        service = Service(
            "late",
            lambda s: found.append(s.stopping.is_set()),
            setup=lambda: bool(release.wait(LONG)) and None,
        )
        with pytest.raises(DeadlineExceeded, match="late was not ready"):
            service.start(timeout=0.01)
        release.set()
        assert service.stop(LONG)
        assert found == [True]

    def test_starts_once(self) -> None:
        service = Service("s", lambda _s: None).start()
        with pytest.raises(RuntimeError, match="already started"):
            service.start()
        assert service.stop(LONG)

    def test_stop_before_start(self) -> None:
        assert Service("s", lambda _s: None).stop()

    def test_stop_wakes_the_blocking_call(self) -> None:
        near, far = socket.socketpair()
        service = Service(
            "reader", lambda _s: bool(near.recv(1)) and None, wake=lambda: near.shutdown(2)
        )
        with near, far:
            service.start()
            assert service.stop(LONG)

    def test_a_failing_wake_is_logged_and_the_thread_still_joined(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def wake() -> None:
            raise OSError("not connected")

        service = Service("s", lambda s: bool(s.stopping.wait()) and None, wake=wake).start()
        assert service.stop(LONG)
        assert "not connected" in caplog.text

    def test_a_death_is_loud_and_told(self, caplog: pytest.LogCaptureFixture) -> None:
        deaths: list[BaseException] = []

        def run(_service: Service) -> None:
            raise ZeroDivisionError("boom")

        service = Service("mortal", run, on_death=deaths.append).start()
        assert service.stop(LONG)
        assert [type(death) for death in deaths] == [ZeroDivisionError]
        assert "thread mortal died" in caplog.text
        assert "boom" in caplog.text

    def test_a_straggler_is_reported_with_its_stack(self, caplog: pytest.LogCaptureFixture) -> None:
        release = threading.Event()

        def hold_out(_service: Service) -> None:
            release.wait(LONG)

        service = Service("straggler", hold_out).start()
        with caplog.at_level(logging.ERROR):
            assert service.stop(0.01) is False
        assert "straggler did not end" in caplog.text
        assert "hold_out" in caplog.text
        release.set()
        assert service.stop(LONG)


class TestParallel:
    @pytest.mark.parametrize("count", [0, 1, 2, 7])
    def test_results_in_order(self, count: int) -> None:
        assert parallel("p", [lambda n=n: n * n for n in range(count)]) == [  # type: ignore[misc]
            n * n for n in range(count)
        ]

    def test_side_by_side(self) -> None:
        barrier = threading.Barrier(3, timeout=LONG)
        assert sorted(parallel("p", [barrier.wait] * 3)) == [0, 1, 2]

    def test_the_first_failure_after_all_have_ended(self) -> None:
        ended: list[int] = []

        def fail(error: Exception) -> int:
            raise error

        def end() -> int:
            ended.append(1)
            return 1

        jobs = [end, lambda: fail(ValueError("one")), lambda: fail(KeyError("two")), end]
        with pytest.raises(ValueError, match="one"):
            parallel("p", jobs)
        assert ended == [1, 1]


HEAPS = """
import ctypes, sys, threading
from oxydra.threads import share_heap
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
if sys.argv[1] == "shared":
    share_heap()
there = threading.Barrier(4)
def fill():
    kept = [b"x" * 50_000 for _ in range(20)]
    there.wait()
threads = [threading.Thread(target=fill) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not with glibc")
def test_threads_share_one_heap() -> None:
    heaps = []
    for how in ("shared", "each its own"):
        command = [sys.executable, "-c", HEAPS, how]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        heaps.append(done.stdout.count("<heap nr="))
    assert heaps[0] == 1 < heaps[1]


@pytest.fixture
def restored_hooks() -> Iterator[None]:
    hook, size, enabled = threading.excepthook, threading.stack_size(), faulthandler.is_enabled()
    yield
    threading.excepthook = hook
    threading.stack_size(size)
    faulthandler.unregister(signal.SIGUSR1)
    if not enabled:
        faulthandler.disable()


def test_install_hooks_makes_a_stray_thread_loud(
    restored_hooks: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faulthandler, "enable", lambda: None)  # pytest's own output is captured
    threads.install_hooks()
    assert threading.stack_size() == threads.STACK_BYTES

    def die() -> None:
        raise ValueError("unseen")

    stray = threading.Thread(target=die, name="stray")
    stray.start()
    stray.join(LONG)
    assert "thread stray died" in caplog.text
    assert "unseen" in caplog.text
