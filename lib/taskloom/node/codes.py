"""Exit codes by which a worker process tells its supervisor what is to be done."""

from __future__ import annotations

__all__ = ["MEMORY", "REFUSED", "REPLACE"]

#: Replace me: a task that was cancelled does not stop. Replace me: my memory is full. It is of no use to start me again.
REPLACE, MEMORY, REFUSED = 75, 76, 77
