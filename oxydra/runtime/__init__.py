"""The turn loop: ask the model, run the tools it calls, feed the results back, until it answers."""

from oxydra.runtime.loop import MADE, Runtime, internal_error

__all__ = ["MADE", "Runtime", "internal_error"]
