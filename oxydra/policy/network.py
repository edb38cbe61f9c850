"""The rules on where a request may go whose address a model chose. Pure.

`parse_url` reads a URL strictly and writes it anew from its parts, so that no two programs can read
it differently; spellings of a host that only some programs understand are refused. `check_url`
decides by the text, `check_address` about an address that a name was resolved to: whoever dials
asks it about each one, and dials the very address it asked about, so that a name which changes its
mind leads nowhere. `Egress` holds the local services that a person allowed, by host and port.

Reserved addresses: IANA's special-purpose registries (RFC 6890), clouds' metadata services.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)
from typing import TypeAlias
from urllib.parse import quote, urljoin

from oxydra.errors import PolicyDenied
from oxydra.policy.paths import visible

Address: TypeAlias = IPv4Address | IPv6Address

MAX_URL_CHARS = 4096
DEFAULT_PORTS = {"http": 80, "https": 443}

_RESERVED_4 = {
    "0.0.0.0/8": "an unspecified address",
    "10.0.0.0/8": "a private address",
    "100.64.0.0/10": "an address behind a carrier's NAT",
    "127.0.0.0/8": "a loopback address",
    "168.63.129.16/32": "a cloud's metadata service",
    "169.254.0.0/16": "a link-local address (metadata services are there)",
    "172.16.0.0/12": "a private address",
    "192.0.0.0/24": "reserved for protocols (a metadata service is there)",
    "192.0.2.0/24": "reserved for documentation",
    "192.31.196.0/24": "reserved for AS112",
    "192.52.193.0/24": "reserved for AMT",
    "192.88.99.0/24": "reserved for 6to4 relays",
    "192.168.0.0/16": "a private address",
    "192.175.48.0/24": "reserved for AS112",
    "198.18.0.0/15": "reserved for benchmarks",
    "198.51.100.0/24": "reserved for documentation",
    "203.0.113.0/24": "reserved for documentation",
    "224.0.0.0/4": "a multicast address",
    "240.0.0.0/4": "a reserved address",
    "255.255.255.255/32": "the broadcast address",
}
_RESERVED_6 = {
    "::/128": "an unspecified address",
    "::1/128": "a loopback address",
    "::ffff:0:0/96": "an IPv4 address written as IPv6",
    "::/96": "an IPv4 address written as IPv6",
    "64:ff9b:1::/48": "a local translation of IPv4",
    "fc00::/7": "a private address",
    "fe80::/10": "a link-local address",
    "fec0::/10": "a private address",
    "ff00::/8": "a multicast address",
    "2001::/23": "reserved for protocols (Teredo among them)",
    "2001:db8::/32": "reserved for documentation",
    "2002::/16": "a 6to4 address",
    "2620:4f:8000::/48": "reserved for AS112",
    "3fff::/20": "reserved for documentation",
}
_NETWORKS_4 = [(IPv4Network(network), what) for network, what in _RESERVED_4.items()]
_NETWORKS_6 = [(IPv6Network(network), what) for network, what in _RESERVED_6.items()]
_PUBLIC_6 = IPv6Network("2000::/3")  # all that was ever given out as global unicast
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: what a DNS64 resolver makes of a public address
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214: an IPv4 address follows in the last 32 bits

_LOCAL_NAMES = ("localhost", "local", "internal", "intranet", "lan", "home.arpa", "onion")

# The ports that browsers refuse (Fetch standard, "bad port"): other protocols' servers, to which a
# request could be made to look like commands.
# fmt: off
_BAD_PORTS = frozenset((
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25,
    37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109,
    110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389,
    427, 465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556,
    563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045,
    4190, 5060, 5061, 6000, 6379, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
    11211,
))
# fmt: on

_URL = re.compile(r"(https?)://([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?", re.IGNORECASE)
_HOST_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(?::([0-9]{0,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True, slots=True)
class Url:
    """An http or https URL in its one spelling, without user and fragment.

    `host` is a lower-case name (international ones as A-labels), or an address as `ipaddress`
    writes it; `path` begins with a slash and includes the query.
    """

    scheme: str
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        return self.origin + self.path

    @property
    def origin(self) -> str:
        """`scheme://host[:port]`, without a default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        shown = "" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{shown}"

    @property
    def address(self) -> Address | None:
        """The address, where the host is one."""
        return _literal(self.host)


@dataclass(frozen=True, slots=True)
class Egress:
    """The local services that may be reached besides the public internet: `(host, port)`."""

    allowed: frozenset[tuple[str, int]] = frozenset()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Egress:
        """From `host:port`, IPv6 as `[::1]:80`. Raises `PolicyDenied` for what is none."""
        found = set()
        for entry in entries:
            url = parse_url(f"http://{entry}")
            if url.path != "/" or not re.search(r":[0-9]+$", entry):
                raise _denied(entry, "is no host:port", "Write it as 127.0.0.1:8888.")
            found.add((url.host, url.port))
        return cls(frozenset(found))

    def allows(self, host: str, port: int) -> bool:
        return (host.strip("[]").lower().removesuffix("."), port) in self.allowed

    def check(self, host: str, port: int, address: str) -> None:
        """Raise `PolicyDenied` unless the address that a host was resolved to may be dialled."""
        if not self.allows(host, port) and (reason := check_address(address)):
            raise _denied(f"{host}:{port}", f"leads to {address}, {reason}", _REMEDY)


_REMEDY = (
    "Only public addresses may be fetched; a local service has to be allowed by the person, in "
    "runner.toml: [tools.web] egress_allowlist."
)


# ------------------------------------------------------------------------------------------ reading


def parse_url(text: str) -> Url:
    """What `text` means, if it can mean one thing only. Raises `PolicyDenied`."""
    text = text.strip(" ")
    if len(text) > MAX_URL_CHARS:
        raise _denied(text, f"is longer than {MAX_URL_CHARS} characters", "Use a shorter one.")
    for char in text:
        if char <= " " or char in "\\\x7f" or visible(char) != char:
            raise _denied(text, f"contains the character U+{ord(char):04X}", "Percent-encode it.")
    match = _URL.fullmatch(text)
    if match is None:
        raise _denied(text, "does not begin with http:// or https://", "Give the whole URL.")
    scheme, authority = match[1].lower(), match[2]
    if "@" in authority:
        raise _denied(text, "carries a user name or password", "Leave it out.")
    place = _HOST_PORT.fullmatch(authority)
    if place is None:
        raise _denied(text, "has no valid host and port", "Write it as https://host/path.")
    host = _host(place[1], text)
    port = int(place[2]) if place[2] else DEFAULT_PORTS[scheme]
    if not 0 < port < 65536:
        raise _denied(text, "has no valid port", "Ports are 1 to 65535.")
    path = quote((match[3] or "/") + (match[4] or ""), safe="/?!$&'()*+,;=:@%-._~[]|")
    return Url(scheme, host, port, path)


def follow(base: Url, location: str) -> Url:
    """Where a redirect leads, read as strictly. Raises `PolicyDenied`, also where it would give up
    https: what was fetched securely is not replaced by what anybody on the way could have written.
    """
    try:
        target = urljoin(str(base), location.strip(" ").replace(" ", "%20"))
    except ValueError:
        raise _denied(location, "is no valid redirect", "Fetch another page.") from None
    url = parse_url(target)
    if base.scheme == "https" and url.scheme != "https":
        raise _denied(location, "is a redirect from https to http", "Fetch it directly, if at all.")
    return url


def _host(written: str, url: str) -> str:
    if written.startswith("["):
        try:
            address = IPv6Address(written[1:-1])
        except AddressValueError:
            address = None
        if address is None or address.scope_id is not None:
            raise _denied(url, "has no valid IPv6 address", "Write it without a zone.")
        return str(address)
    name = written if written.isascii() else _to_ascii(written, url)
    name = name.lower().removesuffix(".")
    labels = name.split(".")
    if not name or len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _denied(url, "has no valid host", "Check how it is spelled.")
    if _NUMBER.fullmatch(labels[-1]):  # WHATWG URL, "ends in a number": it is an IPv4 address
        try:
            return str(IPv4Address(name))
        except AddressValueError:
            raise _denied(
                url,
                "has a host of numbers that is no plain IPv4 address",
                "Write addresses as four decimal numbers.",
            ) from None
    return name


def _to_ascii(name: str, url: str) -> str:
    """An international name as its registry and the DNS know it (UTS 46, nontransitional)."""
    import idna  # loads its tables: only when such a name comes

    try:
        return idna.encode(name, uts46=True, std3_rules=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        raise _denied(url, "has no valid international host name", "Check its spelling.") from None


# ----------------------------------------------------------------------------------------- deciding


def check_url(url: Url, egress: Egress) -> None:
    """Raise `PolicyDenied` for what may not be fetched whatever its name resolves to."""
    if egress.allows(url.host, url.port):
        return
    if url.port in _BAD_PORTS:
        raise _denied(str(url), f"uses port {url.port}, which is no web server's", _REMEDY)
    if url.address is not None:
        if reason := check_address(url.address):
            raise _denied(str(url), f"leads to {reason}", _REMEDY)
    elif "." not in url.host or any(url.host.endswith(f".{name}") for name in _LOCAL_NAMES):
        raise _denied(str(url), "has the name of a local host", _REMEDY)


def check_address(address: Address | str) -> str:
    """Why an address may not be dialled; "" for one on the public internet."""
    if isinstance(address, str):
        found = _literal(address)
        if found is None:
            return "no plain address"
        address = found
    if isinstance(address, IPv4Address):
        return next((what for network, what in _NETWORKS_4 if address in network), "")
    if address.scope_id is not None:
        return "an address with a zone"
    if address in _NAT64:
        inside = check_address(IPv4Address(int(address) & 0xFFFFFFFF))
        return inside and f"a translation of {inside}"
    for network, what in _NETWORKS_6:
        if address in network:
            return what
    if address not in _PUBLIC_6:
        return "a reserved address"
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return "an IPv4 address tunnelled through IPv6"
    return ""


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _denied(url: str, what: str, remedy: str) -> PolicyDenied:
    shown = visible(url if len(url) <= 120 else url[:117] + "…")
    return PolicyDenied(f"The address {shown!r} {what}.", remedy=remedy)
