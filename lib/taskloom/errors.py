"""The errors of taskloom: one tree, so that one ``except`` can catch as much or as little as is wanted.

::

    TaskloomError
    +-- GraphError (ValueError)          the graph itself is wrong
    |   +-- CycleError                   tasks that wait for each other; the message prints the circle
    |   +-- MissingKeyError (KeyError)   a key was asked for that the graph does not have
    |   +-- InvalidGraphError (TypeError)  no mapping, or a key that cannot be hashed
    +-- SerializationError (TypeError)   a function, argument or result that does not pickle; names it
    +-- WorkerDiedError (RuntimeError)   a process died while it ran a task; names the task and the signal
    +-- ClusterError (RuntimeError)      the cluster cannot give a value
    |   +-- KubernetesError              the API server of Kubernetes refuses something, or is not there; says what to do
    +-- TaskCancelledError (RuntimeError)  the task, or one that it needs, was cancelled
    +-- RemoteError (RuntimeError)       stands for a task's error that could not be sent here as itself
    +-- CommError (ConnectionError)      something between two processes of a cluster
        +-- AddressError (ValueError)    an address that cannot be read, or must not be used in this way
        +-- ConnectError                 nobody could be reached there
        |   +-- ConnectTimeoutError (TimeoutError)  nobody answered in time
        +-- HandshakeError               the two sides do not get together: token, versions, role; says what to do
        +-- TokenError                   the file of the token is not there, or not safe
        +-- ConnectionLostError          the connection ended while it was in use
        +-- ProtocolError (ValueError)   bytes came that are no message
        +-- MessageTooLargeError (ValueError)  a message beyond the limits; it was not sent

An error that a task raises is none of these: it reaches the caller as itself.
"""

from __future__ import annotations

__all__ = [
    "AddressError",
    "ClusterError",
    "CommError",
    "ConnectError",
    "ConnectTimeoutError",
    "ConnectionLostError",
    "CycleError",
    "GraphError",
    "HandshakeError",
    "InvalidGraphError",
    "KubernetesError",
    "MessageTooLargeError",
    "MissingKeyError",
    "ProtocolError",
    "RemoteError",
    "SerializationError",
    "TaskCancelledError",
    "TaskloomError",
    "TokenError",
    "WorkerDiedError",
]


class TaskloomError(Exception):
    """The root of every error that taskloom itself raises."""


class GraphError(TaskloomError, ValueError):
    """The graph is wrong, so nothing of it was run."""


class CycleError(GraphError):
    """Tasks that wait for each other.

    Attributes:
        cycle: the keys in a circle, each needing the next; the first is repeated at the end.
    """

    def __init__(self, cycle: list[object]) -> None:
        self.cycle = cycle
        shown = [repr(key) for key in cycle]
        if len(shown) > 12:
            shown = [*shown[:6], f"... {len(shown) - 11} more ...", *shown[-5:]]
        message = "the graph has a cycle, so none of these tasks can be the first: " + " needs ".join(shown)
        if len(cycle) == 2:
            message += (
                ". What is equal to a key stands for the value of that key; where it is meant as plain data, the key needs "
                "another name"
            )
        super().__init__(message)

    def __reduce__(self) -> tuple[type[CycleError], tuple[list[object]]]:
        return type(self), (self.cycle,)


class MissingKeyError(GraphError, KeyError):
    """A key that the graph does not have was asked for, by the caller or by a task."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class InvalidGraphError(GraphError, TypeError):
    """The thing given as a graph is no mapping, or a key is of a kind that cannot be a key."""


class SerializationError(TaskloomError, TypeError):
    """A function, argument or result does not pickle, so it cannot travel to or from another process."""


class WorkerDiedError(TaskloomError, RuntimeError):
    """A process of the pool died while it ran a task.

    Attributes:
        key: the key of the task that it was running, or None where none was begun.
        exitcode: the exit status, negative for a signal (-9: killed), as in ``subprocess``.
    """

    def __init__(self, message: str, key: object = None, exitcode: int | None = None) -> None:
        super().__init__(message)
        self.key = key
        self.exitcode = exitcode

    def __reduce__(self) -> tuple[type[WorkerDiedError], tuple[str, object, int | None]]:
        return type(self), (str(self), self.key, self.exitcode)


class RemoteError(TaskloomError, RuntimeError):
    """A task in another process raised an error that could not be pickled, or not be unpickled here.

    Its message holds the type, the text and the traceback that the error had there.
    """


class ClusterError(TaskloomError, RuntimeError):
    """The cluster cannot give a value: the client or its scheduler is gone, or the value was let go of."""


class KubernetesError(ClusterError):
    """The API server of Kubernetes has refused something, or could not be asked.

    Attributes:
        status: of HTTP; 0: it could not be asked.
        reason: one word, such as "Forbidden" or "NotFound".
    """

    def __init__(self, message: str, status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason

    def __reduce__(self) -> tuple[type[KubernetesError], tuple[str, int, str]]:
        return type(self), (str(self), self.status, self.reason)


class TaskCancelledError(TaskloomError, RuntimeError):
    """The task was cancelled, or one that it needs was."""


class CommError(TaskloomError, ConnectionError):
    """Something went wrong between two processes of a cluster."""


class AddressError(CommError, ValueError):
    """An address that cannot be read, or that must not be used in this way, as ``tcp://`` off this machine."""


class ConnectError(CommError):
    """Nobody could be reached at an address."""


class ConnectTimeoutError(ConnectError, TimeoutError):
    """Nobody answered at an address in time."""


class HandshakeError(CommError):
    """The two sides of a new connection do not get together.

    Attributes:
        code: which of the reasons it was, one of ``taskloom.protocol.handshake.CODES``, such as "token".
    """

    def __init__(self, message: str, code: str = "peer") -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[HandshakeError], tuple[str, str]]:
        return type(self), (str(self), self.code)


class TokenError(CommError):
    """The token is not where it should be, or where others can read it."""


class ConnectionLostError(CommError):
    """A connection ended while it was in use: the other process died, or the network."""


class ProtocolError(CommError, ValueError):
    """Bytes came that are no message, or one beyond the limits. The connection that they came on is of no use any more."""


class MessageTooLargeError(CommError, ValueError):
    """A message is larger than the other side would take. It was not sent; the connection goes on."""
