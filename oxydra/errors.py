"""Every error Oxydra raises on purpose.

An `OxydraError` is written for the person who reads it: `message` says what is wrong, `remedy` what
to do about it, and `str(error)` is both; where one line for a shell does it, that is `command`.
Errors that steer the flow carry their data as attributes (`retry_after`, `status`, `line`), so that
no handler ever parses a sentence. `code` is the stable word that goes into an `error` frame;
`exit_code` is what a command exits with.
"""

from __future__ import annotations

from decimal import Decimal

ZERO = Decimal(0)
EXIT_FAILED = 1  # the turn or the command failed
EXIT_USAGE = 2  # usage or configuration
EXIT_NO_DAEMON = 3  # nothing is running for this user


class OxydraError(Exception):
    """The root of the tree. `message` and `remedy` are sentences without a line break."""

    code = "internal"
    exit_code = EXIT_FAILED

    def __init__(
        self, message: str, *, remedy: str = "", code: str = "", command: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.command = command
        if code:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class UsageError(OxydraError):
    """What was asked for on a command line or in a frame makes no sense."""

    code = "usage"
    exit_code = EXIT_USAGE


class ConfigError(OxydraError):
    """A configuration file, variable or option is missing, broken or unsafe.

    `file` is a path or the name of another source (`environment`, `command line`); `line` counts
    from 1, 0 if unknown.
    """

    code = "config"
    exit_code = EXIT_USAGE

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        file: str = "",
        line: int = 0,
        key: str = "",
        command: str = "",
    ) -> None:
        super().__init__(message, remedy=remedy, command=command)
        self.file = file
        self.line = line
        self.key = key

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {super().__str__()}" if place else super().__str__()


class NoDaemonError(OxydraError):
    """No daemon answers for this user."""

    code = "no_daemon"
    exit_code = EXIT_NO_DAEMON


class StoreError(OxydraError):
    """The database refused. Nothing that was acknowledged is affected."""

    code = "store"


class StoreFullError(StoreError):
    """The disk is full or read-only: nothing was written, reading goes on."""

    code = "disk_full"


class StoreBusyError(StoreError):
    """Another program holds the database: nothing was written, it is worth trying again."""

    code = "database_busy"


class NotFoundError(OxydraError):
    """A session, turn or other named thing does not exist."""

    code = "not_found"


class BusyError(OxydraError):
    """A bounded queue is full. `retry_after` is in seconds."""

    code = "busy"

    def __init__(self, message: str, *, remedy: str = "", retry_after: float = 1.0) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after = retry_after


class FrameError(OxydraError):
    """Bytes from a peer are no valid frame. `request_id` is the client's, where it could be
    read.
    """

    code = "bad_frame"

    def __init__(self, message: str, *, request_id: str = "", code: str = "") -> None:
        super().__init__(message, code=code)
        self.request_id = request_id


class TransportError(OxydraError):
    """An outbound request failed below the application that made it.

    `kind` is one of `url`, `credential`, `resolve`, `connect`, `tls`, `deadline`, `idle`, `broken`,
    `headers`, `redirect`, `too_large`, `encoding`. `retryable` says that the same request may
    succeed later; `location` is where a refused redirect pointed.
    """

    code = "unreachable"

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        kind: str,
        retryable: bool = False,
        location: str = "",
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.kind = kind
        self.retryable = retryable
        self.location = location


class ProviderError(OxydraError):
    """A model provider could not be reached, refused, or broke off.

    `status` is the HTTP status, 0 where none arrived. `retryable` says that the same request may
    succeed later; `retry_after` (seconds) is what the provider asked for, None if it did not say.
    `unsent`: the request never reached it, so that nothing is billed.
    """

    code = "provider_unavailable"

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        provider: str = "",
        model: str = "",
        status: int = 0,
        retryable: bool = False,
        retry_after: float | None = None,
        code: str = "",
        unsent: bool = False,
    ) -> None:
        super().__init__(message, remedy=remedy, code=code)
        self.unsent = unsent
        self.provider = provider
        self.model = model
        self.status = status
        self.retryable = retryable
        self.retry_after = retry_after


class BudgetError(OxydraError):
    """A model call would pass a cap. `cap` is its setting, `left` USD; `resets_at` is UTC in RFC
    3339, "" where it is not a matter of time.
    """

    code = "budget"

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        cap: str = "",
        left: Decimal = ZERO,
        resets_at: str = "",
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.cap = cap
        self.left = left
        self.resets_at = resets_at


class ToolError(OxydraError):
    """A tool's own failure: it becomes the result that the model sees, and the turn goes on."""

    code = "tool_failed"


class PolicyDenied(ToolError):
    """A path, command or destination that policy does not allow."""

    code = "denied"


class TurnFailed(OxydraError):
    """A turn ended without an answer; `code` is as in its `error` frame."""

    def __init__(self, message: str, *, code: str = "", turn_id: str = "") -> None:
        super().__init__(message, code=code)
        self.turn_id = turn_id


class Cancelled(OxydraError):
    """The work was stopped by its token. Caught in one place: the turn loop."""

    code = "cancelled"


class DeadlineExceeded(OxydraError):
    """A deadline passed before the work was done."""

    code = "timeout"
