"""More data than there may be in memory."""

from __future__ import annotations

import os
import signal

import numpy as np
import psutil
import pytest

from taskloom.errors import WorkerDiedError

MB = 1 << 20


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "values"


def rss(pid):
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.NoSuchProcess:
        return 0
    return memory.rss - memory.shared


def test_four_times_the_limit(make_place, folder):
    """Values go to disk, reach other workers and the client from there, and the folder goes with the workers."""
    limit = 160 * MB
    place = make_place(memory_limit=limit, local_directory=str(folder))
    made = place.client.map(lambda i: np.full(4 * MB // 8, float(i)), range(160))
    most = 0

    def all_done():
        nonlocal most
        most = max(most, *[rss(pid) for pid in place.cluster.worker_pids.values()])
        return all(future.done() for future in made)

    place.until(all_done, 90)
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) > limit
    sums = place.client.map(lambda a, b: float(a[0] + b[-1]), made, made[::-1])
    assert place.client.gather(sums, timeout=90) == [159.0] * 160
    assert [int(array[7]) for array in place.client.gather(made[:20], timeout=60)] == list(range(20))
    assert most < limit
    place.close()
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    ("make", "size", "use"),
    [
        (lambda i: np.full(16 * MB // 8, float(i)), 16 * MB, lambda value: float(value[-1])),
        (lambda i: [float(i + n) for n in range(MB // 32)], MB, lambda value: value[0]),
    ],
    ids=["large arrays", "lists"],
)
def test_the_limit_holds_while_values_are_made_read_back_and_sent(make_place, folder, make, size, use):
    """With two threads, of which each makes more at a time than the worker could stand twice; no worker is replaced."""
    limit = 192 * MB
    place = make_place(threads_per_worker=2, memory_limit=limit, local_directory=str(folder))
    pids = dict(place.cluster.worker_pids)
    count = 4 * limit // size
    made = place.client.map(make, range(count))
    sums = place.client.map(lambda a, b: use(a) + use(b), made, made[::-1])
    most = 0

    def all_done():
        nonlocal most
        most = max(most, *[rss(pid) for pid in place.cluster.worker_pids.values()])
        return all(future.done() for future in sums)

    place.until(all_done, 120)
    assert place.client.gather(sums, timeout=30) == [float(count - 1)] * count
    assert most < limit
    assert place.cluster.worker_pids == pids


def test_a_folder_of_a_worker_that_was_killed(make_place, folder):
    place = make_place(n_workers=1, memory_limit=120 * MB, local_directory=str(folder))
    made = place.client.map(lambda i: np.full(8 * MB // 8, float(i)), range(20))
    place.until(lambda: list(folder.glob("taskloom-values-*/values/*")))
    old = {path.name for path in folder.glob("taskloom-values-*")}
    os.kill(place.pid("worker-0"), signal.SIGKILL)
    place.until(lambda: not old & set(os.listdir(folder)))
    assert [int(array[3]) for array in place.client.gather(made, timeout=60)] == list(range(20))


def test_a_task_that_takes_more_than_there_is(make_place, capfd):
    place = make_place(n_workers=1, memory_limit=200 * MB)

    def take():
        taken = []
        while True:
            taken.append(np.ones(4 * MB // 8))

    fine = place.client.submit(abs, -1)
    with pytest.raises(
        WorkerDiedError, match=r"4 workers died while running it, the last one 'worker-0': was .*memory"
    ):
        place.client.submit(take).result(timeout=60)
    assert fine.result(timeout=60) == 1
    assert "Traceback" not in capfd.readouterr().err
