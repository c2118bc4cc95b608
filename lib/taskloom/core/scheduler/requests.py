"""What clients say: tasks come, are wanted, released, cancelled, tried again; and all of it once more from one that was away."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from typing import Any

from taskloom.core.messages import (
    KEEP,
    PIN,
    WISH,
    Back,
    Cancel,
    Drop,
    ForgetFunctions,
    Functions,
    Lost,
    Release,
    Retry,
    Submit,
    Want,
)
from taskloom.core.scheduler.returning import Returning
from taskloom.core.scheduler.state import (
    AWAY,
    DATA,
    DONE,
    ERRED,
    FREE,
    IDLE,
    NEEDS,
    PRIORITIES,
    READY,
    SENT,
    SLOT,
    WAITING,
    Block,
    Client,
    Function,
    size_of,
)
from taskloom.errors import ProtocolError

__all__ = ["Requests"]

MANY = 16  # so many tasks side by side are let go of column by column


class Requests(Returning):
    """Takes in what clients say."""

    # --- functions

    def _functions_came(self, client: Client, message: Functions) -> None:
        for number, payload in zip(message.numbers, message.payloads, strict=True):
            if number not in client.functions:  # else it was away, and says all that it has
                self._functions += 1
                client.functions[number] = Function(self._functions, payload)

    def _functions_go(self, client: Client, message: ForgetFunctions) -> None:
        self._let_functions_go([(client, number) for number in message.numbers])

    # --- submissions

    def _submit(self, client: Client, message: Submit) -> None:
        tasks = self.tasks
        count = len(message.functions)
        if not count == len(message.args) == len(message.deps) == len(message.wanted):
            raise ProtocolError(f"the columns of a Submit from client {client.number} are not of one length")
        if not count:
            self._unpin(client, message.unpin)
            return
        known = client.block_of(message.first)
        if known is not None:
            self._resync(known, message)
            return
        functions = client.functions
        try:
            made = [functions[n] for n in message.functions]
        except KeyError as error:
            raise ProtocolError(f"client {client.number} has not sent its function {error}, and submits it") from None
        base, high = tasks.allocate(count)
        options = message.options
        rank = self._ranks - (max(-PRIORITIES, min(PRIORITIES, options.priority)) << 44) - DATA * options.data
        self._ranks += count
        block = Block(client, message.first, base, count, high, rank, options)
        insort(client.blocks, block, key=lambda block: block.first)
        end = base + count
        tasks.owner[base:end] = [block] * count
        tasks.args[base:end] = message.args
        tasks.function[base:end] = made
        tasks.wanted[base:end] = message.wanted
        for function in made:
            function.uses += 1
        all_deps, link, first = tasks.deps, tasks.link, message.first
        unknown: list[int] = []
        for slot, needed in enumerate(message.deps, base):
            if needed:
                found = []
                for counter in needed:
                    d = base + counter - first if counter >= first else self._slot(client, counter)
                    if d < 0 or counter - first >= slot - base:
                        if not unknown or unknown[-1] != slot:
                            unknown.append(slot)
                        continue
                    found.append(d)
                    link(d, slot)
                all_deps[slot] = tuple(found)
        # From the last to the first, so that a task is known to be needed before its inputs are looked at.
        uses, wanted, state = tasks.uses, tasks.wanted, tasks.state
        outside: list[int] = []
        todo = runnable = 0
        for slot in range(end - 1, base - 1, -1):
            if NEEDS[wanted[slot]]:
                uses[slot] += 1
            if not uses[slot]:
                continue
            missing = 0
            for d in all_deps[slot]:
                uses[d] += 1
                kind = state[d]
                if d < base or d >= end:
                    if kind == IDLE or kind == ERRED:
                        outside.append(d)
                    elif kind == SENT or kind == DONE:
                        if kind == SENT:
                            missing += 1 << 32
                        continue
                missing += (1 << 32) + 1
            tasks.undone[slot] = missing >> 32
            tasks.unplaced[slot] = missing & SLOT
            state[slot] = WAITING if missing & SLOT else READY
            todo += 1
            made[slot - base].active += 1
            if not missing:
                runnable += 1
        self.placing.todo += todo
        self.placing.runnable += runnable
        if block.everywhere:
            self.placing.broad = True
        if block.data:
            for slot, args in enumerate(message.args, base):
                tasks.nbytes[slot] = size_of(args)
            self.placing.spread([slot for slot in range(base, end) if state[slot] == READY], block)
            block.cursor = count
        elif block.bound:
            for slot in range(base, end):
                if state[slot] == READY:
                    self.placing.ready(slot)
            block.cursor = count
        else:
            self.placing.opened(block)
        for d in outside:
            if state[d] == ERRED:
                self._spread(d)
            elif state[d] == IDLE and uses[d]:
                self._wake(d)
        for slot in unknown:
            if state[slot] == ERRED:  # by another input, which may be tried again; this one may not
                state[slot] = IDLE
            self._fail(slot, Lost("unknown", "it needs a task that the scheduler does not know, or has forgotten"))
        if self._unclaimed:
            self._claim(block)
        self._unpin(client, message.unpin)
        for slot in range(end - 1, base - 1, -1):
            if state[slot] == IDLE or state[slot] == ERRED:
                self._forget(slot)

    def _unpin(self, client: Client, counters: tuple[int, int]) -> None:
        """The pins of a graph that is here in whole end."""
        wanted = self.tasks.wanted
        first, end = counters
        for block in list(client.blocks) if first < end else ():
            for slot in range(
                block.base + max(0, first - block.first), block.base + min(block.count, end - block.first)
            ):
                if wanted[slot] & PIN:
                    self._set_wanted(slot, wanted[slot] & ~PIN)

    # --- clients that were away

    def _back(self, client: Client, message: Back) -> None:
        firsts = set(message.firsts)
        for block in list(client.blocks):
            if block.first not in firsts:
                for slot in range(block.base, block.base + block.count):
                    if self.tasks.state[slot] != FREE:
                        self._set_wanted(slot, 0)
        left = set(message.functions)
        self._let_functions_go([(client, number) for number in client.functions if number not in left])

    def _resync(self, block: Block, message: Submit) -> None:
        """What a client that was away wants of a submission that is known; data of it that we have asked for."""
        tasks = self.tasks
        start = block.base + message.first - block.first
        for slot, wanted in enumerate(message.wanted[: block.base + block.count - start], start):
            if tasks.state[slot] == FREE:
                if wanted & WISH:
                    counter = block.first + slot - block.base
                    error = Lost("unknown", "the scheduler has forgotten it")
                    self.out.erred(block.client.number, counter, counter, error)
                continue
            if wanted & KEEP and tasks.wanted[slot] & WISH:
                # it may have been tried again since, and what was said of that crosses this: it is wanted as before
                wanted = wanted & ~KEEP | WISH
            if (
                wanted != PIN or tasks.wanted[slot]
            ):  # what is needed by a later one that is here too has no use for a pin
                self._set_wanted(slot, wanted)
            if wanted & WISH and tasks.state[slot] == DONE:
                self._tell_done(slot)
            elif wanted & WISH and tasks.state[slot] == ERRED:
                self._tell_erred(slot)
            if tasks.args[slot] is AWAY and tasks.state[slot] == WAITING:
                self._resent(slot, message.args[slot - start])
        self._unpin(block.client, message.unpin)

    def _resent(self, slot: int, args: Any) -> None:
        """WAITING -> READY: the client has sent data once more that no worker has any more."""
        tasks = self.tasks
        tasks.args[slot] = args
        tasks.nbytes[slot] = size_of(args)
        tasks.unplaced[slot] -= 1
        if not tasks.unplaced[slot]:
            tasks.state[slot] = READY
            self.placing.ready(slot)

    # --- wishes

    def _release(self, client: Client, message: Release) -> None:
        """DONE -> FREE where nothing is made of a value; else what :meth:`_set_wanted` does.

        A client that has what it wanted releases it in thousands, so the plain case is written out, and so are many plain ones
        side by side.
        """
        tasks = self.tasks
        counters = message.counters
        state, wanted, uses, deps, dependents = tasks.state, tasks.wanted, tasks.uses, tasks.deps, tasks.dependents
        place, copies, orders = tasks.place, tasks.copies, tasks.orders
        dropped: dict[int, list[int]] = {}
        first = end = shift = high = -1
        block: Block | None = None
        at = skip = -1
        for counter in counters:
            at += 1
            if at < skip:
                continue
            if not first <= counter < end:
                block = client.block_of(counter)
                if block is None:
                    first = end = -1
                    continue
                first, end, shift, high = block.first, block.first + block.count, block.base - block.first, block.high
                count = self._release_span(block, counters, at, dropped)
                if count:
                    skip = at + count
                    continue
            assert block is not None
            slot = counter + shift
            want = wanted[slot]
            if not want & (WISH | KEEP) or state[slot] == FREE:
                continue
            if (
                state[slot] != DONE
                or uses[slot] != 1
                or want != WISH
                or deps[slot]
                or dependents[slot] is not None
                or block.special
                or slot in copies
                or slot in orders
            ):
                self._set_wanted(slot, want & PIN)
                continue
            number = place[slot]
            if number in dropped:
                dropped[number].append(high + slot)
            else:
                dropped[number] = [high + slot]
            wanted[slot] = uses[slot] = 0
            worker = self.workers[number]
            worker.holds -= 1
            worker.nbytes -= tasks.nbytes[slot]
            tasks.nbytes[slot] = 0
            place[slot] = -1
            tasks.args[slot] = None
            tasks.function[slot].uses -= 1  # type: ignore[union-attr]
            tasks.function[slot] = None
            state[slot] = FREE
            tasks.live -= 1
            block.live -= 1
            if not block.live:
                self._dead.append(block)
        for number, tids in dropped.items():
            self.out.worker(number, Drop(tids))
            self._tidy(self.workers[number])

    def _release_span(self, block: Block, counters: Sequence[int], at: int, dropped: dict[int, list[int]]) -> int:
        """DONE -> FREE, of plain ones that stand side by side in a submission and in the message; column by column.

        Args:
            at: place of the first one in the message.
            dropped: number of a worker -> tids that it is to drop.

        Returns:
            How many they are; 0: it is better to go one by one.
        """
        tasks = self.tasks
        start = counters[at]
        count = min(len(counters) - at, block.first + block.count - start)
        if count < MANY or counters[at + count - 1] - start != count - 1:
            return 0
        if (
            block.special
            or tasks.copies
            or tasks.orders
            or list(counters[at : at + count]) != [*range(start, start + count)]
        ):
            return 0
        base = block.base + start - block.first
        span = slice(base, base + count)
        if not (
            tasks.state[span].count(DONE)
            == tasks.wanted[span].count(WISH)
            == tasks.uses[span].count(1)
            == tasks.deps[span].count(())
            == tasks.dependents[span].count(None)
            == count
        ):
            return 0
        freed: dict[int, int] = {}  # worker -> bytes; ``before``: how many it had to drop
        before: dict[int, int] = {}
        for tid, number, nbytes in zip(
            range(block.high + base, block.high + base + count), tasks.place[span], tasks.nbytes[span], strict=True
        ):
            if number in freed:
                freed[number] += nbytes
            else:
                freed[number] = nbytes
                before[number] = len(dropped.setdefault(number, []))
            dropped[number].append(tid)
        for number, nbytes in freed.items():
            worker = self.workers[number]
            worker.nbytes -= nbytes
            worker.holds -= len(dropped[number]) - before[number]
        for function in tasks.function[span]:
            function.uses -= 1  # type: ignore[union-attr]
        tasks.wanted[span] = tasks.state[span] = bytes(count)  # FREE is 0
        tasks.uses[span] = tasks.nbytes[span] = [0] * count
        tasks.place[span] = [-1] * count
        tasks.args[span] = tasks.function[span] = [None] * count
        tasks.live -= count
        block.live -= count
        if not block.live:
            self._dead.append(block)
        return count

    def _want(self, client: Client, message: Want) -> None:
        tasks = self.tasks
        for counter in message.counters:
            slot = self._slot(client, counter)
            if slot < 0:
                self.out.erred(client.number, counter, counter, Lost("unknown", "the scheduler has forgotten it"))
                continue
            self._set_wanted(slot, tasks.wanted[slot] & PIN | WISH)
            if tasks.state[slot] == DONE:
                self._tell_done(slot)
            elif tasks.state[slot] == ERRED:
                self._tell_erred(slot)

    def _cancel(self, client: Client, message: Cancel) -> None:
        for counter in message.counters:
            slot = self._slot(client, counter)
            if slot >= 0 and self.tasks.state[slot] in (IDLE, WAITING, READY, SENT):
                self.counts.cancelled += 1
                self._fail(slot, Lost("cancelled", "it was cancelled"))

    def _retry(self, client: Client, message: Retry) -> None:
        tasks = self.tasks
        again: dict[int, None] = {}
        stack: list[int] = []
        asked: list[int] = []
        for counter in message.counters:
            slot = self._slot(client, counter)
            if slot < 0:
                self.out.erred(client.number, counter, counter, Lost("unknown", "the scheduler has forgotten it"))
            elif tasks.state[slot] == DONE:
                self._tell_done(slot)
            else:
                self._set_wanted(slot, tasks.wanted[slot] & PIN | WISH)
                if tasks.state[slot] == ERRED:
                    stack.append(slot)
                    asked.append(slot)
        while stack:
            slot = stack.pop()
            if slot in again or tasks.state[slot] != ERRED or self._is_lame(slot):
                continue
            again[slot] = None
            stack.extend(tasks.deps[slot])
        for slot in again:
            tasks.state[slot] = IDLE
            tasks.errors.pop(slot, None)
            tasks.tries.pop(slot, None)
        for slot in again:
            if tasks.uses[slot] and tasks.state[slot] == IDLE:
                self._wake(slot)
        for slot in asked:
            if tasks.state[slot] == ERRED and slot not in again:
                self._tell_erred(slot)
        for slot in again:
            if tasks.state[slot] == IDLE:
                self._forget(slot)

    def _is_lame(self, slot: int) -> bool:
        """Whether a task that is ERRED lacks an input that nobody knows: there is nothing to try again."""
        culprit, _, error = self.tasks.errors[slot]
        return culprit == slot and isinstance(error, Lost) and error.kind == "unknown"
