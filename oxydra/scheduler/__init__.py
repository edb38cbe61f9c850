"""Tasks that run at their time: the ledger's keeper, its thread, and what tools and people ask."""

from oxydra.scheduler.desk import Desk, ModelDesk
from oxydra.scheduler.engine import Engine, Outcome
from oxydra.scheduler.service import Scheduler

__all__ = ["Desk", "Engine", "ModelDesk", "Outcome", "Scheduler"]
