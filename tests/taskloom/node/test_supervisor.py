"""The supervisor, without a cluster around it."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from taskloom.errors import WorkerDiedError
from taskloom.node.folders import make_owned, remove_orphans
from taskloom.node.scheduler import SchedulerNode
from taskloom.node.supervisor import Lines, Supervisor

TOKEN = "a-token-for-the-tests"


def run(function, **options):
    """Run ``function(scheduler, supervisor, words)`` beside a scheduler and a supervisor."""

    async def main():
        scheduler = SchedulerNode(TOKEN)
        address = await scheduler.start()
        words = []
        supervisor = Supervisor(address, options.pop("token", TOKEN), tell=words.append, **options)
        try:
            await supervisor.start()
            async with asyncio.timeout(60):
                return await function(scheduler, supervisor, words)
        finally:
            await supervisor.close()
            await scheduler.close()
            await asyncio.get_running_loop().shutdown_default_executor()

    return asyncio.run(main())


def test_workers_with_another_token_say_so_and_are_not_tried_again(capfd):
    async def work(scheduler, supervisor, words):
        with pytest.raises(WorkerDiedError, match="token"):
            await supervisor.joined()
        await supervisor.finished.wait()
        assert supervisor.workers == {}
        assert words == []

    run(work, token="another-token-for-tests", count=2, name="w")
    assert capfd.readouterr().err.count("taskloom worker w-0: ") == 1


def test_names():
    async def work(scheduler, supervisor, words):
        assert list(supervisor.workers) == ["alone"]
        supervisor.scale(2)
        assert list(supervisor.workers) == ["alone", "alone-1"]

    run(work, name="alone")

    async def numbered(scheduler, supervisor, words):
        assert list(supervisor.workers) == ["w-0"]

    run(numbered, name="w", numbered=True)


def test_those_that_are_to_go_do_not_count():
    async def work(scheduler, supervisor, words):
        await supervisor.joined()
        assert supervisor.scale(1) == ["w-1"]
        supervisor.scale(2)
        assert list(supervisor.workers) == ["w-0", "w-1", "w-2"]
        await supervisor.joined()
        await supervisor.end(["w-1"])
        assert list(supervisor.workers) == ["w-0", "w-2"]

    run(work, count=2, name="w")


def test_who_listens_and_has_gone_is_no_reason_to_forget_a_worker():
    """``taskloom worker ... | head -1``: the second line finds nobody."""

    async def work(scheduler, supervisor, words):
        def gone(text):
            raise BrokenPipeError

        supervisor._listener = gone
        await supervisor.joined()
        first = supervisor.workers["w"].process
        first.kill()
        while supervisor.workers["w"].process is first or not supervisor.workers["w"].joined:
            await asyncio.wait_for(supervisor._news.wait(), 30)

    run(work, name="w")


def test_a_worker_that_a_client_restarts_blames_nobody():
    async def work(scheduler, supervisor, words):
        await supervisor.joined()
        worker = supervisor.workers["w"]
        before = worker.process.pid
        while not scheduler.hosts.hosts:
            await asyncio.sleep(0.01)
        assert scheduler.hosts.restart([worker.launch, "unknown"]) == ["unknown"]
        while worker.process.pid == before or not worker.joined:
            await asyncio.wait_for(supervisor._news.wait(), 30)
        assert any("was restarted, as a client has asked for" in text for text in words)

    run(work, name="w")


def test_lines():
    async def main():
        ours, theirs = os.pipe()
        found = []
        lines = Lines(asyncio.get_running_loop(), ours, found.append)
        for data in (b"one\ntw", b"o\n\nthr\xff", b"ee"):
            os.write(theirs, data)
            await asyncio.sleep(0)
        os.write(theirs, b"x" * 60_000)
        await asyncio.sleep(0)
        os.close(theirs)
        await lines.ended(10)
        lines.close()
        os.close(ours)
        return found

    found = asyncio.run(main())
    assert found[:3] == ["one", "two", ""]
    assert found[3] == "thr\ufffdee" + "x" * 60_000


def test_folders_of_those_that_are_gone(tmp_path):
    path, fd = make_owned(str(tmp_path), "running")
    other, other_fd = make_owned(str(tmp_path), "values")
    assert remove_orphans(str(tmp_path)) == []
    os.close(fd)  # as the kernel does when a process is killed
    assert remove_orphans(str(tmp_path)) == [path]
    assert os.listdir(tmp_path) == [os.path.basename(other)]
    os.close(other_fd)


def test_a_scheduler_that_is_not_there_is_told_before_the_workers_give_up():
    async def main():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))  # nobody listens there
            told = asyncio.Queue()
            supervisor = Supervisor(f"tcp://127.0.0.1:{free.getsockname()[1]}", TOKEN, tell=told.put_nowait)
            try:
                await supervisor.start()
                async with asyncio.timeout(60):
                    words = await told.get()
            finally:
                await supervisor.close()
                await asyncio.get_running_loop().shutdown_default_executor()
        assert f"worker: no scheduler could be reached at {supervisor.scheduler} " in words
        assert words.endswith(" It is looked for further")
        assert supervisor.problem == ""

    asyncio.run(main())
