"""Addresses: ``tcp://host:port``, ``tls://host:port``, ``inproc://name``.

``tcp`` is for this machine only (``127.0.0.1``, ``::1``, ``localhost``); between machines it is ``tls``. An IPv6 address stands
in brackets: ``tls://[2001:db8::7]:8786``. To listen, the port may be 0 (any that is free) and the host ``0.0.0.0`` or ``[::]``
(all of this machine's).
"""

from __future__ import annotations

import ipaddress
import re
from difflib import get_close_matches
from typing import NamedTuple

from taskloom.errors import AddressError

__all__ = ["DEFAULT_PORT", "Address", "is_here", "is_loopback", "parse_address"]

#: Where a scheduler listens if nothing else is said.
DEFAULT_PORT = 8786

_SCHEMES = ("tcp", "tls", "inproc")
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?")
_INPROC = re.compile(r"[A-Za-z0-9_.:-]{1,200}")


class Address(NamedTuple):
    """An address, taken apart.

    Attributes:
        scheme: "tcp", "tls" or "inproc".
        host: a name or an IP address without brackets; for inproc the whole name.
        port: 0 to 65535; 0 for inproc.

    >>> str(Address("tls", "::1", 8786))
    'tls://[::1]:8786'
    """

    scheme: str
    host: str
    port: int = 0

    def __str__(self) -> str:
        if self.scheme == "inproc":
            return f"inproc://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_address(text: str, default_port: int | None = DEFAULT_PORT) -> Address:
    """Take an address apart.

    Args:
        text: the address.
        default_port: what stands for a port that is left out; None: it must not be left out.

    Raises:
        AddressError: it is none; says what is wrong with it, and how it should look.

    >>> parse_address("tcp://127.0.0.1:9000")
    Address(scheme='tcp', host='127.0.0.1', port=9000)
    >>> parse_address("tls://node7").port
    8786
    """
    if not isinstance(text, str):
        raise AddressError(f"an address is a string such as 'tls://host:{DEFAULT_PORT}', not {text!r}")
    scheme, mark, rest = text.strip().partition("://")
    if not mark:
        raise AddressError(
            f"the address {text!r} does not say how to talk there; write tcp://{text} for this machine, tls://{text} for "
            f"another one"
        )
    scheme = scheme.lower()
    if scheme not in _SCHEMES:
        close = get_close_matches(scheme, _SCHEMES, 1, 0.5)
        hint = f"; did you mean {close[0]}://{rest}?" if close else ""
        if scheme in ("http", "https", "ws", "wss"):
            hint = f"; the processes of a cluster do not talk by HTTP. Write tls://{rest}, or tcp:// on this machine"
        raise AddressError(
            f"the address {text!r} begins with {scheme}://; known are tcp://, tls:// and inproc://{hint}"
        )
    if scheme == "inproc":
        if not _INPROC.fullmatch(rest):
            raise AddressError(f"the address {text!r} needs a name of letters, digits and .:_- behind inproc://")
        return Address("inproc", rest)
    if "@" in rest:
        raise AddressError(
            f"the address {text!r} names a user; there are none, who may come in is decided by the token"
        )
    rest, _, path = rest.partition("/")
    if path or "?" in rest or "#" in rest:
        raise AddressError(f"the address {text!r} has something behind host and port; write {scheme}://host:port")
    if rest.startswith("["):
        host, bracket, tail = rest[1:].partition("]")
        if not bracket:
            raise AddressError(f"the address {text!r} has a bracket [ that is not closed")
        if tail and not tail.startswith(":"):
            raise AddressError(f"the address {text!r} has {tail!r} behind the bracket; a port begins with a colon")
        port = tail[1:] if tail else None
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise AddressError(f"the address {text!r} has {host!r} in brackets, which is no IPv6 address") from None
    else:
        if rest.count(":") > 1:
            raise AddressError(
                f"the address {text!r} has several colons; an IPv6 address stands in brackets: {scheme}://[{rest}]:port"
            )
        host, colon, after = rest.partition(":")
        port = after if colon else None
        if not host:
            raise AddressError(f"the address {text!r} has no host; write {scheme}://host:port")
        if re.fullmatch(r"[0-9.]+", host):
            try:
                ipaddress.IPv4Address(host)
            except ValueError:
                raise AddressError(f"the address {text!r} has the host {host!r}, which is no IPv4 address") from None
        elif not _NAME.fullmatch(host) or len(host) > 253:
            raise AddressError(f"the address {text!r} has the host {host!r}, which is no name of a machine")
    if port is None:
        if default_port is None:
            raise AddressError(f"the address {text!r} has no port; write {scheme}://{rest}:port")
        return Address(scheme, host, default_port)
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise AddressError(f"the address {text!r} has the port {port!r}; a port is a number from 0 to 65535")
    return Address(scheme, host, int(port))


def is_loopback(host: str) -> bool:
    """Whether an IP address can be reached from this machine only.

    >>> is_loopback("127.0.0.3"), is_loopback("::1"), is_loopback("10.0.0.1")
    (True, True, False)
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def is_here(host: str) -> bool:
    """Whether a host, as it stands in an address, can only be this machine; nobody is asked what a name stands for.

    Args:
        host: a name or an IP address.

    >>> is_here("localhost"), is_here("127.0.0.1"), is_here("10.0.0.1"), is_here("scheduler-machine")
    (True, True, False, False)
    """
    try:
        return is_loopback(host)
    except ValueError:  # a name
        name = host.rstrip(".").lower()
        return name == "localhost" or name.endswith(".localhost")
