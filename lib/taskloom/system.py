"""What this machine lets us use."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from time import monotonic

__all__ = ["cpu_count", "memory_total", "parse_bytes", "thread_limits"]

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
    """How many CPUs this process may use: the least of the machine's, its affinity mask and its cgroups' quotas.

    What the user has told the interpreter (Python 3.13: ``-X cpu_count=N``, ``PYTHON_CPU_COUNT``) comes before all of
    that.
    """
    told = _told()
    if told:
        return told
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not Linux
        count = os.cpu_count() or 1
    quota = _known_quota()
    if quota is not None:
        count = min(count, math.ceil(quota))
    return max(1, count)


_quota: tuple[float, float | None] = (-math.inf, None)


def _known_quota() -> float | None:
    """The quota as it was a few seconds ago at most: reading it costs as much as a small graph."""
    global _quota
    if monotonic() - _quota[0] > 10:
        _quota = (monotonic(), _cgroup_quota())
    return _quota[1]


def _told() -> int | None:
    if sys.version_info < (3, 13):
        return None
    told = sys._xoptions.get("cpu_count")
    if told is None and not sys.flags.ignore_environment:
        told = os.environ.get("PYTHON_CPU_COUNT")
    # the interpreter has refused what is no number; "default" takes the other one back
    return os.cpu_count() if told and told != "default" else None


def _cgroup_quota(root: str = "/") -> float | None:
    """CPUs that the cgroups of this process grant it, the least of them; None where there is no limit.

    Each group limits what is in it, so all from ours up to the root count. In a container that has a cgroup namespace of
    its own, its group is the root of what it sees. Without one, the path is that of the host, and of what is mounted
    only the root is known to be above us. See cgroups(7) and the kernel's admin-guide/cgroup-v2.rst.

    Args:
        root: the directory that holds ``proc`` and ``sys``.
    """
    quotas = list(_quotas(root))
    return min(quotas) if quotas else None


def _quotas(root: str) -> Iterator[float]:
    mount = os.path.join(root, "sys/fs/cgroup")
    for controllers, path in _memberships(root):
        if not controllers:  # version 2; "unified" where version 1 is there too
            for base in (mount, os.path.join(mount, "unified")):
                for group in _up(base, path):
                    quota, period = (_numbers(group, "cpu.max") + [0, 0])[:2]
                    if quota > 0 and period > 0:
                        yield quota / period
        elif "cpu" in controllers.split(","):
            for base in (os.path.join(mount, "cpu"), os.path.join(mount, controllers)):
                for group in _up(base, path):
                    quota = (_numbers(group, "cpu.cfs_quota_us") + [0])[0]
                    period = (_numbers(group, "cpu.cfs_period_us") + [0])[0]
                    if quota > 0 and period > 0:
                        yield quota / period


def _memberships(root: str) -> list[tuple[str, str]]:
    """(controllers, path) of each hierarchy that this process is in."""
    try:
        with open(os.path.join(root, "proc/self/cgroup")) as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except (OSError, UnicodeDecodeError):
        return []
    return [(line[1], line[2]) for line in lines if len(line) == 3]


def _up(base: str, path: str) -> Iterator[str]:
    """The directories of a group and of all above it."""
    names = [name for name in path.split("/") if name]
    if ".." in names:  # seen from a namespace that we are not in
        names = []
    for count in range(len(names), -1, -1):
        yield os.path.join(base, *names[:count])


def _numbers(group: str, name: str) -> list[int]:
    """What a file of a group says; nothing where there is none or it says "max"."""
    try:
        with open(os.path.join(group, name)) as file:
            return [int(word) for word in file.read().split()]
    except (OSError, ValueError):
        return []


def thread_limits(processes: int) -> dict[str, str]:
    """Environment variables for each of so many processes, so that their BLAS and OpenMP threads share the CPUs.

    A variable that the user has set already is not in it: the user knows better.
    """
    share = str(max(1, cpu_count() // max(1, processes)))
    return {name: share for name in _THREAD_VARIABLES if name not in os.environ}


def memory_total(root: str = "/") -> int:
    """Bytes of memory that this process may use: those of the machine, or what its cgroups grant it where that is less.

    Args:
        root: the directory that holds ``proc`` and ``sys``.
    """
    import psutil

    return min([int(psutil.virtual_memory().total), *_memory_limits(root)])


def _memory_limits(root: str) -> Iterator[int]:
    mount = os.path.join(root, "sys/fs/cgroup")
    for controllers, path in _memberships(root):
        if not controllers:
            for base in (mount, os.path.join(mount, "unified")):
                for group in _up(base, path):
                    yield from [limit for limit in _numbers(group, "memory.max") if limit > 0]
        elif "memory" in controllers.split(","):
            for group in _up(os.path.join(mount, "memory"), path):
                yield from [limit for limit in _numbers(group, "memory.limit_in_bytes") if limit > 0]


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str | int | float) -> int:
    """A number of bytes, as people write it.

    Args:
        text: such as ``"4 GiB"``, ``"500MB"``, ``"2e9"``, or a number.

    Raises:
        ValueError: it is none; says what would be.

    >>> parse_bytes("1.5 GiB"), parse_bytes("500MB"), parse_bytes(1000)
    (1610612736, 500000000, 1000)
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        size = float(text)
    else:
        found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]i?)?b?\s*", str(text).lower())
        try:
            size = float(found[1]) * _UNITS[found[2] or ""] if found else -1.0
        except ValueError:
            size = -1.0
    if not 0 <= size < 2**63:
        raise ValueError(f"{text!r} is no number of bytes, such as 4GiB, 500MB or 2000000000")
    return int(size)
