"""The client of a cluster: the public class over what is in the files beside this one.

::

    Client: functions, data, computing, questions     its parts, by what is asked for
           -> packing   functions and arguments into columns of tasks
           -> engine    the machine and the connection, in the event loop of a thread of its own
              -> fetching   large values, from workers or by way of the scheduler
              -> output     what tasks print, shown here
           <- future, waiting

Each call that waits is a coroutine over :mod:`taskloom.client.signals`; a synchronous client runs it, an asynchronous one returns
it.
"""

from __future__ import annotations

import atexit
import difflib
import importlib
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any

from taskloom import config
from taskloom._collections.running import default_clients
from taskloom.client import defaults
from taskloom.client.clerk import Clerk
from taskloom.client.computing import Computing
from taskloom.client.engine import Engine
from taskloom.client.output import Screen
from taskloom.client.questions import Questions
from taskloom.client.signals import Signal, check_seconds, deadline_of, drive, run
from taskloom.errors import ClusterError, TokenError
from taskloom.net import Token, find_token, tokens_of
from taskloom.net.tokens import how_to_get_token

__all__ = ["Client"]

_live: weakref.WeakSet[Client] = weakref.WeakSet()
GOODBYE = 3.0  # seconds to leave


class Client(Computing, Questions):
    """A connection to a cluster: graphs and functions go there, values come back.

    While it is open it is where ``compute`` of delayed, bag and other collections runs, unless something else is said; those
    of dask too, if dask is loaded when it is made.

    It may be used by many threads at once. What it asks for is let go of when the futures are dropped, and when it is closed; it
    closes with the program, too.

    Args:
        address: of the scheduler, such as ``tcp://127.0.0.1:8786``; ``kube://namespace/name``, of a TaskCluster on Kubernetes;
            or a cluster: an object with ``address`` and ``token``, such as :class:`taskloom.LocalCluster`, which is not closed
            with the client. By default the setting ``cluster.address``, and where there is none, a
            :class:`taskloom.LocalCluster` is started for this client alone.
        token: what the scheduler and its clients have to know; by default the one that this user has.
        timeout: seconds to reach the scheduler.
        asynchronous: every method that waits returns something to be awaited. Such a client is opened by ``await`` or ``async
            with``, in whatever event loop; it is no default for collections.
        name: what it is called where it is shown.
        set_as_default: whether collections run on it by default.
        direct_to_workers: False: values come by way of the scheduler; True: from workers, also from those that could not be
            reached before. By default from workers where they can be reached.
        output: whether what tasks print, log and warn is shown here.
        patience: seconds to look for a scheduler that was there and is gone; what was asked for is kept meanwhile.
        cluster: arguments of :class:`taskloom.LocalCluster`, where one is started: ``n_workers``, ``threads_per_worker``,
            ``processes``, ``memory_limit`` and others.

    Attributes:
        address: of the scheduler.
        token: what it and its clients have to know.
        cluster: the cluster that was given, or was started; None where there was an address.

    Raises:
        ConnectTimeoutError: nobody answers there.
        HandshakeError: somebody does who does not belong to us; says what to do.
        CommError: the scheduler was not reached otherwise; says why.

    >>> with Client(n_workers=1) as client:
    ...     client.get({"x": 1, "y": (sum, ["x", 10])}, "y")
    ...     client.submit(pow, 2, 10).result()
    11
    1024
    """

    def __init__(
        self,
        address: Any = None,
        *,
        token: Token | None = None,
        timeout: float = 10.0,
        asynchronous: bool = False,
        name: str | None = None,
        set_as_default: bool = True,
        direct_to_workers: bool | None = None,
        output: bool = True,
        patience: float = 300.0,
        **cluster: Any,
    ) -> None:
        if address is None and not cluster:
            address = config.get("cluster.address")
        if cluster:
            _check_names(cluster)
        if address is not None and cluster:
            raise TypeError(
                f"{', '.join(sorted(cluster))}: such arguments say how a cluster on this machine is started, and one that is "
                f"there was given too: {address!r}"
            )
        self.asynchronous = asynchronous
        self.name = name
        self.address = self.token = ""
        self.cluster: Any = None
        self._engine: Any = _Unopened()
        self._cluster: Any = None  # that was started for this client
        self._options = token, patience, direct_to_workers, output
        check_seconds(timeout)
        check_seconds(patience)
        self._timeout = timeout
        self._set_as_default = set_as_default and not asynchronous
        self._clerk = Clerk("taskloom-callbacks")
        self._starting: Callable[[], Any] | None = None
        if address is None:
            self._starting = partial(_start_cluster, cluster)
        elif isinstance(address, str) and address.startswith("kube:"):
            self._starting = partial(_reach_kubernetes, address, timeout, token)
            self.address = address
        self._opening: Signal | None = None
        self._problem: BaseException | None = None
        self._closing = False
        self._workers: dict[str, str] = {}  # addresses of workers -> what they are called
        if self._starting is None:
            self._engage(address)
        if not asynchronous:
            run(self._open())

    def _engage(self, address: Any) -> None:
        """Begin to connect."""
        token, patience, direct, output = self._options
        if not isinstance(address, str):
            self.cluster = address
            if not hasattr(address, "address") or not hasattr(address, "token"):
                raise TypeError(
                    "a client connects to an address such as 'tcp://127.0.0.1:8786', or to a cluster, an object with address and "
                    f"token; {type(address).__name__} is neither"
                )
            token = address.token if token is None else token
            direct = getattr(address, "direct", None) if direct is None else direct
            address = address.address
        if token is None:
            token = find_token()
        if token is None:
            if not address.startswith("inproc:"):
                raise TokenError(
                    f"to connect to {address} a token is needed, and there is none here. Where the scheduler was started it is "
                    f"in ~/.config/taskloom/token; set {how_to_get_token()}, or hand it over as token="
                )
            token = ""
        self.address, self.token = address, tokens_of(token)[0] if token else ""
        screen = Screen(stderr=not getattr(self.cluster, "shows_stderr", False)) if output else None
        self._engine = Engine(address, token, patience, screen, direct)
        self._connected = self._engine.start(self._timeout)

    # --- opening and closing

    async def _open(self) -> Client:
        if self._opening is not None:  # by somebody else
            await self._opening.wait()
            if self._problem is not None:
                raise self._problem
            return self
        self._opening = Signal()
        try:
            if self._starting is not None:
                self._cluster = await _elsewhere(self.asynchronous, self._starting)
                self._engage(self._cluster)
            await self._connected.signal.wait()
            Engine.answer_of(self._connected)
            if self.asynchronous:
                await self._meet_workers()
            _live.add(self)
            atexit.unregister(_say_goodbye)
            atexit.register(_say_goodbye)  # once more: before the clusters that were started since end
            if self._set_as_default:
                defaults.add(self)
        except BaseException as error:
            self._problem = error
            if getattr(self.cluster, "problem", ""):  # of the way there
                error.add_note(self.cluster.problem)
            await self._close()
            raise
        finally:
            self._opening.set()
        return self

    def __await__(self) -> Generator[Any, Any, Client]:
        return drive(self._open()).__await__()

    async def __aenter__(self) -> Client:
        return await self

    async def __aexit__(self, *exc_info: object) -> None:
        await drive(self._close())

    def __enter__(self) -> Client:
        if self.asynchronous:
            problem = "a client with asynchronous=True is opened by `async with`, or by `await`"
            self._engine.leave(problem)  # nobody has it, to close it
            raise TypeError(problem)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> Any:
        """Leave the cluster. What was asked for and not done is stopped; a cluster that was started for this client ends.

        With an asynchronous client: to be awaited.

        >>> client = Client(n_workers=1)
        >>> client.close()
        >>> client.submit(abs, -1)
        Traceback (most recent call last):
            ...
        taskloom.errors.ClusterError: this client is closed
        """
        return self._sync(self._close())

    async def _close(self) -> None:
        defaults.drop(self)
        _live.discard(self)
        if not self._engine.forked:
            closing, self._closing = self._closing, True
            over = self._engine.leave("this client is closed")
            await over.wait(deadline_of(GOODBYE))
            if not closing:
                self._engine.join(1.0)
                await _elsewhere(self.asynchronous, partial(self._clerk.close, 1.0))
            cluster, self._cluster = self._cluster, None
            if cluster is not None:
                await _elsewhere(self.asynchronous, cluster.close)

    def __repr__(self) -> str:
        name = "Client" if self.name is None else f"Client {self.name!r}"
        engine = self._engine
        if engine.forked:
            state = "of the process that this one was forked from"
        elif engine.reason:
            state = "closed" if self._closing else engine.reason
        else:
            held = len(engine.machine.wishes)
            state = f"{'connected' if engine.is_connected else 'not connected'}, {held} value{'' if held == 1 else 's'} wanted"
        return f"<{name} of {self.address or 'a cluster to come'}: {state}>"

    @classmethod
    def current(cls) -> Client:
        """The client that collections run on just now.

        Raises:
            ClusterError: there is none.

        >>> with Client(n_workers=1) as client:
        ...     Client.current() is client
        True
        """
        if not default_clients:
            raise ClusterError("there is no client here that collections run on: make one, with taskloom.Client(...)")
        found: Client = default_clients[-1]
        return found


class _Unopened:
    """In place of the engine of an asynchronous client that was not opened yet."""

    forked = False
    reason = "it was not opened yet"

    def check(self) -> None:
        raise ClusterError("this client was not opened yet: `await client`, or `async with Client(...) as client`")

    def leave(self, reason: str) -> Signal:
        signal = Signal()
        signal.set()
        return signal

    def join(self, timeout: float) -> None:
        pass


_WORKERS, _THREADS, _MEMORY = ["n_workers"], ["threads_per_worker"], ["memory_limit"]
# what others call arguments of a LocalCluster, without underscores
_MEANT = {
    **dict.fromkeys(("workers", "nworkers", "numworkers", "nprocs", "njobs"), _WORKERS),
    **dict.fromkeys(("threads", "nthreads", "numthreads", "ncores", "cores", "cpus", "ncpus", "numcpus"), _THREADS),
    **dict.fromkeys(("memory", "mem", "memlimit", "maxmemory"), _MEMORY),
}


def _local_cluster() -> Any:
    # by its name: imports go the other way
    return importlib.import_module("taskloom.deploy.local").LocalCluster


def _start_cluster(options: dict[str, Any]) -> Any:
    return _local_cluster()(**options)


def _reach_kubernetes(address: str, timeout: float, token: Token | None) -> Any:
    # of a room above this one, and only where it is asked for
    return importlib.import_module("taskloom.deploy.kube").reach(address, timeout, token)


def _check_names(cluster: Mapping[str, Any]) -> None:
    """See that arguments which are none of a client's are those of a LocalCluster."""
    known = list(inspect.signature(_local_cluster()).parameters)
    for name in cluster:
        if name in known:
            continue
        own = [*inspect.signature(Client).parameters][:-1]
        meant = _MEANT.get(name.replace("_", "")) or difflib.get_close_matches(name, [*own, *known], 1)
        raise TypeError(
            f"Client() takes no argument {name!r}"
            + (
                f": do you mean {meant[0]!r}?"
                if meant
                else f"; there are {', '.join(own)}, and for a cluster {', '.join(known)}"
            )
        )


async def _elsewhere(asynchronous: bool, function: Callable[[], Any]) -> Any:
    """Call something that takes long; in a thread, if this one has an event loop to look after."""
    if not asynchronous:
        return function()
    signal = Signal()
    found: list[Any] = []

    def call() -> None:
        try:
            found.append(function())
        except BaseException as error:
            found.append(error)
        signal.set()

    threading.Thread(target=call, name="taskloom-opening", daemon=True).start()
    await signal.wait()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _forked() -> None:
    """This process was forked: the clients here are those of the other one."""
    defaults.drop_all()
    for client in list(_live):
        client._engine.fork()


def _say_goodbye() -> None:
    """The program ends, and clients are open: the scheduler need not wait for them to come back."""
    for client in list(_live):
        if not client._engine.forked:
            defaults.drop(client)
            over = client._engine.leave("the program ends")
            if over.block(deadline_of(1.0)):
                client._engine.join(0.5)


os.register_at_fork(after_in_child=_forked)
