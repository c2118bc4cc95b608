"""Why tasks do not end: the scheduler is asked where somebody has waited too long, and now and then without that.

To wait is right where no worker may run a task, as such a worker may come. But its user has to know.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from taskloom.client.signals import drive
from taskloom.core.client import PENDING
from taskloom.errors import ClusterError

if TYPE_CHECKING:
    from taskloom.client.engine import Engine

__all__ = ["Reasons"]

LOOK = 5.0  # seconds between looks for tasks that no worker may run: the user is told of what is so at two of them
ASK = 0.5  # seconds that the scheduler has at most to say why something was not there in time
_ASKED = 1000  # of so many tasks

_log = logging.getLogger("taskloom.client")


class Reasons:
    """Asks, and tells the user.

    Args:
        engine: of the client.

    Attributes:
        looking: it is looked now and then whether there are tasks that no worker may run.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.looking = False
        self._told: dict[Any, bool] = {}  # kinds of tasks that no worker may run -> whether the user was told
        self._task: asyncio.Task[None] | None = None

    # --- when somebody asks

    async def because(
        self, counters: Sequence[int], timeout: float | None, name: Callable[[int], Any] | None = None
    ) -> str:
        """What to add to the word that tasks have not ended in time: ": " and why; nothing where that is not known.

        Args:
            counters: of the tasks.
            timeout: the seconds that were too short. The question has not much longer.
            name: the key of a task by its counter.
        """
        engine = self.engine
        pending = (c for c in counters if c >= 0 and engine.wish(c).state == PENDING)  # below 0: it was released
        left = list(islice(pending, _ASKED))
        try:
            words = await self.why(left, ASK if timeout is None else min(ASK, max(timeout, ASK / 10)), name)
        except TimeoutError:
            words = f"the scheduler at {engine.address} does not answer either"
        except ClusterError:
            return ""
        return words and f": {words}"

    async def why(
        self, counters: Sequence[int], timeout: float | None, name: Callable[[int], Any] | None = None
    ) -> str:
        """Why the first of these tasks has not ended, or rather one that no worker may run, if there is one.

        Raises:
            TimeoutError: the scheduler has not said so in time.
            ClusterError: it cannot say, or the client is closed.
        """
        engine = self.engine
        name = name or engine.key_of
        if not counters:
            return ""
        engine.check()
        if not engine.is_connected:
            return f"the scheduler at {engine.address} is gone, and is looked for"
        found = await engine.ask("why", timeout, counters=sorted(counters))
        words = f"{name(found['counter'])!r}: {found['words']}"
        if found["of_culprit"]:
            words += f", in the end for {name(found['culprit'])!r}: {found['of_culprit']}"
        return words

    # --- when nobody does; in the event loop's thread

    def look(self) -> None:
        """There are tasks: look in a moment, and then as long as there are."""
        self.looking = True
        self.engine.later(LOOK, self._look)

    def _look(self) -> None:
        self._task = self.engine.loop.create_task(self._looked())

    async def _looked(self) -> None:
        kinds: Any = []
        if self.engine.is_connected:
            try:
                kinds = await drive(self.engine.ask("stuck"))
            except ClusterError:  # the client is closed, or the scheduler one that does not know the question
                kinds = None
        if kinds is None:
            self.looking = False
            self._told.clear()
            return
        before, self._told = self._told, {}
        for kind in kinds:
            need = tuple(kind["workers"]), repr(kind["resources"])
            told = before.get(need)
            if told is False:
                self._tell(kind)
            self._told[need] = told is not None
        self.look()

    def _tell(self, kind: dict[str, Any]) -> None:
        count = kind["tasks"] - 1
        others = f" (and {count} other{'s' if count > 1 else ''})" if count else ""
        key = self.engine.key_of(kind["counter"])
        _log.warning("the task %r%s waits for a worker that may run it: %s", key, others, kind["words"])
