"""Values on disk: a folder of its own for each process, a file for each value.

The folder can only be read by its user. It goes when the process ends; where that was killed, the next one that looks removes it:
whether a folder's owner still lives says a lock (flock) on a file in it, which the kernel lets go of however a process ends,
and which cannot be mistaken for that of another process with the same number, as a pid can.

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
import fcntl
import os
import shutil
import stat
import struct
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Sequence
from mmap import ACCESS_COPY, mmap
from typing import Any

import zict

from taskloom.errors import TaskloomError

__all__ = ["SpillError", "SpillFolder", "remove_orphans"]

_PREFIX = "taskloom-values-"
_UNFINISHED = "taskloom-making-"
_OWNER = "owner"
_MARK = b"a folder of taskloom's for values that do not fit into memory; it belongs to process "
_MAGIC = b"TLV1"
_ALIGN = 64
_MAP_FROM = 256 * 1024  # bytes; smaller files are read
_OLD = 3600.0  # seconds after which a folder that nobody has finished making is given up

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
        making = tempfile.mkdtemp(prefix=_UNFINISHED, dir=parent)  # 0700
        self._fd = os.open(os.path.join(making, _OWNER), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(self._fd, _MARK + str(os.getpid()).encode() + b"\n")
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # a file system without locks: nobody will take the folder for an orphan, alive or dead
                pass
            # only now does it have a name that others look at
            self.path = os.path.join(parent, _PREFIX + os.path.basename(making)[len(_UNFINISHED) :])
            os.rename(making, self.path)
        except BaseException:
            os.close(self._fd)
            shutil.rmtree(making, ignore_errors=True)
            raise
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
                if size >= _MAP_FROM:
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


def remove_orphans(parent: str) -> list[str]:
    """Remove the folders of processes that are gone: only such as this module makes, of this user.

    Returns:
        The paths of what was removed.
    """
    removed = []
    try:
        with os.scandir(parent) as found:
            entries = [entry for entry in found if entry.name.startswith((_PREFIX, _UNFINISHED))]
    except OSError:
        return []
    for entry in entries:
        try:
            about = entry.stat(follow_symlinks=False)
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
                continue
            if entry.name.startswith(_UNFINISHED) and time.time() - about.st_mtime < _OLD:
                continue
            fd = os.open(os.path.join(entry.path, _OWNER), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if os.read(fd, len(_MARK)) != _MARK:
                continue
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # else its owner is alive
            shutil.rmtree(entry.path, ignore_errors=True)
            removed.append(entry.path)
        except OSError:
            continue
        finally:
            os.close(fd)
    return removed
