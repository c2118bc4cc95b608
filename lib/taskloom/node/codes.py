"""Exit codes by which a worker process tells its supervisor what is to be done."""

from __future__ import annotations

__all__ = ["LEFT", "MEMORY", "REFUSED", "REPLACE"]

#: I have left, as I was asked to. (Not 0: a task that calls ``os._exit(0)`` was not asked to.)
LEFT = 74
#: Replace me: a task that was cancelled does not stop. Replace me: my memory is full. It is of no use to start me again.
REPLACE, MEMORY, REFUSED = 75, 76, 77
