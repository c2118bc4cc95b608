"""Connections between the processes of a cluster: TCP, TLS and within one process, behind one small interface.

::

    listener = await listen("tcp://127.0.0.1:0", welcome, token=token, role="scheduler")
    connection = await connect(listener.address, token=token, role="client", wants="scheduler")
    connection.start(on_messages, on_close)
    connection.send(("hello", 1))

A shell: it carries bytes, and decides nothing. What they mean is in :mod:`taskloom.protocol`; ``docs/protocol.md`` describes
both, and why nobody comes in who does not know the token.
"""

from taskloom.net.addresses import DEFAULT_PORT, Address, parse_address
from taskloom.net.connection import Connection, Counters
from taskloom.net.endpoints import Listener, Options, connect, listen
from taskloom.net.inproc import InprocListener
from taskloom.net.security import Security, own_security, pinned_context, temporary_security
from taskloom.net.tokens import (
    Token,
    TokenFile,
    dump_token,
    find_or_make_token,
    find_token,
    load_token,
    make_token,
    read_token,
    token_path,
    tokens_of,
)

__all__ = [
    "DEFAULT_PORT",
    "Address",
    "Connection",
    "Counters",
    "InprocListener",
    "Listener",
    "Options",
    "Security",
    "Token",
    "TokenFile",
    "connect",
    "dump_token",
    "find_or_make_token",
    "find_token",
    "listen",
    "load_token",
    "make_token",
    "own_security",
    "parse_address",
    "pinned_context",
    "read_token",
    "temporary_security",
    "token_path",
    "tokens_of",
]
