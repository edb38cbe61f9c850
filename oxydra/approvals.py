"""Approvals: which tool calls a person is asked about, their requests and their answers.

`decide` is the rule and is pure: `allow`, `ask` or `deny` for one call. `Approvals` asks: it stores
a request, tells whoever listens to the session, and waits on the turn's own thread until somebody
answers, the request expires or the turn is stopped; no thread is started here. Requests and answers
are rows of the store, so that a turn that resumes after a crash finds the answer it was given, or
its open request. Whatever goes wrong, the call does not run.

An answer is about one call: its turn, its step, its id, its tool, the SHA-256 of its exact
arguments and why it was asked about. For the session, it is about the same tool with the same
arguments.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import logging
import re
import secrets
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oxydra.errors import UsageError
from oxydra.frames import compact
from oxydra.scrub import explicit
from oxydra.store import Store
from oxydra.threads import SHUTDOWN, Deadline
from oxydra.tools.gate import TurnScope, Wanted
from oxydra.tools.schedule import CHANGING
from oxydra.types import Approval, ApprovalState, Emit, Json, SafetyTier

log = logging.getLogger(__name__)

SHOWN_CHARS = 16_000  # of the arguments; a request that had to be cut can't be allowed
STRICTNESS = ("allow", "ask", "deny")


# ---------------------------------------------------------------------------------------- the rule


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `[approvals] rules`; `arguments` are patterns by name, all of which must match.

    In a pattern `*` stands for any characters and `?` for one.
    """

    decision: str
    tool: str = "*"
    tier: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)

    def applies(self, tool: str, tier: str, arguments: Json) -> bool:
        if self.tier not in ("", tier) or not _pattern(self.tool).fullmatch(tool):
            return False
        return all(
            name in arguments and _pattern(wanted).fullmatch(_as_text(arguments[name]))
            for name, wanted in self.arguments.items()
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """`[approvals]`: the runner's rules and the user's, `layers`; the strictest layer counts.

    `private` are the files and folders, by virtual path, that hold private data.
    """

    layers: tuple[tuple[Rule, ...], ...] = ()
    exfiltration: str = "ask"
    expiry_secs: float = 600.0
    private: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, policy: Json | None) -> Rules:
        """From `approvals` in the bootstrap envelope's `runtime_policy`; the defaults if there is
        none. Raises `KeyError` or `TypeError` for what is broken.
        """
        if policy is None:
            return cls()
        layers = tuple(tuple(Rule(**row) for row in layer) for layer in policy["rules"])
        private = tuple(policy.get("private", ()))
        return cls(layers, policy["exfiltration"], policy["expiry_secs"], private)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """Under which a call would run.

    `sandboxed`: a cage or something stronger contains it. `attended`: somebody may be asked.
    `sensitive`: the conversation, or what the call would send, holds private data. `tainted`: the
    conversation holds content of strangers. `egress`: the call sends something that the model
    chose off this machine. `lasting`: what it does acts later, when nobody looks. `reached`: it
    puts private data where a command that was left running could send it off this machine.
    """

    sandboxed: bool
    attended: bool = True
    sensitive: bool = False
    tainted: bool = False
    egress: bool = False
    lasting: bool = False
    reached: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """`decision` is `allow`, `ask` or `deny`; `reason` says why, as a sentence."""

    decision: str
    reason: str = ""


def decide(
    rules: Rules, tool: str, tier: SafetyTier, arguments: Json, circumstances: Circumstances
) -> Verdict:
    """What becomes of a call. `arguments` are validated ones. Pure.

    In each layer the first rule that applies decides; where the runner's have none that does, a
    privileged call that nothing contains is asked about and any other allowed. A user's rules can
    only make it stricter.
    """
    verdict = _by_default(tier, circumstances)
    for index, layer in enumerate(rules.layers):
        rule = next((r for r in layer if r.applies(tool, tier.value, arguments)), None)
        if rule is None:
            continue
        told = Verdict(rule.decision, _BY_RULE[rule.decision])
        verdict = told if index == 0 else _stricter(verdict, told)
    if circumstances.sensitive and circumstances.tainted and circumstances.egress:
        verdict = _stricter(verdict, Verdict(rules.exfiltration, _EXFILTRATION))
    if circumstances.reached:
        verdict = _stricter(verdict, Verdict(rules.exfiltration, _REACHED))
    if circumstances.tainted and circumstances.lasting and circumstances.attended:
        verdict = _stricter(verdict, Verdict("ask", _LASTING))
    if verdict.decision == "ask" and not circumstances.attended:
        return Verdict("deny", f"{verdict.reason} Nobody is there to be asked.")
    return verdict


_BY_RULE = {
    "allow": "",
    "ask": "A rule of [approvals] asks about it.",
    "deny": "A rule of [approvals] denies it.",
}
_EXFILTRATION = (
    "The conversation holds content of strangers, and it, or what this would send off this "
    "machine, holds private data."
)
_REACHED = (
    "It puts private data where commands reach it, and one that is still running could send it off "
    "this machine."
)

_LASTING = (
    "The conversation holds what strangers wrote, and this changes what runs later with nobody "
    "there."
)


def _by_default(tier: SafetyTier, circumstances: Circumstances) -> Verdict:
    if tier is SafetyTier.PRIVILEGED and not circumstances.sandboxed:
        return Verdict("ask", "It can do anything that your account can: no sandbox contains it.")
    return Verdict("allow")


def _stricter(one: Verdict, other: Verdict) -> Verdict:
    return max(one, other, key=lambda verdict: STRICTNESS.index(verdict.decision))


@functools.lru_cache(256)
def _pattern(pattern: str) -> re.Pattern[str]:
    """`*` is taken as short as it can be and not reconsidered: no argument makes this slow."""
    first, *rest = (re.escape(part).replace(r"\?", ".") for part in pattern.split("*"))
    middle = "".join(f"(?>.*?{part})" for part in rest[:-1])
    return re.compile(f"{first}{middle}.*{rest[-1]}" if rest else first, re.DOTALL)


def _as_text(value: Any) -> str:
    """An argument as patterns see it: paths as the model names them, other values as JSON."""
    if isinstance(value, str):
        return value
    return (
        compact(value) if isinstance(value, bool | int | float | list | dict | None) else str(value)
    )


# -------------------------------------------------------------------------------- what is shown


def digest(arguments: Json) -> str:
    """SHA-256 (hex) of the arguments as JSON, members sorted by name: what an answer binds to."""
    text = json.dumps(arguments, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def shown(arguments: Json) -> tuple[str, bool]:
    """All arguments for a person to decide by, and whether these are all.

    One line for each, with everything visible; the lines of a longer text are set apart by a bar,
    so that no value can look like another argument.
    """
    parts = []
    for name, value in arguments.items():
        text = explicit(value if isinstance(value, str) else compact(value))
        if "\n" in text:
            text = "\n  | ".join(("", *text.split("\n")))
        parts.append(f"{explicit(name)}: {text}")
    whole = "\n".join(parts)
    if len(whole) <= SHOWN_CHARS:
        return whole, True
    head, tail = whole[: SHOWN_CHARS * 3 // 4], whole[-SHOWN_CHARS // 4 :]
    left_out = len(whole) - len(head) - len(tail)
    return f"{head}\n[… {left_out:,} characters are not shown …]\n{tail}", False


def request_payload(approval: Approval) -> Json:
    """What an `approval_request` frame says besides its turn."""
    return {
        "approval_id": approval.approval_id,
        "tool": approval.tool,
        "safety_tier": approval.tier,
        "arguments": approval.arguments,
        "arguments_sha256": approval.arguments_sha256,
        "complete": approval.complete,
        "reason": approval.reason,
        "expires_at": approval.expires_at,
    }


def resolved_payload(approval: Approval) -> Json:
    """What an `approval_resolved` frame says besides its turn."""
    return {
        "approval_id": approval.approval_id,
        "tool": approval.tool,
        "decision": approval.state.value,
        "by": approval.decided_by,
        "scope": approval.scope or None,
    }


# ---------------------------------------------------------------------------------- the service


class Approvals:
    """Asks about the calls of one user's turns. Every method may be called from any thread."""

    def __init__(
        self, store: Store, rules: Rules, *, sandboxed: bool, uncontained: Collection[str] = ()
    ) -> None:
        """`uncontained` are the names of tools that no sandbox holds, whatever holds the others."""
        self._uncontained = frozenset(uncontained)
        self._store = store
        self._rules = rules
        self._sandboxed = sandboxed
        self._lock = threading.Lock()
        self._waiting: dict[str, threading.Event] = {}
        self._until: dict[str, Deadline] = {}  # of open requests, by the clock that never steps

    def check(self, wanted: Sequence[Wanted], scope: TurnScope, emit: Emit) -> list[str]:
        """Why each call may not run, as a sentence for the model; empty for one that may.

        Blocks until every request is answered, expired or given up with the turn. Where the daemon
        shuts down, open requests stay open. Raises `StoreError`.
        """
        refusals = [""] * len(wanted)
        asked: list[tuple[int, Approval]] = []
        for index, item in enumerate(wanted):
            verdict = self._decide(item, scope)
            if verdict.decision == "deny":
                log.info("tool %s was denied: %s", item.call.name, verdict.reason)
                refusals[index] = f"{item.call.name} was not run. {verdict.reason}"
            elif verdict.decision == "ask":
                approval = self._request(item, scope, verdict.reason)
                if approval is not None:
                    asked.append((index, approval))
        for _index, approval in asked:
            if approval.state is ApprovalState.PENDING:
                emit("approval_request", request_payload(approval))
        for index, approval in asked:
            refusals[index] = self._answered(approval, scope, emit)
        return refusals

    def answer(
        self, approval_id: str, *, allow: bool, for_session: bool = False, by: str
    ) -> Approval:
        """Settle an open request; returns it as it is then. `by` says whose answer it is.

        Raises `NotFoundError`, or `UsageError` where it was settled before or can't be allowed.
        """
        approval = self._store.approval(approval_id)
        if approval.state is ApprovalState.PENDING and self._deadline(approval).expired:
            approval = self._settle(approval, ApprovalState.EXPIRED)
        if approval.state is not ApprovalState.PENDING:
            raise UsageError(f"This request is {approval.state} already.")
        if allow and not approval.complete:
            raise UsageError(
                "This request can't be allowed: its arguments are too long to be shown whole.",
                remedy="Deny it, and tell the agent to do it in smaller parts.",
            )
        state = ApprovalState.ALLOWED if allow else ApprovalState.DENIED
        scope = "session" if allow and for_session else "once"
        settled = self._settle(approval, state, scope=scope, by=by)
        if (settled.state, settled.decided_by) != (state, by):
            raise UsageError(f"This request is {settled.state} already.")
        log.info("the call of %s was %s by %s", settled.tool, settled.state, by)
        return settled

    def pending(self, session_id: str = "") -> list[Approval]:
        """Open requests that have not expired, oldest first; of one session if it is named."""
        found = self._store.pending_approvals(session_id)
        return [approval for approval in found if not self._deadline(approval).expired]

    # ------------------------------------------------------------------------------------ asking

    def _decide(self, item: Wanted, scope: TurnScope) -> Verdict:
        circumstances = Circumstances(
            sandboxed=self._sandboxed
            and item.call.name not in self._uncontained
            and getattr(item.tool, "contained", True),
            attended=scope.attended,
            sensitive=scope.sensitive or item.tool.sensitive or item.private,
            tainted=scope.tainted,
            egress=item.tool.egress,
            lasting=item.call.name in CHANGING,
            reached=item.private and not item.tool.egress,
        )
        return decide(self._rules, item.call.name, item.tool.tier, item.arguments, circumstances)

    def _request(self, item: Wanted, scope: TurnScope, reason: str) -> Approval | None:
        """The request about this call, new or found; None if the session's approval covers it."""
        call, sha256 = item.call, digest(item.given)
        if self._store.approved_for_session(scope.session_id, call.name, sha256):
            return None
        if scope.asked_by:
            reason = f"The agent {scope.asked_by} asks, to which work was delegated. {reason}"
        if any(_as_text(value).startswith("/vault") for value in item.arguments.values()):
            where = (
                "leaves this machine" if item.tool.egress else "goes to the provider of the model"
            )
            reason += f" What it reads from the vault {where}."
        found = self._store.approval_of_call(scope.turn_id, scope.step, call.id, call.name, sha256)
        if found is not None and found.reason == reason:  # else it was asked for something less
            return found
        text, complete = shown(item.given)
        now = datetime.datetime.now(datetime.UTC)
        expires = now + datetime.timedelta(seconds=self._rules.expiry_secs)
        approval = Approval(
            approval_id=secrets.token_hex(8),
            session_id=scope.session_id,
            turn_id=scope.turn_id,
            step=scope.step,
            call_id=call.id,
            tool=call.name,
            tier=item.tool.tier.value,
            arguments=text,
            arguments_sha256=sha256,
            complete=complete,
            reason=reason,
            created_at=now.isoformat(timespec="milliseconds"),
            expires_at=expires.isoformat(timespec="milliseconds"),
        )
        self._store.add_approval(approval)
        self._deadline(approval)
        return approval

    def _answered(self, approval: Approval, scope: TurnScope, emit: Emit) -> str:
        """Wait for the answer to one request; why its call may not run."""
        if approval.state is ApprovalState.PENDING:
            settled = self._wait(approval, scope)
            if settled is None:
                return f"{approval.tool} was not run: the daemon is shutting down."
            approval = settled
            emit("approval_resolved", resolved_payload(approval))
        if approval.state is ApprovalState.ALLOWED:
            return ""
        if approval.state is ApprovalState.DENIED:
            return (
                f"{approval.tool} was not run: the person did not allow it. Do not try to reach the"
                " same in another way; say what you wanted to do, and ask how to go on."
            )
        return (
            f"{approval.tool} was not run: nobody answered the request in time. Say what you wanted"
            " to do, so that the person can allow it later."
        )

    def _wait(self, approval: Approval, scope: TurnScope) -> Approval | None:
        """The request once it is settled; None where it stays open for after the restart."""
        answered = threading.Event()
        with self._lock:
            self._waiting[approval.approval_id] = answered
        try:
            approval = self._store.approval(approval.approval_id)  # the answer may have come before
            sha256 = approval.arguments_sha256
            if approval.state is not ApprovalState.PENDING:
                return approval
            if self._store.approved_for_session(approval.session_id, approval.tool, sha256):
                return self._settle(approval, ApprovalState.ALLOWED, scope="once", by="session")
            with scope.token.on_cancel(answered.set):
                answered.wait(scope.deadline.timeout(self._deadline(approval).remaining()))
        finally:
            with self._lock:
                del self._waiting[approval.approval_id]
        if scope.token.cancelled and scope.token.reason == SHUTDOWN:
            current = self._store.approval(approval.approval_id)
            return current if current.state is not ApprovalState.PENDING else None
        if scope.token.cancelled:
            return self._settle(approval, ApprovalState.DENIED, by="the turn was cancelled")
        return self._settle(approval, ApprovalState.EXPIRED)  # unless it was answered

    def _deadline(self, approval: Approval) -> Deadline:
        """When an open request expires. A request of before the last start was asked at a time that
        only the wall clock knows; wherever that was set since, it stays open no longer than any.
        """
        with self._lock:
            until = self._until.get(approval.approval_id)
            if until is None:
                left = min(_seconds_left(approval), self._rules.expiry_secs)
                until = self._until[approval.approval_id] = Deadline.after(left)
            return until

    def _settle(
        self, approval: Approval, state: ApprovalState, *, scope: str = "", by: str = ""
    ) -> Approval:
        settled = self._store.settle_approval(
            approval.approval_id, state, scope=scope, decided_by=by
        )
        with self._lock:
            waiting = self._waiting.get(approval.approval_id)
            self._until.pop(approval.approval_id, None)
        if waiting is not None:
            waiting.set()
        return settled


def answer_from(payload: Json) -> tuple[bool, bool]:
    """What an `approve` frame says: whether it allows, and whether for the session.

    Raises `UsageError`.
    """
    decision, scope = payload["decision"], payload.get("scope") or "once"
    if decision not in ("allow", "deny"):
        raise UsageError("A decision is allow or deny.")
    if scope not in ("once", "session"):
        raise UsageError("A scope is once or session.")
    return decision == "allow", scope == "session"


def _seconds_left(approval: Approval) -> float:
    expires = datetime.datetime.fromisoformat(approval.expires_at)
    return (expires - datetime.datetime.now(datetime.UTC)).total_seconds()
