"""What a scheduler knows: tasks in columns, workers, clients, functions.

A task is a **slot**, an index into parallel lists. The slots of one submission stand side by side, in the order in which a
single worker would run them; :class:`Block` is what they have in common. A slot is used again when its task is forgotten.

States::

    FREE     the slot holds no task
    IDLE     nobody needs its value now; it is kept because tasks that are made of it are
    WAITING  needed; some input is neither there nor on its way
    READY    needed; its inputs are there or on their way; in a queue
    SENT     a worker has it (``grant``, ``place``)
    DONE     its value is on workers (``place``, and ``copies``)
    ERRED    it raised, or needs one that did

What keeps a task needed is counted in ``uses``: one for the client's wish, one for each task made of it that is WAITING, READY
or SENT. So a value is let go when ``uses`` falls to nothing, and a task that is IDLE comes to life when it rises.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any

from taskloom.core.messages import KEEP, PIN, WISH, Options

__all__ = [
    "ACTIVE",
    "AWAY",
    "DONE",
    "ERRED",
    "FREE",
    "IDLE",
    "NAMES",
    "NEEDS",
    "READY",
    "SENT",
    "WAITING",
    "Block",
    "Client",
    "Counts",
    "Function",
    "Holes",
    "Tasks",
    "Worker",
    "size_of",
]

FREE, IDLE, WAITING, READY, SENT, DONE, ERRED = range(7)
NAMES = ("free", "idle", "waiting", "ready", "sent", "done", "erred")

ACTIVE = frozenset((WAITING, READY, SENT))

# whether what a client says of a task makes it needed: a wish or a pin does, unless it has failed and is only kept
NEEDS = bytes([bool(flags & (WISH | PIN)) and not flags & KEEP for flags in range(256)])

SLOT = 0xFFFFFFFF  # the part of a tid that is the slot
DATA = 1 << 62  # so much before all others goes data that a client has
PRIORITIES = (
    1 << 16
)  # greater and smaller ones count as this: with the place in the order they have to fit into 63 bits
SECONDS = 0.005  # what a task of an unmeasured function counts as
BYTES = 1000  # and its value
FEW = 16  # so many dependents are a list; more are a dict, from which one is taken quickly


class _Away:
    """See :data:`AWAY`."""

    def __repr__(self) -> str:
        return "AWAY"


AWAY = _Away()  # stands for the arguments of data that workers have had, and that the client can send again


def size_of(args: Any) -> int:
    """Bytes of what a client has sent, as far as that can be seen from outside."""
    nbytes = getattr(args, "nbytes", None)
    if isinstance(nbytes, int):
        return nbytes
    return len(args) if isinstance(args, (bytes, bytearray, str)) else BYTES


class Function:
    """A function of a client's.

    Attributes:
        number: the scheduler's number of it.
        payload: opaque.
        seconds, nbytes: what its tasks take and make, on average; ``count`` of how many.
        uses: how many tasks of it there are; ``active``: how many of these are WAITING, READY or SENT.
    """

    __slots__ = ("active", "count", "nbytes", "number", "payload", "seconds", "uses")

    def __init__(self, number: int, payload: Any) -> None:
        self.number = number
        self.payload = payload
        self.seconds = SECONDS
        self.nbytes = float(BYTES)
        self.count = 0
        self.uses = 0
        self.active = 0

    def learn(self, seconds: float, nbytes: int, count: int) -> None:
        """So many tasks of it have run, in so many seconds altogether; each new one weighs a quarter."""
        weight = 1.0 - 0.75**count if self.count else 1.0
        self.count += count
        self.seconds += (seconds / count - self.seconds) * weight
        self.nbytes += (nbytes / count - self.nbytes) * weight


class Block:
    """The tasks of one submission.

    Attributes:
        client: whose they are; ``first``: the counter of the first.
        base: the first one's slot; ``count``: how many there are; ``live``: how many are not forgotten.
        high: with the slot, the tid: ``high + slot``.
        rank: the first one's priority; the next ones' follow. Less goes first.
        cursor: tasks before it have been taken, or passed because they were not ready.
        allowed: names of workers that may run them; None: all.
        data: they are data that the client has, see :class:`taskloom.core.messages.Options`; ``everywhere`` too.
        special: when one of them ends there is more to do than for others.
        bound: not every worker may run them, or each has its own rule where it goes: no worker comes by to get the next one.
    """

    __slots__ = (
        "allowed",
        "base",
        "bound",
        "client",
        "count",
        "cursor",
        "data",
        "everywhere",
        "first",
        "high",
        "live",
        "options",
        "rank",
        "resources",
        "special",
    )

    def __init__(
        self, client: Client, first: int, base: int, count: int, high: int, rank: int, options: Options
    ) -> None:
        self.client = client
        self.first = first
        self.base = base
        self.count = count
        self.live = count
        self.high = high
        self.rank = rank
        self.cursor = 0
        self.options = options
        self.allowed = frozenset(options.workers) if options.workers else None
        self.resources = options.resources
        self.data = options.data
        self.everywhere = options.everywhere
        self.special = bool(options.resources or options.data or options.everywhere)
        self.bound = bool(options.workers or options.resources or options.data)

    def __repr__(self) -> str:
        return f"Block({self.client.number}, {self.first}+{self.count}, base {self.base})"


class Client:
    """A client.

    Attributes:
        number: the scheduler's number of it; ``uuid``: its own name.
        functions: its number of a function -> it.
        blocks: its blocks that have live tasks, by their first counters.
    """

    __slots__ = ("blocks", "functions", "number", "uuid")

    def __init__(self, number: int, uuid: bytes) -> None:
        self.number = number
        self.uuid = uuid
        self.functions: dict[int, Function] = {}
        self.blocks: list[Block] = []

    def block_of(self, counter: int) -> Block | None:
        """The block that a counter is in; None where it is forgotten or was never heard of."""
        blocks = self.blocks
        low, high = 0, len(blocks)
        while low < high:
            middle = (low + high) // 2
            if blocks[middle].first <= counter:
                low = middle + 1
            else:
                high = middle
        if not low:
            return None
        block = blocks[low - 1]
        return block if counter < block.first + block.count else None

    def remove(self, block: Block) -> None:
        """A block has no live tasks any more."""
        del self.blocks[bisect_left(self.blocks, block.first, key=lambda other: other.first)]


class Holes:
    """Runs of free slots, by their sizes; those side by side are one. Nothing here takes longer with more of them."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}  # base -> size
        self._ends: dict[int, int] = {}  # end -> base
        self._bins: list[dict[int, None]] = [{} for _ in range(33)]  # of sizes with so many bits: bases

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._sizes.items())

    def add(self, base: int, size: int) -> tuple[int, int]:
        """A run is free; it, with what is beside it."""
        before = self._ends.get(base)
        if before is not None:
            size += self.remove(before)
            base = before
        if base + size in self._sizes:
            size += self.remove(base + size)
        self._sizes[base] = size
        self._ends[base + size] = base
        self._bins[size.bit_length()][base] = None
        return base, size

    def remove(self, base: int) -> int:
        """A run is not free any more; its size."""
        size = self._sizes.pop(base)
        del self._ends[base + size]
        del self._bins[size.bit_length()][base]
        return size

    def take(self, count: int) -> int:
        """The base of so many slots that were free; -1: there are not so many side by side, or none was found at once."""
        for base in self._bins[count.bit_length()]:
            if self._sizes[base] < count:
                break  # the first one tells: to look at all of them would take longer with more of them
            return self._cut(base, count)
        for bases in self._bins[count.bit_length() + 1 :]:
            for base in bases:
                return self._cut(base, count)
        return -1

    def _cut(self, base: int, count: int) -> int:
        size = self.remove(base)
        if size > count:
            self.add(base + count, size - count)
        return base

    def clear(self) -> None:
        """Nothing is free any more."""
        self.__init__()  # type: ignore[misc]


class Counts:
    """What has happened since the scheduler began; each only grows.

    Attributes:
        done: tasks that workers have reported as done; ``failed``: for good, by an error of their own; ``cancelled``.
        retried: tries of tasks that raised, or whose worker died, after which they were tried again.
        stolen: tasks that one worker was to run and another one, with nothing to do, was given.
        lost: workers that are gone.
    """

    __slots__ = ("cancelled", "done", "failed", "lost", "retried", "stolen")

    def __init__(self) -> None:
        self.done = self.failed = self.cancelled = self.retried = self.stolen = self.lost = 0


class Worker:
    """A worker.

    Attributes:
        number: the scheduler's number of it, never used again.
        name: what users call it.
        threads: how many tasks it runs at a time.
        limit: bytes of memory that it may use; 0: no limit.
        resources: name -> amount; ``free``: what is not taken by tasks that were sent.
        load: seconds that what it was sent will take.
        sent: slots that it was sent and has not reported.
        held: slots whose values it has, or once had; ``holds`` of them are true.
        nbytes: what these values take.
        coming: slot -> bytes, of data that it was sent or is to be sent, and of large values that it makes; ``due``: all of them.
        queue: heap of (priority << 32 | slot): READY tasks that will go to it; ``waiting_load``: their seconds;
            ``blocked``: those of them that wait for its resources; ``heavy``: those that wait for room in its memory.
        idle_since: when it last had something to do, if it has nothing now; at first, when it came.
        taking: slots that it has been asked to give back; ``begun``: those of them that it had begun.
        functions: numbers of the functions that it has.
        announced: it has said what it came with.
        retiring: it is to go, once its values are elsewhere; ``copying``: those on their way, slot -> worker;
            ``moved``: those that others have, to keep.
    """

    __slots__ = (
        "announced",
        "begun",
        "blocked",
        "coming",
        "copying",
        "due",
        "free",
        "functions",
        "heavy",
        "held",
        "holds",
        "idle_since",
        "limit",
        "load",
        "moved",
        "name",
        "nbytes",
        "number",
        "paused",
        "queue",
        "resources",
        "retiring",
        "running",
        "sent",
        "taking",
        "threads",
        "waiting_load",
    )

    def __init__(self, number: int, name: str, threads: int, limit: int, resources: dict[str, float]) -> None:
        self.number = number
        self.name = name
        self.threads = threads
        self.limit = limit
        self.resources = resources
        self.free = dict(resources)
        self.load = 0.0
        self.idle_since = 0.0
        self.sent: dict[int, float] = {}
        self.held: list[int] = []
        self.holds = 0
        self.nbytes = 0
        self.coming: dict[int, float] = {}
        self.due = 0.0
        self.queue: list[int] = []
        self.blocked: list[int] = []
        self.heavy: list[int] = []
        self.waiting_load = 0.0
        self.taking: set[int] = set()
        self.begun: set[int] = set()
        self.functions: set[int] = set()
        self.running: set[int] = set()
        self.announced = False
        self.paused = False
        self.retiring = False
        self.copying: dict[int, int] = {}
        self.moved: set[int] = set()

    def expect(self, slot: int, nbytes: float) -> None:
        """A value is going to be here."""
        self.coming[slot] = nbytes
        self.due += nbytes

    def expect_no_more(self, slot: int) -> None:
        """It is here by now, or it is not going to be."""
        self.due -= self.coming.pop(slot, 0.0)
        if not self.coming:
            self.due = 0.0

    def __repr__(self) -> str:
        return f"Worker({self.number} {self.name!r})"


class Spread:
    """How far a value has come that is to be everywhere.

    Attributes:
        left: workers that are to get it, and were not told so.
        asked: worker that was told to fetch it -> from whom.
        givers: worker that has it -> how many were told to fetch it there; ``free``: those where one more can.
    """

    __slots__ = ("asked", "free", "givers", "left")

    def __init__(self) -> None:
        self.left: dict[int, None] = {}
        self.asked: dict[int, int] = {}
        self.givers: dict[int, int] = {}
        self.free: dict[int, None] = {}


class Tasks:
    """The columns.

    Attributes:
        state: see the module's text.
        owner: the block.
        function: the function; None where the slot is free.
        args: the task's arguments, opaque; ``AWAY`` where they are data that workers have, or had.
        deps: slots of its inputs.
        dependents: slots of the tasks made of it: None, one, a list, or a dict.
        uses: see the module's text.
        wanted: WISH, PIN, both or none.
        unplaced: how many of its inputs are neither SENT nor DONE; data that is AWAY counts as an input of itself.
        undone: how many are not DONE.
        grant: the grant under which it was sent; 0: none.
        place: number of the worker that has or runs it, or in whose queue it is; -1: none.
        nbytes: the size of its value; of data that is not DONE, of what its client has sent.
        copies: slot -> numbers of the workers beside ``place`` that have, or will have, a copy: worker -> whether it surely has.
        orders: slot -> {worker that was told to fetch and keep a copy: the number of the order}.
        errors: slot -> (slot of the culprit or -1, its counter, error).
        tries: slot -> [retries left, deaths left], for those that have used some.
    """

    def __init__(self) -> None:
        self.state = bytearray()
        self.wanted = bytearray()
        self.owner: list[Block] = []
        self.function: list[Function | None] = []
        self.args: list[Any] = []
        self.deps: list[tuple[int, ...]] = []
        self.dependents: list[Any] = []
        self.uses: list[int] = []
        self.unplaced: list[int] = []
        self.undone: list[int] = []
        self.grant: list[int] = []
        self.place: list[int] = []
        self.nbytes: list[int] = []
        self.copies: dict[int, dict[int, bool]] = {}
        self.orders: dict[int, dict[int, int]] = {}
        self.errors: dict[int, tuple[int, int, Any]] = {}
        self.tries: dict[int, list[int]] = {}
        self.live = 0
        self.holes = Holes()  # slots that are free again
        self._generation = 0
        self._none: Any = None

    def allocate(self, count: int) -> tuple[int, int]:
        """So many slots side by side; the first one, and what makes a tid of a slot."""
        self._generation += 1
        high = self._generation << 32
        self.live += count
        base = self.holes.take(count) if self.holes else -1
        if base >= 0:
            end = base + count
            for column, value in self._columns():
                column[base:end] = [value] * count
            self.state[base:end] = bytes([IDLE]) * count
            self.wanted[base:end] = bytes(count)
            return base, high
        base = len(self.state)
        for column, value in self._columns():
            column.extend([value] * count)
        self.state.extend(bytes([IDLE]) * count)
        self.wanted.extend(bytes(count))
        return base, high

    def _columns(self) -> Iterator[tuple[list[Any], Any]]:
        yield self.owner, None
        yield self.function, None
        yield self.args, None
        yield self.deps, ()
        yield self.dependents, None
        yield self.uses, 0
        yield self.unplaced, 0
        yield self.undone, 0
        yield self.grant, 0
        yield self.place, -1
        yield self.nbytes, 0

    def free(self, block: Block) -> None:
        """The slots of a block, all forgotten, can be used again."""
        if not self.live:
            for column, _ in self._columns():
                column.clear()
            self.state.clear()
            self.wanted.clear()
            self.holes.clear()
            return
        base, count = self.holes.add(block.base, block.count)
        if base + count == len(self.state):  # what is free at the end is given back
            self.holes.remove(base)
            for column, _ in self._columns():
                del column[base:]
            del self.state[base:]
            del self.wanted[base:]

    def tid(self, slot: int) -> int:
        """Who the task in a slot is."""
        return self.owner[slot].high + slot

    def slot_of(self, tid: int) -> int:
        """The slot of a task; -1 where it is forgotten."""
        slot = tid & SLOT
        if slot >= len(self.state) or self.state[slot] == FREE:
            return -1
        return slot if self.owner[slot].high + slot == tid else -1

    def counter(self, slot: int) -> int:
        """Its client's number of it."""
        block = self.owner[slot]
        return block.first + slot - block.base

    def priority(self, slot: int) -> int:
        """Less goes first."""
        block = self.owner[slot]
        return block.rank + slot - block.base

    def followers(self, slot: int) -> Iterable[int]:
        """The tasks made of it."""
        found = self.dependents[slot]
        if found is None:
            return ()
        return (found,) if type(found) is int else found

    def link(self, slot: int, dependent: int) -> None:
        """Note that a task is made of this one."""
        old = self.dependents[slot]
        if old is None:
            self.dependents[slot] = dependent
        elif type(old) is int:
            self.dependents[slot] = [old, dependent]
        elif type(old) is list:
            old.append(dependent)
            if len(old) > FEW:
                self.dependents[slot] = dict.fromkeys(old)
        else:
            old[dependent] = None

    def unlink(self, slot: int, dependent: int) -> None:
        """The other way round."""
        old = self.dependents[slot]
        if type(old) is int:
            self.dependents[slot] = None
        elif type(old) is list:
            old.remove(dependent)
            if not old:
                self.dependents[slot] = None
        else:
            del old[dependent]
            if not old:
                self.dependents[slot] = None

    def holders(self, slot: int) -> list[int]:
        """Numbers of the workers that surely have the value of a task that is DONE."""
        found = [self.place[slot]]
        for number, sure in self.copies.get(slot, {}).items():
            if sure:
                found.append(number)
        return found
