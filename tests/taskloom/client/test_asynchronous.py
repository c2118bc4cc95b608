"""The client in an event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import numpy as np
import pytest

import taskloom
from taskloom._collections.running import default_clients
from taskloom.client import Client, as_completed, wait
from taskloom.deploy.local import LocalCluster
from taskloom.errors import ClusterError, CommError, ConnectTimeoutError


def inc(x):
    return x + 1


def spin(folder):
    open(os.path.join(folder, "runs"), "w").close()
    while not os.path.exists(os.path.join(folder, "end")):
        time.sleep(0.001)
    open(os.path.join(folder, "ended"), "w").close()


def test_everything_that_waits_is_awaited(cluster):
    async def main():
        async with Client(cluster, asynchronous=True, name="me") as client:
            assert client not in default_clients
            one = client.submit(inc, 1)
            assert await one == 2
            assert await one.result(timeout=30) == 2
            assert await one.exception() is None
            assert await one.traceback() is None
            assert await client.gather({"a": [one, one]}) == {"a": [2, 2]}
            assert await client.get({"x": (inc, 1)}, ["x"]) == (2,)
            assert await client.gather(client.get({"x": (inc, 1)}, "x", sync=False)) == 2
            assert (await client.scatter([np.ones(100_000)]))[0].key.startswith("ndarray-")
            assert (await wait(client.map(inc, range(5)), timeout=30)).not_done == set()
            found = as_completed(client.map(inc, range(5)), with_results=True)
            assert sorted([value async for _, value in found]) == [1, 2, 3, 4, 5]
            assert (await client.who_has(one))[one.key]
            assert set(await client.scheduler_info()) >= {"workers", "address"}
            await client.wait_for_workers(2, timeout=30)
            assert await client.get_versions(check=True)
            slow = client.submit(time.sleep, 0.01)
            await client.cancel(client.map(inc, range(3)))
            assert await slow.cancel() in (True, False)
            await client.retry(slow)
            assert await slow is None
            total = client.compute(taskloom.bag.range(10, npartitions=2).sum())
            assert await total == 45
            assert await client.compute([taskloom.delayed(inc)(1)], sync=True) == [2]
            kept = client.persist(taskloom.bag.range(10, npartitions=2))
            assert await client.compute(kept.sum()) == 45
            large = client.submit(np.ones, 1_000_000)
            assert (await large).sum() == (await client.gather(large, direct=False)).sum() == 1_000_000
            assert "'me'" in repr(client)
        with pytest.raises(ClusterError, match="closed"):
            await client.get({"x": 1}, "x")
        await client.close()

    asyncio.run(main())


def test_it_can_be_opened_in_several_ways(cluster):
    async def main():
        client = Client(cluster.address, token=cluster.token, asynchronous=True)
        early = client.submit(inc, 1)  # it goes out when the connection is there
        assert await client is client
        assert await client is client
        assert await early == 2
        await client.close()
        async with Client(n_workers=1, asynchronous=True) as own:
            assert await own.submit(inc, 5) == 6
            address = own.address
        with pytest.raises(CommError):
            await Client(address, token="x" * 40, asynchronous=True, timeout=0.1)
        unopened = Client(n_workers=1, asynchronous=True)
        with pytest.raises(ClusterError, match="`await client`"):
            unopened.submit(inc, 1)
        assert "a cluster to come" in repr(unopened)
        await unopened.close()
        with pytest.raises(TypeError, match="async with"), Client(cluster, asynchronous=True) as client:
            pass
        await client.close()

    asyncio.run(main())


def test_the_loop_goes_on_meanwhile(cluster, tmp_path):
    async def main():
        async with Client(cluster, asynchronous=True) as client:
            future = client.submit(spin, str(tmp_path))

            async def end():
                while not (tmp_path / "runs").exists():
                    await asyncio.sleep(0.001)
                (tmp_path / "end").touch()

            await asyncio.gather(client.gather([future]), end())

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_wait_that_is_cancelled(cluster, tmp_path, until):
    async def main():
        async with Client(cluster, asynchronous=True) as client:
            waiting = asyncio.create_task(client.get({"x": (spin, str(tmp_path))}, "x"))
            while not (tmp_path / "runs").exists():
                await asyncio.sleep(0.001)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await client.gather(client.map(inc, range(10))) == list(range(1, 11))
            while any(w["vitals"].get("running", 1) for w in (await client.scheduler_info())["workers"].values()):
                await asyncio.sleep(0.01)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.submit(spin, str(tmp_path)).result(), 0.05)

    asyncio.run(main())
    assert not (tmp_path / "ended").exists()


def test_many_at_once(cluster):
    async def one(client, n):
        graph = {("x", i): (inc, i * n) for i in range(50)}
        return await client.get(graph, list(graph))

    async def main():
        async with Client(cluster, asynchronous=True) as client:
            return await asyncio.gather(*[one(client, n) for n in range(40)])

    assert asyncio.run(main()) == [tuple(i * n + 1 for i in range(50)) for n in range(40)]


def test_nobody_is_there():
    async def main():
        with pytest.raises(
            ConnectTimeoutError, match=r"no scheduler could be reached at tcp://127\.0\.0\.1:9 within 0\.1 s"
        ):
            async with Client("tcp://127.0.0.1:9", token="x" * 40, asynchronous=True, timeout=0.1):
                pass

    asyncio.run(main())


def test_addresses_of_workers_are_known_without_asking():
    """To ask the scheduler in the midst of a call that is not awaited would hold up the event loop."""

    async def main(cluster):
        async with Client(cluster, asynchronous=True) as client:
            await client.wait_for_workers(1, timeout=60)
            (address,) = [worker["address"] for worker in (await client.scheduler_info())["workers"].values()]
            assert await client.submit(inc, 1, workers=address) == 2
            async with Client(cluster, asynchronous=True) as other:
                assert await other.submit(inc, 1, workers=address) == 2
                assert await (await other.scatter({"x": 1}, workers=[address]))["x"] == 1
                os.kill(cluster.scheduler_pid, signal.SIGSTOP)
                try:
                    with pytest.raises(
                        ValueError, match=r"there is no worker at tcp://127.0.0.1:1; .*await client.sched"
                    ):
                        other.submit(inc, 1, workers="tcp://127.0.0.1:1")
                finally:
                    os.kill(cluster.scheduler_pid, signal.SIGCONT)
                with pytest.raises(ValueError, match=r"there is no worker at tcp://127.0.0.1:1; there are: tcp:"):
                    await other.scatter([1], workers="tcp://127.0.0.1:1")

    with LocalCluster(n_workers=1) as cluster:
        asyncio.run(main(cluster))
