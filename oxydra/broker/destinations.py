"""Where a guest's requests may lead. Pure.

The agent guest reaches the routes of the runner's configuration, each with its key, and for its web
tools public addresses by GET. The shell guest reaches what `[egress]` names: nothing, listed hosts
and ports, or any public address. Addresses are checked once more when a name is resolved
(`oxydra/policy/network.py`).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from oxydra.config import EgressLimits, EgressPolicy
from oxydra.config.fields import ROUTING_HEADERS, SECRET_HEADER
from oxydra.errors import PolicyDenied
from oxydra.policy.network import Egress, Url, check_url, parse_url
from oxydra.transport import Credential, HttpRequest
from oxydra.transport.route import Routes

GuestName = Literal["agent", "shell"]
GUESTS: tuple[GuestName, ...] = get_args(GuestName)

WEB_METHODS = ("GET", "HEAD")
_DROPPED = re.compile(rf"{SECRET_HEADER}|(?i:^proxy-|^x-forwarded|^forwarded$)")


NOTHING = EgressPolicy(shell="none", allow=(), limits=EgressLimits(0, 0, 0))


@dataclass(frozen=True, slots=True)
class Destinations:
    """What one user's guests may reach. `egress` has the local services for web tools, `shell` what
    `[egress]` says, `git` the tokens of git hosts: what the shell asks of `http://HOST/` goes out
    as https with them.
    """

    routes: Routes = field(default_factory=Routes)
    egress: Egress = field(default_factory=Egress)
    shell: EgressPolicy = NOTHING
    git: Mapping[str, str] = field(default_factory=dict, repr=False)

    def admit(self, guest: GuestName, request: HttpRequest) -> tuple[HttpRequest, str]:
        """The request as it may go out, and the name of its route. Raises `PolicyDenied`."""
        request = replace(request, headers=_allowed(request.headers))
        if guest == "shell":
            return self._of_shell(request)
        if request.credential or not request.guarded:
            return request, self.routes.find(request).name
        if request.method not in WEB_METHODS:
            raise PolicyDenied("The web tools only read.", remedy="Use GET.")
        check_url(parse_url(request.url), self.egress)
        return request, "web"

    def look(self, guest: GuestName, text: str) -> Url:
        """Where a GET of that URL would lead, for a guest that is free to choose it: the web tools,
        or a command by its proxy. Raises `PolicyDenied`.
        """
        url = parse_url(text)
        if guest == "shell" and url.scheme == "https":
            return self.admit_connection(url.host, url.port)
        request, _route = self.admit(guest, HttpRequest("GET", str(url), guarded=True))
        return parse_url(request.url)

    def admit_connection(self, host: str, port: int) -> Url:
        """Where the shell connects that spells a host so. Raises `PolicyDenied` unless it may."""
        url = parse_url(f"https://{f'[{host}]' if ':' in host else host}:{port}")
        if url.path != "/":
            raise PolicyDenied("That is no host.", remedy="Name a host and a port.")
        if not self.shell.allows(url.host, url.port):
            raise _not_allowed(self.shell, f"{url.host}:{url.port}")
        check_url(url, Egress())
        return url

    def _of_shell(self, request: HttpRequest) -> tuple[HttpRequest, str]:
        url = parse_url(request.url)
        request = replace(request, credential="", guarded=True)
        if url.host in self.git and url.scheme == "http" and url.port == 80:
            if not self.shell.allows(url.host, 443):
                raise _not_allowed(self.shell, f"{url.host}:443")
            secure = f"https://{url.host}{url.path}"
            return replace(request, url=secure, credential=f"git:{url.host}"), f"git:{url.host}"
        if not self.shell.allows(url.host, url.port):
            raise _not_allowed(self.shell, f"{url.host}:{url.port}")
        check_url(url, Egress())
        return request, "shell"

    def local(self, guest: GuestName) -> Egress:
        """What a guest may reach besides public addresses, whatever its requests are called."""
        return self.egress if guest == "agent" else Egress()

    def credentials(self, guest: GuestName) -> dict[str, Credential]:
        """A guest's keys, by the name that its requests carry after `admit`."""
        if guest == "agent":
            return self.routes.credentials
        found = {}
        for host, token in self.git.items():  # what git's servers take a token as: a password
            basic = base64.b64encode(f"oxydra:{token}".encode()).decode()
            found[f"git:{host}"] = Credential("Authorization", f"Basic {basic}", f"https://{host}")
        return found


def _allowed(headers: Mapping[str, str]) -> dict[str, str]:
    """Without what is the broker's to say: credentials, cookies, hosts and proxies."""
    return {
        name: value
        for name, value in headers.items()
        if not _DROPPED.search(name) and name.lower() not in ROUTING_HEADERS
    }


def _not_allowed(policy: EgressPolicy, where: str) -> PolicyDenied:
    if policy.shell == "none":
        return PolicyDenied(
            f"Commands have no network, and {where} was asked for.",
            remedy='The person can allow it in runner.toml: [egress] shell = "allowlist".',
        )
    return PolicyDenied(
        f"{where} is not among the destinations that commands may reach.",
        remedy=f'The person can add it in runner.toml: [egress] allow = ["{where}"].',
    )
