"""LocalCluster: processes that are there when they should be, and gone when they should be."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import psutil
import pytest

from taskloom.client import Client
from taskloom.deploy.local import LocalCluster
from taskloom.errors import ClusterError, WorkerDiedError


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        threading.Event().wait(0.01)
    return found


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descriptors():
    gc.collect()
    return {(fd, os.readlink(f"/proc/self/fd/{fd}")) for fd in os.listdir("/proc/self/fd") if _is_open(fd)}


def _is_open(fd):
    return os.path.lexists(f"/proc/self/fd/{fd}")


def children():
    return {child.pid for child in psutil.Process().children()}


def connect(cluster, **options):
    return Client(cluster.address, token=cluster.token, **options)


def pids(client, count=50):
    return set(client.gather(client.map(lambda _: os.getpid(), range(count))))


def inc(x):
    return x + 1


@pytest.fixture(autouse=True)
def whoever_forgets_to_close_something_is_found():
    yield
    gc.collect()


# --- beginning and end


def test_close_leaves_nothing(tmp_path, monkeypatch):
    with LocalCluster(n_workers=1):  # whatever is made once for the process
        pass
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = descriptors(), set(threading.enumerate()), children()
    cluster = LocalCluster(n_workers=2, wait=True, memory_limit="1GiB")
    workers = cluster.worker_pids
    assert sorted(workers) == ["worker-0", "worker-1"]
    everything = {cluster.scheduler_pid, *workers.values()}
    assert all(map(lives, everything))
    with connect(cluster) as client:
        assert client.gather(client.map(inc, range(100))) == list(range(1, 101))
    assert len(os.listdir(tmp_path)) == 1
    cluster.close()
    cluster.close()
    assert not any(map(lives, everything))
    assert (descriptors(), set(threading.enumerate()), children()) == before
    assert os.listdir(tmp_path) == []
    assert "closed" in repr(cluster)
    for use in (lambda: cluster.scale(1), cluster.wait_for_workers):
        with pytest.raises(ClusterError, match="is closed"):
            use()


def test_close_at_once(capfd):
    """Before the workers have joined, and before the scheduler has listened."""
    for _ in range(3):
        cluster = LocalCluster(n_workers=2)
        everything = {cluster.scheduler_pid, *cluster.worker_pids.values()}
        cluster.close()
        assert not any(map(lives, everything))
    assert capfd.readouterr() == ("", "")


def test_wait_for_workers():
    with LocalCluster(n_workers=2) as cluster:
        cluster.wait_for_workers()
        assert all(map(lives, cluster.worker_pids.values()))
        cluster.wait_for_workers(1, timeout=0.1)
        with pytest.raises(TimeoutError, match=r"have not all joined in 0\.05 s"):
            cluster.wait_for_workers(3, timeout=0.05)


def test_up_and_down_with_what_they_hold():
    with LocalCluster(n_workers=0) as cluster, connect(cluster) as client:
        assert cluster.worker_pids == {}
        cluster.wait_for_workers()
        future = client.submit(inc, 1)
        assert future.status == "pending"
        cluster.scale(3)
        assert future.result(timeout=30) == 2
        cluster.wait_for_workers()
        assert sorted(cluster.worker_pids) == ["worker-0", "worker-1", "worker-2"]
        ran = client.map(lambda n: (n, bytes(100_000)), range(60))
        client.gather(ran)
        before = dict(cluster.worker_pids)
        begun = client.submit(os.getpid)
        client.gather([begun])
        cluster.scale(1)
        assert list(cluster.worker_pids) == ["worker-0"]
        assert [lives(pid) for pid in before.values()] == [True, False, False]
        # nothing is computed again: a task that could not be says so
        assert [n for n, _ in client.gather(ran)] == list(range(60))
        assert begun.result() in before.values()
        cluster.scale(2)
        cluster.wait_for_workers()
        assert len(pids(client)) >= 1
        cluster.scale(0)
        assert cluster.worker_pids == {}
        cluster.scale(1)
        cluster.wait_for_workers()
        assert client.submit(inc, 5).result(timeout=30) == 6


def test_values_of_those_that_go_are_moved_and_not_made_again(tmp_path):
    folder = str(tmp_path)

    def make(n):
        with open(os.path.join(folder, f"{n}-{os.urandom(4).hex()}"), "w"):
            return n, bytes(200_000)

    with LocalCluster(n_workers=3, wait=True) as cluster, connect(cluster) as client:
        made = client.map(make, range(45))
        until(lambda: all(future.done() for future in made))
        cluster.scale(1)
        assert client.gather(client.map(lambda pair: pair[0], made)) == list(range(45))
    assert len(os.listdir(tmp_path)) == 45


def test_threads_of_this_process():
    before = set(threading.enumerate())
    with LocalCluster(processes=False, threads_per_worker=3) as cluster:
        assert cluster.worker_pids == {"worker-0": os.getpid()}
        cluster.wait_for_workers()
        with connect(cluster) as client:
            here = []
            client.submit(here.append, 1).result()
            assert here == []  # arguments are pickled all the same
            assert pids(client) == {os.getpid()}
            meet = client.map(lambda _: threading.get_ident(), range(300))
            assert len(set(client.gather(meet))) <= 3
        with pytest.raises(ClusterError, match="cannot be scaled"):
            cluster.scale(2)
    until(lambda: set(threading.enumerate()) <= before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_workers": -1}, "n_workers"),
        ({"n_workers": 1.5}, "n_workers"),
        ({"threads_per_worker": 0}, "threads_per_worker"),
        ({"memory_limit": "plenty"}, "'plenty' is no number of bytes, such as 4GiB"),
        ({"processes": False, "n_workers": 2}, "there is one worker, in this process"),
        ({"scheduler_port": 70000}, "scheduler_port is a number from 0 to 65535, not 70000"),
    ],
)
def test_wrong_arguments(options, words):
    before = set(threading.enumerate()), children()
    with pytest.raises((ValueError, TypeError), match=words):
        LocalCluster(**options)
    assert (set(threading.enumerate()), children()) == before


def test_a_port_that_is_taken():
    with LocalCluster(n_workers=0) as cluster:
        port = int(cluster.address.rpartition(":")[2])
        with pytest.raises(ClusterError, match=f"no scheduler can listen at port {port}: Address already in use"):
            LocalCluster(n_workers=1, scheduler_port=port)


@pytest.mark.parametrize("limit", ["1.5 GiB", 1.5 * 2**30, int(1.5 * 2**30)])
def test_memory_limits_as_people_write_them(limit):
    with LocalCluster(n_workers=0, memory_limit=limit) as cluster:
        assert cluster._supervisor.limit == 3 * 2**29


def test_a_memory_limit_in_which_no_worker_can_begin(capfd):
    with LocalCluster(n_workers=2, memory_limit="3MB") as cluster:
        with pytest.raises(WorkerDiedError, match=r"was ended as it took \d+ MiB of memory, and its limit is 3 MiB"):
            cluster.wait_for_workers()
        until(lambda: not cluster.worker_pids)
    assert "Traceback" not in capfd.readouterr().err


def test_a_folder_that_cannot_be_used(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / "file" / "values")
    with LocalCluster(n_workers=1, local_directory=folder) as cluster:
        with pytest.raises(WorkerDiedError, match=r"values cannot be written to the folder .*Not a directory"):
            cluster.wait_for_workers()
        assert cluster.worker_pids == {}
        cluster._supervisor.folder = str(tmp_path / "made")
        cluster.scale(2)  # it is not over
        cluster.wait_for_workers()
    err = capfd.readouterr().err
    assert err.count("cannot be written") == 1
    assert "Traceback" not in err


def test_used_in_a_thread():
    found = []

    def work():
        with LocalCluster(n_workers=1) as cluster, connect(cluster) as client:
            found.append(client.submit(inc, 1).result())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [2, 2]


# --- what dies


def test_a_scheduler_that_is_killed_is_replaced_and_nothing_is_lost(tmp_path, capfd):
    folder = str(tmp_path)

    def make(n):
        time.sleep(0.002)
        with open(os.path.join(folder, f"{n}-{os.urandom(4).hex()}"), "w"):
            return n

    with LocalCluster(n_workers=2, wait=True) as cluster, connect(cluster) as client:
        first = client.map(make, range(100))
        client.gather(first)
        second = client.map(make, range(100, 400))
        until(lambda: any(future.done() for future in second))
        before, workers = cluster.scheduler_pid, cluster.worker_pids
        os.kill(before, signal.SIGKILL)
        assert client.gather(second, timeout=60) == list(range(100, 400))
        assert client.gather(first, timeout=60) == list(range(100))
        assert cluster.scheduler_pid != before
        assert cluster.worker_pids == workers
        assert client.submit(inc, 1).result(timeout=30) == 2
    assert len(os.listdir(tmp_path)) <= 400 + 2 * 20  # what the workers had in hand may run twice
    assert "taskloom: the scheduler was killed by signal 9 (SIGKILL)" in capfd.readouterr().err


def test_a_worker_that_is_killed_is_replaced(capfd):
    with LocalCluster(n_workers=2, wait=True) as cluster, connect(cluster) as client:
        futures = client.map(lambda n: (time.sleep(0.003), n)[1], range(300))
        until(lambda: any(future.done() for future in futures))
        before = cluster.worker_pids
        os.kill(before["worker-0"], signal.SIGKILL)
        assert client.gather(futures, timeout=60) == list(range(300))
        until(lambda: cluster.worker_pids["worker-0"] != before["worker-0"])
        assert cluster.worker_pids["worker-1"] == before["worker-1"]
        cluster.wait_for_workers()
    assert "Traceback" not in capfd.readouterr().err


SCRIPT = """
import os, signal, sys, threading, time
from taskloom.client import Client
from taskloom.deploy.local import LocalCluster
cluster = LocalCluster(n_workers=2, wait=True)
client = Client(cluster.address, token=cluster.token)
assert client.gather(client.map(abs, range(-10, 0))) == list(range(10, 0, -1))
long = client.map(time.sleep, [1000.0, 1000.0])
print(os.getpid(), cluster.scheduler_pid, *cluster.worker_pids.values(), flush=True)
"""


def run_script(text, how, timeout=60):
    """Run a program; the pids that it has printed, its exit status, stderr and seconds until all processes were gone."""
    with subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            found = [int(word) for word in process.stdout.readline().split()]
            assert len(found) == 4, process.stderr.read()
            how(process)
            process.wait(timeout)
            until(lambda: not any(map(lives, found)), 2.0)
            return process.returncode, process.stdout.read(), process.stderr.read()
        finally:
            process.kill()


def test_a_program_that_ends_without_close():
    assert run_script(SCRIPT, lambda process: None) == (0, "", "")
    code, _, err = run_script(SCRIPT + "raise ValueError('of the program')\n", lambda process: None)
    assert code == 1
    assert err.count("Traceback") == 1
    assert run_script(SCRIPT + "sys.stdout.flush(); os._exit(3)\n", lambda process: None) == (3, "", "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_program_that_is_killed(number):
    how = lambda process: process.send_signal(number)  # noqa: E731
    assert run_script(SCRIPT + "threading.Event().wait()\n", how) == (-number, "", "")


def test_ctrl_c_goes_to_all_and_is_the_programs_to_deal_with():
    # the signal may come as soon as the program has said that it is there
    text = SCRIPT.replace("print(os.getpid()", "try:\n    print(os.getpid()") + (
        "    client.gather(long)\nexcept KeyboardInterrupt:\n    print('caught', client.submit(abs, -3).status)\n"
        "print(sorted(cluster.worker_pids))\nclient.close()\ncluster.close()\n"
    )
    how = lambda process: os.killpg(process.pid, signal.SIGINT)  # noqa: E731
    code, out, err = run_script(text, how)
    assert (code, out) == (0, "caught pending\n['worker-0', 'worker-1']\n")
    assert err == ""


def test_a_fork_of_the_program_ends_nothing():
    text = SCRIPT + (
        "pid = os.fork()\n"
        "if not pid:\n    sys.exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7\n"
        "cluster.scale(3)\ncluster.wait_for_workers()\n"
        "print(client.submit(abs, -3).result(timeout=30), flush=True)\n"
    )
    code, out, err = run_script(text, lambda process: None)
    assert (code, out) == (0, "3\n"), err


# --- what cannot be


def test_a_package_that_is_missing_is_told_once_and_workers_are_not_tried_again(tmp_path, monkeypatch, capfd):
    (tmp_path / "zict.py").write_text("raise ModuleNotFoundError(\"No module named 'zict'\", name='zict')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with LocalCluster(n_workers=1) as cluster:
        with pytest.raises(WorkerDiedError, match=r"No module named 'zict'.*pip install 'taskloom"):
            cluster.wait_for_workers()
        told = ""

        def is_told():
            nonlocal told
            told += capfd.readouterr().err
            return f"taskloom: the cluster at {cluster.address} has no workers, and none can be started" in told

        until(is_told)
    assert told.count("No module named 'zict'") == 1
    assert "Traceback" not in told


def test_a_client_that_is_dropped_with_its_cluster_leaves_no_warning_when_the_program_ends():
    program = "import taskloom; client = taskloom.Client(processes=False); client.submit(abs, -1).result(); del client"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- HTTP


def health(url, token=None, path="health"):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/api/v1/{path}", headers=headers), timeout=20) as answer:
        return json.load(answer)


@pytest.mark.parametrize("processes", [True, False])
def test_the_address_of_http(processes):
    options = {"n_workers": 1} if processes else {"processes": False, "threads_per_worker": 1}
    with LocalCluster(http_port=0, **options) as cluster, connect(cluster) as client:
        assert cluster.http_address.startswith("http://127.0.0.1:")
        assert not cluster.http_address.endswith(":0")
        assert health(cluster.http_address) == {"status": "ok"}
        assert client.scheduler_info()["http"] == cluster.http_address
        info = health(cluster.http_address, cluster.token, "info")
        assert (info["address"], info["http"]) == (cluster.address, cluster.http_address)
        url = cluster.http_address
        if processes:  # another scheduler is at the same place
            os.kill(cluster.scheduler_pid, signal.SIGKILL)
            until(lambda: answers(url))
            assert client.submit(inc, 1).result(timeout=30) == 2
            assert cluster.http_address == client.scheduler_info()["http"] == url
    assert not answers(url)


def answers(url):
    try:
        return health(url) == {"status": "ok"}
    except OSError:
        return False


@pytest.mark.parametrize("processes", [True, False])
def test_no_http(processes):
    options = {"n_workers": 1} if processes else {"processes": False, "threads_per_worker": 1}
    with LocalCluster(**options) as cluster, connect(cluster) as client:
        assert cluster.http_address is None
        assert client.scheduler_info()["http"] is None
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ClusterError):
            LocalCluster(http_port=port, **options)
        with LocalCluster(http_port=port, http_may_fail=True, **options) as cluster, connect(cluster) as client:
            assert cluster.http_address is None
            assert client.submit(inc, 1).result(timeout=30) == 2
