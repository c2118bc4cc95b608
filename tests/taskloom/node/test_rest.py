"""What a scheduler does when it has nothing to do."""

from __future__ import annotations

import asyncio
import time

from taskloom import net
from taskloom.core.messages import KINDS, Announce, Missing, WorkerHello
from taskloom.net import Options
from taskloom.node import scheduler
from taskloom.node.scheduler import SchedulerNode
from taskloom.node.trim import trim_memory

TOKEN = "a-token-for-the-tests"


def test_stories_are_packed_and_memory_is_given_back_each_time_it_has_worked(monkeypatch):
    trimmed = []

    def trim():
        trimmed.append(trim_memory())

    monkeypatch.setattr(scheduler, "REST", 0.01)
    monkeypatch.setattr(scheduler, "trim_memory", trim)

    async def until(condition):
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "it did not come"
            await asyncio.sleep(0.001)

    async def main():
        node = SchedulerNode(TOKEN)
        connection = await net.connect(await node.start(), token=TOKEN, role="worker", options=Options(kinds=KINDS))
        connection.start(lambda messages: None, lambda reason: None)
        connection.send(WorkerHello("w", 1, 0, {}, "tcp://127.0.0.1:1", 1, "", -1, {}))
        stories = node.machine.stories
        for n, message in enumerate([Announce([], []), Missing([5, 7, 6], 3)], 1):
            connection.send(message)
            await until(lambda n=n: len(trimmed) == n)
            assert node._rest is None  # it sleeps, until there is something to do
            assert stories._loose == 0
        assert stories.tell(7, 0, 0)[-1].endswith(": Missing")
        connection.abort()
        await node.close()

    asyncio.run(main())
