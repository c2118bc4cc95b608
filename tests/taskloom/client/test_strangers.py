"""A worker that says what it cannot: it is given up, and nobody else is disturbed."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from taskloom.client import Client
from taskloom.core.messages import KINDS, Announce, GaveBack, Report, WorkerHello
from taskloom.deploy.local import LocalCluster
from taskloom.net import Options, connect


def inc(x):
    return x + 1


async def speak(cluster, message):
    """Join as a worker, say something, and wait until the scheduler has closed the connection."""
    closed = asyncio.get_running_loop().create_future()
    connection = await connect(
        cluster.address,
        token=cluster.token,
        role="worker",
        wants="scheduler",
        timeout=30,
        options=Options(kinds=KINDS),
    )
    connection.start(lambda messages: None, lambda reason: closed.set_result(reason))
    connection.send(WorkerHello("stranger", 1, 0, {"STRANGE": 1.0}, "tcp://127.0.0.1:9", 1))
    connection.send(Announce([], []))
    connection.send(message)
    try:
        async with asyncio.timeout(30):
            await closed
    finally:
        connection.abort()


@pytest.mark.parametrize("clients", [1, 12], ids=["few peers", "many peers"])
def test_a_worker_that_speaks_of_what_it_was_not_sent(until, clients):
    """With few peers the scheduler deals with each message as it comes, with many with all of a turn together."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(LocalCluster(n_workers=1))
        client, *_ = [stack.enter_context(Client(cluster, set_as_default=False)) for _ in range(clients)]
        client.wait_for_workers(1, timeout=60)
        waits = client.submit(inc, 1, workers="nobody", key="waits")
        until(lambda: "nobody" in client.why_waiting(waits))
        tid = 1 << 32  # of the first submission, in the first slot
        for message in (
            Report(0, [tid], [1], [0.1], [None], [], []),
            Report(0, [], [], [], [], [tid], [b"error"]),
            GaveBack([tid], [0], [], []),
            GaveBack([], [], [tid], [0]),
        ):
            asyncio.run(speak(cluster, message))
            until(lambda: list(client.scheduler_info()["workers"]) == ["worker-0"])
            assert client.submit(inc, 1).result() == 2
            assert "nobody" in client.why_waiting(waits)
