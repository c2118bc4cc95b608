"""Messages between the parent and a process of the pool, over a Unix stream socket.

A message is a header, a plain picklable value, and any number of buffers. On the wire: a fixed part (length of the header,
number of buffers), the size of each buffer, the header, the small buffers. A large buffer does not go through the
socket: it is written to anonymous memory whose file descriptor goes with the message, and the receiver maps it, or hands
the descriptor on to another process without having looked at a byte.
"""

from __future__ import annotations

import array
import mmap
import os
import pickle
import socket
import struct
import tempfile
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["Receiver", "SharedBuffer", "encode", "materialize", "send_blocking"]

Buffer = bytes | bytearray | memoryview

_FIXED = struct.Struct("<II")
_SIZE = struct.Struct("<q")

# Bytes. Making, filling and mapping anonymous memory costs some 50 us; below this the socket is the cheaper way.
SHARED_FROM = 512 * 1024
# Descriptors that one sendmsg() may carry (the kernel's SCM_MAX_FD is 253).
_MOST_FDS = 64
# Each mapping keeps a descriptor open in CPython; beyond so many at a time, values are copied instead.
_MOST_MAPPED = 256

_mapped = 0


class _Mapping(mmap.mmap):
    """A private mapping that counts itself."""

    def __del__(self) -> None:
        global _mapped
        _mapped -= 1


class SharedBuffer:
    """A large buffer in anonymous memory, by its descriptor, which it owns.

    Attributes:
        nbytes: its size.
    """

    __slots__ = ("fd", "nbytes")

    def __init__(self, fd: int, nbytes: int) -> None:
        self.fd = fd
        self.nbytes = nbytes

    @classmethod
    def of(cls, data: Buffer) -> SharedBuffer:
        """A copy of this data.

        Raises:
            OSError: no descriptor or no memory is left.
        """
        fd = os.memfd_create("taskloom") if hasattr(os, "memfd_create") else _unnamed_file()
        view = memoryview(data).cast("B")
        try:
            done = 0
            while done < view.nbytes:
                done += os.write(fd, view[done:])
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, view.nbytes)

    def load(self) -> Buffer:
        """The bytes, writable, seen by nobody else: a private mapping, or a copy where many are mapped already."""
        global _mapped
        if _mapped < _MOST_MAPPED:
            found = _Mapping(self.fd, self.nbytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            _mapped += 1
            return memoryview(found)
        copy = bytearray(self.nbytes)
        view, done = memoryview(copy), 0
        while done < self.nbytes:
            done += os.preadv(self.fd, [view[done:]], done)
        return copy

    def __del__(self) -> None:
        try:
            os.close(self.fd)
        except OSError:
            pass


def _unnamed_file() -> int:  # where there is no memfd: macOS
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def materialize(buffers: Iterable[Any]) -> list[Buffer]:
    """Buffers as pickle takes them: shared ones are mapped."""
    return [b.load() if type(b) is SharedBuffer else b for b in buffers]


class Part:
    """A piece of the stream, with the descriptors that go with its first byte."""

    __slots__ = ("data", "fds", "keep")

    def __init__(self, data: Buffer, fds: list[int], keep: Any = None) -> None:
        self.data = memoryview(data).cast("B")
        self.fds = fds
        self.keep = keep  # what owns the descriptors, until they are sent


def encode(header: Any, buffers: Sequence[Any] = ()) -> list[Part]:
    """A message as pieces of the stream.

    Args:
        header: plain values.
        buffers: bytes-like objects and :class:`SharedBuffer`; large bytes become shared ones here.
    """
    head = pickle.dumps(header, protocol=5)
    if not buffers:
        return [Part(_FIXED.pack(len(head), 0) + head, [])]
    sizes: list[bytes] = []
    small: list[Any] = []
    shared: list[SharedBuffer] = []
    for buffer in buffers:
        if type(buffer) is not SharedBuffer:
            size = buffer.nbytes if type(buffer) is memoryview else len(buffer)
            if size >= SHARED_FROM and len(shared) < _MOST_FDS:
                try:
                    buffer = SharedBuffer.of(buffer)
                except OSError:  # out of descriptors or memory: the socket will do
                    pass
        if type(buffer) is SharedBuffer:
            shared.append(buffer)
            sizes.append(_SIZE.pack(-buffer.nbytes))
        else:
            small.append(buffer)
            sizes.append(_SIZE.pack(memoryview(buffer).nbytes))
    first = b"".join([_FIXED.pack(len(head), len(buffers)), *sizes, head])
    # Descriptors beyond one sendmsg()'s share go with the next bytes; the receiver only counts them.
    groups = [shared[i : i + _MOST_FDS] for i in range(0, len(shared), _MOST_FDS)] or [[]]
    parts = [Part(first, [b.fd for b in groups[0]], groups[0])] if len(groups) == 1 else []
    if not parts:
        cut = [first[i : i + 1] for i in range(len(groups) - 1)] + [first[len(groups) - 1 :]]
        parts = [Part(piece, [b.fd for b in group], group) for piece, group in zip(cut, groups, strict=True)]
    if small:
        total = sum([memoryview(b).nbytes for b in small])
        if total < 65536:
            joined = b"".join(small)
            if len(parts) == 1:
                parts[0].data = memoryview(bytes(parts[0].data) + joined)
            else:
                parts.append(Part(joined, []))
        else:
            parts.extend([Part(b, []) for b in small])
    return parts


def send_some(sock: socket.socket, part: Part) -> bool:
    """Send what the socket takes of a piece; whether all of it is gone.

    Raises:
        BlockingIOError: it takes nothing now.
    """
    if part.fds:
        sent = sock.sendmsg([part.data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", part.fds))])
        part.fds = []
        part.keep = None
    else:
        sent = sock.send(part.data)
    part.data = part.data[sent:]
    return not part.data.nbytes


def send_blocking(sock: socket.socket, parts: Iterable[Part]) -> None:
    """Send a message on a blocking socket."""
    for part in parts:
        while not send_some(sock, part):
            pass


class Receiver:
    """The other end: bytes and descriptors in, messages out."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._data = bytearray()
        self._fds: deque[int] = deque()
        self._room = socket.CMSG_SPACE(_MOST_FDS * 4)

    def receive(self) -> list[tuple[Any, list[Any]]] | None:
        """One read of the socket: the messages that are whole now, (header, buffers) each; None at its end.

        Raises:
            BlockingIOError: nothing is there, on a socket that does not block.
        """
        data, ancillary, _, _ = self.sock.recvmsg(1 << 18, self._room)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._fds.extend(fds)
        if not data:
            return None
        self._data += data
        found = []
        while (message := self._next()) is not None:
            found.append(message)
        return found

    def _next(self) -> tuple[Any, list[Any]] | None:
        data = self._data
        if len(data) < _FIXED.size:
            return None
        head, count = _FIXED.unpack_from(data)
        start = _FIXED.size + count * _SIZE.size
        if len(data) < start + head:
            return None
        sizes = [size for (size,) in _SIZE.iter_unpack(bytes(data[_FIXED.size : start]))] if count else []
        end = start + head + sum([size for size in sizes if size > 0])
        if len(data) < end:
            return None
        view = memoryview(data)
        header = pickle.loads(view[start : start + head])
        at = start + head
        buffers: list[Any] = []
        for size in sizes:
            if size < 0:
                fd = self._fds.popleft()
                buffers.append(SharedBuffer(fd, -size))
            else:
                buffers.append(bytearray(view[at : at + size]))
                at += size
        view.release()
        del data[:end]
        return header, buffers

    def close(self) -> None:
        """Let go of descriptors that came with unfinished messages."""
        while self._fds:
            os.close(self._fds.popleft())
