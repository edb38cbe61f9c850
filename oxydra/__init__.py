"""Oxydra: a self-hosted AI agent orchestrator. `docs/guidebook/` explains how it is made."""

from oxydra.version import VERSION as __version__

__all__ = ["__version__"]
