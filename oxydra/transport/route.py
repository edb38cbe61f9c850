"""Where requests may go that the runner's configuration knows: the routes. Pure.

A caller names a route; who holds the routes adds the key and refuses whatever else the caller
wanted of it. So a key is bound to a scheme, a host, a port, methods and paths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from oxydra.errors import PolicyDenied, TransportError
from oxydra.transport.base import Credential, HttpRequest, origin_of


@dataclass(frozen=True, slots=True)
class Route:
    """One destination by `name`. `origin` is `scheme://host[:port]`; `path` a regular expression
    for the whole path, without the query; `credential` is None for a service that takes no key.
    `check` looks at the rest of a request and raises `PolicyDenied`.
    """

    name: str
    origin: str
    path: str
    methods: tuple[str, ...] = ("POST",)
    credential: Credential | None = field(default=None, repr=False)
    check: Callable[[HttpRequest], None] = lambda _request: None

    def leads_to(self, method: str, origin: str, path: str) -> bool:
        """Whether a request is one of this route's."""
        return (
            origin == self.origin
            and method in self.methods
            and re.fullmatch(self.path, path) is not None
        )


class Routes:
    """All routes of one user; immutable."""

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        self._routes = tuple(routes)

    @property
    def credentials(self) -> dict[str, Credential]:
        """The keys, by the routes' names."""
        return {r.name: r.credential for r in self._routes if r.credential is not None}

    def find(self, request: HttpRequest) -> Route:
        """The route of a request that names its credential, or that goes to a service without one.

        Raises `PolicyDenied` where no route leads there.
        """
        name, url = request.credential, request.url
        try:
            origin, path = origin_of(url), urlsplit(url).path
        except (TransportError, ValueError):
            origin, path = "", ""
        for route in self._routes:
            named = route.name == name if name else route.credential is None
            if named and route.leads_to(request.method, origin, path):
                route.check(request)
                return route
        known = [route for route in self._routes if route.name == name] if name else []
        what = f"The key {name} is not for" if known else "No route leads to"
        raise PolicyDenied(
            f"{what} {request.method} {origin or 'that address'}{path[:100]}.",
            remedy="Only what the runner's configuration names may be reached: restart it after a"
            " change.",
        )
