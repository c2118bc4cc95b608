"""What client, scheduler and worker say to each other.

A message is a named tuple of plain values; on the wire it is a list that begins with its class's place in ``KINDS``.
Payloads (functions, arguments, results, errors) are opaque: nobody between the two ends looks into them.

Who a task is:

- between a client and the scheduler by the client's ``counter``: 0, 1, 2, ... in the order of submission, so that a task's
  inputs always have lower counters than the task;
- between scheduler and workers, and among workers, by its ``tid``, a number that a scheduler uses once;
- across the death of a scheduler by the client's UUID and the counter.

**The stale rule.** A scheduler numbers what it sends to workers (``grant``), without ever using a number twice. A task has one
current grant or none. What a worker reports under another grant is stale and dropped. So is a copy under an order that was
recalled by a Drop. That is all that guards against late messages of workers that were given up, tasks that were taken back, and
slots that hold another task by now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = [
    "KEEP",
    "KINDS",
    "PIN",
    "WISH",
    "Adopted",
    "Announce",
    "Answer",
    "Ask",
    "Back",
    "Bye",
    "Cancel",
    "CancelTasks",
    "ClientHello",
    "Copy",
    "Died",
    "Done",
    "Drop",
    "Erred",
    "Fetch",
    "Fetched",
    "ForgetFunctions",
    "Functions",
    "GaveBack",
    "Give",
    "Heard",
    "Leaving",
    "Lost",
    "Missing",
    "Options",
    "PeerHello",
    "Peers",
    "Pending",
    "Piece",
    "Query",
    "Refused",
    "Release",
    "Report",
    "Resend",
    "Restart",
    "Retired",
    "Retry",
    "Run",
    "Said",
    "Status",
    "Stopped",
    "Submit",
    "SupervisorHello",
    "TakeBack",
    "Unask",
    "Vitals",
    "Want",
    "Welcome",
    "WorkerHello",
]


WISH, PIN, KEEP = 1, 2, 4  # in Submit.wanted


class Options(NamedTuple):
    """What the user says about the tasks of one submission.

    Attributes:
        priority: greater goes first.
        retries: how many times a task that raised is run again.
        workers: names of the workers that may run them; empty: all.
        resources: name -> amount that one takes while it runs.
        deaths: how many workers may die while they run one, before it is given up.
        data: they are data that the client has: a function that returns its argument. The scheduler keeps no copy of the
            argument once a worker has it, and asks for it with :class:`Resend` where the worker is lost.
        everywhere: the values are to be on all workers that may have them, not on one.
    """

    priority: int = 0
    retries: int = 0
    workers: tuple[str, ...] = ()
    resources: tuple[tuple[str, float], ...] = ()
    deaths: int = 3
    data: bool = False
    everywhere: bool = False


# --- who somebody is, and where


class WorkerHello(NamedTuple):
    """The first that a worker says to a scheduler: what it is called, what it has, and where others reach it.

    Attributes:
        launch: by what its supervisor knows it, see :class:`SupervisorHello`; "": it has none.
        before: the scheduler's number of it when it was connected before; -1: it was not, or not to this scheduler.
        about: what people want to know of it: its host, Python and versions.
    """

    name: str
    threads: int
    limit: int
    resources: dict[str, float]
    address: str
    pid: int
    launch: str = ""
    before: int = -1
    about: dict[str, Any] = {}  # noqa: RUF012 (the default of a named tuple, never changed)


class ClientHello(NamedTuple):
    """The first that a client says to a scheduler: its name, never used by another one."""

    uuid: bytes


class SupervisorHello(NamedTuple):
    """The first that a supervisor says to a scheduler: it starts and watches workers, and knows why they ended.

    Attributes:
        host: the name of its machine; ``pid``: its process.
        launches: what it calls the workers that it has: each start of a process has a name of its own.
    """

    host: str
    pid: int
    launches: Sequence[str]


class PeerHello(NamedTuple):
    """The first that a worker or client says to a worker: the number by which it knows it; -1 where that does not matter."""

    number: int


class Welcome(NamedTuple):
    """The scheduler's answer: its number of the worker or client."""

    number: int


class Refused(NamedTuple):
    """The scheduler's answer to a worker that it does not take, because another one has its name; it closes the connection.

    Attributes:
        words: who the two are, and what to do.
    """

    words: str


class Peers(NamedTuple):
    """Where workers are, by their numbers; comes before a message that speaks of them."""

    addresses: dict[int, str]


# --- client -> scheduler


class Submit(NamedTuple):
    """A block of tasks, in columns; the k-th has the counter ``first + k``.

    Attributes:
        functions: number of each task's function, see :class:`Functions`.
        args: its arguments, opaque; None where its inputs are all.
        deps: counters of its inputs, each once, all lower than its own.
        wanted: WISH where the client wants the value; PIN where it does not, but a later block of the same graph will need
            it; KEEP where it is not to be computed, but may be wanted once more: it has failed; else 0.
        unpin: (first, end) of counters whose pins end with this block, the last one of its graph.

    A block whose first counter the scheduler knows says what the client wants of it by now: the client was away.
    """

    first: int
    functions: Sequence[int]
    args: Sequence[Any]
    deps: Sequence[Sequence[int]]
    wanted: bytes
    options: Options
    unpin: tuple[int, int] = (0, 0)


class Functions(NamedTuple):
    """Functions by number, once. From a client the numbers are its own; to a worker, the scheduler's."""

    numbers: Sequence[int]
    payloads: Sequence[Any]


class ForgetFunctions(NamedTuple):
    """Functions by number, which nobody will speak of any more: a client's next one has another number, and so the scheduler's.

    From a client to the scheduler; to a worker when no task of them is there any more.
    """

    numbers: Sequence[int]


class Back(NamedTuple):
    """The first that a client says: the first counters of all submissions that it still has. They come next.

    Of others that the scheduler has of it, nothing is wanted: the client was away when it let go of them.

    Attributes:
        functions: the numbers of the functions that it still has. Others are as if a :class:`ForgetFunctions` said them.
    """

    firsts: Sequence[int]
    functions: Sequence[int] = ()


class Release(NamedTuple):
    """The client wants these values no longer."""

    counters: Sequence[int]


class Want(NamedTuple):
    """The client wants these after all; it has not released the tasks that they are made of."""

    counters: Sequence[int]


class Cancel(NamedTuple):
    """These are not to be computed, whoever needs them."""

    counters: Sequence[int]


class Retry(NamedTuple):
    """Those of these that have failed, and what they failed by, are to be tried again."""

    counters: Sequence[int]


class Query(NamedTuple):
    """A question of a client's to the process of the scheduler; :class:`Answer` has its serial."""

    serial: int
    what: str
    args: dict[str, Any]


class Fetch(NamedTuple):
    """A client that cannot reach a worker wants a piece of a value's pickle by way of the scheduler; a :class:`Piece` answers.

    Attributes:
        client: the scheduler's number of the client; whatever the client says there is replaced.
        serial: comes back with the answer.
        worker: the number of the worker that has the value.
        tid: which value.
        offset, size: which bytes of its pickle, all parts one after the other.
    """

    client: int
    serial: int
    worker: int
    tid: int
    offset: int
    size: int


# --- scheduler -> client


class Done(NamedTuple):
    """Values are there.

    Attributes:
        tids: what workers call them.
        sizes: bytes of each.
        places: numbers of workers that have them.
        results: the small ones themselves; else None.
    """

    counters: Sequence[int]
    tids: Sequence[int]
    sizes: Sequence[int]
    places: Sequence[int]
    results: Sequence[Any]


class Erred(NamedTuple):
    """Tasks that have failed.

    Attributes:
        culprits: the counter of the task that raised: itself, or one that it needs.
        errors: what it raised, opaque, or a :class:`Lost` of ours.
    """

    counters: Sequence[int]
    culprits: Sequence[int]
    errors: Sequence[Any]


class Pending(NamedTuple):
    """Values that were there are lost with their workers, and are being computed again."""

    counters: Sequence[int]


class Resend(NamedTuple):
    """Data of the client's is lost with its workers: the client sends it once more, in a Submit with the same counter."""

    counters: Sequence[int]


class Answer(NamedTuple):
    """The answer to a :class:`Query`: plain values; ``error`` says why there is none."""

    serial: int
    value: Any
    error: str = ""


class Heard(NamedTuple):
    """What tasks of the client have printed, logged or warned.

    Attributes:
        counters: of which tasks.
        workers: names of the workers.
        kinds: "stdout", "stderr", "log" or "warning".
        texts: what they said.
        details: of a log record: (logger's name, level, file, line); of a warning: (category's name, file, line); else ().
    """

    counters: Sequence[int]
    workers: Sequence[str]
    kinds: Sequence[str]
    texts: Sequence[str]
    details: Sequence[tuple[Any, ...]]


class Lost(NamedTuple):
    """An error that the scheduler itself makes.

    Attributes:
        kind: "died": workers died while they ran it; "cancelled"; "data": data that a client had put on workers is gone;
            "unknown": the task needs what the scheduler does not know.
        words: what happened.
    """

    kind: str
    words: str


# --- scheduler -> worker


class Run(NamedTuple):
    """Tasks to run, in columns.

    Attributes:
        grant: their grant, see above.
        tids: who they are.
        priorities: less goes first.
        deps: tids of the inputs.
        sources: tid -> number of the worker that has an input or is going to make it, for those from elsewhere.
        owners: client UUID and, for each task, its counter; for the announcement after a scheduler's death.
    """

    grant: int
    tids: Sequence[int]
    priorities: Sequence[int]
    functions: Sequence[int]
    args: Sequence[Any]
    deps: Sequence[Sequence[int]]
    wanted: bytes
    sources: dict[int, int]
    owners: Sequence[tuple[bytes, int]]
    resources: Sequence[tuple[tuple[str, float], ...]]


class TakeBack(NamedTuple):
    """Give back those of these that were not begun; :class:`GaveBack` answers. ``grants``: under which they were sent."""

    tids: Sequence[int]
    grants: Sequence[int]


class CancelTasks(NamedTuple):
    """Stop these, begun or not, and forget them. There is no answer; what is still reported is stale."""

    tids: Sequence[int]


class Drop(NamedTuple):
    """Forget these values."""

    tids: Sequence[int]


class Copy(NamedTuple):
    """Fetch these values from other workers and keep them; :class:`Fetched` answers.

    Attributes:
        sources: tid -> worker; the worker itself where it has a copy already, and is to announce it as its own from now on.
        orders: tid -> a number that is not used twice, and comes back with the answer: one to an order before a Drop is stale.
        owners: tid -> client UUID and counter.
    """

    sources: dict[int, int]
    orders: dict[int, int]
    owners: dict[int, tuple[bytes, int]]


class Adopted(NamedTuple):
    """The answer to :class:`Announce`, in one or several parts. What is not adopted comes in a Drop or CancelTasks.

    Attributes:
        held: number below 0 -> tid.
        running: number below 0 -> (tid, grant).
    """

    held: dict[int, int]
    running: dict[int, tuple[int, int]]


class Retired(NamedTuple):
    """Nothing is needed of this worker any more: it may go.

    Attributes:
        moved: False: it has asked to go, and nobody is here who could take what it holds.
    """

    moved: bool = True


# --- worker -> scheduler


class Report(NamedTuple):
    """What has become of tasks of one grant.

    Attributes:
        tids: done, in the order in which they ended.
        sizes: bytes of each value.
        seconds: how long each ran.
        results: small values that the client wants; else None.
        failed: tids that raised, and ``errors``, what.
    """

    grant: int
    tids: Sequence[int]
    sizes: Sequence[int]
    seconds: Sequence[float]
    results: Sequence[Any]
    failed: Sequence[int]
    errors: Sequence[Any]


class GaveBack(NamedTuple):
    """The answer to :class:`TakeBack`: which will not run here, and which have begun or are done; both with their grants."""

    tids: Sequence[int]
    grants: Sequence[int]
    kept: Sequence[int]
    kept_grants: Sequence[int]


class Fetched(NamedTuple):
    """Copies that were asked for are here; with the numbers of the orders."""

    tids: Sequence[int]
    orders: Sequence[int]


class Missing(NamedTuple):
    """Values that a worker, by its number, should have and says it has not."""

    tids: Sequence[int]
    source: int


class Status(NamedTuple):
    """How a worker is. ``running``: tids that its threads are at, for blame."""

    paused: bool
    running: Sequence[int]


class Said(NamedTuple):
    """What tasks have printed, logged or warned; see :class:`Heard`."""

    tids: Sequence[int]
    kinds: Sequence[str]
    texts: Sequence[str]
    details: Sequence[tuple[Any, ...]]


class Vitals(NamedTuple):
    """What a worker's process takes, every second or so: name -> number. Also a sign of life."""

    values: dict[str, float]


class Piece(NamedTuple):
    """The answer to :class:`Fetch`, from the worker to the scheduler, and on to the client.

    Attributes:
        sizes: bytes of each part of the whole pickle; empty where the worker does not have the value.
        data: the bytes that were asked for, opaque.
        error: what was raised when the value was pickled, opaque; else None.
    """

    client: int
    serial: int
    sizes: Sequence[int]
    data: Any
    error: Any = None


class Announce(NamedTuple):
    """The first that a worker says when it comes, or comes back, to this scheduler or to the one after it: what it has.

    Attributes:
        held: values: client UUID, counter, size, and a number below 0 by which the worker calls it for now.
        running: tasks that its threads are at: client UUID, counter, such a number.
    """

    held: Sequence[tuple[bytes, int, int, int]]
    running: Sequence[tuple[bytes, int, int]]


# --- supervisor -> scheduler, scheduler -> supervisor


class Died(NamedTuple):
    """A worker's process has ended.

    Attributes:
        launch: which one.
        running: tids of the tasks that it was at; None: that is not known.
        words: how it ended: exit code, signal, out of memory, last lines of its stderr.
    """

    launch: str
    running: Sequence[int] | None
    words: str


class Bye(NamedTuple):
    """A client or worker leaves for good: nothing is kept for it, and nobody is to be blamed."""


class Stopped(NamedTuple):
    """A worker's process exists and does not run: somebody has stopped it (SIGSTOP). It may come back some day."""

    launch: str


class Leaving(NamedTuple):
    """These workers are to go: the scheduler has others take what they hold, and tells them when nothing is left.

    From a worker it means that worker itself, whatever is listed: its process is to be replaced.
    """

    launches: Sequence[str]


class Restart(NamedTuple):
    """To a supervisor: end these processes and start others in their place."""

    launches: Sequence[str]


# --- worker -> worker, client -> worker


class Ask(NamedTuple):
    """Send these values: at once, or when they are there. The answers carry the ``serial``."""

    serial: int
    tids: Sequence[int]


class Unask(NamedTuple):
    """These are not needed any more."""

    tids: Sequence[int]


class Give(NamedTuple):
    """Values: an answer to :class:`Ask`."""

    serial: int
    tids: Sequence[int]
    sizes: Sequence[int]
    values: Sequence[Any]


KINDS: tuple[type, ...] = (
    Submit,
    Functions,
    Back,
    Release,
    Want,
    Cancel,
    Retry,
    Done,
    Erred,
    Pending,
    Run,
    TakeBack,
    CancelTasks,
    Drop,
    Copy,
    Adopted,
    Retired,
    Report,
    GaveBack,
    Fetched,
    Missing,
    Status,
    Announce,
    Ask,
    Unask,
    Give,
    WorkerHello,
    ClientHello,
    PeerHello,
    Welcome,
    Peers,
    Options,
    Lost,
    SupervisorHello,
    Query,
    Answer,
    Fetch,
    Piece,
    Said,
    Heard,
    Vitals,
    Died,
    Stopped,
    Restart,
    Resend,
    Bye,
    Leaving,
    ForgetFunctions,
    Refused,
)
