"""A port of this machine that leads to the scheduler's pod, through the API server.

Each connection is forwarded to the pod that is the scheduler by then: after another one has taken its place, who connects
again comes to that one.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Forwarder"]

SIZE = 1 << 18
LINGER = 5.0  # seconds for the last words of one end, after the other is closed


class Forwarder:
    """Listens until it is closed.

    Args:
        open_one: makes a socket that leads to the other end, and what has to be kept with it; None where there is nobody now.

    Attributes:
        port: on 127.0.0.1.
        problem: what went wrong last; "": nothing.
    """

    def __init__(self, open_one: Callable[[], Any]) -> None:
        self._open = open_one
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._sock.getsockname()[1]
        self.problem = ""
        self._closed = False
        self._pairs: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="taskloom-forward", daemon=True).start()

    def close(self) -> None:
        """Forward no more."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        with self._lock:
            pairs = list(self._pairs)
        for sock in pairs:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._sock.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), name="taskloom-forward", daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with near:
            try:
                found = self._open()
            except Exception as error:
                self.problem = str(error)
                return
            if found is None:
                self.problem = "no scheduler runs"
                return
            self.problem = ""
            far, kept = found
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.add(near)
            try:
                _carry(near, far)
            finally:
                with self._lock:
                    self._pairs.discard(near)
                with contextlib.suppress(OSError):
                    far.close()
                del kept


def _carry(near: Any, far: Any) -> None:
    """Carry bytes both ways until both ends are closed.

    One that is closed is told to the other, and what that still has to say is taken: the thread behind the far end does not
    expect to be cut off.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(near, selectors.EVENT_READ, far)
        selector.register(far, selectors.EVENT_READ, near)
        while selector.get_map():
            ready = selector.select(None if len(selector.get_map()) == 2 else LINGER)
            if not ready:
                return
            for key, _ in ready:
                data = b""
                with contextlib.suppress(OSError):
                    data = key.fileobj.recv(SIZE)  # type: ignore[union-attr]
                if not data:
                    selector.unregister(key.fileobj)
                    with contextlib.suppress(OSError):
                        key.data.shutdown(socket.SHUT_WR)
                    continue
                with contextlib.suppress(OSError):  # it is closed: what is left is read all the same
                    key.data.sendall(data)
