"""The supervisor, without a cluster around it."""

from __future__ import annotations

import asyncio
import os
import signal
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
    (line,) = capfd.readouterr().err.splitlines()  # once for both
    assert line.startswith("taskloom worker w-")


def test_names():
    async def work(scheduler, supervisor, words):
        assert list(supervisor.workers) == ["alone"]
        supervisor.scale(2)
        assert list(supervisor.workers) == ["alone", "alone-1"]

    run(work, name="alone")

    async def numbered(scheduler, supervisor, words):
        assert list(supervisor.workers) == ["w-0"]

    run(numbered, name="w", numbered=True)


def test_workers_retire_though_their_supervisor_is_late():
    """On a busy machine they may be with the scheduler before it is: then it waits a moment, and tells it."""

    async def work(scheduler, supervisor, words):
        await supervisor.joined()
        assert await supervisor.reached()
        supervisor._connection.abort()
        while supervisor.connected:
            await asyncio.sleep(0.01)
        retired = []
        retire = scheduler._retire
        scheduler.hosts._retire = lambda launches: (retired.extend(launches), retire(launches))
        launch = supervisor.workers["w-1"].launch
        await supervisor.retire(["w-1"])
        assert retired == [launch]
        assert list(supervisor.workers) == ["w-0"]
        # where there is none, it does not wait for long
        await scheduler.close()
        await supervisor.retire(["w-0"])
        assert supervisor.workers == {}

    run(work, count=2, name="w")


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


# --- names


def test_a_second_worker_of_a_name_is_refused(capfd):
    async def work(scheduler, supervisor, words):
        await supervisor.joined()
        first = supervisor.workers["w"]
        second = Supervisor(scheduler.address, TOKEN, name="w")
        try:
            await second.start()
            with pytest.raises(WorkerDiedError) as raised:
                await second.joined()
            await second.finished.wait()
        finally:
            await second.close()
        said = str(raised.value)
        assert "there are two workers called 'w': process " in said
        assert (
            f"process {first.process.pid} on {socket.gethostname()}, at {first.joined}, which was here before" in said
        )
        assert "which is refused. Give it another name: --name" in said
        assert first.process.poll() is None
        assert [worker.name for worker in scheduler.machine.workers.values()] == ["w"]

    run(work, name="w")
    assert capfd.readouterr().err.count("there are two workers called 'w'") == 1


def test_one_that_is_started_again_takes_the_place_of_the_one_before_whose_end_the_scheduler_has_not_seen():
    """Its connection stays open: a program that it has started has inherited it. Its supervisor cannot tell anybody."""

    async def work(scheduler, supervisor, words):
        await supervisor.joined()
        before = supervisor.workers["w"].process
        (number,) = scheduler.machine.workers
        peer = scheduler.peers[number]
        peer.connection.pause_reading()  # what comes there is not seen, its end neither
        supervisor._connection.send = lambda message: None
        before.kill()
        while supervisor.workers["w"].process is before or not supervisor.workers["w"].joined:
            await asyncio.wait_for(supervisor._news.wait(), 30)
        assert [p.pid for p in scheduler.peers.values()] == [supervisor.workers["w"].process.pid]
        assert peer.connection.closed
        while number in scheduler.machine.workers:
            await asyncio.sleep(0.01)

    run(work, name="w")


def test_who_is_away_comes_back_to_its_name_unless_another_one_has_it(capfd):
    async def work(scheduler, supervisor, words):
        await supervisor.joined()
        (number,) = scheduler.machine.workers
        scheduler.peers[number].connection.abort()  # it comes back
        while list(scheduler.peers) == [number] or not scheduler.peers:
            await asyncio.sleep(0.01)
        (back,) = scheduler.peers.values()
        assert back.name == "w"
        process = supervisor.workers["w"].process
        assert back.pid == process.pid
        # it is stopped; another one takes its name; it goes on, and is not wanted any more
        process.send_signal(signal.SIGSTOP)
        while scheduler.peers:
            await asyncio.sleep(0.01)
        other = Supervisor(scheduler.address, TOKEN, name="w")
        try:
            await other.start()
            await other.joined()
            process.send_signal(signal.SIGCONT)
            await supervisor.finished.wait()
            assert [p.pid for p in scheduler.peers.values()] == [other.workers["w"].process.pid]
        finally:
            await other.close()

    run(work, name="w")
    assert "while it was away, another one has taken its place, so it ends: there are two" in capfd.readouterr().err


def test_a_worker_of_which_nothing_is_heard_makes_room():
    """Its machine is gone, and nobody has noticed."""

    async def work(scheduler, supervisor, words):
        await supervisor.joined()
        while not scheduler.hosts.hosts:
            await asyncio.sleep(0.01)
        (host,) = scheduler.hosts.hosts.values()
        host.connection.pause_reading()
        host.heard -= 10
        other = Supervisor(scheduler.address, TOKEN, name="w")
        try:
            await other.start()
            await other.joined()
            assert [p.pid for p in scheduler.peers.values()] == [other.workers["w"].process.pid]
        finally:
            await other.close()

    run(work, name="w")
