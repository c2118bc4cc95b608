"""How much one side takes from the other. Every length that comes is held against these before memory is made for it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Limits"]


class Limits(NamedTuple):
    """What a receiver takes. All sizes are in bytes.

    A sender is told the receiver's ``header`` and ``batch`` in the handshake, so that what is too large fails where it was
    made, and not as a broken connection.

    Attributes:
        header: the messages of one frame, without what stands out of band.
        batch: all that stands out of band in one frame, also after it was decompressed.
        buffer: one out-of-band buffer, also after it was decompressed.
        buffers: how many out-of-band buffers a frame may have.
        span: how many numbers a ``range`` may have, and how many items the columns of a frame that are one item repeated: a few
            bytes say it, and the receiver makes room for it or walks over it.

    >>> Limits(header=1 << 20).header
    1048576
    """

    header: int = 32 << 20
    batch: int = 16 << 30
    buffer: int = 16 << 30
    buffers: int = 1 << 20
    span: int = 1 << 24
