"""The tasks that run now, in a small file that outlives its process.

After a ``kill -9`` of the process or of its whole container nobody is left who could say which task it was at. So each
thread writes the id of its task here before it begins. The file is mapped memory: writing costs no system call, and what
was written is in the file when the process is gone, however it went. (Not when the machine itself goes down: nobody asks
for it then.)

Layout, all numbers in the byte order of the machine::

    0    8 bytes   b"TLRUN01\\n"
    8    uint64    how many cells there are, n
    16   uint64    id of the process
    24   float64   when that process started: seconds since 1970, as psutil says
    32   32 bytes  zeros
    64   n int64   the ids; NOBODY (-2**63) where no task runs

Why none is ever torn: the head is written to a file of another name, which is then renamed; a cell is eight bytes at a multiple
of eight, and one store of the processor. A file of another size or head is refused.
"""

from __future__ import annotations

import os
import struct
from mmap import mmap
from typing import NamedTuple

__all__ = ["NOBODY", "Running", "RunningCells", "read_running"]

NOBODY = -(2**63)

_MAGIC = b"TLRUN01\n"
_HEAD = struct.Struct("=8sQQd32x")
_MOST = 1 << 16


class Running(NamedTuple):
    """What :func:`read_running` found.

    Attributes:
        pid: of the process that wrote it.
        started: when that process started, seconds since 1970; 0.0 where it could not find out.
        tids: of the tasks that its threads were at.
    """

    pid: int
    started: float
    tids: list[int]


class RunningCells:
    """The writer's side.

    Args:
        path: the file; one that is there already is replaced.
        count: how many threads there can be.

    Attributes:
        words: a memoryview of ``count`` integers, to be assigned to.

    Raises:
        OSError: the file cannot be made.
        ValueError: ``count`` is out of its range.
    """

    def __init__(self, path: str, count: int) -> None:
        if not 0 < count <= _MOST:
            raise ValueError(f"count is a number of threads from 1 to {_MOST}, not {count}")
        self.path = path
        size = _HEAD.size + 8 * count
        whole = bytearray(size)
        _HEAD.pack_into(whole, 0, _MAGIC, count, os.getpid(), _started())
        struct.pack_into(f"={count}q", whole, _HEAD.size, *[NOBODY] * count)
        fresh = f"{path}.{os.getpid()}"
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, whole)
            self._map = mmap(fd, size)
            os.rename(fresh, path)
        except BaseException:
            os.unlink(fresh)
            raise
        finally:
            os.close(fd)
        self.words = memoryview(self._map)[_HEAD.size :].cast("q")

    def close(self, remove: bool = True) -> None:
        """Let go of the file, and remove it unless it is said to stay. No thread may write any more."""
        self.words.release()
        try:
            self._map.close()
        except BufferError:  # a thread that nobody could stop still has it
            pass
        if remove:
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass


def read_running(path: str) -> Running:
    """What the process that writes this file, or wrote it until it died, is at.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file.
    """
    with open(path, "rb") as file:
        data = file.read(_HEAD.size + 8 * _MOST + 1)
    if len(data) < _HEAD.size or data[: len(_MAGIC)] != _MAGIC:
        raise ValueError(f"{path} is no file of running tasks: it begins with {data[:8]!r}")
    _, count, pid, started = _HEAD.unpack_from(data)
    if len(data) != _HEAD.size + 8 * count:
        raise ValueError(f"{path} is damaged: {len(data)} bytes are not those of {count} threads")
    cells = struct.unpack_from(f"={count}q", data, _HEAD.size)
    return Running(pid, started, [tid for tid in cells if tid != NOBODY])


def _started() -> float:
    import psutil

    try:
        return float(psutil.Process().create_time())
    except (psutil.Error, OSError):
        return 0.0
