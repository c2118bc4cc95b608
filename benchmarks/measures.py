"""What is measured of the cluster beside workloads: one figure or a few each, with its aim.

``python -m benchmarks.measures NAME [--quick]`` measures one, in this process and others that it starts, and prints JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import heapq
import itertools
import json
import os
import random
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.runner import ROOT, Child, ChildError, descendants_of, environment
from benchmarks.workloads import noop
from taskloom.core.messages import KINDS, PIN, WISH, Announce, Functions, Release, Report, Run, Submit
from taskloom.core.messages import Options as TaskOptions
from taskloom.core.scheduler.machine import CLIENT, WORKER, Scheduler
from taskloom.node import calls
from taskloom.node.trim import trim_memory
from taskloom.protocol import Decoder, Encoder

__all__ = ["MEASURES", "Measured", "measure", "startup"]

MEGABYTE = 1 << 20


@dataclasses.dataclass
class Measured:
    """One figure.

    Attributes:
        what: what was measured.
        value: in ``unit``; None where there is none, and ``note`` says why.
        unit: "s", or words that stand behind the number.
        aim: what the value must be at most; with ``at_least``, at least. None: it is shown only.
        right: whether the results were right.
        peers: the same of others, by their names.
    """

    what: str
    value: float | None
    unit: str
    aim: float | None = None
    at_least: bool = False
    note: str = ""
    right: bool = True
    peers: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        """Whether the aim is; None where there is no aim, or no value."""
        if self.aim is None or self.value is None:
            return None
        return self.right and (self.value >= self.aim if self.at_least else self.value <= self.aim)


def measure(name: str, quick: bool, limit: float = 180.0) -> list[Measured]:
    """Measure one in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.measures", name, *(["--quick"] if quick else [])]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
        text=True,
    )
    try:
        out, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        out = errors = ""
    finally:
        kill_all(process.pid)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    if not out:
        why = errors.strip().splitlines()[-1][:300] if errors.strip() else f"no answer in {limit:.0f} s"
        return [Measured(TITLES[name], None, "", note=why, right=False)]
    return [Measured(**found) for found in json.loads(out)]


def kill_all(leader: int) -> None:
    """End a process, its group and what it has started."""
    others = descendants_of(leader)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    for process in others:
        with contextlib.suppress(psutil.Error):
            process.kill()


# --- start


def startup(systems: Sequence[str], workers: int, times: int, say: Callable[[str], None]) -> list[Measured]:
    """Until a client and all workers are there, each time in a fresh interpreter; systems in turns."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in systems}
    notes: dict[str, str] = {}
    for n in range(times):
        for name in systems:
            if name in notes:
                continue
            try:
                with Child(name, workers, limit=60.0) as child:
                    answer = child.ask("load")
                    if "absent" not in answer and "error" not in answer:
                        answer = child.ask("ready")
            except ChildError as error:
                answer = {"error": str(error)}
            if "absent" in answer or "error" in answer or not answer["right"]:
                notes[name] = answer.get("absent") or answer.get("error") or "wrong result"
                continue
            for what in ("import", "start", "first"):
                found[name].setdefault(what, []).append(answer[what])
            found[name].setdefault("all", []).append(answer["import"] + answer["start"] + answer["first"])
        say(f"  start: round {n + 1}")
    rows = []
    for what, title, aim in (
        ("start", f"Client() in a fresh interpreter until {workers} workers have joined", 0.2),
        ("all", "Client() with the import before it and a first task after it", None),
    ):
        ours = found.get("taskloom-cluster", {}).get(what)
        peers = {name: min(found[name][what]) for name in systems if name != "taskloom-cluster" and found[name]}
        note = notes.get("taskloom-cluster", "") or (f"median {statistics.median(ours) * 1e3:.0f} ms" if ours else "")
        rows.append(Measured(title, min(ours) if ours else None, "s", aim, note=note, peers=peers))
    return rows


# --- the scheduler's memory


def scheduler_memory(quick: bool) -> list[Measured]:
    """What a million tasks take in the scheduler's machine: the resident memory of this process, which does nothing else.

    Messages take the way over the wire's encoder and decoder, so that all that they hold is new, as in its process. The
    tasks have no arguments. What counts is the greater of: all have come and none is done; all are done and wanted.
    """
    total = 50_000 if quick else 1_000_000
    rows = []
    for shape in ("no dependencies", "rows of 1,000, each task needs two"):
        grid = shape != "no dependencies"
        _hold(20_000, grid)  # what is made once is none of the tasks'
        came, done, left = (nbytes / total for nbytes in _hold(total, grid))
        note = f"{came:.0f} when all have come, {done:.0f} when all are done"
        rows.append(Measured(f"scheduler's memory, {shape}", max(came, done), "bytes a task", 400, note=note))
        rows.append(
            Measured(
                f"scheduler's memory when they are let go of, {shape}",
                left,
                "bytes a task",
                40,
                note="resident memory of the process",
            )
        )
    return rows


def _hold(total: int, grid: bool) -> tuple[int, int, int]:
    """Bytes when all tasks have come, when all are done, and when all are forgotten."""
    row = 1_000
    machine = Scheduler(1)
    encoder, decoder = Encoder(kinds=KINDS), Decoder(kinds=KINDS)
    todo: list[Any] = []

    def say(kind: str, number: int, message: Any, now: float) -> None:
        encoder.add(message)
        events = [(kind, number, found) for part in encoder.take() for found in decoder.feed(part)]
        todo.extend(action.message for action in machine.handle(events, now) if type(action.message) is Run)

    client, worker = machine.client_came(bytes(16)), machine.worker_came("worker-0")
    say(WORKER, worker, Announce([], []), 0.0)
    say(CLIENT, client, Functions([0], [calls.pack_function(noop)]), 0.0)
    gc.collect()
    me = psutil.Process()
    before = me.memory_info().rss
    for first in range(0, total, row):
        deps: list[Any] = [()] * row
        if grid and first:
            deps = [[first - row + k, first - row + (k + 1) % row] for k in range(row)]
        submit = Submit(first, [0] * row, [None] * row, deps, bytes([WISH]) * row, TaskOptions())
        say(CLIENT, client, submit, 0.0)
    gc.collect()
    came = me.memory_info().rss - before
    done, now = 0, 0.0
    while todo:
        orders, todo[:] = list(todo), []
        for order in orders:
            size = len(order.tids)
            done, now = done + size, now + 0.001
            say(WORKER, worker, Report(order.grant, order.tids, [28] * size, [5e-6] * size, [1] * size, [], []), now)
    if done != total:
        raise RuntimeError(f"{done} of {total} tasks were run")
    del deps, submit, orders, order  # its process does not keep the last messages either
    gc.collect()
    all_done = me.memory_info().rss - before
    for first in range(0, total, row):
        say(CLIENT, client, Release(list(range(first, first + row))), now)
    gc.collect()
    machine.stories.pack()  # as its process does when nobody has said anything for some seconds
    trim_memory()
    return came, all_done, me.memory_info().rss - before


# --- many workers


def simulated(quick: bool) -> list[Measured]:
    """The real scheduler's process and wire, with workers that finish at once; CPU time of the scheduler's process."""
    from benchmarks.bare import more_files

    more_files()
    rows = []
    total = 20_000 if quick else 1_000_000
    for number in (10, 100) if quick else (10, 100, 1_000):
        cpu, wall, peak, left = asyncio.run(_crowd_run(number, total, False))
        note = f"{wall:.1f} s in all, {peak:.0f} bytes a task at the end, {left:.0f} when let go of"
        rows.append(
            Measured(
                f"{total:,} tasks, {number:,} simulated workers: the scheduler's CPU", cpu, "us a task", 6, note=note
            )
        )
    if rows[0].value and rows[-1].value:
        what = f"the scheduler's CPU with {number:,} workers, to that with 10: flat"
        rows.append(Measured(what, rows[-1].value / rows[0].value, "x", 1.25))
    total //= 10
    for number in (10, 1_000) if not quick else (10,):
        cpu, wall, _, _ = asyncio.run(_crowd_run(number, total, True))
        what = f"{total:,} tasks in rows of 1,000, each needs two, {number:,} simulated workers: the scheduler's CPU"
        rows.append(Measured(what, cpu, "us a task", note=f"{wall:.1f} s in all"))
    return rows


async def _crowd_run(number: int, total: int, grid: bool) -> tuple[float, float, float, float]:
    from benchmarks.bare import BareClient, crowd, nanoseconds
    from taskloom.deploy.local import LocalCluster

    row = 1_000
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(LocalCluster(n_workers=0))
        address, token, pid = cluster.address, cluster.token, cluster.scheduler_pid
        half = max(1, number // 2)
        for first, size in ((0, half), (half, number - half)):
            if size:
                await asyncio.to_thread(stack.enter_context, crowd(token, address, first, size))
        client = await BareClient().connect(address, token)
        client.submit(noop, [(n,) for n in range(2_000)])
        await client.done()
        client.release(0, 2_000)
        await client.one(noop, 0)
        base = client.machine.next_counter
        of = psutil.Process(pid)
        memory = of.memory_info().rss
        begin, cpu = time.perf_counter(), sum(nanoseconds(pid).values())
        for first in range(0, total, row):
            deps: list[Any] = [()] * row
            args: list[Any] = [(n,) for n in range(first, first + row)]
            wanted = bytes([WISH]) * row
            if grid:
                at = base + first - row
                wanted = bytes([WISH if first + row == total else PIN]) * row
                if first:
                    args = [None] * row
                    deps = [[at + k, at + (k + 1) % row] for k in range(row)]
            client.submit(noop, args, deps, wanted)
            await client.connection.drain()
            await asyncio.sleep(0)
        await client.done()
        wall = time.perf_counter() - begin
        peak = of.memory_info().rss - memory
        wishes = client.machine.wishes
        for n in range(total - row if grid else 0, total):
            if client.wish(base + n).result != (() if grid else n):
                raise RuntimeError(f"task {n} has the result {wishes[base + n].result}")
        client.release(base, base + total)
        await client.one(noop, 0)  # the scheduler has heard of it when this is done
        cpu = sum(nanoseconds(pid).values()) - cpu
        left = of.memory_info().rss - memory
        await client.close()
    return cpu / total / 1e3, wall, peak / total, left / total


# --- uneven work


def list_scheduling(seconds: Sequence[float], machines: int) -> float:
    """When the last of these jobs ends if each, in this order, goes to the machine that is free first (Graham 1966)."""
    free = [0.0] * machines
    for taken in seconds:
        heapq.heapreplace(free, free[0] + taken)
    return max(free)


def nap(n: int, seconds: float) -> float:
    """Sleep, and say for how long: a sleep takes longer than it was told to."""
    begin = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - begin


def uneven(quick: bool) -> list[Measured]:
    """Tasks of very different durations, on 4 workers with 4 threads each. The bound is that of the times that they took."""
    from taskloom import Client

    draw = random.Random(3)
    mixed = [0.001, 0.01, 0.1] * (40 if quick else 240)
    draw.shuffle(mixed)
    half = 64 if quick else 128
    jump = [0.001] * half + [0.1 if quick else 1.0] * half
    rows = []
    with Client(n_workers=4, threads_per_worker=4) as client:
        client.wait_for_workers(4)
        client.gather(client.map(noop, range(1000)))
        for what, jobs, rounds in (
            ("sleeping tasks of 1, 10 and 100 ms mixed", mixed, 2 if quick else 3),
            (f"durations that jump from 1 ms to {jump[-1] * 1e3:,.0f} ms half-way", jump, 1),
        ):
            best, note = 0.0, ""
            for _ in range(rounds):
                begin = time.perf_counter()
                taken = client.gather(client.map(nap, range(len(jobs)), jobs))
                wall = time.perf_counter() - begin
                if len(taken) != len(jobs) or any(real < told for real, told in zip(taken, jobs, strict=True)):
                    raise RuntimeError("wrong result")
                bound = list_scheduling(taken, 16)
                if bound / wall > best:
                    best, note = bound / wall, f"{wall:.2f} s, the bound is {bound:.2f} s"
            rows.append(Measured(f"{what}: of the list-scheduling bound", best, "x", 0.95, at_least=True, note=note))
    return rows


# --- values between processes


def count_for(seconds: float) -> int:
    """Pure Python that never lets go of the interpreter by itself."""
    end = time.perf_counter() + seconds
    n = 0
    while time.perf_counter() < end:
        for _ in range(10_000):
            n += 1
    return n


def busy_worker(quick: bool) -> list[Measured]:
    """Fetching a small value from a worker whose thread runs pure Python."""
    from taskloom.deploy.local import LocalCluster

    trips = 50 if quick else 500

    async def run(cluster: LocalCluster) -> tuple[list[float], list[float]]:
        from benchmarks.bare import BareClient, BareFetcher

        client = await BareClient().connect(cluster.address, cluster.token)
        value = ["a small value", 1, 2.5]
        wish = await client.one(noop, value)
        fetcher = await BareFetcher.connect(client.addresses[wish.place], cluster.token)
        times: list[list[float]] = [[], []]
        for taken in times:
            for _ in range(trips):
                begin = time.perf_counter()
                found = await fetcher.fetch(wish.tid)
                taken.append(time.perf_counter() - begin)
                if found != value:
                    raise RuntimeError(f"wrong result: {found!r}")
            if taken is times[0]:
                client.submit(count_for, [(60.0,)])
                # it runs when its process uses a CPU
                of, before = psutil.Process(cluster.worker_pids["worker-0"]), 0.0
                deadline = time.monotonic() + 10.0
                before = sum(of.cpu_times()[:2])
                while sum(of.cpu_times()[:2]) < before + 0.1 and time.monotonic() < deadline:
                    await asyncio.sleep(0.02)
        await client.close()
        return times[0], times[1]

    with LocalCluster(n_workers=1, threads_per_worker=1, wait=True) as cluster:
        idle, busy = asyncio.run(run(cluster))
    busy.sort()
    note = f"p95 {busy[len(busy) * 95 // 100] * 1e3:.2f} ms; from an idle one {statistics.median(idle) * 1e3:.2f} ms"
    return [
        Measured(
            "fetch of a small value from a worker that runs pure Python, p50",
            statistics.median(busy),
            "s",
            0.002,
            note=note,
        )
    ]


def pattern(n: int) -> bytes:
    """A megabyte that does not compress."""
    return random.Random(n).randbytes(MEGABYTE)


def make_bytes(n: int, size: int) -> Any:
    import numpy

    return numpy.frombuffer(pattern(n) * (size // MEGABYTE), dtype=numpy.uint8)


def look_at(array: Any) -> int:
    return int(array[:: MEGABYTE // 64].sum())


def between_workers(quick: bool) -> list[Measured]:
    """100 MB from one worker to another, for a task there that needs what is here; and over a bare socket, in turns."""
    from benchmarks.bare import BareClient, scheduler, worker

    size = MEGABYTE * (10 if quick else 100)
    rounds = 3 if quick else 9
    times: dict[str, list[float]] = {"bare": [], "tcp": [], "tls": []}

    async def once(client: BareClient, n: int) -> float:
        made = await client.one(make_bytes, n, size, workers=("one",))
        counter = client.machine.next_counter - 1
        begin = time.perf_counter()
        wish = await client.of_one(look_at, counter, workers=("two",))
        taken = time.perf_counter() - begin
        if made.result is not None or wish.result != sum(pattern(n)[:: MEGABYTE // 64]) * (size // MEGABYTE):
            raise RuntimeError(f"wrong result: {wish.result}")
        client.release(counter, counter + 2)
        return taken

    async def run() -> None:
        with contextlib.ExitStack() as stack:
            clients = {}
            for scheme in ("tcp", "tls"):
                token = secrets.token_urlsafe(32)
                address = stack.enter_context(scheduler(token, scheme))
                for name in ("one", "two"):
                    stack.enter_context(worker(token, scheme, address, name))
                clients[scheme] = await BareClient().connect(address, token)
            command = [sys.executable, "-m", "benchmarks.wire", "--there", "bare", *(["--quick"] if quick else [])]
            bare = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            assert bare.stdout is not None
            port = int(bare.stdout.readline())
            data = os.urandom(MEGABYTE) * (size // MEGABYTE)
            with socket.create_connection(("127.0.0.1", port)) as sock:
                for n in range(rounds):
                    begin = time.perf_counter()
                    sock.sendall(b"d")
                    sock.sendall(data)
                    sock.recv(1)
                    times["bare"].append(time.perf_counter() - begin)
                    for scheme, client in clients.items():
                        times[scheme].append(await once(client, n))
            for client in clients.values():
                await client.close()

    asyncio.run(run())
    plain, tcp, tls = (min(times[name]) for name in ("bare", "tcp", "tls"))
    mb = size / 1e6
    return [
        Measured(
            f"{mb:.0f} MB between two workers: of a bare socket's time",
            tcp / plain,
            "x",
            1.5,
            note=f"{tcp * 1e3:.0f} ms, the socket {plain * 1e3:.0f} ms",
        ),
        Measured(
            f"{mb:.0f} MB between two workers with TLS: of a bare socket's time",
            tls / plain,
            "x",
            note=f"{tls * 1e3:.0f} ms, {tls / tcp:.2f} x plain TCP",
        ),
    ]


# --- more than fits


def make_pages(n: int, size: int) -> Any:
    import numpy

    return numpy.arange(n, n + size // 8, dtype=numpy.int64)


def sum_of(array: Any) -> int:
    return int(array.sum())


class Watch:
    """Looks at the memory of processes many times a second; ``most`` is the greatest that one of them had."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.processes = [psutil.Process(pid) for pid in pids]
        self.most = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._stop.wait(0.01):
            for process in self.processes:
                with contextlib.suppress(psutil.Error):
                    self.most = max(self.most, process.memory_info().rss)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()


def more_than_memory(quick: bool) -> list[Measured]:
    """Arrays of four times the workers' memory limits, all of them wanted, then added up."""
    from taskloom import Client
    from taskloom.deploy.local import LocalCluster

    limit = (192 if quick else 384) * MEGABYTE
    size = 4 * MEGABYTE
    number = 4 * 2 * limit // size
    with (
        tempfile.TemporaryDirectory(prefix="taskloom-bench-") as folder,
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=limit, local_directory=folder, wait=True
        ) as cluster,
        Client(cluster.address, token=cluster.token) as client,
    ):
        pids = cluster.worker_pids
        with Watch(list(pids.values())) as watch:
            begin = time.perf_counter()
            arrays = client.map(make_pages, range(number), [size] * number)
            sums = client.map(sum_of, arrays)
            found = client.gather(sums, timeout=60)
            wall = time.perf_counter() - begin
        same = cluster.worker_pids == pids
        length = size // 8
        right = found == [n * length + length * (length - 1) // 2 for n in range(number)]
        del arrays, sums
    note = f"{number * size / 1e9:.1f} GB, limits of {limit / 1e6:.0f} MB, in {wall:.1f} s"
    if not same:
        note += "; a worker was replaced"
    if not right:
        note += "; wrong result"
    what = "data of 4 x the memory limit: most that a worker had, of its limit"
    return [Measured(what, watch.most / limit, "x", 1.0, note=note, right=right and same)]


# --- a scheduler that dies

_RECORDS = "TASKLOOM_BENCHMARK_RECORDS"
_record: list[Any] = []


def record(n: int) -> int:
    """Return the argument, and write down when this was."""
    if not _record:
        path = os.path.join(os.environ[_RECORDS], str(os.getpid()))
        _record.append(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    os.write(_record[0], n.to_bytes(8, "little") + time.monotonic_ns().to_bytes(8, "little"))
    return n


def _records(folder: str) -> list[tuple[int, int]]:
    """(ns, task) of all that were run, in their order."""
    found = []
    for path in Path(folder).iterdir():
        data = path.read_bytes()
        for at in range(0, len(data) // 16 * 16, 16):
            found.append(
                (int.from_bytes(data[at + 8 : at + 16], "little"), int.from_bytes(data[at : at + 8], "little"))
            )
    return sorted(found)


def killed_scheduler(quick: bool) -> list[Measured]:
    """kill -9 to the scheduler when a quarter of 100,000 tasks is done; the cluster starts another one."""
    from taskloom import Client
    from taskloom.deploy.local import LocalCluster

    number = 10_000 if quick else 100_000
    with tempfile.TemporaryDirectory(prefix="taskloom-bench-") as folder:
        os.environ[_RECORDS] = folder
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, wait=True) as cluster,
            Client(cluster.address, token=cluster.token) as client,
        ):
            done_before = number // 4
            futures = client.map(record, range(number))

            def written() -> int:
                return sum(path.stat().st_size for path in Path(folder).iterdir()) // 16

            deadline = time.monotonic() + 60
            while written() < done_before:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"only {written()} tasks were run in 60 s")
                time.sleep(0.001)
            killed = time.monotonic_ns()
            os.kill(cluster.scheduler_pid, signal.SIGKILL)
            values = client.gather(futures, timeout=120)
            right = values == list(range(number))
            wall = (time.monotonic_ns() - killed) / 1e9
            del futures
        ran = _records(folder)
    before = {n for when, n in ran if when < killed}
    after = [(when, n) for when, n in ran if when >= killed]
    # What the workers had in hand they go on with; then comes a gap, until they hear of the new scheduler.
    times = [killed, *(when for when, _ in after)]
    back, _ = max(((later, later - earlier) for earlier, later in itertools.pairwise(times)), key=lambda x: x[1])
    again = sum(1 for _, n in after if n in before)
    twice = len(ran) - len({n for _, n in ran})
    note = f"{len(before):,} of {number:,} tasks were done; all were {wall:.1f} s after"
    if not after:
        note += "; the kill came too late"
    return [
        Measured(
            "scheduler killed with -9: until tasks run again", (back - killed) / 1e9, "s", 2.0, note=note, right=right
        ),
        Measured(
            "scheduler killed with -9: tasks that were done and were computed again",
            again,
            "tasks",
            0,
            note=f"{twice} run twice in all",
            right=right,
        ),
    ]


MEASURES: dict[str, Callable[[bool], list[Measured]]] = {
    "scheduler-memory": scheduler_memory,
    "simulated": simulated,
    "uneven": uneven,
    "busy-worker": busy_worker,
    "between-workers": between_workers,
    "more-than-memory": more_than_memory,
    "killed-scheduler": killed_scheduler,
}
"""Name -> what measures it, in the order of the tables. ``startup`` has its own way: it is measured of other systems too."""

TITLES = {
    "startup": "Client() until workers have joined",
    "scheduler-memory": "scheduler's memory",
    "simulated": "simulated workers",
    "uneven": "uneven work",
    "busy-worker": "fetch from a worker that runs pure Python",
    "between-workers": "100 MB between two workers",
    "more-than-memory": "data of 4 x the memory limit",
    "killed-scheduler": "scheduler killed with -9",
}


def main() -> None:
    """Measure one."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a task prints goes to stderr
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(MEASURES))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    found = MEASURES[options.name](options.quick)
    print(json.dumps([dataclasses.asdict(row) for row in found]), file=answers, flush=True)


if __name__ == "__main__":
    main()
