"""What this machine lets us use."""

from __future__ import annotations

import os
import sys

__all__ = ["cpu_count", "thread_limits"]

# Every library that starts a thread pool of its own in numeric code, by the variable that limits it.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
)


def cpu_count() -> int:
    """How many CPUs this process may use: the least of the machine's, its affinity mask and its cgroup's quota."""
    if sys.platform == "linux":
        count = len(os.sched_getaffinity(0))
        quota = _cgroup_quota()
        if quota is not None:
            count = min(count, max(1, round(quota + 0.49)))
        return max(1, count)
    return os.cpu_count() or 1


def _cgroup_quota() -> float | None:
    """CPUs that the container's cgroup grants, version 2 then 1; None where there is no limit."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as file:
            used = int(file.read())
        with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as file:
            period_us = int(file.read())
        return used / period_us if used > 0 and period_us > 0 else None
    except (OSError, ValueError):
        return None


def thread_limits(processes: int) -> dict[str, str]:
    """Environment variables for each of so many processes, so that their BLAS and OpenMP threads share the CPUs.

    A variable that the user has set already is not in it: the user knows better.
    """
    share = str(max(1, cpu_count() // max(1, processes)))
    return {name: share for name in _THREAD_VARIABLES if name not in os.environ}
