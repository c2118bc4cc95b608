"""Work that is to stop, and workers that do not go on."""

from __future__ import annotations

import os
import signal
import time

import pytest

from taskloom.errors import TaskCancelledError


def inc(x):
    return x + 1


def begun(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))


def spin(path):
    begun(path)
    while True:
        pass


def sleep(path):
    begun(path)
    time.sleep(1000)


def has_begun(place, path):
    place.until(lambda: path.exists() and path.read_text())
    return int(path.read_text())


def test_a_task_that_runs_python_code_is_stopped(place, tmp_path):
    before = place.cluster.worker_pids
    future = place.client.submit(spin, str(tmp_path / "begun"))
    has_begun(place, tmp_path / "begun")
    behind = place.client.map(inc, range(50))
    future.cancel()
    with pytest.raises(TaskCancelledError):
        future.result(timeout=30)
    assert place.client.gather(behind) == list(range(1, 51))
    assert place.cluster.worker_pids == before


def test_a_task_in_native_code_has_its_process_replaced(make_place, tmp_path, capfd):
    """What was queued behind it, and wanted, runs, and nobody is blamed."""
    place = make_place(n_workers=1)
    before = place.pid("worker-0")
    kept = place.client.submit(inc, 1)
    assert kept.result() == 2
    future = place.client.submit(sleep, str(tmp_path / "begun"))
    assert has_begun(place, tmp_path / "begun") == before
    behind = place.client.map(inc, range(20), pure=False)
    future.cancel()
    assert place.client.gather(behind) == list(range(1, 21))
    assert kept.result() == 2
    assert place.pid("worker-0") != before
    err = capfd.readouterr().err
    assert "taskloom: worker worker-0: a task that was cancelled 5 s ago does not stop: it is in native code" in err
    # it holds a value, and nobody else is there
    assert "this process is replaced: nobody else is here who could take what it holds" in err


def note(folder, n):
    """A value of a size that does not travel with messages; how often it was made can be seen."""
    with open(os.path.join(folder, f"{n}-{os.urandom(4).hex()}"), "w"):
        return bytes(200_000 + n)


def test_what_a_replaced_process_has_made_is_not_made_again(make_place, tmp_path, capfd):
    """It retires first: its values move to the other worker."""
    place = make_place(n_workers=2)
    made = tmp_path / "made"
    made.mkdir()
    values = place.client.map(note, [str(made)] * 20, range(20), workers=["worker-0"])
    chained = [place.client.submit(len, value, workers=["worker-0"]) for value in values]
    assert place.client.gather(chained) == [200_000 + n for n in range(20)]
    assert {name for holders in place.client.who_has(values).values() for name in holders} == {"worker-0"}
    before = dict(place.cluster.worker_pids)
    future = place.client.submit(sleep, str(tmp_path / "begun"), workers=["worker-0"])
    assert has_begun(place, tmp_path / "begun") == before["worker-0"]
    behind = place.client.map(inc, range(10), workers=["worker-0"], pure=False)
    future.cancel()
    assert place.client.gather(behind) == list(range(1, 11))
    place.until(lambda: place.cluster.worker_pids.get("worker-0", before["worker-0"]) != before["worker-0"])
    assert place.pid("worker-1") == before["worker-1"]
    assert [len(value) - 200_000 for value in place.client.gather(values)] == list(range(20))
    assert len(os.listdir(made)) == 20
    err = capfd.readouterr().err
    assert "This process is replaced once others have what it holds" in err
    assert "this process is replaced: others have what it held" in err


def test_a_task_in_native_code_beside_others_costs_a_thread(make_place, tmp_path, capfd):
    """The others are not disturbed; when they are done, the process is replaced."""
    place = make_place(n_workers=1, threads_per_worker=2)
    before = place.pid("worker-0")
    future = place.client.submit(sleep, str(tmp_path / "begun"))
    has_begun(place, tmp_path / "begun")

    def wait_for(path):
        begun(f"{path}-1")
        while not os.path.exists(path):
            time.sleep(0.01)
        return os.getpid()

    go = tmp_path / "go"
    other = place.client.submit(wait_for, str(go))
    has_begun(place, tmp_path / "go-1")
    future.cancel()
    said = []

    def is_said():
        said.append(capfd.readouterr().err)
        return "Its thread is not free until it ends" in "".join(said)

    place.until(is_said)
    assert place.pid("worker-0") == before
    go.write_text("")
    assert other.result(timeout=30) == before
    place.until(lambda: place.cluster.worker_pids.get("worker-0", before) != before)
    assert place.client.submit(inc, 1, pure=False).result(timeout=30) == 2


def test_a_stopped_worker_that_is_killed(make_place, tmp_path):
    place = make_place()
    future = place.client.submit(sleep_a_little, str(tmp_path))
    first = has_begun(place, tmp_path / "1")
    os.kill(first, signal.SIGSTOP)
    second = has_begun(place, tmp_path / "2")
    assert second != first
    os.kill(first, signal.SIGKILL)
    (tmp_path / "go").write_text("")
    assert future.result(timeout=30) == second
    place.until(lambda: first not in place.cluster.worker_pids.values())
    place.cluster.wait_for_workers()


def sleep_a_little(folder):
    mine = os.path.join(folder, "2" if os.path.exists(os.path.join(folder, "1")) else "1")
    begun(mine)
    while not os.path.exists(os.path.join(folder, "go")):
        time.sleep(0.005)
    return os.getpid()
