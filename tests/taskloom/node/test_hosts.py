"""What supervisors say, and who is blamed for what: without a process."""

from __future__ import annotations

import asyncio

from taskloom.core.messages import Died, Leaving, Restart, Stopped, SupervisorHello, Vitals
from taskloom.node import hosts as module
from taskloom.node.hosts import Hosts


class Line:
    """Stands for a supervisor's connection."""

    def __init__(self):
        self.sent = []
        self.aborted = False

    def send(self, message):
        self.sent.append(message)

    def abort(self):
        self.aborted = True


class Record:
    def __init__(self):
        self.left = []
        self.cut = []
        self.retired = []
        self.blamed = []
        self.hosts = Hosts(
            lambda number, running, words: self.left.append((number, running, words)),
            self.cut.append,
            self.retired.append,
            lambda running, words: self.blamed.append((running, words)),
        )

    def came(self, *launches):
        return self.hosts.came(Line(), SupervisorHello("here", 1, list(launches)))


def in_a_loop(function):
    """A test in an event loop."""

    def run():
        async def main():
            record = Record()
            try:
                await function(record)
            finally:
                record.hosts.close()

        asyncio.run(main())

    return run


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@in_a_loop
async def test_the_supervisor_speaks_first(record):
    host = record.came("a", "b")
    record.hosts.heard(host, Died("a", [7], "was killed"))
    assert record.left == []
    record.hosts.lost(1, "a", "its connection broke")
    assert record.left == [(1, [7], "was killed")]
    assert host.launches == {"b"}


@in_a_loop
async def test_the_connection_breaks_first(record):
    host = record.came("a")
    record.hosts.lost(1, "a", "its connection broke")
    assert record.left == []
    record.hosts.heard(host, Died("a", [7], "was killed"))
    assert record.left == [(1, [7], "was killed")]


@in_a_loop
async def test_a_worker_without_a_supervisor(record):
    record.came("a")
    record.hosts.lost(1, "", "its connection broke")
    record.hosts.lost(2, "unknown", "reset")
    assert record.left == [(1, None, "its connection broke"), (2, None, "reset")]


@in_a_loop
async def test_a_worker_that_comes_back_is_not_given_up(record):
    host = record.came("a")
    record.hosts.lost(1, "a", "its connection broke")
    record.hosts.back("a")
    record.hosts.back("nobody")
    record.hosts.went(host)
    assert record.left == []


@in_a_loop
async def test_the_supervisor_goes_too(record):
    host = record.came("a", "b")
    record.hosts.lost(1, "a", "its connection broke")
    record.hosts.went(host)
    assert record.left == [(1, None, "its connection broke, and its supervisor does not say that it has ended")]
    record.hosts.lost(2, "b", "its connection broke")
    assert record.left[1] == (2, None, "its connection broke")


@in_a_loop
async def test_the_next_supervisor_knows_what_ran(record):
    """A whole container has died, and is started again."""
    hosts = record.hosts
    host = record.came("a", "b")
    hosts.went(host)
    hosts.lost(1, "a", "its connection broke")
    hosts.lost(2, "b", "its connection broke")
    assert [(number, running) for number, running, _ in record.left] == [(1, None), (2, None)]
    again = record.came("c")
    hosts.heard(again, Died("a", [7, 8], "the container was ended"))
    hosts.heard(again, Died("a", [7, 8], "the container was ended"))
    assert record.blamed == [([7, 8], "the container was ended")]
    hosts.back("b")  # that one lives
    hosts.heard(again, Died("b", [9], "the container was ended"))
    assert len(record.blamed) == 1


@in_a_loop
async def test_stopped_leaving_vitals_and_other_workers(record):
    host = record.came("a")
    record.hosts.heard(host, Stopped("a"))
    record.hosts.heard(host, Leaving(["a", "b"]))
    record.hosts.heard(host, Vitals({"cpus": 2}))
    record.hosts.heard(host, SupervisorHello("here", 1, ["b"]))
    assert (record.cut, record.retired, host.vitals, host.launches) == (["a"], [["a", "b"]], {"cpus": 2}, {"b"})


@in_a_loop
async def test_restart(record):
    one, two = record.came("a", "b"), record.came("c")
    assert record.hosts.restart(["b", "c", "d", "a"]) == ["d"]
    assert one.connection.sent == [Restart(["a", "b"])]
    assert two.connection.sent == [Restart(["c"])]


@in_a_loop
async def test_only_so_many_deaths_are_remembered(record):
    host = record.came()
    for n in range(module._REMEMBERED + 5):
        record.hosts.heard(host, Died(str(n), [], "was killed"))
    record.hosts.lost(1, "0", "forgotten")
    record.hosts.lost(2, "5", "remembered")
    assert record.left == [(1, None, "forgotten"), (2, [], "was killed")]


def test_a_supervisor_that_says_nothing(monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 0.03)
    monkeypatch.setattr(module, "PATIENCE", 0.02)

    @in_a_loop
    async def silence(record):
        host = record.came("a", "b")
        await until(lambda: host.connection.aborted)
        assert sorted(record.cut) == ["a", "b"]
        record.hosts.went(host)
        other = record.came("c")
        record.hosts.lost(3, "c", "its connection broke")
        await until(lambda: record.left)
        assert record.left == [(3, None, "its connection broke, and its supervisor does not say that it has ended")]
        assert other.launches == {"c"}

    silence()
