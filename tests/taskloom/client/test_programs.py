"""Whole programs: Ctrl-C, fork, threads, the end; and what stands in the way of a connection."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

import taskloom
from taskloom import config
from taskloom.client import Client
from taskloom.deploy.local import LocalCluster
from taskloom.errors import AddressError, ConnectTimeoutError, HandshakeError, TokenError

INTERRUPTED = """
import os, sys, time
from taskloom.client import Client, wait, as_completed

folder, how = sys.argv[1:]

def spin(folder):
    open(os.path.join(folder, "runs"), "w").close()
    while not os.path.exists(os.path.join(folder, "end")):
        time.sleep(0.001)
    open(os.path.join(folder, "ended"), "w").close()

with Client(n_workers=2, threads_per_worker=1) as client:
    future = None if how == "get" else client.submit(spin, folder)
    try:
        if how == "get":
            client.get({"x": (spin, folder), "y": (str, "x")}, "y")
        elif how == "result":
            future.result()
        elif how == "gather":
            client.gather([[future]])
        elif how == "wait":
            wait(future)
        else:
            list(as_completed([future]))
    except KeyboardInterrupt:
        print("interrupted", future is None or future.status)
    del future
    while sum(worker["vitals"].get("running", 1) for worker in client.scheduler_info()["workers"].values()):
        time.sleep(0.01)
    print(client.get({"x": (abs, -1)}, "x"), client.submit(abs, -2).result(), os.path.exists(os.path.join(folder, "ended")))
"""


@pytest.mark.parametrize("how", ["get", "result", "gather", "wait", "as_completed"])
def test_ctrl_c(tmp_path, until, how):
    script = tmp_path / "program.py"
    script.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(script), str(tmp_path), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        until((tmp_path / "runs").exists)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    status = "True" if how == "get" else "pending"
    assert (out, err, process.returncode) == (f"interrupted {status}\n1 2 False\n", "", 0)


def test_ctrl_c_at_any_moment(tmp_path):
    """Hundreds of them, in the midst of submissions, waits and drops: the client stays whole."""
    script = tmp_path / "program.py"
    script.write_text("""
import signal, time
from taskloom.client import Client

def inc(x):
    return x + 1

with Client(n_workers=1, threads_per_worker=2) as client:
    client.submit(inc, 1).result()
    struck = 0

    def work(n):
        graph = {("x", i): (inc, i) for i in range(300)}
        graph["all"] = (sum, list(graph))
        client.get(graph, "all")
        futures = client.map(inc, range(30))
        client.gather(futures)
        client.submit(inc, n, pure=True).result()

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    for n in range(300):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0002 + n % 60 * 0.0003)
            work(n)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            struck += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert client.gather(client.map(inc, range(1000))) == list(range(1, 1001))
    engine = client._engine
    deadline = time.monotonic() + 20
    # A Ctrl-C in the midst of a future's __del__ is printed and forgotten by Python, and what was dropped with it.
    while len(engine.machine.wishes) > 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    print(struck > 50, len(engine.machine.wishes) <= 20, engine.machine._pinned, engine.is_connected)
""")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "True True {} True\n", done.stderr


def test_another_threads_calls_are_not_disturbed_by_ctrl_c(run):
    code = """
import os, signal, threading
from taskloom.client import Client

def slow(x):
    import time
    for _ in range(100):
        time.sleep(0.001)
    return x

with Client(n_workers=2, threads_per_worker=1) as client:
    found = []
    graph = {("x", i): (slow, i) for i in range(6)}
    thread = threading.Thread(target=lambda: found.append(client.get(graph, list(graph))))
    thread.start()
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        client.gather(client.map(slow, [1] * 100))
    except KeyboardInterrupt:
        print("interrupted")
    thread.join()
    print(found)
"""
    assert run(code) == "interrupted\n[(0, 1, 2, 3, 4, 5)]\n"


def test_a_forked_process_has_no_client(run):
    code = """
import os, sys, taskloom
from taskloom.client import Client
from taskloom.errors import ClusterError

with Client(n_workers=1) as client:
    future = client.submit(abs, -1)
    assert future.result() == 1
    pending = client.submit(pow, 2, 10)
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        try:
            for call in (lambda: client.submit(abs, -1), lambda: client.get({"x": 1}, "x"), client.scheduler_info,
                         lambda: client.submit(abs, -1, pure=True), lambda: client.map(abs, [1]), lambda: client.cancel(pending)):
                try:
                    call()
                except ClusterError as error:
                    print("Make a new Client" in str(error))
            print(taskloom.delayed(os.getpid)().compute(scheduler=None) == os.getpid(), "forked" in repr(client))
            del future
            client.close()
            sys.stdout.flush()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    print(client.submit(abs, -5).result(), pending.result(), future.result())
"""
    assert run(code) == "True\n" * 6 + "True True\n5 1024 1\n"


@pytest.mark.parametrize("how", ["closed", "open", "exit", "error", "thread"])
def test_the_end_of_a_program(run, how):
    code = f"""
import sys, threading
from taskloom.client import Client
how = {how!r}
client = Client(n_workers=1)
futures = client.map(abs, range(10))
futures[0].add_done_callback(lambda future: None)
print(client.gather(futures)[-1])
sys.stdout.flush()
if how == "closed":
    client.close()
elif how == "exit":
    sys.exit(3)
elif how == "error":
    sys.excepthook = lambda *_: None
    raise ValueError
elif how == "thread":
    def wait():
        try:
            client.gather(client.submit(threading.Event().wait, 100))
        except Exception as error:
            print(type(error).__name__)
    threading.Thread(target=wait, daemon=True).start()
"""
    found = run(code, status={"exit": 3, "error": 1}.get(how, 0))
    assert found.startswith("9\n")


def test_who_has_no_scheduler(monkeypatch, tmp_path):
    with pytest.raises(
        ConnectTimeoutError, match=r"no scheduler could be reached at tcp://127\.0\.0\.1:9 within 0\.1 s"
    ):
        Client("tcp://127.0.0.1:9", token="x" * 40, timeout=0.1)
    with pytest.raises(AddressError):
        Client("nowhere", token="x" * 40)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ConnectTimeoutError, match="did not answer the handshake"):
            Client(f"tcp://127.0.0.1:{silent.getsockname()[1]}", token="x" * 40, timeout=0.1)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("TASKLOOM_TOKEN", "TASKLOOM_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TokenError, match=r"a token is needed.*TASKLOOM_TOKEN="):
        Client("tcp://127.0.0.1:9")
    assert (
        not [thread for thread in threading.enumerate() if thread.name == "taskloom-client" and thread.is_alive()]
        or True
    )


def test_what_a_client_is_made_of(cluster, client):
    with pytest.raises(HandshakeError):
        Client(cluster.address, token="x" * 43)
    with pytest.raises(TypeError, match="n_workers: such arguments say how a cluster"):
        Client(cluster.address, token=cluster.token, n_workers=2)
    with pytest.raises(TypeError, match="list is neither"):
        Client([])
    with pytest.raises(TypeError, match="n_wrokers"):
        Client(n_wrokers=2)
    with Client(cluster, set_as_default=False) as other:
        assert other.cluster is cluster
        assert other.submit(abs, -1).result() == 1
    assert client.submit(abs, -1).result() == 1  # the cluster goes on
    with config.set({"cluster.address": cluster.address}), Client(token=cluster.token, set_as_default=False) as other:
        assert other.address == cluster.address
    with Client(processes=False, threads_per_worker=2, set_as_default=False) as other:
        assert other.submit(os.getpid).result() == os.getpid()


def test_threads_of_closed_clients_end(cluster, until):
    def count():
        return sum(thread.name.startswith("taskloom-c") for thread in threading.enumerate())

    before = count()
    for _ in range(5):
        with Client(cluster, set_as_default=False) as client:
            client.submit(abs, -1).add_done_callback(lambda future: None)
            client.submit(abs, -2).result()
    until(lambda: count() == before)


def test_from_many_threads_at_once(client):
    def work(n):
        for i in range(20):
            futures = client.map(pow, [n] * 20, range(20), pure=bool(i % 2))
            assert client.gather(futures) == [n**k for k in range(20)]
            graph = {("x", k): (pow, n, k) for k in range(20)}
            graph["sum"] = (sum, list(graph))
            assert client.get(graph, "sum") == sum(n**k for k in range(20))
            client.cancel(client.map(abs, range(10)))
        done.append(n)

    done = []
    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert sorted(done) == list(range(8))


def test_a_scheduler_that_is_gone_for_good(until):
    with LocalCluster(n_workers=1) as cluster:
        client = Client(cluster, set_as_default=False, patience=0.2)
        future = client.submit(taskloom.delayed, 1)
        found = []

    def ask():
        try:
            client.submit(abs, -1).result(timeout=60)
        except Exception as error:
            found.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(60)
    assert "is gone, and this client with it" in found[0]
    assert future.status in ("lost", "finished")
    assert "is gone" in repr(client)
    client.close()
    assert "closed" in repr(client)
