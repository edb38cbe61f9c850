"""What may leave the machine for one user: runner.toml's `[egress]`, narrowed by the user's.

`effective_egress` is the one place where the two become an `EgressPolicy`, which the broker and the
tiers follow. A user's file that would widen is refused: it is not quietly cut down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from oxydra.config.load import Config
from oxydra.config.presets import destinations
from oxydra.config.schema import ShellEgress
from oxydra.errors import ConfigError

WIDTH: tuple[ShellEgress, ...] = ("none", "allowlist", "open")
GIT_PORT = 443
LIMITS = ("max_requests_per_minute", "max_requests_per_day", "max_mib_per_day")


@dataclass(frozen=True, slots=True)
class EgressLimits:
    """The broker's own ceilings for one user, whatever a guest says."""

    requests_per_minute: int
    requests_per_day: int
    mib_per_day: int


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What commands may reach, and how much a user's guests may send.

    `allow` are patterns `host:port` and `*.host:port`, presets included; it decides only where
    `shell` is "allowlist", and empty it is nobody. `git_hosts` names, for each git host that may be
    reached, where its token is (`env:VARIABLE`): the broker's business, never a guest's.
    """

    shell: ShellEgress
    allow: tuple[str, ...]
    limits: EgressLimits
    git_hosts: Mapping[str, str] = field(default_factory=dict, repr=False)

    def allows(self, host: str, port: int) -> bool:
        """Whether a command may name this destination. Where its address lies, and whether that is
        public, is for the broker to find out.
        """
        if self.shell == "allowlist":
            return any(covers(pattern, f"{host.lower()}:{port}") for pattern in self.allow)
        return self.shell == "open"


def covers(pattern: str, other: str) -> bool:
    """Whether everything that `other` stands for, a destination or a pattern, is in `pattern`."""
    if pattern == other:
        return True
    host, _, port = pattern.rpartition(":")
    name, _, number = other.rpartition(":")
    return host.startswith("*.") and number == port and name.endswith(host[1:]) and name != host[1:]


def effective_egress(config: Config) -> EgressPolicy:
    """Raises `ConfigError`, with file and line, if the user's file would widen."""
    ours, theirs = config.runner.egress, config.user.egress
    shell = ours.shell if theirs.shell is None else theirs.shell
    if WIDTH.index(shell) > WIDTH.index(ours.shell):
        raise _widens(config, "shell", f"{shell!r} is more than runner.toml's {ours.shell!r}")
    allowed = _listed(ours.allow, ours.presets)
    if theirs.allow is not None or theirs.presets is not None:
        wanted = _listed(theirs.allow or (), theirs.presets or ())
        if ours.shell == "allowlist":
            for entry in wanted:
                if not any(covers(pattern, entry) for pattern in allowed):
                    key = "allow" if entry in (theirs.allow or ()) else "presets"
                    raise _widens(config, key, f"runner.toml does not allow {entry}")
        allowed = wanted
        if shell == "open":
            shell = "allowlist"  # whoever lists some of all means these
    numbers = []
    for name in LIMITS:
        most, own = getattr(ours, name), getattr(theirs, name)
        if own is not None and own > most:
            raise _widens(config, name, f"{own} is more than runner.toml's {most}")
        numbers.append(most if own is None else own)
    policy = EgressPolicy(
        shell=shell,
        allow=allowed if shell == "allowlist" else (),
        limits=EgressLimits(*numbers),
    )
    git = {h: ref for h, ref in ours.git_credentials.items() if policy.allows(h, GIT_PORT)}
    return EgressPolicy(policy.shell, policy.allow, policy.limits, git)


def _listed(allow: tuple[str, ...], presets: tuple[str, ...]) -> tuple[str, ...]:
    """Both as one list, without doubles and in their order."""
    named = [entry for preset in presets for entry in destinations(preset)]
    return tuple(dict.fromkeys((*allow, *named)))


def _widens(config: Config, name: str, what: str) -> ConfigError:
    source = config.source(f"egress.{name}", "user")
    return ConfigError(
        f"egress.{name}: {what}: a user's file may narrow, never widen.",
        remedy="Take it out here, or change [egress] in runner.toml.",
        file=source.file,
        line=source.line,
        key=f"egress.{name}",
    )
