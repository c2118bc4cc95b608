"""Values on disk: a folder of its own for each process, a file for each value.

The folder can only be read by its user. It goes when the process ends; where that was killed, the next one that looks removes it,
see :mod:`taskloom.node.folders`.

A file has the pickle's stream and its buffers one after the other::

    0     4 bytes     b"TLV1"
    4     uint32      how many buffers there are, n
    8     n+1 uint64  bytes of the stream and of each buffer
    ...               the stream and the buffers, each at a multiple of 64 bytes

Files and names of :class:`zict.File`, which writes a list of buffers without joining them. Large files are mapped when they are
read, privately: what is looked at is loaded, the kernel may drop it again, and a task that writes into its input does not write
into the file.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import weakref
from collections import deque
from collections.abc import Sequence
from mmap import ACCESS_COPY, mmap
from typing import Any

import zict

from taskloom.errors import TaskloomError
from taskloom.node.folders import make_owned, remove_orphans

__all__ = ["MAP_FROM", "SpillError", "SpillFolder", "remove_orphans"]

_MAGIC = b"TLV1"
_ALIGN = 64
MAP_FROM = 256 * 1024  # bytes; smaller files are read

Buffer = bytes | bytearray | memoryview


class SpillError(TaskloomError, RuntimeError):
    """A value that was written to disk cannot be read back."""


class _Files(zict.File):
    """Keys are file names as they are, and never used twice."""

    def _safe_key(self, key: str) -> str:
        return key

    @staticmethod
    def _unsafe_key(key: str) -> str:
        return key


class SpillFolder:
    """A process's folder.

    Writing and removing are for one thread; anybody may read.

    Args:
        parent: the directory to make it in, which has to be there; orphans in it are removed.

    Attributes:
        path: of the folder.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, parent: str) -> None:
        remove_orphans(parent)
        self.path, self._fd = make_owned(parent, "values")
        self._files = _Files(os.path.join(self.path, "values"))
        self._number = 0
        self._mapped = 0
        self._unmapped: deque[int] = deque()  # whatever thread the garbage collector runs in appends to it
        self._end = weakref.finalize(self, _remove, self.path, self._fd, os.getpid())

    def write(self, stream: Buffer, buffers: Sequence[Buffer]) -> tuple[str, int]:
        """Write a value's pickle.

        Returns:
            The name of its file, and how many bytes that has.

        Raises:
            OSError: there is no room, or something else is wrong; nothing of it is left.
        """
        parts = [stream, *buffers]
        lengths = [len(part) if isinstance(part, bytes) else memoryview(part).nbytes for part in parts]
        head = _MAGIC + struct.pack(f"=I{len(parts)}Q", len(buffers), *lengths)
        pieces: list[Any] = [head, bytes(-len(head) % _ALIGN)]
        size = len(head) + len(pieces[1])
        for part, length in zip(parts, lengths, strict=True):
            pad = -length % _ALIGN
            pieces += (part, bytes(pad)) if pad else (part,)
            size += length + pad
        self._number += 1
        name = str(self._number)
        try:
            self._files[name] = pieces
        except BaseException:
            try:
                os.unlink(os.path.join(self._files.directory, name))
            except OSError:
                pass
            raise
        return name, size

    def read(self, name: str) -> tuple[memoryview, list[memoryview]]:
        """A value's pickle: its stream, and its buffers, which may be written to.

        Raises:
            SpillError: it is not what was written, or cannot be read.
        """
        path = os.path.join(self._files.directory, name)
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size >= MAP_FROM:
                    mapped = mmap(file.fileno(), size, access=ACCESS_COPY)
                    self._mapped += size
                    weakref.finalize(mapped, self._unmapped.append, size).atexit = False
                    whole = memoryview(mapped)
                else:
                    data = bytearray(size)
                    if file.readinto(data) != size:
                        raise OSError(errno.EIO, "it ends too early")
                    whole = memoryview(data)
            if whole[:4] != _MAGIC:
                raise ValueError("it does not begin as it should")
            (count,) = struct.unpack_from("=I", whole, 4)
            lengths = struct.unpack_from(f"={count + 1}Q", whole, 8)
            at = 8 + 8 * (count + 1)
            parts = []
            for length in lengths:
                at += -at % _ALIGN
                if at + length > size:
                    raise ValueError("it ends too early")
                parts.append(whole[at : at + length])
                at += length
        except (OSError, ValueError, struct.error) as error:
            raise SpillError(f"a value was written to {path} and cannot be read back: {error}") from error
        return parts[0], parts[1:]

    def remove(self, name: str) -> None:
        """Remove a value's file. Who has read it may go on using what he has got."""
        try:
            del self._files[name]
        except (KeyError, OSError):  # somebody has tidied up
            pass

    def mapped(self) -> int:
        """Bytes of files that are mapped just now. The kernel can take that memory back when it needs it."""
        while True:
            try:
                self._mapped -= self._unmapped.popleft()
            except IndexError:
                return self._mapped

    def close(self) -> None:
        """Remove the folder with all that is in it."""
        self._end()


def _remove(path: str, fd: int, pid: int) -> None:
    if os.getpid() == pid:  # not in a forked child
        shutil.rmtree(path, ignore_errors=True)
        os.close(fd)
