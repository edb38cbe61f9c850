"""Threads and how they end: the only file that builds them.

`Service` is one named thread with one owner; `parallel` runs a few jobs side by side and joins
them; `CancelToken` reaches every blocking call of a piece of work; `Deadline` is a moment on the
monotonic clock; `Inbox` is a bounded queue that can be closed. Nothing here polls: whoever blocks
is woken by the one call that unblocks it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from oxydra.errors import Cancelled, DeadlineExceeded

T = TypeVar("T")
log = logging.getLogger(__name__)

SHUTDOWN = "shutdown"  # a token's reason: leave the work as it is stored, it will be resumed
M_ARENA_MAX = -8  # glibc's malloc.h
STACK_BYTES = 512 * 1024  # a cage limits address space; our deepest stack needs far less


class Deadline:
    """A moment on `time.monotonic()`; `Deadline.after(None)` never comes."""

    __slots__ = ("at",)

    def __init__(self, at: float) -> None:
        self.at = at

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        return cls(float("inf") if seconds is None else time.monotonic() + seconds)

    def remaining(self) -> float:
        """Seconds left, never negative; infinite if there is no deadline."""
        return max(0.0, self.at - time.monotonic())

    def timeout(self, limit: float | None = None) -> float | None:
        """What to pass as a `timeout=`: the time left, at most `limit` seconds; None waits for
        ever.
        """
        left = self.remaining()
        if limit is not None:
            left = min(left, limit)
        return None if left > threading.TIMEOUT_MAX else left

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self.at

    def check(self, what: str) -> None:
        if self.expired:
            raise DeadlineExceeded(f"{what} did not finish in time.")


class _Wake:
    """One registered wake-up. Its lock makes leaving `on_cancel` wait for a wake-up that is under
    way.
    """

    __slots__ = ("active", "lock", "wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self.lock = threading.RLock()
        self.active = True

    def fire(self) -> None:
        with self.lock:
            if not self.active:
                return
            self.active = False
            try:
                self.wake()
            except Exception:
                log.exception("a cancel wake-up failed")


class CancelToken:
    """Says that a piece of work should stop, and wakes whatever it is blocked in.

    Any thread may cancel, any number of times; the first reason stays. A child is cancelled with
    its parent, never the reverse.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._wakes: dict[int, _Wake] = {}
        self._next = 0
        self.reason = ""

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def cancel(self, reason: str = "cancelled") -> None:
        with self._lock:
            if self._event.is_set():
                return
            self.reason = reason
            self._event.set()
            wakes = list(self._wakes.values())
        for wake in wakes:
            wake.fire()

    def check(self) -> None:
        """Raise `Cancelled` if the token was cancelled."""
        if self._event.is_set():
            raise Cancelled(self.reason)

    def wait(self, seconds: float | None) -> bool:
        """Sleep; True at once when cancelled."""
        return self._event.wait(seconds)

    @contextlib.contextmanager
    def on_cancel(self, wake: Callable[[], None]) -> Iterator[None]:
        """Stand around a blocking call: `wake` is called once, from the canceller's thread, also
        when already cancelled.

        After the block has been left, `wake` is neither running nor will run.
        """
        entry = _Wake(wake)
        with self._lock:
            key = self._next
            self._next += 1
            self._wakes[key] = entry
            already = self._event.is_set()
        if already:
            entry.fire()
        try:
            yield
        finally:
            with self._lock:
                self._wakes.pop(key, None)
            with entry.lock:
                entry.active = False

    @contextlib.contextmanager
    def child(self) -> Iterator[CancelToken]:
        """A token that is cancelled with this one, for as long as the block lasts."""
        token = CancelToken()
        with self.on_cancel(lambda: token.cancel(self.reason)):
            yield token


class InboxClosed(Exception):
    """The inbox was closed and everything that was in it has been taken."""


class Inbox(Generic[T]):
    """A bounded queue with an end. `put` never blocks: what is full is answered, not awaited."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[T] = deque()
        self._ready = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> bool:
        """False when the inbox is full or closed."""
        with self._ready:
            if self._closed or len(self._items) >= self._limit:
                return False
            self._items.append(item)
            self._ready.notify()
            return True

    def get(self, timeout: float | None = None) -> T:
        """The oldest item. Raises `TimeoutError`, or `InboxClosed` once closed and empty."""
        with self._ready:
            if not self._ready.wait_for(lambda: self._items or self._closed, timeout):
                raise TimeoutError
            if self._items:
                return self._items.popleft()
            raise InboxClosed

    def close(self) -> None:
        with self._ready:
            self._closed = True
            self._ready.notify_all()


class Service:
    """One thread `oxydra-<name>` with one owner.

    `run(service)` is the thread's body; it looks at `service.stopping` whenever it is woken.
    `setup`, if given, runs first on the thread: `start` returns when it is done and raises what it
    raised. `wake` unblocks the one call that `run` may be blocked in. `on_death` is told of an
    exception that `run` let through. The thread is a daemon thread so that a straggler cannot keep
    the process from ending: what it owned is safe because everything durable is committed step by
    step.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Service], None],
        *,
        setup: Callable[[], None] | None = None,
        wake: Callable[[], None] | None = None,
        on_death: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.name = name
        self.stopping = threading.Event()
        self._run = run
        self._setup = setup
        self._wake = wake
        self._on_death = on_death
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(self, timeout: float = 30.0) -> Service:
        """Start the thread; return when it is ready.

        After an exception nothing runs or will: a setup that is merely late finds `stopping` set.
        """
        if self._thread is not None:
            raise RuntimeError(f"{self.name} was already started")
        thread = threading.Thread(target=self._body, name=f"oxydra-{self.name}", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:  # the system has no thread to give
            self._thread = None
            raise
        if not self._ready.wait(timeout):
            self.stopping.set()
            raise DeadlineExceeded(f"{self.name} was not ready after {timeout:g} s.")
        if self._failure is not None:
            thread.join()
            raise self._failure
        return self

    def _body(self) -> None:
        try:
            if self._setup is not None:
                self._setup()
        except BaseException as error:
            self._failure = error
            self._ready.set()
            return
        self._ready.set()
        try:
            self._run(self)
        except BaseException as error:
            log.exception("thread %s died", self.name)
            if self._on_death is not None:
                self._on_death(error)

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def ident(self) -> int | None:
        return None if self._thread is None else self._thread.ident

    def stop(self, timeout: float = 5.0) -> bool:
        """Ask the thread to end and join it; True if it ended. May be called any number of times,
        from any thread but its own.
        """
        self.stopping.set()
        if self._thread is None:
            return True
        if self._wake is not None and self._thread.is_alive():
            try:
                self._wake()
            except Exception:
                log.exception("the wake-up of thread %s failed", self.name)
        self._thread.join(timeout)
        if not self._thread.is_alive():
            return True
        frame = sys._current_frames().get(self._thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame else "(no stack)"
        log.error("thread %s did not end within %g s; it is at:\n%s", self.name, timeout, stack)
        return False


def parallel(name: str, jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Run every job on a thread of its own and return their results in order; the first exception
    is raised after all have ended.

    The jobs must end by themselves (each watches its token and deadline). One job runs on the
    caller's thread.
    """
    if len(jobs) <= 1:
        return [job() for job in jobs]
    results: list[T | None] = [None] * len(jobs)
    failures: list[BaseException | None] = [None] * len(jobs)

    def work(index: int) -> None:
        try:
            results[index] = jobs[index]()
        except BaseException as error:
            failures[index] = error

    services = [
        Service(f"{name}-{index}", lambda _service, index=index: work(index))  # type: ignore[misc]
        for index in range(1, len(jobs))
    ]
    for index, service in enumerate(services, 1):
        try:
            service.start()
        except RuntimeError as error:  # those that did start are still to be joined
            failures[index] = error
    work(0)
    for service in services:
        if service._thread is not None:
            service._thread.join()
    for failure in failures:
        if failure is not None:
            raise failure
    return results  # type: ignore[return-value]


@contextlib.contextmanager
def pulse(name: str, seconds: float, beat: Callable[[], None]) -> Iterator[None]:
    """Call `beat` every `seconds` while the block runs, on a thread of its own that has ended when
    the block is left. `beat` must not block. Where the system has no thread to give, nothing beats.
    """

    def run(service: Service) -> None:
        while not service.stopping.wait(seconds):
            beat()

    service = Service(name, run)
    try:
        service.start()
    except RuntimeError as error:
        log.warning("nothing tells that it goes on: %s", error)
    try:
        yield
    finally:
        service.stop()


def share_heap() -> None:
    """Let all threads of this process allocate from one heap; call it before they start.

    glibc gives each thread a heap of its own, up to eight for each core, and what is free in one
    serves no other: in a guest that had many turns some 50 MB. Python holds a lock while it
    allocates anyway. Elsewhere nothing happens.
    """
    import ctypes  # which takes a millisecond

    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def install_hooks() -> None:
    """Make dying threads loud and stacks visible: call once, on the main thread, when a process
    starts.
    """
    threading.stack_size(STACK_BYTES)

    def loud(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit:
            info = (args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)
            log.critical("thread %s died", args.thread and args.thread.name, exc_info=info)

    threading.excepthook = loud
    faulthandler.enable()
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
