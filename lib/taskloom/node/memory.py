"""What is to be done about a worker's memory: pure, numbers in and orders out.

Two measures, as neither says everything. *Managed* bytes are those of the values that a worker keeps; they are known
exactly when one comes or goes, but are estimates and say nothing about what tasks need while they run. The *process* has so many
bytes resident; that is true, but late, and does not fall at once when a value is dropped.

====================  =========================  ========================================================
of the limit          measure                    what happens
====================  =========================  ========================================================
60 % ``target``       managed                    values go to disk, down to the target
70 % ``spill``        process                    values go to disk, until the process is down to the target
75 %                  process, by reckoning      who makes or reads large values waits until some are on disk
80 % ``pause``        process                    the worker begins no more tasks than one at a time
95 % ``terminate``    process                    the worker is replaced
====================  =========================  ========================================================

A state that was entered is left at a lower mark than it was entered at, so that it does not flicker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["MemoryPolicy", "Order", "Pause", "Resume", "Spill", "Terminate"]


@dataclass(frozen=True)
class Spill:
    """Write these to disk, in this order."""

    tids: list[int]


@dataclass(frozen=True)
class Pause:
    """Begin no more tasks than one at a time."""


@dataclass(frozen=True)
class Resume:
    """Go on as usual."""


@dataclass(frozen=True)
class Terminate:
    """End this process before the system does."""


Order = Spill | Pause | Resume | Terminate


class MemoryPolicy:
    """Decides by bytes.

    Args:
        limit: bytes that the process may have; None: nothing is ever to be done.
        target, spill, pause, terminate: shares of it, see the module's text; None switches one off.
        slack: share of the limit by which the process must be below ``pause`` to go on.

    Raises:
        ValueError: a share is not between 0 and 1, or they are not in that order.

    >>> policy = MemoryPolicy(1000)
    >>> policy.decide(managed=700, rss=750, spillable=[(1, 80), (2, 80), (3, 80)])
    [Spill(tids=[1, 2])]
    >>> policy.decide(managed=540, rss=850, spillable=[])
    [Pause()]
    """

    def __init__(
        self,
        limit: int | None,
        *,
        target: float | None = 0.60,
        spill: float | None = 0.70,
        pause: float | None = 0.80,
        terminate: float | None = 0.95,
        slack: float = 0.05,
    ) -> None:
        shares = [("target", target), ("spill", spill), ("pause", pause), ("terminate", terminate)]
        low, lower = 0.0, ""
        for name, share in shares:
            if share is None:
                continue
            if not 0 < share <= 1:
                raise ValueError(f"{name} is a share of the memory limit, above 0 and at most 1, not {share}")
            if share < low:
                raise ValueError(f"{name} is at least {lower}, {low}, not {share}")
            low, lower = share, name
        if limit is not None and limit <= 0:
            raise ValueError(f"limit is a number of bytes above 0, or None, not {limit}")
        self.limit = limit
        self.paused = False
        self._terminating = False
        self._spilling = False
        self._target = self._of(target)
        self._spill = self._of(spill)
        self._pause = self._of(pause)
        self._terminate = self._of(terminate)
        self._resume = 0
        if self._pause is not None:
            assert limit is not None
            self._resume = self._pause - int(slack * limit)
        # where spilling on account of the process ends
        self._low = self._target if self._target is not None else self._resume_spill(slack)

    def _of(self, share: float | None) -> int | None:
        return None if share is None or self.limit is None else int(share * self.limit)

    def _resume_spill(self, slack: float) -> int:
        return 0 if self._spill is None or self.limit is None else self._spill - int(slack * self.limit)

    @property
    def mark(self) -> int | None:
        """Managed bytes above which there is something to decide; None: never."""
        return self._target

    @property
    def marks(self) -> tuple[float, float, float]:
        """Bytes of the process from which on values go to disk, no more are to be made, and a worker pauses; inf: never."""
        if self.limit is None or self._spill is None:
            gate = spill = float("inf")
        else:
            spill = self._spill
            gate = spill + (0.05 * self.limit if self._pause is None else (self._pause - spill) / 2)
        return spill, gate, float("inf") if self._pause is None else self._pause

    def decide(
        self, managed: int, rss: int | None, spillable: Iterable[tuple[int, int]], leaving: int = 0, needed: int = 0
    ) -> list[Order]:
        """What is to be done now.

        Args:
            managed: bytes of the values in memory, those included that are being written to disk.
            rss: bytes of the process; None: not measured this time.
            spillable: (tid, bytes) of what may be written, in the order in which it should go; only as much of it is looked
                at as is needed.
            leaving: bytes of the values that are being written to disk and will be gone then.
            needed: bytes that have to go for another reason: what is about to come needs the room.
        """
        orders: list[Order] = []
        need = needed
        if self._target is not None:
            need = max(need, managed - leaving - self._target)
        if rss is not None:
            if self._spill is not None:
                if rss > self._spill:
                    self._spilling = True
                elif rss <= self._low:
                    self._spilling = False
                if self._spilling:
                    need = max(need, rss - leaving - self._low)
            orders += self._by_process(rss)
        if need > 0:
            tids = []
            for tid, size in spillable:
                tids.append(tid)
                need -= size
                if need <= 0:
                    break
            if tids:
                orders.insert(0, Spill(tids))
        return orders

    def _by_process(self, rss: int) -> list[Order]:
        orders: list[Order] = []
        if self._pause is not None:
            if not self.paused and rss > self._pause:
                self.paused = True
                orders.append(Pause())
            elif self.paused and rss <= self._resume:
                self.paused = False
                orders.append(Resume())
        if self._terminate is not None:
            if rss > self._terminate:
                if not self._terminating:  # once: who gives the order may need some time
                    self._terminating = True
                    orders.append(Terminate())
            else:
                self._terminating = False
        return orders
