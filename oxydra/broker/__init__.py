"""The egress broker: the one exit of every guest, on the runner's side.

`server` answers the guests' channels, `destinations` decides where they may lead, `quota` how much,
`audit` keeps the record that cannot be changed unnoticed. Keys are known here and nowhere below.
"""

from oxydra.broker.audit import AuditLog, Verified, rows, today, verify
from oxydra.broker.destinations import Destinations
from oxydra.broker.quota import Quota
from oxydra.broker.server import Broker

__all__ = [
    "AuditLog",
    "Broker",
    "Destinations",
    "Quota",
    "Verified",
    "rows",
    "today",
    "verify",
]
