"""Listening and connecting: from an address to a :class:`~taskloom.net.connection.Connection` that has proved itself.

What an unknown peer can cost: one of a few hundred places, a few hundred bytes, and ten seconds at most. When the places are
full, those that have dawdled for a second lose theirs; then no others are taken until one is free, which they wait for in the
system's queue.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import os
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from taskloom.errors import (
    AddressError,
    CommError,
    ConnectError,
    ConnectTimeoutError,
    HandshakeError,
)
from taskloom.net.addresses import Address, is_loopback, parse_address
from taskloom.net.connection import Connection
from taskloom.net.inproc import InprocListener, connect_inproc
from taskloom.net.security import Security, client_security, temporary_security
from taskloom.net.stream import StreamConnection, set_options
from taskloom.net.tokens import Token, how_to_get_token, tokens_of
from taskloom.protocol import ROLES, Acceptor, Connector, Handshake, Identity, Limits
from taskloom.protocol import compression as _compression
from taskloom.protocol.handshake import HTTP_ANSWER, USE_TLS, guess, refusal

__all__ = ["Listener", "Options", "connect", "listen"]

Handler = Callable[[Connection], object]
OnRefused = Callable[[CommError, str], object]


class Options(NamedTuple):
    """What both :func:`listen` and :func:`connect` take, beyond the address, token and role.

    Attributes:
        kinds: classes of named tuples that arrive as what they are; the same on both sides.
        limits: what this side takes.
        python: "refuse" or "warn": what to do about a peer with another minor version of Python.
        security: certificates; None: one that this process makes itself.
        compression: names of codecs, for connections that leave this machine; None: all that are installed.
        allow_plain: whether ``tcp://`` may leave this machine. For tests: whoever is in between reads and changes everything.
        handshake_timeout: seconds in which a peer that connects has to prove itself.
        places: how many such peers there may be at a time.
    """

    kinds: Sequence[type] = ()
    limits: Limits = Limits()
    python: str = "refuse"
    security: Security | None = None
    compression: Sequence[str] | None = None
    allow_plain: bool = False
    handshake_timeout: float = 10.0
    places: int = 256


_DEFAULT = Options()
_DAWDLING = 1.0  # seconds after which a peer loses its place to another
_BACKLOG = 1024


# --- waiting for a socket


async def _ready(loop: asyncio.AbstractEventLoop, sock: socket.socket, write: bool = False) -> None:
    """Wait until a socket can be read, or written to."""
    waiter: asyncio.Future[None] = loop.create_future()
    fd = sock.fileno()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    (loop.add_writer if write else loop.add_reader)(fd, wake)
    try:
        await waiter
    finally:
        (loop.remove_writer if write else loop.remove_reader)(fd)


async def _receive(loop: asyncio.AbstractEventLoop, sock: socket.socket, most: int = 1024) -> bytes:
    while True:
        try:
            return sock.recv(most)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            await _ready(loop, sock)
        except ssl.SSLWantWriteError:
            await _ready(loop, sock, write=True)


async def _send(loop: asyncio.AbstractEventLoop, sock: socket.socket, data: bytes) -> None:
    while data:
        try:
            data = data[sock.send(data) :]
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError):
            await _ready(loop, sock, write=True)
        except ssl.SSLWantReadError:
            await _ready(loop, sock)


async def _do_tls(loop: asyncio.AbstractEventLoop, sock: ssl.SSLSocket) -> None:
    while True:
        try:
            sock.do_handshake()
            return
        except ssl.SSLWantReadError:
            await _ready(loop, sock)
        except ssl.SSLWantWriteError:
            await _ready(loop, sock, write=True)


async def _farewell(loop: asyncio.AbstractEventLoop, sock: socket.socket, data: bytes) -> None:
    """Say something last, and see that it arrives: a socket closed with bytes unread resets the connection."""
    try:
        async with asyncio.timeout(1.0):
            await _send(loop, sock, data)
            sock.shutdown(socket.SHUT_WR)
            for _ in range(64):
                if not await _receive(loop, sock, 4096):
                    return
    except (OSError, TimeoutError):
        pass


async def _shake(loop: asyncio.AbstractEventLoop, sock: socket.socket, handshake: Handshake, first: bytes) -> None:
    """Carry the bytes of a handshake until it is OPEN or FAILED."""
    out = first
    while handshake.state not in ("OPEN", "FAILED"):
        try:
            await _send(loop, sock, out)
            data = await _receive(loop, sock)
        except OSError as error:
            handshake.lost(f"broke the connection in the middle of the handshake ({error.strerror or error})")
            return
        if not data:
            handshake.lost()
            return
        out = handshake.receive(data)
    if not out:
        return
    if handshake.state == "FAILED":
        await _farewell(loop, sock, out)
        return
    try:
        await _send(loop, sock, out)
    except OSError as error:
        handshake.state, handshake.peer = "FAILED", None
        handshake.error = HandshakeError(f"the peer broke the connection in the handshake ({error.strerror})", "lost")


def _identity(role: str, options: Options, local: bool) -> Identity:
    if role not in ROLES:
        raise ValueError(f"a role is one of {', '.join(ROLES)}, not {role!r}")
    if options.python not in ("refuse", "warn"):
        raise ValueError(f"python= is 'refuse' or 'warn', not {options.python!r}")
    from taskloom import __version__

    # Copying is faster than any codec where there is no wire.
    names = () if local else tuple(_compression.available() if options.compression is None else options.compression)
    version: tuple[int, int, int] = sys.version_info[:3]
    return Identity(role, version, __version__, codecs=names, limits=options.limits)


def _open(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    handshake: Handshake,
    options: Options,
    remote: str,
    local: str,
) -> StreamConnection:
    peer = handshake.peer
    assert peer is not None
    return StreamConnection(
        loop,
        sock,
        peer,
        local,
        remote,
        rest=handshake.rest,
        limits=options.limits,
        kinds=options.kinds,
        codec=_compression.choose(handshake.identity.codecs, peer.identity.codecs),
    )


def _name_of(scheme: str, name: Any) -> str:
    """An address from what ``getsockname()`` and ``getpeername()`` say."""
    return str(Address(scheme, name[0], name[1]))


def _plain_refused(address: Address, ip: str) -> AddressError:
    return AddressError(
        f"{address} leaves this machine ({ip}), and tcp:// is for this machine only: it is not encrypted. "
        f"Use {address._replace(scheme='tls')}"
    )


async def _resolve(loop: asyncio.AbstractEventLoop, address: Address, passive: bool = False) -> list[tuple[int, Any]]:
    """(family, socket address) of all IP addresses of a host, in the order in which to try them.

    Raises:
        ConnectError: there is no such host.
    """
    host, port = address.host, address.port
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        if host.rstrip(".").lower() == "localhost":
            return [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port, 0, 0))]
    else:
        if ip.version == 4:
            return [(socket.AF_INET, (host, port))]
        if "%" not in host:
            return [(socket.AF_INET6, (host, port, 0, 0))]
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE if passive else 0)
    except socket.gaierror as error:
        raise ConnectError(f"there is no machine {host!r} ({address}): {error.strerror}") from error
    unique = dict.fromkeys([(family, name) for family, _, _, _, name in found])
    return list(unique)


# --- listening


class Listener:
    """Takes connections; make it with :func:`listen`.

    Attributes:
        address: where it listens, with the port that it got.
        refused: how many peers were not let in.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        address: Address,
        handler: Handler,
        token: Token,
        role: str,
        accepts: Sequence[str],
        options: Options,
        security: Security | None,
        on_refused: OnRefused | None,
    ) -> None:
        name = sock.getsockname()
        self.address = _name_of(address.scheme, name)
        self.refused = 0
        self._loop = loop
        self._sock = sock
        self._handler = handler
        self._token = token
        self._accepts = accepts
        self._options = options
        self._security = security
        self._on_refused = on_refused
        # a wildcard address is not loopback; who connects from this machine is served all the same
        self._identity = _identity(role, options, is_loopback(name[0]))
        self._strangers: dict[asyncio.Task[None], float] = {}  # -> since when; the oldest first
        self._accepting = False
        self._again: asyncio.TimerHandle | None = None
        self._closed = False
        self._accept()

    def __repr__(self) -> str:
        return f"<Listener at {self.address}>"

    def _accept(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if not self._accepting and not self._closed:
            self._accepting = True
            self._loop.add_reader(self._sock.fileno(), self._arrived)

    def _pause(self, seconds: float) -> None:
        """Take nobody for a while; the system keeps them waiting."""
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._sock.fileno())
        if self._again is None:
            self._again = self._loop.call_later(seconds, self._accept)

    def _arrived(self) -> None:
        for _ in range(64):
            if len(self._strangers) >= self._options.places and not self._make_place():
                return
            try:
                sock, name = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                # no descriptor is left, or no memory: it may be better in a moment
                self._pause(0.2)
                return
            sock.setblocking(False)
            task = self._loop.create_task(self._welcome(sock, name))
            self._strangers[task] = self._loop.time()
            task.add_done_callback(functools.partial(self._gone, sock))

    def _make_place(self) -> bool:
        oldest, since = next(iter(self._strangers.items()))
        left = since + _DAWDLING - self._loop.time()
        if left > 0:
            self._pause(left)
            return False
        del self._strangers[oldest]
        oldest.cancel()
        self.refused += 1
        return True

    def _gone(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        self._strangers.pop(task, None)
        if task.cancelled():
            sock.close()  # it may not have begun
        if not task.cancelled() and task.exception() is not None:
            self._loop.call_exception_handler(
                {"message": f"{self!r} failed to welcome a peer", "exception": task.exception()}
            )
        if self._again is not None and len(self._strangers) < self._options.places:
            self._accept()

    async def _welcome(self, sock: socket.socket, name: Any) -> None:
        scheme = "tcp" if self._security is None else "tls"
        remote = _name_of(scheme, name)
        limit = self._options.handshake_timeout
        error: CommError
        connection: StreamConnection | None = None
        try:
            async with asyncio.timeout(limit):
                set_options(sock)
                if self._security is not None:
                    sock = await self._wrap(sock, self._security)
                connection = await self._prove(sock, remote)
        except CommError as problem:
            error = problem
        except TimeoutError:
            error = HandshakeError(f"a peer has not proved itself within {limit:g} s", "lost")
        except OSError as problem:
            error = HandshakeError(
                f"a peer broke the connection in the handshake ({problem.strerror or problem})", "lost"
            )
        finally:
            if connection is None:
                sock.close()
        if connection is not None:
            try:
                self._handler(connection)
            except BaseException:
                connection.abort()
                raise
            return
        self.refused += 1
        if self._on_refused is not None:
            self._on_refused(error, remote)

    async def _wrap(self, sock: socket.socket, security: Security) -> ssl.SSLSocket:
        """TLS; who speaks something else is told so."""
        await _ready(self._loop, sock)
        what = guess(sock.recv(16, socket.MSG_PEEK))
        if what == "http":
            await _farewell(self._loop, sock, HTTP_ANSWER)
            raise HandshakeError("somebody spoke HTTP to this port", "http")
        if what == "taskloom":
            await _farewell(self._loop, sock, refusal(USE_TLS))
            raise HandshakeError("a peer came without TLS, and was told to use tls://", "tls")
        assert security.server is not None
        wrapped = security.server.wrap_socket(
            sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        try:
            await _do_tls(self._loop, wrapped)
        except ssl.SSLError as error:
            wrapped.close()
            raise HandshakeError(f"a peer failed in the TLS handshake: {error.reason or error}", "tls") from error
        except BaseException:
            wrapped.close()
            raise
        return wrapped

    async def _prove(self, sock: socket.socket, remote: str) -> StreamConnection:
        binding = b"" if self._security is None else self._security.der
        tokens = [token.encode() for token in tokens_of(self._token)]
        acceptor = Acceptor(self._identity, tokens, os.urandom(32), binding, self._options.python, self._accepts)
        await _shake(self._loop, sock, acceptor, b"")
        if acceptor.error is not None:
            raise acceptor.error
        # not the listener's own: that may be all addresses of this machine
        local = _name_of("tcp" if self._security is None else "tls", sock.getsockname())
        return _open(self._loop, sock, acceptor, self._options, remote, local)

    def close(self) -> None:
        """Take no more connections, and give up those that have not proved themselves; the others go on."""
        if self._closed:
            return
        self._closed = True
        if self._again is not None:
            self._again.cancel()
        if self._accepting:
            self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for task in self._strangers:
            task.cancel()

    async def wait_closed(self) -> None:
        """After :meth:`close`: wait until all that was under way has ended."""
        while self._strangers:
            await asyncio.wait(list(self._strangers))


async def listen(
    address: str,
    handler: Handler,
    *,
    token: Token,
    role: str,
    accepts: Sequence[str] = tuple(ROLES),
    options: Options = _DEFAULT,
    on_refused: OnRefused | None = None,
    sock: socket.socket | None = None,
) -> Listener | InprocListener:
    """Take connections at an address.

    Args:
        address: ``tcp://127.0.0.1:0``, ``tls://0.0.0.0:8786``, ``inproc://name``.
        handler: called with each connection that has proved itself; it is to call the connection's ``start``.
        token: what the peers have to know, or the file that says so. It is not looked at for inproc.
        role: what this process is.
        accepts: the roles that may come in.
        options: all else.
        on_refused: called with the error and the address of each peer that was not let in.
        sock: a socket that is bound to the address, and listens: a parent process has made it, so that others can be told
            the address before this one is there. It is this function's from now on.

    Raises:
        AddressError: the address can't be read, or is taken, or would let ``tcp://`` leave this machine.
        CommError: no certificate can be made.
        TokenError: the token is too short.
    """
    loop = asyncio.get_running_loop()
    where = parse_address(address)
    identity = _identity(role, options, True)
    if where.scheme == "inproc":
        return InprocListener(loop, where.host, handler, identity, accepts, options.kinds)
    tokens_of(token)
    try:
        family, name = (await _resolve(loop, where, passive=True))[0]
    except ConnectError as error:
        raise AddressError(str(error)) from error
    security = None
    if where.scheme == "tcp":
        if not is_loopback(name[0]) and not options.allow_plain:
            raise _plain_refused(where, name[0])
    else:
        security = options.security if options.security is not None else temporary_security()
        if security.server is None:
            raise CommError(f"to listen at {where} this process needs a certificate")
    if sock is not None:
        sock.setblocking(False)
        return Listener(loop, sock, where, handler, token, role, accepts, options, security, on_refused)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # after a restart, while old connections are in TIME_WAIT
        if family == socket.AF_INET6:
            # [::] is all of this machine's addresses, IPv4 ones too
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(name[0] != "::"))
        sock.bind(name)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        hint = ""
        if error.errno == errno.EADDRINUSE:
            hint = "; another process listens there, maybe another scheduler. Choose another port, or 0 for any that is free"
        raise AddressError(f"this process can't listen at {where}: {error.strerror}{hint}") from error
    return Listener(loop, sock, where, handler, token, role, accepts, options, security, on_refused)


# --- connecting


async def connect(
    address: str,
    *,
    token: Token,
    role: str,
    wants: str | None = None,
    timeout: float = 10.0,
    options: Options = _DEFAULT,
) -> Connection:
    """Connect to an address.

    Where nobody listens yet it is tried again until the time is over.

    Args:
        address: ``tcp://127.0.0.1:8786``, ``tls://host:8786``, ``inproc://name``.
        token: what both sides have to know, or the file that says so. It is not looked at for inproc.
        role: what this process is.
        wants: what the peer must be; None: anything.
        timeout: seconds for everything.
        options: all else.

    Returns:
        the connection; call its ``start``.

    Raises:
        AddressError: the address can't be read, or is ``tcp://`` and not on this machine.
        ConnectError: there is no such machine, or nobody listens there; ConnectTimeoutError: nobody answered in time.
        HandshakeError: the two do not get together; says what to do.
        TokenError: the token is too short.
    """
    loop = asyncio.get_running_loop()
    where = parse_address(address)
    if where.scheme == "inproc":
        return connect_inproc(loop, where.host, _identity(role, options, True), wants, options.kinds)
    keys = [one.encode() for one in tokens_of(token)]
    if not where.port:
        raise AddressError(f"the address {address!r} has port 0; that is for listening only")
    attempt = _Attempt(loop, where, keys, role, wants, options)
    try:
        async with asyncio.timeout(timeout):
            return await attempt.until_it_works()
    except TimeoutError as error:
        if isinstance(error, CommError):
            raise
        raise attempt.too_late(timeout) from attempt.last


class _Attempt:
    """Tries to connect, and knows how far it came."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: Address,
        keys: list[bytes],
        role: str,
        wants: str | None,
        options: Options,
    ) -> None:
        self.loop = loop
        self.address = address
        self.keys = keys
        self.role = role
        self.wants = wants
        self.options = options
        self.who = wants or "peer"
        self.last: Exception | None = None
        self.connected = False

    def too_late(self, timeout: float) -> ConnectTimeoutError:
        if isinstance(self.last, HandshakeError):
            return ConnectTimeoutError(f"{self.address}: {self.last}; it was tried again and again for {timeout:g} s")
        if self.connected:
            return ConnectTimeoutError(
                f"what listens at {self.address} did not answer the handshake within {timeout:g} s; it may be no {self.who} of "
                f"taskloom, or be stopped or too busy"
            )
        why = "no answer"
        if isinstance(self.last, OSError):  # asyncio has words of its own for it
            why = os.strerror(self.last.errno) if self.last.errno else str(self.last)
        return ConnectTimeoutError(
            f"no {self.who} could be reached at {self.address} within {timeout:g} s ({why}). Is it running there, and is the "
            f"address right?"
        )

    async def until_it_works(self) -> Connection:
        delay = 0.02
        while True:
            found = await _resolve(self.loop, self.address)
            if self.address.scheme == "tcp" and not self.options.allow_plain:
                outside = [name[0] for _, name in found if not is_loopback(name[0])]
                if outside:
                    raise _plain_refused(self.address, outside[0])
            for family, name in found:
                try:
                    return await self.one(family, name)
                except HandshakeError as error:
                    if error.code == "token" and len(self.keys) > 1:
                        del self.keys[0]  # the peer may not have seen the newest one yet
                        delay = 0.0
                    elif error.code != "lost":
                        raise
                    self.last = error
                except OSError as error:
                    if isinstance(error, CommError):
                        raise
                    self.last = error
            await asyncio.sleep(delay)
            delay = min(max(delay * 1.5, 0.02), 0.5)

    async def one(self, family: int, name: Any) -> Connection:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await self.loop.sock_connect(sock, name)
            self.connected = True
            set_options(sock)
            if sock.getsockname() == sock.getpeername():
                # TCP lets a socket meet itself where nobody listens on a port of the range for clients
                raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
            binding = b""
            if self.address.scheme == "tls":
                sock = await self.wrap(sock)
                binding = sock.getpeercert(True) or b""
                if not binding:
                    raise HandshakeError(f"what listens at {self.address} has shown no certificate", "tls")
            local = is_loopback(name[0])
            connector = Connector(
                _identity(self.role, self.options, local),
                self.keys[0],
                os.urandom(32),
                binding,
                self.options.python,
                self.wants,
            )
            await _shake(self.loop, sock, connector, connector.begin())
            if connector.error is not None:
                raise self.explained(connector.error)
            scheme = self.address.scheme
            local_name = _name_of(scheme, sock.getsockname())
            return _open(self.loop, sock, connector, self.options, str(self.address), local_name)
        except BaseException:
            sock.close()
            raise

    async def wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        security = self.options.security or client_security()
        hostname = self.address.host if security.check_hostname else None
        wrapped = security.client.wrap_socket(
            sock, do_handshake_on_connect=False, suppress_ragged_eofs=False, server_hostname=hostname
        )
        try:
            await _do_tls(self.loop, wrapped)
        except ssl.SSLCertVerificationError as error:
            wrapped.close()
            raise HandshakeError(
                f"the certificate of what listens at {self.address} is not accepted: {error.verify_message}", "tls"
            ) from error
        except ssl.SSLEOFError as error:
            wrapped.close()
            raise HandshakeError(
                f"what listens at {self.address} closed the connection in the TLS handshake", "lost"
            ) from error
        except ssl.SSLError as error:
            wrapped.close()
            if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNEXPECTED_MESSAGE"):
                text = (
                    f"what listens at {self.address} does not speak TLS; it is no {self.who} of taskloom, or one for its own "
                    f"machine only (tcp://)"
                )
            else:
                text = f"the TLS handshake with what listens at {self.address} failed: {error.reason or error}"
            raise HandshakeError(text, "tls") from error
        except OSError as error:
            wrapped.close()
            raise HandshakeError(
                f"what listens at {self.address} closed the connection in the TLS handshake ({error.strerror or error})",
                "lost",
            ) from error
        except BaseException:
            wrapped.close()
            raise
        return wrapped

    def explained(self, error: HandshakeError) -> HandshakeError:
        """With the address, and what can be done."""
        hint = ""
        if error.code == "token":
            here = self.address.scheme == "tcp" or self.address.host in ("localhost", "127.0.0.1", "::1")
            elsewhere = None if here else self.address.host
            hint = f". Give this process the {self.who}'s token: {how_to_get_token(elsewhere)}"
        return HandshakeError(f"{self.address}: {error}{hint}", error.code)
