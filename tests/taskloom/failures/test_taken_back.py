"""Tasks that were handed over to a worker's threads, and have not begun, are not bound to it."""

from __future__ import annotations

import os
import time


def step(folder, n, last):
    """Quick, but for one: that waits until it may go on."""
    if n == last:
        with open(os.path.join(folder, "begun"), "w"):
            pass
        while not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.005)
    return n, os.getpid()


def test_what_is_behind_a_task_that_lasts_goes_to_another_worker(make_place, tmp_path):
    """Its function was quick so far: so threads have some milliseconds of tasks in hand, which is many of them."""
    place = make_place(n_workers=1)
    first = place.pid("worker-0")
    folder = str(tmp_path)
    place.client.gather(place.client.map(step, [folder] * 2000, range(2000), last=-1))  # how long it takes is known
    futures = place.client.map(step, [folder] * 3000, range(3000), last=500)
    place.until((tmp_path / "begun").exists)
    place.until(lambda: sum(future.done() for future in futures) >= 500)
    assert sum(future.done() for future in futures) == 500  # one thread: it is in their way
    place.cluster.scale(2)
    place.until(lambda: sum(future.done() for future in futures) == 2999)
    assert not futures[500].done()
    found = [future.result() for future in futures[501:]]
    assert [n for n, _ in found] == list(range(501, 3000))
    assert {pid for _, pid in found} == {place.pid("worker-1")}
    (tmp_path / "go").touch()
    assert futures[500].result(timeout=30) == (500, first)  # it was not begun a second time
