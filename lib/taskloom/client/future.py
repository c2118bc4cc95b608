"""Values that are being computed on a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskloom.core.client import FAILED, READY

if TYPE_CHECKING:
    from taskloom.client.client import Client

__all__ = ["Future"]


class Future:
    """A value on a cluster, there or to come. When it is dropped, the cluster drops the value.

    Attributes:
        key: its name.
    """

    __slots__ = ("__weakref__", "client", "counter", "key")

    __dask_future__ = True  # in graphs it stands for its value

    def __init__(self, client: Client, counter: int, key: Any) -> None:
        self.client = client
        self.counter = counter
        self.key = key

    @property
    def status(self) -> str:
        """ "pending", "finished" or "error"."""
        wish = self.client._machine.wishes.get(self.counter)
        if wish is None:
            return "released"
        return {READY: "finished", FAILED: "error"}.get(wish.state, "pending")

    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self.status in ("finished", "error")

    def result(self, timeout: float | None = None) -> Any:
        """The value; waits for it.

        Args:
            timeout: seconds to wait at most.

        Raises:
            TimeoutError: it was not there in time.
            Exception: what the task raised.
        """
        return self.client._results([self.counter], timeout)[0]

    def release(self) -> None:
        """The value is wanted no longer."""
        self.client._release([self.counter])

    def __del__(self) -> None:
        try:
            self.client._release([self.counter])
        except Exception:  # the interpreter or the client is going down
            pass

    def __repr__(self) -> str:
        return f"<Future {self.key!r}: {self.status}>"
