"""Compression of large buffers, where it pays.

A codec is used if both sides have it, and never on loopback, where copying is faster than any of them. ``lz4`` and ``zstd``
need their packages (``lz4``, ``zstandard``); zlib is always there but slow, so it has to bring more, and is let near small
buffers only: the loop stands still while it works. Whether a buffer is worth
it, a sample tells: a few pieces from all over it.

In the handshake and on the wire codecs are numbers: 0 none, 1 zlib, 2 lz4, 3 zstd.
"""

from __future__ import annotations

import functools
import importlib
import zlib
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from taskloom.errors import ProtocolError

__all__ = ["CODECS", "Codec", "available", "choose", "compress", "decompress"]

Buffer = bytes | bytearray | memoryview

LEAST = 1 << 16  # bytes; smaller buffers travel as they are
_PIECES, _PIECE = 8, 2048  # a sample


class Codec(NamedTuple):
    """One way to compress.

    Attributes:
        number: what stands for it on the wire.
        share: the sample must shrink to less than this share of itself.
        most: bytes of the largest buffer that is compressed in one go; the loop stands still meanwhile.
        compress: bytes-like to bytes.
        decompress: bytes-like and the size it must have then; raises anything where it is damaged, and makes no more.
    """

    number: int
    share: float
    most: int
    compress: Callable[[Any], bytes]
    decompress: Callable[[Any, int], Any]


def _zlib_decompress(data: Any, size: int) -> bytes:
    worker = zlib.decompressobj()
    found = worker.decompress(data, size)
    # at the very end of the stream no byte more may come out
    if not worker.eof and (worker.decompress(worker.unconsumed_tail, 1) or not worker.eof):
        raise ValueError("it has another size than it says")
    if worker.unused_data:
        raise ValueError("something stands behind its end")
    return found


def _lz4() -> Codec:
    block = importlib.import_module("lz4.block")
    return Codec(
        2,
        0.8,
        64 << 20,
        lambda data: block.compress(data, store_size=False),
        lambda data, size: block.decompress(data, uncompressed_size=size),
    )


def _zstd() -> Codec:
    module = importlib.import_module("zstandard")

    def decompress(data: Any, size: int) -> Any:
        said = module.frame_content_size(data)
        if said != size:  # before it makes room for it
            raise ValueError(f"it says that it holds {said} bytes")
        return module.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)

    return Codec(3, 0.8, 32 << 20, lambda data: module.ZstdCompressor(level=1).compress(data), decompress)


_MAKERS: dict[str, Callable[[], Codec]] = {
    "zstd": _zstd,
    "lz4": _lz4,
    "zlib": lambda: Codec(1, 0.25, 1 << 20, lambda data: zlib.compress(data, 1), _zlib_decompress),
}

#: name -> number, the best first.
CODECS: dict[str, int] = {"zstd": 3, "lz4": 2, "zlib": 1}


@functools.cache
def _codec(name: str) -> Codec | None:
    try:
        return _MAKERS[name]()
    except ImportError:
        return None


def available() -> tuple[str, ...]:
    """The names of the codecs that work here, the best first.

    >>> "zlib" in available()
    True
    """
    return tuple(name for name in CODECS if _codec(name) is not None)


def choose(ours: Collection[str], theirs: Collection[str]) -> Codec | None:
    """The best codec that both sides have; None where there is none.

    >>> choose(["zlib"], ["lz4"]) is None
    True
    """
    for name in CODECS:
        if name in ours and name in theirs:
            codec = _codec(name)
            if codec is not None:
                return codec
    return None


def compress(codec: Codec, data: memoryview) -> bytes | None:
    """The buffer compressed; None where it had better travel as it is."""
    size = data.nbytes
    if not LEAST <= size <= codec.most:
        return None
    step = (size - _PIECE) // (_PIECES - 1)
    sample = b"".join([data[at : at + _PIECE] for at in range(0, size - _PIECE + 1, step)])
    if len(codec.compress(sample)) > len(sample) * codec.share:
        return None
    found = codec.compress(data)
    return found if len(found) < size * codec.share else None


def decompress(number: int, data: Buffer, size: int, allowed: Collection[int]) -> memoryview:
    """A buffer as it was, in writable memory of its own.

    Args:
        number: its codec.
        size: what its size must be then; it is within the limits.
        allowed: the numbers of the codecs that were agreed on.

    Raises:
        ProtocolError: it is damaged, or of another size, or of a codec that was not agreed on.
    """
    name = next((name for name, known in CODECS.items() if known == number), None)
    codec = _codec(name) if name is not None and number in allowed else None
    if codec is None:
        raise ProtocolError(f"a buffer is compressed by codec {number}, which was not agreed on")
    try:
        found = codec.decompress(data, size)
    except Exception as error:  # each package has errors of its own
        raise ProtocolError(f"a buffer compressed by {name} is damaged: {error}") from error
    if len(found) != size:
        raise ProtocolError(f"a buffer compressed by {name} has {len(found)} bytes and was to have {size}")
    return memoryview(bytearray(found))
