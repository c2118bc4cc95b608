"""``taskloom scheduler`` and ``taskloom worker``, as they are typed in terminals of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import psutil
import pytest

from taskloom import config
from taskloom.cli import scheduler, worker
from taskloom.client import Client
from taskloom.errors import CommError, WorkerDiedError


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        threading.Event().wait(0.01)
    return found


class Terminals:
    """Commands that run side by side, for one user with a home of its own."""

    def __init__(self, home):
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("TASKLOOM")}
        self.environ |= {"HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "PYTHONUNBUFFERED": "1"}
        self.token_file = home / "config" / "taskloom" / "token"
        self.processes = []

    def run(self, *args):
        return subprocess.run(
            [sys.executable, "-m", "taskloom", *args],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def start(self, *args, stderr=None):
        """Start a command; it and the last word of its first line, an address."""
        process = subprocess.Popen(
            [sys.executable, "-m", "taskloom", *args],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        self.processes.append(process)
        return process, process.stdout.readline().split()[-1]

    def client(self, address):
        return Client(address, token=self.token_file.read_text())

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture
def terminals(tmp_path):
    found = Terminals(tmp_path)
    yield found
    found.close()


def inc(x):
    return x + 1


def test_three_terminals(terminals):
    scheduler, address = terminals.start("scheduler", "--http-port", "-1", "--port", "0", "--grace", "0")
    assert stat.S_IMODE(terminals.token_file.stat().st_mode) == 0o600
    terminals.start("worker", address, "--nthreads", "2")
    terminals.start("worker", address, "--name", "second")
    with terminals.client(address) as client:
        assert client.gather(client.map(lambda x: x + 1, range(200))) == list(range(1, 201))
    scheduler.send_signal(signal.SIGINT)
    assert scheduler.wait(10) == 130


def test_the_token_is_changed_and_nothing_is_started_again(terminals, tmp_path):
    def write(*tokens):
        new = tmp_path / "new"
        new.write_text("\n".join(tokens))
        new.chmod(0o600)
        new.rename(tmp_path / "tokens")

    def ask(token):
        request = urllib.request.Request(f"{http}/api/v1/info", headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    old, new = "o" * 40, "n" * 40
    write(old)
    terminals.environ["TASKLOOM_TOKEN_FILE"] = str(tmp_path / "tokens")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    http = f"http://127.0.0.1:{port}"
    _, address = terminals.start("scheduler", "--http-port", str(port), "--port", "0", "--grace", "0")
    terminals.start("worker", address)
    with Client(address, token=old) as before:
        assert before.submit(inc, 1).result(timeout=30) == 2
        write(new, old)
        terminals.start("worker", address)
        with Client(address, token=new) as after, Client(address, token=old) as another:
            after.wait_for_workers(2, timeout=30)
            arrays = after.map(bytes, [100_000] * 8)
            assert [len(value) for value in after.gather(arrays)] == [100_000] * 8
            assert another.submit(inc, 2).result(timeout=30) == 3
        assert [ask(new), ask(old), ask("x" * 40)] == [200, 200, 401]
        write(new)
        assert [ask(new), ask(old)] == [200, 401]
        with pytest.raises(CommError, match="refuses the token"):
            Client(address, token=old, timeout=5)
        assert before.submit(inc, 3).result(timeout=30) == 4  # who is in stays in


def test_what_ran_when_a_whole_container_died_is_blamed(terminals, tmp_path):
    """The supervisor and its worker are killed at once, as by a container's memory limit, and started again."""
    _, address = terminals.start("scheduler", "--http-port", "-1", "--port", "0", "--grace", "0")
    state = tmp_path / "state"
    begun = tmp_path / "begun"

    def note_and_wait(path):
        import os as system
        import time as clock

        with open(path, "a") as file:
            file.write(f"{system.getpid()}\n")
        clock.sleep(1000)

    def runs():
        return begun.read_text().split() if begun.exists() else []

    with terminals.client(address) as client:
        future = client.submit(note_and_wait, str(begun))
        behind = client.submit(inc, 1)  # it is sent too, and does not run
        deaths = 0
        while future.status == "pending":
            worker, _ = terminals.start("worker", address, "--nthreads", "1", "--state-directory", str(state))
            until(lambda: len(runs()) > deaths)
            worker.kill()  # its process goes with it
            worker.wait()
            pid = int(runs()[-1])
            until(lambda pid=pid: not psutil.pid_exists(pid))
            deaths += 1
            assert deaths < 9
            until(lambda: not client.scheduler_info()["workers"])
        with pytest.raises(WorkerDiedError, match="died while running it"):
            future.result()
        terminals.start("worker", address, "--state-directory", str(state))
        assert behind.result(timeout=30) == 2
    until(lambda: len([name for name in os.listdir(state) if name.startswith("taskloom-running-")]) == 1)


def test_probes_of_a_worker(terminals):
    def ask(path):
        try:
            with urllib.request.urlopen(f"{url}/api/v1/{path}", timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    scheduler, address = terminals.start("scheduler", "--http-port", "-1", "--port", "0", "--grace", "0")
    worker, url = terminals.start("worker", address, "--nworkers", "2", "--probe-port", "0")
    url = url.replace("0.0.0.0", "127.0.0.1")
    assert ask("health") == (200, {"status": "ok"})
    until(lambda: ask("ready")[0] == 200)
    assert ask("ready")[1] == {"ready": True, "scheduler": True, "workers": 2, "joined": 2}
    assert ask("info")[0] == 404
    scheduler.kill()
    until(lambda: ask("ready")[0] == 503)
    assert ask("ready")[1]["scheduler"] is False
    assert ask("health")[0] == 200
    worker.send_signal(signal.SIGINT)
    assert worker.wait(30) == 130


def test_a_scheduler_that_is_killed_and_started_again_loses_nothing(terminals, tmp_path):
    scheduler, address = terminals.start("scheduler", "--http-port", "-1", "--port", "0", "--grace", "0")
    port = address.rpartition(":")[2]
    for _ in range(2):
        terminals.start("worker", address)
    ran = tmp_path / "ran"
    ran.mkdir()
    folder = str(ran)

    def note(x):
        import os as system
        import time as clock

        clock.sleep(0.002)
        with open(system.path.join(folder, f"{x}-{system.urandom(6).hex()}"), "w"):
            return x

    with terminals.client(address) as client:
        first = client.map(note, range(100))
        assert client.gather(first) == list(range(100))
        second = client.map(note, range(100, 600))
        until(lambda: sum(future.done() for future in second) > 50)
        scheduler.kill()
        scheduler.wait()
        terminals.start("scheduler", "--http-port", "-1", "--port", port, "--grace", "3")
        assert client.gather(second) == list(range(100, 600))
        assert client.gather(first) == list(range(100))
    names = [int(name.partition("-")[0]) for name in os.listdir(ran)]
    assert set(names) == set(range(600))
    # what a worker had in hand when the scheduler died may run twice, nothing else does
    assert len(names) <= 620


def test_what_is_wrong_is_said_in_a_line(terminals):
    for args, words in [
        (("worker", "tcp://127.0.0.1:1"), "there is no token for tcp://127.0.0.1:1. Type: TASKLOOM_TOKEN="),
        (("worker", "nowhere"), "nowhere"),
        (("worker",), "which scheduler? Type: taskloom worker"),
        (("worker", "tls://no-such-machine.invalid"), 'Type: TASKLOOM_TOKEN="$(ssh no-such-machine.invalid cat '),
        (("scheduler", "--http-port", "-1", "--port", "x"), "not a valid integer"),
        (("scheduler", "--host", "no-such-machine.invalid"), "no-such-machine.invalid"),
    ]:
        done = terminals.run(*args)
        assert words in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert done.returncode in (1, 2)
    _, address = terminals.start("scheduler", "--http-port", "-1", "--port", "0")
    taken = terminals.run("scheduler", "--http-port", "-1", "--port", address.rpartition(":")[2])
    assert "taken" in taken.stderr or "in use" in taken.stderr
    for amount in ("GPU", "=1", "GPU=-1", "GPU=nan"):
        assert "is not NAME=AMOUNT" in terminals.run("worker", address, "--resource", amount).stderr
    terminals.environ["TASKLOOM_CLUSTER__PORT"] = "nonsense"
    for command in (["scheduler"], ["worker", address], ["cluster"]):
        done = terminals.run(*command)
        assert "in the variable TASKLOOM_CLUSTER__PORT: cluster.port is a port" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.returncode == 1
    with pytest.raises(CommError):
        Client("tcp://127.0.0.1:1", token="x" * 43, timeout=0.3)


def test_machines_have_names(terminals):
    """``--host localhost``, and a scheduler's address with a name in it, as it is typed between machines."""
    _, address = terminals.start("scheduler", "--http-port", "-1", "--port", "0", "--host", "localhost")
    assert address.startswith("tcp://")
    port = address.rpartition(":")[2]
    terminals.start("worker", f"tcp://localhost:{port}", "--nthreads", "1")
    with terminals.client(f"tcp://localhost:{port}") as client:
        assert client.submit(inc, 1).result() == 2


# --- the end of workers


def worker_pids(client):
    return {worker["pid"] for worker in client.scheduler_info()["workers"].values()}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_workers_that_are_told_to_end_have_their_values_moved(terminals, tmp_path, number, code):
    _, address = terminals.start("scheduler", "--http-port", "-1", "--port", "0", "--grace", "0")
    first, _ = terminals.start("worker", address, "--nworkers", "2", "--nthreads", "1", "--name", "going")
    assert first.stdout.readline().startswith("taskloom worker going-")
    ran = tmp_path / "ran"
    ran.mkdir()
    folder = str(ran)

    def make(n):
        with open(os.path.join(folder, f"{n}-{os.urandom(4).hex()}"), "w"):
            return bytes(100_000 + n)

    with terminals.client(address) as client:
        made = client.map(make, range(20))
        until(lambda: all(future.done() for future in made))
        before = worker_pids(client)
        terminals.start("worker", address, "--nthreads", "1", "--name", "staying")
        first.send_signal(number)
        assert first.wait(30) == code
        assert "leaving, once others have what they hold" in first.stdout.read()
        assert not before & worker_pids(client)
        assert [len(value) - 100_000 for value in client.gather(made)] == list(range(20))
    assert len(os.listdir(ran)) == 20  # nothing was made again


def test_ctrl_c_once_more_ends_them_at_once(terminals):
    _, address = terminals.start("scheduler", "--http-port", "-1", "--port", "0", "--grace", "0")
    worker, _ = terminals.start("worker", address, "--name", "alone")
    with terminals.client(address) as client:
        kept = client.submit(lambda: bytes(100_000))  # nobody else is there who could take it
        until(kept.done)
        worker.send_signal(signal.SIGINT)
        until(lambda: "leaving" in worker.stdout.readline())
        worker.send_signal(signal.SIGINT)
        assert worker.wait(20) == 130


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_cluster_in_one_command(terminals, number, code):
    cluster, address = terminals.start(
        "cluster", "--nworkers", "2", "--nthreads", "1", "--port", "0", "--http-port", "-1", "--memory-limit", "1GiB"
    )
    with terminals.client(address) as client:
        workers = client.scheduler_info()["workers"]
        assert sorted(workers) == ["worker-0", "worker-1"]
        assert {worker["memory_limit"] for worker in workers.values()} == {2**30}
        assert client.gather(client.map(inc, range(10))) == list(range(1, 11))
        pids = worker_pids(client)
    cluster.send_signal(number)
    assert cluster.wait(20) == code
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


@pytest.mark.parametrize("args", [["scheduler"], ["cluster", "--nworkers", "1", "--nthreads", "1"]])
def test_where_http_is(terminals, args):
    process, address = terminals.start(*args, "--port", "0", "--http-port", "0")
    http = process.stdout.readline().split()[-1]
    assert http.startswith("http://127.0.0.1:")
    with terminals.client(address) as client:
        assert client.scheduler_info()["http"] == http
    with urllib.request.urlopen(f"{http}/api/v1/health", timeout=20) as answer:
        assert answer.status == 200


def test_a_cluster_goes_on_without_http_where_its_port_is_taken_unless_it_was_asked_for(terminals, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = terminals.run("cluster", "--nworkers", "1", "--port", "0", "--http-port", port)
        assert done.returncode == 1
        assert f"127.0.0.1:{port}: Address already in use" in done.stderr
        terminals.environ["TASKLOOM_CLUSTER__HTTP_PORT"] = port
        with (tmp_path / "said").open("w") as said:
            _, address = terminals.start("cluster", "--nworkers", "1", "--port", "0", stderr=said)
        assert f"no HTTP at port {port}" in (tmp_path / "said").read_text()
        with terminals.client(address) as client:
            assert client.submit(inc, 1).result() == 2


@pytest.mark.parametrize(("args", "there"), [([], False), (["--metrics-by-worker"], True)])
def test_metrics_of_each_worker(terminals, args, there):
    process, address = terminals.start("scheduler", "--port", "0", "--http-port", "0", *args)
    http = process.stdout.readline().split()[-1]
    terminals.start("worker", address, "--nthreads", "1", "--name", "w")
    token = terminals.token_file.read_text().strip()
    request = urllib.request.Request(f"{http}/metrics", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert (b'taskloom_worker_held_bytes{worker="w"}' in answer.read()) is there


def test_every_setting_has_a_flag():
    flags = {
        flag
        for command in (scheduler.command, worker.command)
        for option in command.params
        for flag in (*option.opts, *option.secondary_opts)
    }
    for name in config.SETTINGS:
        group, _, last = name.partition(".")
        if group in ("cluster", "worker") and name != "cluster.address":  # that is an argument
            assert f"--{last.replace('_', '-')}" in flags, name


def test_settings_of_workers(terminals):
    _, address = terminals.start("scheduler", "--http-port", "-1", "--port", "0", "--grace", "0")
    for args in (["worker", address], ["cluster", "--port", "0", "--http-port", "-1"]):
        wrong = terminals.run(*args, "--memory-limit", "nonsense")
        assert wrong.returncode == 2
        assert "--memory-limit" in wrong.stderr
        assert "'nonsense' is no number of bytes, such as 4GiB, 500MB or 2000000000" in wrong.stderr
    assert (
        "cannot all listen at port 5000" in terminals.run("worker", address, "--nworkers", "2", "--port", "5000").stderr
    )
    folder = terminals.token_file.parent
    (folder / "config.toml").write_text('[worker]\nnworkers = 2\nnthreads = 3\nmemory_limit = "1 GiB"\n')
    terminals.environ |= {"TASKLOOM_CLUSTER__ADDRESS": address, "TASKLOOM_WORKER__NTHREADS": "4"}
    process, _ = terminals.start("worker", "--memory-limit", "2 GiB", "--name", "w")
    process.stdout.readline()
    with terminals.client(address) as client:
        workers = client.scheduler_info()["workers"]
        assert {name: (worker["threads"], worker["memory_limit"]) for name, worker in workers.items()} == {
            "w-0": (4, 2**31),
            "w-1": (4, 2**31),
        }


# --- what is said


def test_what_is_wrong_with_workers_is_said_once(terminals):
    _, address = terminals.start("scheduler", "--http-port", "-1", "--port", "0")
    terminals.environ["TASKLOOM_TOKEN"] = "another-token-altogether"
    done = terminals.run("worker", address, "--nworkers", "3", "--nthreads", "1")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("taskloom worker ")
    assert "token" in line


@pytest.mark.parametrize("args", [["scheduler"], ["cluster", "--nworkers", "1"], ["worker"]])
def test_a_variable_that_is_nearly_a_setting_is_told_in_a_line(terminals, tmp_path, args):
    terminals.environ["TASKLOOM_CLUSTER__GRACES"] = "1"
    said = tmp_path / "said"
    if args == ["worker"]:
        _, address = terminals.start("scheduler", "--http-port", "-1", "--port", "0", stderr=subprocess.DEVNULL)
        args = ["worker", address, "--nthreads", "1"]
    else:
        args = [*args, "--http-port", "-1", "--port", "0"]
    with said.open("w") as file:
        process, _ = terminals.start(*args, stderr=file)
    process.terminate()
    process.wait(30)
    assert said.read_text() == (
        "taskloom: the environment variable TASKLOOM_CLUSTER__GRACES is no setting of taskloom; close to it: "
        "TASKLOOM_CLUSTER__GRACE\n"
    )


def test_nobody_reads_what_workers_write(terminals):
    """The pipe is full; workers are looked after all the same."""
    _, address = terminals.start("scheduler", "--http-port", "-1", "--port", "0", "--grace", "0")
    ours, theirs = os.pipe()
    try:
        with os.fdopen(theirs, "w") as file:
            worker, _ = terminals.start("worker", address, "--name", "w", "--nthreads", "1", stderr=file)

        def shout(n):
            import sys

            for _ in range(2000):
                sys.__stderr__.write("x" * 999 + "\n")
            return n

        with terminals.client(address) as client:
            assert client.gather(client.map(shout, range(3))) == [0, 1, 2]
            (before,) = worker_pids(client)
            os.kill(before, signal.SIGKILL)
            until(lambda: worker_pids(client) - {before})
            assert client.submit(inc, 1).result(timeout=30) == 2
        worker.terminate()
        assert worker.wait(30) == 143
        with os.fdopen(os.dup(ours), "rb") as file:
            assert file.read().startswith(b"x" * 999 + b"\nx")
    finally:
        os.close(ours)


def test_a_worker_that_leaves_while_its_scheduler_goes_too(terminals, tmp_path):
    """As when all pods of a cluster are deleted at once: it does not wait for its whole time."""
    scheduler, address = terminals.start("scheduler", "--http-port", "-1", "--port", "0", "--grace", "0")
    worker, _ = terminals.start("worker", address, "--nthreads", "1", "--leave-timeout", "600")
    with terminals.client(address) as client:
        kept = client.submit(bytes, 100_000)
        client.gather(kept)
        worker.send_signal(signal.SIGTERM)  # nobody else is there to take the value, so it waits
        until(lambda: "leaving" in worker.stdout.readline())
        scheduler.kill()
        assert worker.wait(60) == 128 + signal.SIGTERM
        del kept
