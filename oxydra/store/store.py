"""Everything that is kept of one user, in one SQLite file (APSW, WAL).

The agent guest alone opens it while it runs.
"""

from __future__ import annotations

from oxydra.store.approvals import ApprovalTables
from oxydra.store.changes import ChangeTables
from oxydra.store.channels import ChannelTables
from oxydra.store.delegation import DelegationTables
from oxydra.store.forget import ForgetTables
from oxydra.store.fork import ForkTables
from oxydra.store.mcp import McpTables
from oxydra.store.memory import MemoryTables
from oxydra.store.notes import NoteTables
from oxydra.store.notices import NoticeTables
from oxydra.store.schedules import ScheduleTables
from oxydra.store.spend import SpendTables
from oxydra.store.summaries import SummaryTables
from oxydra.store.trace import TraceTables
from oxydra.store.upkeep import UpkeepTables
from oxydra.store.vectors import VectorTables


class Store(
    ForgetTables,
    ForkTables,
    ChangeTables,
    ApprovalTables,
    SpendTables,
    DelegationTables,
    SummaryTables,
    TraceTables,
    ScheduleTables,
    NoticeTables,
    MemoryTables,
    NoteTables,
    VectorTables,
    UpkeepTables,
    ChannelTables,
    McpTables,
):
    """The database, with the methods of all its tables."""
