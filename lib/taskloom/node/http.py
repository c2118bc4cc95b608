"""The HTTP interface of a scheduler: for people with curl, for Prometheus, and for whatever decides how many workers there are.

::

    server = HttpServer(node, "127.0.0.1", 8787, token=token)
    print(await server.start())
    ...
    await server.close()

It runs in the event loop of the scheduler's process. What there is to ask is in ``docs/http.md``. On loopback it is plain HTTP;
off loopback it is HTTPS, always. Only health and readiness may be plain there, at a port of their own, since Kubernetes asks
for them from outside the pod and can show no token.

tornado and prometheus-client are imported when a server starts.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from taskloom.errors import CommError
from taskloom.net.addresses import is_loopback
from taskloom.net.security import Security, temporary_security
from taskloom.net.tokens import Token, tokens_of

if TYPE_CHECKING:
    from taskloom.node.scheduler import SchedulerNode

__all__ = ["DEFAULT_PORT", "HttpServer", "ProbeServer"]

#: Where it listens if nothing else is said.
DEFAULT_PORT = 8787

_BACKLOG = 128


class HttpServer:
    """The HTTP interface of a scheduler.

    Args:
        node: whose.
        host: where to listen: an IP address or name; "": everywhere.
        port: 0: any that is free.
        token: what one has to know to get more than health and readiness.
        security: certificates; None: one that this process makes itself. Used off loopback.
        probe_port: where health and readiness can be had too, and nothing else, without TLS; None: nowhere; 0: any port that
            is free.
        probe_host: where that is; None: as ``host``.
        each_worker: whether ``/metrics`` has series of single workers, with their names as a label.
    """

    def __init__(
        self,
        node: SchedulerNode,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        *,
        token: Token,
        security: Security | None = None,
        probe_port: int | None = None,
        probe_host: str | None = None,
        each_worker: bool = False,
    ) -> None:
        self._node = node
        self._host = host
        self._port = port
        tokens_of(token)
        self._token = token
        self._security = security
        self._probe_port = probe_port
        self._probe_host = host if probe_host is None else probe_host
        self._each_worker = each_worker
        self._servers: list[Any] = []
        self._probes: ProbeServer | None = None
        self._metrics: Any = None
        self._state: Any = None
        self._address = self._probe_address = ""

    @property
    def address(self) -> str:
        """The URL of the host, with the port; "" before :meth:`start`."""
        return self._address

    @property
    def probe_address(self) -> str:
        """The same of health and readiness at their own port; "": there is none."""
        return self._probe_address

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate that HTTPS shows, in hexadecimal; "": there is none.

        Who asks can compare it, where nobody has signed the certificate, to know that it is this process that gets the token.
        """
        if not self._address.startswith("https"):
            return ""
        assert self._security is not None
        return hashlib.sha256(self._security.der).hexdigest()

    @property
    def certificate(self) -> bytes:
        """The certificate that HTTPS shows (DER); empty: there is none."""
        return self._security.der if self._security is not None and self._address.startswith("https") else b""

    async def start(self) -> str:
        """Listen.

        Returns:
            The URL, with the port.

        Raises:
            OSError: that is not possible there; a CommError where packages or certificates are missing.
        """
        try:
            from taskloom.node.http_handlers import Server, make_application
            from taskloom.node.http_metrics import Metrics
            from taskloom.node.http_state import State
        except ImportError as error:
            raise CommError(
                errno.ENOSYS,
                f"the HTTP interface needs tornado and prometheus-client ({error}): pip install 'taskloom[cluster]'",
            ) from error
        sockets = await _bind(self._host, self._port)
        probes = None if self._probe_port is None else ProbeServer(self._node.ready, self._probe_host, self._probe_port)
        try:
            if probes is not None:
                self._probe_address = await probes.start()
            local = all(is_loopback(sock.getsockname()[0]) for sock in sockets)
            context = None
            if not local:
                self._security = self._security or temporary_security()
                context = _for_http(self._security)
        except BaseException:
            for sock in sockets:
                sock.close()
            if probes is not None:
                await probes.close()
            raise
        self._probes = probes
        self._state = State(self._node)
        self._metrics = Metrics(self._state, self._each_worker)
        server = Server(make_application(self._state, self._token, local, self._metrics), context)
        server.add_sockets(sockets)
        self._servers = [server]
        self._address = self._state.address = _url("http" if local else "https", self._host, sockets)
        self._node.http_address = self._address
        self._node.http_certificate = self.certificate
        self._node.after += [self._state.changed, self._metrics.changed]
        self._metrics.start()
        return self._address

    async def close(self) -> None:
        """Answer who waits, and listen no more."""
        if not self._servers:
            return
        for server in self._servers:
            server.stop()
        self._node.http_address = None
        self._node.http_certificate = b""
        for changed in (self._state.changed, self._metrics.changed):
            self._node.after.remove(changed)
        self._metrics.close()
        await self._state.wishes.close()
        servers, self._servers = self._servers, []
        probes, self._probes = self._probes, None
        if probes is not None:
            await probes.close()
        for server in servers:
            await server.close_all_connections()


class ProbeServer:
    """Health and readiness alone, over plain HTTP and without a token, of a process that is no scheduler.

    Args:
        ready: says whether it is ready, under "ready", and whatever helps to understand why.
        host, port: as of :class:`HttpServer`.
    """

    def __init__(self, ready: Callable[[], dict[str, Any]], host: str = "", port: int = 0) -> None:
        self.ready = ready
        self._place = host, port
        self._server: Any = None

    async def start(self) -> str:
        """Listen.

        Returns:
            The URL, with the port.

        Raises:
            OSError: that is not possible there; a CommError where tornado is missing.
        """
        try:
            from taskloom.node.http_handlers import Server, make_probes
        except ImportError as error:
            raise CommError(errno.ENOSYS, f"probes need tornado ({error}): pip install 'taskloom[cluster]'") from error
        sockets = await _bind(*self._place)
        self._server = Server(make_probes(self))
        self._server.add_sockets(sockets)
        return _url("http", self._place[0], sockets)

    async def close(self) -> None:
        """Listen no more."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()
            await server.close_all_connections()


async def _bind(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at all addresses of a host, at the same port."""
    loop = asyncio.get_running_loop()
    found: list[socket.socket] = []
    try:
        infos = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(infos):
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT:  # the name has an address that this machine can't have
                    continue
                raise
            found.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if len(found) > 1:
                port = found[0].getsockname()[1]
            sock.bind((address[0], port, *address[2:]))
            sock.listen(_BACKLOG)
        if not found:
            raise OSError(errno.EADDRNOTAVAIL, "it has no address here")
    except OSError as error:
        for sock in found:
            sock.close()
        where = f"{host or '*'}:{port}"
        # with the number, so that who asks can tell a port that is taken
        raise OSError(error.errno, f"HTTP can't listen at {where}: {error.strerror or error}") from error
    except BaseException:
        for sock in found:
            sock.close()
        raise
    return found


def _for_http(security: Security) -> ssl.SSLContext:
    if security.server is None:
        raise CommError(errno.EINVAL, "the certificates that were given can't be used to listen")
    return security.server


def _url(scheme: str, host: str, sockets: list[socket.socket]) -> str:
    host = host or "0.0.0.0"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{sockets[0].getsockname()[1]}"
