"""Values that are being computed on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from taskloom.client.packing import Handle, place
from taskloom.client.signals import deadline_of, drive
from taskloom.core.client import FAILED, PENDING, READY
from taskloom.core.messages import Lost
from taskloom.errors import ClusterError, TaskCancelledError
from taskloom.local.frames import quiet_frames
from taskloom.node import calls

if TYPE_CHECKING:
    from taskloom.client.client import Client

__all__ = ["Future"]


class Future(Handle):
    """A value on a cluster, there or to come. Made by :meth:`taskloom.Client.submit` and others.

    When the last future of a value is dropped, the cluster drops the value; a task that was not done yet is stopped. As an
    argument of ``submit``, ``map`` and in graphs a future stands for its value, also deep inside of lists, dicts and objects.
    ``await future`` gives the value, in any event loop.

    Attributes:
        client: whose it is.
        key: its name.

    >>> import taskloom
    >>> with taskloom.Client(n_workers=1) as client:
    ...     future = client.submit(sum, [1, 2])
    ...     print(future.result(), future.status)
    3 finished
    """

    __slots__ = ("__weakref__",)

    def __init__(self, client: Any, counter: int, key: Any) -> None:
        self.client: Client = client
        self.counter = counter
        self.key = key

    # --- how it is

    @property
    def status(self) -> str:
        """What has become of it.

        One of "pending"; "finished"; "error": it has raised, or what it needs has; "cancelled"; "lost": the value is not to be
        had, as the future was released, its client closed, or data that came from a client lost with its workers.
        """
        if self.counter < 0:
            return "lost"
        engine = self.client._engine
        wish = engine.wish(self.counter)
        if wish.state == READY:
            return "finished"
        if wish.state == FAILED:
            if isinstance(wish.error, Lost):
                return {"cancelled": "cancelled", "died": "error", "timeout": "error"}.get(wish.error.kind, "lost")
            return "error"
        return "lost" if engine.reason else "pending"

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status != "pending"

    def cancelled(self) -> bool:
        """Whether it was cancelled, or what it needs was."""
        return self.status == "cancelled"

    @property
    def type(self) -> Any:
        """The class of the value, where that is known here: the value has come with the word that it is there. Else None."""
        result = None if self.counter < 0 else self.client._engine.wish(self.counter).result
        try:
            return None if result is None else type(calls.open_value(result))
        except Exception:  # result() says that it does not unpickle here
            return None

    # --- waiting

    async def _result(self, timeout: float | None) -> Any:
        if self.counter < 0:
            raise ClusterError(f"the future {self.key!r} was released, so its value is not to be had by it")
        return (await self.client._engine.values([self.counter], timeout, name=self._name))[0]

    def _name(self, counter: int) -> Any:
        return self.key if counter == self.counter else self.client._name(None, counter)

    @quiet_frames
    def result(self, timeout: float | None = None) -> Any:
        """The value; waits for it.

        Args:
            timeout: seconds to wait at most.

        Returns:
            The value. With an asynchronous client: to be awaited.

        Raises:
            TimeoutError: it was not there in time; says why. It goes on being computed.
            TaskCancelledError: the task was cancelled, or one that it needs.
            ClusterError: the client is closed, or the future was released.
            SerializationError: the value has come, and does not unpickle here; says why.
            Exception: what the task raised, with its own traceback.

        >>> import taskloom
        >>> with taskloom.Client(n_workers=1) as client:
        ...     client.submit(divmod, 7, 2).result(timeout=30)
        (3, 1)
        """
        return self.client._sync(self._result(timeout))

    async def _exception(self, timeout: float | None) -> BaseException | None:
        engine = self.client._engine
        if self.counter < 0:
            raise ClusterError(f"the future {self.key!r} was released")
        await engine.ended([self.counter], deadline_of(timeout), timeout, self._name)
        wish = engine.wish(self.counter)
        if wish.state == PENDING:
            engine.check()
        if wish.state != FAILED:
            return None
        error: BaseException = engine.error_of(self.counter, self._name)
        if isinstance(error, TaskCancelledError):
            raise error
        return error

    @quiet_frames
    def exception(self, timeout: float | None = None) -> Any:
        """What the task has raised; None if it has ended well. Waits for the end.

        Args:
            timeout: seconds to wait at most.

        Raises:
            TimeoutError: it had not ended in time.
            TaskCancelledError: it was cancelled, as with futures of Python's.

        >>> import taskloom
        >>> with taskloom.Client(n_workers=1) as client:
        ...     client.submit(int, "one").exception()
        ValueError("invalid literal for int() with base 10: 'one'")
        """
        return self.client._sync(self._exception(timeout))

    async def _traceback(self, timeout: float | None) -> TracebackType | None:
        error = await self._exception(timeout)
        return None if error is None else error.__traceback__

    @quiet_frames
    def traceback(self, timeout: float | None = None) -> Any:
        """The traceback of what the task has raised, with its own lines; None if it has ended well. Waits for the end.

        Args:
            timeout: seconds to wait at most.

        Raises:
            TimeoutError: it had not ended in time.

        >>> import taskloom
        >>> with taskloom.Client(n_workers=1) as client:
        ...     print(client.submit(sum, [1]).traceback())
        None
        """
        return self.client._sync(self._traceback(timeout))

    def __await__(self) -> Generator[Any, Any, Any]:
        return drive(self._result(None)).__await__()

    # --- doing something about it

    def cancel(self) -> Any:
        """Stop the task, whoever needs it. What has ended stays as it is.

        Returns:
            Whether it is cancelled now. With an asynchronous client: to be awaited.

        >>> import taskloom, time
        >>> with taskloom.Client(n_workers=1) as client:
        ...     future = client.submit(time.sleep, 60)
        ...     print(future.cancel(), future.status)
        True cancelled
        """
        return self.client._sync(self._cancel())

    async def _cancel(self) -> bool:
        self.client._give_up([self])
        return self.cancelled()

    def retry(self) -> Any:
        """Try the task again if it has failed or was cancelled, and what it needs that has. Returns at once.

        With an asynchronous client: to be awaited.
        """
        return self.client.retry([self])

    def release(self) -> None:
        """The value is not wanted any more by this future, which is of no use from now on."""
        counter, self.counter = self.counter, -1
        if counter >= 0:
            self.client._engine.drop(counter)

    def add_done_callback(self, function: Callable[[Future], object]) -> None:
        """Have a function called with this future when it has ended.

        It is called by a thread that is there for that, in the order in which things end; what it raises is logged. It may wait
        for other futures.

        Args:
            function: of one argument.

        >>> import queue, taskloom
        >>> ended = queue.SimpleQueue()
        >>> with taskloom.Client(n_workers=1) as client:
        ...     client.submit(abs, -1).add_done_callback(ended.put)
        ...     ended.get(timeout=60).result()
        1
        """
        self.client._when_done(self, function)

    # --- as an object

    def __del__(self) -> None:
        # Here, in the midst of anything, nothing may be locked or waited for.
        try:
            if self.counter >= 0:
                self.client._engine.drop(self.counter)
        except Exception:  # it was never made whole, or the interpreter is going down
            pass

    def __copy__(self) -> Future:
        return self

    def __deepcopy__(self, memo: Any) -> Future:
        return self

    def __reduce__(self) -> Any:
        return calls.input_at, (place(self),)

    def __dask_tokenize__(self) -> Any:
        return "taskloom.Future", self.client._engine.machine.uuid, self.counter

    def __repr__(self) -> str:
        return f"<Future {self.key!r}: {self.status}>"
