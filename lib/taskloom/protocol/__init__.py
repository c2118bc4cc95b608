"""The wire, pure: messages, frames, the handshake. Bytes in, values out, and back; no socket, clock or thread.

:mod:`taskloom.net` carries the bytes. ``docs/protocol.md`` describes them.
"""

from taskloom.protocol.frames import Decoder, Encoder
from taskloom.protocol.handshake import PROTOCOL, ROLES, Acceptor, Connector, Handshake, Identity, Peer
from taskloom.protocol.limits import Limits
from taskloom.protocol.messages import OUT_OF_BAND, Payload, Reader, Reference, Writer

__all__ = [
    "OUT_OF_BAND",
    "PROTOCOL",
    "ROLES",
    "Acceptor",
    "Connector",
    "Decoder",
    "Encoder",
    "Handshake",
    "Identity",
    "Limits",
    "Payload",
    "Peer",
    "Reader",
    "Reference",
    "Writer",
]
