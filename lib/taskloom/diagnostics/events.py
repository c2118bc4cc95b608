"""What happens in a run, as values, and the base class of everything that wants to hear of it.

A run calls its callbacks in this order: :meth:`Callback.start` once; for each task :meth:`Callback.pretask` and, when it
has ended well, :meth:`Callback.posttask`; :meth:`Callback.finish` once, whatever happened. With threads, the two in the
middle come from the thread that runs the task, several at a time. An error that a callback raises ends the run.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, NamedTuple

__all__ = ["Callback", "Record", "RunInfo", "active_callbacks"]


class Record(NamedTuple):
    """One task that has ended.

    Attributes:
        key: its key.
        function: the name of its function, or what else it was ("literal", "list", ...).
        start: when it began, in seconds of ``time.perf_counter()``.
        stop: when it ended, the same.
        worker: what ran it: a thread's name, or "process-<pid>".
    """

    key: Any
    function: str
    start: float
    stop: float
    worker: str

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.stop - self.start


class RunInfo(NamedTuple):
    """What is known of a run when it starts.

    Attributes:
        backend: "sync", "threads" or "processes".
        total: how many tasks will run.
        workers: how many may run at a time.
    """

    backend: str
    total: int
    workers: int


# For `with`: seen by what this context starts. For `register()`: seen by every run of the process.
_in_context: ContextVar[tuple[Callback, ...]] = ContextVar("taskloom_callbacks", default=())
_registered: list[Callback] = []


class Callback:
    """Hears what a run does. Override the methods you want; those that are not overridden cost nothing.

    Use it as a context manager, hand it to ``get(..., callbacks=[...])``, or :meth:`register` it for all runs.
    """

    def start(self, info: RunInfo) -> None:
        """A run begins."""

    def pretask(self, key: Any) -> None:
        """A task is about to run; with processes: is being sent to one."""

    def posttask(self, key: Any, record: Record) -> None:
        """A task has ended well."""

    def finish(self, info: RunInfo, error: BaseException | None) -> None:
        """The run is over; ``error`` is what the caller is about to get raised, if anything."""

    def __enter__(self) -> Any:
        _in_context.set((*_in_context.get(), self))
        return self

    def __exit__(self, *exc_info: object) -> None:
        active = list(_in_context.get())
        for place in range(len(active) - 1, -1, -1):
            if active[place] is self:
                del active[place]
                break
        _in_context.set(tuple(active))

    def register(self) -> None:
        """Hear every run of this process from now on."""
        if not any(callback is self for callback in _registered):
            _registered.append(self)

    def unregister(self) -> None:
        """The end of :meth:`register`; nothing happens if it was not registered."""
        _registered[:] = [callback for callback in _registered if callback is not self]


def _checked(given: Any) -> list[Any]:
    # By what they can do, not by their class: a test's own object, or a proxy, will do.
    asked = [given] if _is_callback(given) or not isinstance(given, Iterable) else list(given)
    for callback in asked:
        if isinstance(callback, type):
            raise TypeError(
                f"callbacks= takes a list of callbacks themselves, not the class {callback.__name__}: make one"
            )
        if not _is_callback(callback):
            raise TypeError(
                "callbacks= takes a list of taskloom.diagnostics.Callback objects, not "
                f"{callback!r:.60} of type {type(callback).__name__}"
            )
    if asked and asked[0] is given:
        raise TypeError(
            f"callbacks= takes a list of callbacks: [{type(given).__name__}(...)], or use it in a with block"
        )
    return asked


def _is_callback(value: Any) -> bool:
    return all(callable(getattr(value, name, None)) for name in ("start", "pretask", "posttask", "finish"))


def active_callbacks(given: Iterable[Callback] | None = None) -> list[Callback]:
    """The callbacks that a run started here and now has to call, each once.

    Raises:
        TypeError: what was given are no callbacks; found before anything runs.
    """
    if given is not None:
        given = _checked(given)
    found: list[Callback] = []
    for callback in (*(given or ()), *_in_context.get(), *_registered):
        if not any(callback is other for other in found):
            found.append(callback)
    return found
