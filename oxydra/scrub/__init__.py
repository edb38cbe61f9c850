"""What may be shown and logged: `printable` and `explicit` for people's terminals,
`unsteering` for pages.

Secrets are removed by `oxydra.scrub.exact` where their values are known (runner and broker) and by
`oxydra.scrub.guest` where they are not; those are imported where they are needed.
"""

from oxydra.scrub.terminal import explicit, printable, unsteering

__all__ = ["explicit", "printable", "unsteering"]
