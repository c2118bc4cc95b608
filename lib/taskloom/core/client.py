"""The client: what it has asked for, and what has become of it.

A client keeps each of its submissions until none of their tasks is wanted or needed by one that is. So it can send them
again to a scheduler that has started anew; what workers still hold of them is not computed again.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from taskloom.core.messages import (
    KEEP,
    PIN,
    WISH,
    Back,
    Cancel,
    Done,
    Erred,
    ForgetFunctions,
    Functions,
    Options,
    Pending,
    Release,
    Resend,
    Retry,
    Submit,
)

__all__ = ["FAILED", "PENDING", "READY", "ClientMachine", "Wish"]

PENDING, READY, FAILED = "pending", "ready", "failed"

SPARE = 256  # so many functions that no task needs are kept: most are called again


class Wish(NamedTuple):
    """What the client knows of a value that it wants.

    Attributes:
        state: PENDING, READY or FAILED.
        place: number of a worker that has the value; ``tid``, what it calls it; ``size``, its bytes.
        result: the value itself where it was small, else None.
        culprit: the counter of the task that failed; ``error``, by what.
    """

    state: str = PENDING
    place: int = -1
    tid: int = -1
    size: int = 0
    result: Any = None
    culprit: int = -1
    error: Any = None


_PENDING = Wish()


class ClientMachine:
    """The client's machine.

    Args:
        uuid: its name, never used by another one.
        spare: how many functions are kept for which there is no task.

    Attributes:
        wishes: counter -> :class:`Wish`, of what is wanted.
    """

    def __init__(self, uuid: bytes, spare: int = SPARE) -> None:
        self.uuid = uuid
        self.spare = spare
        self.wishes: dict[int, Wish] = {}
        self._next = 0
        self._functions: dict[Any, int] = {}  # hash -> number, never used again
        self._payloads: dict[int, tuple[Any, Any]] = {}  # number -> hash and payload; in the order of the numbers
        self._functions_made = 0
        self._known = 0  # this scheduler has been told of functions with lower numbers than this
        self._many = 2 * spare  # with more functions than this it is looked which are needed
        self._looked = 0  # functions that had been made when that was looked last; ``_lately``: which were used since
        self._lately: set[int] = set()
        self._blocks: list[Submit] = []
        self._kept = 0  # how many there were when it was last looked which are needed
        self._asked: dict[int, None] = {}  # counters of data that the scheduler wants once more
        self._pinned: dict[int, None] = {}  # counters with a pin: of graphs of which there is more to come

    def submit(
        self,
        functions: Sequence[tuple[Any, Any]],
        args: Sequence[Any],
        deps: Sequence[Sequence[int]],
        wanted: bytes,
        options: Options | None = None,
        unpin: tuple[int, int] = (0, 0),
        first: int | None = None,
    ) -> tuple[int, list[Any]]:
        """New tasks.

        Args:
            functions: (hash, payload) of each one's.
            args: opaque.
            deps: counters of the inputs; those within the submission as they will be: the first task's counter is
                :attr:`next_counter`.
            wanted: for each WISH, PIN, both or 0; see :class:`taskloom.core.messages.Submit`.
            options: what else is said of them.
            unpin: see there too.
            first: the first one's counter, where they were counted before, see :meth:`reserve`.

        Returns:
            The counter of the first, and the messages to the scheduler.
        """
        if first is None:
            first = self.reserve(len(functions))
        numbers = []
        for digest, payload in functions:
            number = self._functions.get(digest)
            if number is None:
                number = self._functions[digest] = self._functions_made
                self._functions_made += 1
                self._payloads[number] = digest, payload
            numbers.append(number)
        if self._looked:
            self._lately.update(numbers)
        block = Submit(first, numbers, list(args), list(deps), wanted, options or Options(), unpin)
        if not numbers:
            pass
        elif self._blocks and first < self._blocks[-1].first:
            insort(self._blocks, block, key=lambda block: block.first)  # counted before another, and here after it
        else:
            self._blocks.append(block)
        if unpin[0] < unpin[1]:
            for counter in [counter for counter in self._pinned if unpin[0] <= counter < unpin[1]]:
                del self._pinned[counter]
        if wanted.count(WISH) == len(wanted):
            self.wishes.update(dict.fromkeys(range(first, first + len(wanted)), _PENDING))
        else:
            for k, want in enumerate(wanted):
                if want & WISH:
                    self.wishes[first + k] = _PENDING
                if want & PIN and not unpin[0] <= first + k < unpin[1]:
                    self._pinned[first + k] = None
        if self._known == self._functions_made:
            return first, [block]
        messages = [*self._new_functions(), block]
        if len(self._payloads) > self._many:
            messages += self._forget_functions(self.spare)
        return first, messages

    def reserve(self, count: int) -> int:
        """The counter of the first of so many tasks to come, which follow each other, whatever comes in between."""
        first = self._next
        self._next += count
        return first

    @property
    def next_counter(self) -> int:
        """The counter of the next task."""
        return self._next

    def _new_functions(self) -> list[Any]:
        if self._known == self._functions_made:
            return []
        known, self._known = self._known, self._functions_made
        numbers = [n for n in range(known, self._functions_made) if n in self._payloads] if known else [*self._payloads]
        return [Functions(numbers, [self._payloads[n][1] for n in numbers])] if numbers else []

    def _forget_functions(self, spare: int) -> list[Any]:
        """Let go of functions for which there is no task; the messages.

        Args:
            spare: so many of them are kept: those that were called again of late, then the last ones.
        """
        needed: set[int] = set()
        for block in self._blocks:
            needed.update(block.functions)
        again = {number for number in self._lately if number < self._looked}
        idle = sorted(self._payloads.keys() - needed, key=lambda number: (number in again, number))
        gone = idle[: max(0, len(idle) - spare)]
        for number in gone:
            del self._functions[self._payloads.pop(number)[0]]
        self._many = 2 * len(needed) + 2 * self.spare
        self._looked = self._functions_made
        self._lately.clear()
        return [ForgetFunctions(gone)] if gone else []

    def release(self, counters: Iterable[int]) -> list[Any]:
        """Values that are wanted no longer; the messages to the scheduler."""
        gone = [counter for counter in counters if self.wishes.pop(counter, None) is not None]
        if not gone:
            return []
        gone.sort()  # those that stand side by side are let go of together
        return [Release(gone), *self._forget()]

    def _forget(self) -> list[Any]:
        """Let go of submissions of which nothing is wanted, and which nothing that is wanted is made of; the messages."""
        if len(self._blocks) < 2 * self._kept + 16 and (self.wishes or self._pinned):
            return []
        needed: set[int] = {*self.wishes, *self._pinned}
        kept = []
        for block in reversed(self._blocks):
            counters = range(block.first, block.first + len(block.functions))
            if any(counter in needed for counter in counters):
                kept.append(block)
                for needs in block.deps:
                    needed.update(needs)
        self._blocks = kept[::-1]
        self._kept = len(kept)
        return self._forget_functions(self.spare) if len(self._payloads) > 2 * self.spare else []

    def cancel(self, counters: Sequence[int]) -> list[Any]:
        """Tasks that are not to be computed; the messages."""
        return [Cancel(list(counters))]

    def retry(self, counters: Sequence[int]) -> list[Any]:
        """Tasks that failed and are to be tried again; the messages."""
        again = [counter for counter in counters if counter in self.wishes and self.wishes[counter].state == FAILED]
        for counter in again:
            self.wishes[counter] = _PENDING
        return [Retry(again)] if again else []

    def connected(self) -> list[Any]:
        """A scheduler that does not know us: all that is still wanted."""
        self._known = 0
        self._asked.clear()
        self._forget_functions(0)  # the list of those that are left says so
        back = Back([block.first for block in self._blocks], list(self._payloads))
        messages: list[Any] = [back, *self._new_functions()]
        # What a later submission needs is pinned until all are there: its own graph may have ended long ago. What one needs
        # that is still to come stays pinned.
        later: set[int] = set(self._pinned)
        blocks = []
        for block in reversed(self._blocks):
            flags = bytearray(len(block.functions))
            for k in range(len(flags)):
                wish = self.wishes.get(block.first + k)
                if wish is not None:
                    flags[k] |= KEEP if wish.state == FAILED else WISH
                if block.first + k in (later if flags[k] != KEEP else self._pinned):
                    flags[k] |= PIN
            blocks.append(block._replace(wanted=bytes(flags), unpin=(0, 0)))
            for needed in block.deps:
                later.update(needed)
        messages += reversed(blocks)
        end = min(self._pinned, default=self._next)
        messages.append(Submit(self._next, [], [], [], b"", Options(), (0, end)))
        for counter, wish in self.wishes.items():
            if wish.state == READY:
                self.wishes[counter] = _PENDING if wish.result is None else wish._replace(place=-1, tid=-1)
        return messages

    def handle(self, messages: Sequence[Any]) -> list[int]:
        """Messages of the scheduler; counters of the wishes that have changed. :meth:`to_send` says what to answer."""
        changed: list[int] = []
        wishes = self.wishes
        for message in messages:
            kind = type(message)
            if kind is Done:
                columns = zip(
                    message.counters, message.tids, message.sizes, message.places, message.results, strict=True
                )
                make = tuple.__new__  # as Wish(...), in half the time
                for counter, tid, size, place, result in columns:
                    if counter in wishes:
                        wishes[counter] = make(Wish, (READY, place, tid, size, result, -1, None))
                        changed.append(counter)
            elif kind is Erred:
                for counter, culprit, error in zip(message.counters, message.culprits, message.errors, strict=True):
                    if counter in wishes:
                        wishes[counter] = Wish(FAILED, culprit=culprit, error=error)
                        changed.append(counter)
            elif kind is Pending:
                for counter in message.counters:
                    if counter in wishes:
                        wishes[counter] = _PENDING
                        changed.append(counter)
            elif kind is Resend:
                self._asked.update(dict.fromkeys(message.counters))
            else:
                raise TypeError(f"no message for a client: {message!r}")
        return changed

    def to_send(self) -> list[Any]:
        """Messages to the scheduler that what it said calls for: data that is lost with its workers, once more.

        What it asks for and is not here any more was released: word of that is under way.
        """
        if not self._asked:
            return []
        asked, self._asked = sorted(self._asked), {}
        firsts = [block.first for block in self._blocks]
        found: list[tuple[int, int]] = []  # which block, which counter
        for counter in asked:
            at = bisect_right(firsts, counter) - 1
            if at >= 0 and counter < firsts[at] + len(self._blocks[at].functions):
                found.append((at, counter))
        messages = []
        for (at, _), run in groupby(enumerate(found), key=lambda item: (item[1][0], item[1][1] - item[0])):
            counters = [counter for _, (_, counter) in run]
            block = self._blocks[at]
            part = slice(counters[0] - block.first, counters[-1] + 1 - block.first)
            flags = bytes([self._says_of(counter) for counter in counters])
            columns = block.functions[part], block.args[part], block.deps[part], flags
            messages.append(Submit(counters[0], *columns, block.options))
        return messages

    def _says_of(self, counter: int) -> int:
        """What the client wants of a task: the flags of a Submit."""
        wish = self.wishes.get(counter)
        pin = PIN if counter in self._pinned else 0
        if wish is None:
            return pin
        return (KEEP if wish.state == FAILED else WISH) | pin
