"""What sections of the configuration are made of: fields with a meaning, checks of values. Pure.

A section is an immutable dataclass; `key` gives a field its default and what it means. A check says
what is wrong with a value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError, dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform

Check = Callable[[Any], str]
"""Returns what is wrong with a value, as the end of a sentence; "" if nothing is."""

T = TypeVar("T")


class Section:
    """What sections share: fields that are set once, comparison, and a `repr` without secrets."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in vars(self):
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __repr__(self) -> str:
        shown = (
            f"{f.name}={'***' if f.metadata.get('secret') and value else repr(value)}"
            for f in fields(self)  # type: ignore[arg-type]
            for value in (getattr(self, f.name),)
        )
        return f"{type(self).__name__}({', '.join(shown)})"


def key(
    default: Any,
    doc: str,
    *,
    least: float | None = None,
    most: float | None = None,
    check: Check | None = None,
    secret: bool = False,
    runner_only: bool = False,
) -> Any:
    """A field: `...` as default means that it must be given, a class that a new one is made.

    `least` and `most` bound a number, and both inclusively. `secret` values are masked wherever
    they are shown; `runner_only` ones never reach a guest.
    """
    metadata = {
        "doc": doc,
        "least": least,
        "most": most,
        "check": check,
        "secret": secret,
        "runner_only": runner_only or secret,
    }
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=MISSING if default is ... else default, metadata=metadata)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(key,))
def section(cls: type[T]) -> type[T]:
    """`dataclass`, without the methods that `Section` has once for all (each costs start-up)."""
    return dataclass(eq=False, repr=False, kw_only=True)(cls)


# ------------------------------------------------------------------------------------------- checks

VARIABLE = r"[A-Za-z_][A-Za-z0-9_]{0,127}"
NAME = r"[a-z0-9][a-z0-9_-]{0,63}"
USER = r"[a-z0-9][a-z0-9._-]{0,31}"
HEADER = r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}"  # a token of RFC 9110
HOST = r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*"
DESTINATION = (
    r"(?:\[[0-9a-f:.]+\]|(?:\*\.[a-z0-9_-]+\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*):([1-9][0-9]{0,4})"
)
IMAGE = r"(?a:[a-z0-9][\w.:/-]{0,254}(?:@sha256:[0-9a-f]{64})?)"
PACKAGE = r"[a-z0-9][a-z0-9+.-]{1,127}"  # Debian Policy 5.6.1
MOUNT = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}"
SECRET_HEADER = r"(?i)auth|cookie|api-?key|token|secret|credential|password"
ROUTING_HEADERS = ("host", "connection", "content-length", "transfer-encoding", "upgrade")


def is_variable(value: str) -> str:
    if not value or re.fullmatch(VARIABLE, value):
        return ""
    return "is no name of an environment variable (the key itself belongs in `key set` or api_key)"


def is_url(value: str) -> str:
    """An address without a credential in it: a guest is told it."""
    if not value:
        return ""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is no URL"
    if parts.scheme not in ("http", "https") or not host:
        return "must start with http:// or https:// and name a host"
    if "@" in parts.netloc:
        return "carries a user or password: use api_key or api_key_env instead"
    if re.search(r"(?i)key|token|secret|sig|auth|passw", parts.query):
        return "carries a credential in its query: use api_key or api_key_env instead"
    if parts.fragment or re.search(r"[\s\\\x00-\x20\x7f]", value):
        return "may not hold a fragment, a backslash or a space"
    return ""


def is_headers(value: dict[str, str]) -> str:
    for name, content in value.items():
        if not re.fullmatch(HEADER, name) or not re.fullmatch(r"[\x20-\x7e]{0,1024}", content):
            return f"holds {name!r}, which is no HTTP header of visible ASCII"
        if re.search(SECRET_HEADER, name):
            return (
                f"holds {name!r}, which looks like a credential: set api_key, api_key_env or "
                "api_key_cmd instead, headers are shown to the agent guest"
            )
        if name.lower() in ROUTING_HEADERS:
            return f"holds {name!r}, which the transport sets itself"
    return ""


def is_origins(value: tuple[str, ...]) -> str:
    for origin in value:
        if is_url(origin) or origin.count("/") != 2:
            return f"holds {origin!r}; an origin is written like https://app.example.org"
    return ""


def is_hosts(value: tuple[str, ...]) -> str:
    for host in value:
        if not re.fullmatch(r"[a-z0-9.-]+|\[[0-9a-f:.]+\]", host):
            return f"holds {host!r}; a host is a lower-case name without a port"
    return ""


def is_address(value: str) -> str:
    import ipaddress

    try:
        ipaddress.ip_address(value)
    except ValueError:
        return "is no IP address, like 127.0.0.1 or ::1"
    return ""


def is_addresses(value: tuple[str, ...]) -> str:
    import ipaddress

    for address in value:
        if is_address(address) or str(ipaddress.ip_address(address)) != address:
            return f"holds {address!r}; an address is written like 192.0.2.7 or 2001:db8::7"
    return ""


def is_services(value: tuple[str, ...]) -> str:
    for service in value:
        match = re.fullmatch(r"(?:\[[0-9a-f:.]+\]|[a-z0-9_.-]+):([1-9][0-9]{0,4})", service)
        if match is None or int(match[1]) > 65535:
            return f"holds {service!r}; a service is written like 127.0.0.1:8888"
    return ""


def is_destinations(value: tuple[str, ...]) -> str:
    """`host:port`, or `*.host:port` for every name below a host."""
    for entry in value:
        match = re.fullmatch(DESTINATION, entry)
        if match is None or int(match[1]) > 65535:
            return (
                f"holds {entry[:80]!r}; a destination is written like api.example.org:443, in "
                "lower case, or *.example.org:443 for the names below it"
            )
    return ""


PRESETS = ("git", "npm", "pip")


def is_presets(value: tuple[str, ...]) -> str:
    for name in value:
        if name not in PRESETS:
            return f"names {name[:64]!r}, which is no preset; known: {', '.join(sorted(PRESETS))}"
    return ""


def is_git_credentials(value: dict[str, str]) -> str:
    for host, reference in value.items():
        if not re.fullmatch(HOST, host):
            return f"holds {host[:80]!r}; a host is a lower-case name without a port"
        kind, _, name = reference.partition(":")
        if kind != "env" or not re.fullmatch(VARIABLE, name):
            return f'names no variable for {host!r}; write "env:VARIABLE", never the token itself'
    return ""


def is_image(value: str) -> str:
    if not value or re.fullmatch(IMAGE, value):
        return ""
    return "is no image: write NAME:TAG, a local one or with its registry, or NAME@sha256:DIGEST"


def is_packages(value: tuple[str, ...]) -> str:
    for name in value:
        if not re.fullmatch(PACKAGE, name):
            return f"holds {name[:80]!r}, which is no name of a Debian package"
    return ""


def is_mount_name(value: str) -> str:
    if not value or re.fullmatch(MOUNT, value):
        return ""
    return "can't be a mount's name: up to 64 letters, digits, '.', '_', '-', not '.' first"


def is_path(value: str) -> str:
    return "is empty: write the path of a folder" if not value.strip() else ""


def is_workspace(value: tuple[str, ...]) -> str:
    for path in value:
        names = path.split("/")[2:]
        if not re.fullmatch(r"/(?:shared|tmp)(?:/.*[^/])?", path) or {"", ".", ".."} & set(names):
            return f"holds {path!r}; a path is written like /shared/taxes"
    return ""


def is_variables(value: tuple[str, ...]) -> str:
    wrong = [name for name in value if not re.fullmatch(VARIABLE, name)]
    return f"holds {wrong[0]!r}, which is no name of an environment variable" if wrong else ""


def is_refs(value: dict[str, str]) -> str:
    for provider, reference in value.items():
        kind, _, name = reference.partition(":")
        if kind != "env" or not re.fullmatch(VARIABLE, name):
            return f'names no variable for {provider!r}; write "env:VARIABLE"'
    return ""


def is_people(value: tuple[str, ...]) -> str:
    wrong = [name for name in value if not re.fullmatch(r"[1-9][0-9]{0,18}", name)]
    return f'holds {wrong[0][:64]!r}; a person\'s id is a number, like "12345678"' if wrong else ""


def is_groups(value: tuple[str, ...]) -> str:
    wrong = [name for name in value if not re.fullmatch(r"-[1-9][0-9]{0,18}", name)]
    return f'holds {wrong[0][:64]!r}; a group\'s id is like "-1001234567890"' if wrong else ""


def is_timezone(value: str) -> str:
    if value in ("", "UTC"):
        return ""
    import difflib
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        near = difflib.get_close_matches(value, available_timezones(), 3, 0.5)
        hint = f"; near it: {', '.join(near)}" if near else ""
        return f"is no time zone of the IANA database that this system has{hint}"
    return ""
