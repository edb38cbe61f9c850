"""Hostile parsing in killable, caged children.

`pool` starts the children and asks them (see `guest/tool-worker` for what runs in one); `search`,
`readable` and `pdf` are what they can be asked for. A new job is a function that takes a JSON
object and bytes and returns a JSON object, and one line in `pool.JOBS`.
"""

from oxydra.worker.pool import JOBS, WorkerConfig, Workers

__all__ = ["JOBS", "WorkerConfig", "Workers"]
