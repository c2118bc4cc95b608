"""A port of this machine that leads to the scheduler's pod, through the API server.

Each connection to it is carried by a WebSocket of its own, to the pod that is the scheduler by then: who connects again after
another one has taken its place comes to that one. What is carried is TLS, with the token inside; neither is looked at here.

A pod whose node has vanished does not say goodbye. So the other end is pinged where nothing has come for a while, and a
connection is cut where that brings nothing either.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from taskloom.errors import KubernetesError
from taskloom.net.stream import set_options

__all__ = ["Forwarder"]

SIZE = 1 << 18  # bytes that are read at a time
TICK = 15.0  # seconds between looks whether something has come; a ping where it has not
SILENT = 4  # ticks without anything, after which the other end is given up
LINGER = 0.5  # seconds for the other end to answer the last words of this one
BUSY = 0.1  # how much of a tick counts in which it was given more than it took: the ping would wait behind that
DATA, ERROR = 0, 1  # the channels of a port

_log = logging.getLogger("taskloom.deploy.kube")


class Forwarder:
    """Listens on 127.0.0.1, and carries what comes.

    All of it runs in the event loop in which :meth:`start` is called.

    Args:
        far: makes a WebSocket to the port of the pod that is there now.
        what: the other end, in words.

    Attributes:
        port: where it listens.
        problem: why the last connection could not be made, or broke; "": it could.
    """

    def __init__(self, far: Callable[[], Awaitable[Any]], what: str) -> None:
        self._far = far
        self._what = what
        self._spare: Any = None
        self._server: asyncio.Server | None = None
        self._carrying: set[asyncio.Task[None]] = set()
        self._said = ""
        self.port = 0
        self.problem = ""

    async def start(self, port: int = 0, first: Any = None) -> None:
        """Listen.

        Args:
            port: where; 0: any port that is free.
            first: a WebSocket that is there already, for who comes first.

        Raises:
            OSError: that port is taken.
        """
        self._spare = first
        self._server = await asyncio.start_server(self._arrived, "127.0.0.1", port, limit=SIZE)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Carry no more."""
        if self._server is not None:
            self._server.close()
        if self._spare is not None:
            spare, self._spare = self._spare, None
            await spare.close()
        for task in self._carrying:
            task.cancel()
        if self._carrying:
            await asyncio.wait(self._carrying, timeout=2.0)

    def _arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far, self._spare = self._spare, None
        try:
            if far is not None and far.closed:
                far = None
            if far is None:
                far = await self._far()
            set_options(writer.get_extra_info("socket"))
            near = far.get_extra_info("socket")
            if near is not None:
                set_options(near)
            problem = await _Pair(reader, writer, far, self._works).carry()
            if problem:
                self._tell(problem)
        except KubernetesError as error:
            self._tell(str(error))
        except Exception as error:  # of the socket, or of what the other end says
            self._tell(f"{type(error).__name__}: {error}")
        finally:
            writer.close()
            if far is not None:
                await far.close()

    def _works(self) -> None:
        """The other end has answered."""
        self.problem = self._said = ""

    def _tell(self, problem: str) -> None:
        """Keep what is wrong, and say it once: who has connected here sees nothing but an end."""
        self.problem = problem
        if problem != self._said:
            self._said = problem
            _log.warning("%s: %s", self._what, problem)


class _Pair:
    """Two ends of a connection.

    Args:
        reader, writer: of the near one.
        far: the WebSocket.
        works: called when something has come from it.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, far: Any, works: Callable[[], object]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._far = far
        self._works = works
        self._silent = 0.0  # ticks
        self._sending = False
        self._heard = asyncio.Event()
        self._held_up = False  # by the near end, which does not take what has come

    async def carry(self) -> str:
        """Carry until one end is closed; what the far one has complained of."""
        there = asyncio.ensure_future(self._there())
        back = asyncio.ensure_future(self._back())
        watch = asyncio.ensure_future(self._watch())
        tasks: list[asyncio.Future[Any]] = [there, back, watch]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not back.done() and not watch.done():
                # There is no way to tell the other end that this one is closed, and none to hear that of the other. The last
                # words have to arrive before all ends, and TLS answers them.
                self._heard.clear()
                answer = asyncio.ensure_future(self._heard.wait())
                tasks.append(answer)
                await asyncio.wait([back, answer], timeout=LINGER, return_when=asyncio.FIRST_COMPLETED)
                if not back.done() and answer.done():
                    await asyncio.wait([back], timeout=LINGER / 20)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled() and task.exception() is None and isinstance(task.result(), str) and task.result():
                return str(task.result())
        return ""

    async def _there(self) -> str:
        with contextlib.suppress(OSError):
            while data := await self._reader.read(SIZE):
                self._sending = True
                await self._far.send_bytes(b"\0" + data)
                self._sending = False
        return ""

    async def _back(self) -> str:
        from aiohttp import WSMsgType

        begun: set[int] = set()
        with contextlib.suppress(OSError):
            while True:
                message = await self._far.receive()
                self._silent = 0.0
                if message.type is WSMsgType.BINARY:
                    channel = message.data[0]
                    if channel not in begun:  # the first of each says which port that is
                        begun.add(channel)
                    elif channel == ERROR:
                        return str(message.data[1:].decode("utf-8", "replace")).strip()
                    else:
                        self._works()
                        self._heard.set()
                        self._writer.write(memoryview(message.data)[1:])
                        self._held_up = True
                        await self._writer.drain()
                        self._held_up = False
                elif message.type is WSMsgType.PING:
                    await self._far.pong(message.data)
                elif message.type is not WSMsgType.PONG:
                    return ""
        return ""

    async def _watch(self) -> str:
        # by ticks and not by the clock: a program that was stopped, or did not come to its turn, has missed nothing
        while self._silent < SILENT:
            if self._silent and not self._sending:
                await self._far.ping()
            await asyncio.sleep(TICK)
            self._silent = 0.0 if self._held_up else self._silent + (BUSY if self._sending else 1.0)
        return f"nothing has come for {TICK * SILENT:g} s"
