"""The processes backend with real processes, real signals and real death."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

import taskloom
import taskloom.system
from taskloom import multiprocessing
from taskloom.diagnostics import Callback
from taskloom.errors import SerializationError, WorkerDiedError
from taskloom.local.pool import ProcessPool, shared_pool
from taskloom.multiprocessing import get

ROOT = Path(__file__).resolve().parents[2]


def inc(x):
    return x + 1


def until(condition, seconds=20.0):
    """Wait for something that will come; an error after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        threading.Event().wait(0.01)
    return found


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def run_script(tmp_path, text, *args, **kwargs):
    path = tmp_path / "script.py"
    path.write_text(text)
    return subprocess.run(
        [sys.executable, str(path), *args],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        check=False,
        **kwargs,
    )


# --- processes that die


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), -9, r"killed by signal 9 \(SIGKILL\); .*memory runs out"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), -15, r"killed by signal 15 \(SIGTERM\)"),
        (lambda: os._exit(3), 3, "ended with exit code 3"),
        (lambda: ctypes.string_at(0), -11, r"killed by signal 11 \(SIGSEGV\); .*extension module"),
    ],
    ids=["kill", "term", "exit", "segfault"],
)
def test_a_process_that_dies_in_a_task_is_an_error_that_names_the_task(end, code, words):
    graph = {("before", i): (inc, i) for i in range(50)}
    graph["bad"] = (lambda x, y: end(), ("before", 1), ("before", 2))
    graph["after"] = (inc, "bad")
    with pytest.raises(WorkerDiedError, match=rf"process \d+ was {words}|process \d+ {words}") as caught:
        get(graph, ["after", *[("before", i) for i in range(50)]])
    assert "while it ran the task 'bad' (" in str(caught.value)
    assert caught.value.key == "bad"
    assert caught.value.exitcode == code
    # and the pool works again
    assert get({"x": (inc, 1)}, "x") == 2


def test_a_process_that_is_killed_from_outside(tmp_path):
    """Also while another task waits: the right one is blamed."""
    reader, writer = os.pipe()
    pids = tmp_path / "pid"
    path = str(pids)

    def victim():
        with open(path + ".part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(path + ".part", path)
        time.sleep(60)

    def kill():
        until(pids.exists)
        os.kill(int(pids.read_text()), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        with pytest.raises(WorkerDiedError) as caught:
            get({"other": (inc, 1), "victim": (victim,), "end": (max, "other", "victim")}, "end")
    finally:
        thread.join()
        os.close(reader)
        os.close(writer)
    assert caught.value.key == "victim"
    assert caught.value.exitcode == -9
    assert pickle.loads(pickle.dumps(caught.value)).key == "victim"


def test_a_process_that_dies_between_two_runs_is_replaced():
    with ProcessPool(1) as pool:
        first = get({"x": (os.getpid,)}, "x", pool=pool)
        assert get({"x": (os.getpid,)}, "x", pool=pool) == first
        os.kill(first, signal.SIGKILL)
        until(lambda: gone(first))
        assert get({"x": (os.getpid,)}, "x", pool=pool) != first


class Killer(Callback):
    """Kills a process when the first task is about to be sent: as late as one can be before it begins."""

    def __init__(self, pid=None):
        self.pid = pid
        self.killed = False

    def pretask(self, key):
        if not self.killed:
            self.killed = True
            if self.pid is None:
                children = psutil.Process().children()
                [self.pid] = [child.pid for child in children if "taskloom.local" in child.cmdline()]
            os.kill(self.pid, signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_dies_while_nobody_uses_it_is_nobodys_error(tmp_path, workers):
    # It may take the system a while to end a large process, so the next run may be the first to hear of it.
    path = str(tmp_path / "log")

    def log():
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")

    big = np.arange(200_000)
    graph = {("x", i): (lambda i, a: (os.getpid(), i + int(a[i])), i, "big") for i in range(200)} | {"big": big}
    keys = [("x", i) for i in range(200)]
    with ProcessPool(workers, log) as pool:
        get(graph, keys, pool=pool)
        victim = pool._idle[0].pid
        killer = Killer(victim)
        found = get(graph, keys, pool=pool, callbacks=[killer])
        assert killer.killed
        assert [value for _, value in found] == [2 * i for i in range(200)]
        assert victim not in {pid for pid, _ in found}
        assert {pid for pid, _ in get(graph, keys, pool=pool)} <= {process.pid for process in pool._idle}
        assert len(pool._idle) == workers
    # the one in its place was initialized too
    assert len((tmp_path / "log").read_text().split()) == workers + 1


def test_a_process_that_never_gets_to_its_first_task_is_an_error():
    # not tried again and again: something is wrong with this machine
    script = (
        "import os, signal, sys; sys.path.insert(0, os.path.dirname(sys.argv[1]))\n"
        "from test_multiprocessing import Killer; from taskloom.multiprocessing import get\n"
        "get({'x': (abs, -1)}, 'x', num_workers=1, callbacks=[Killer()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, __file__], capture_output=True, text=True, timeout=60, check=False
    )
    assert re.search(
        r"WorkerDiedError: process \d+ was killed by signal 9 .*, before its first task$", done.stderr.strip()
    )


def test_a_process_that_a_task_has_forked_does_not_hide_that_the_task_has_died(tmp_path):
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)

    def fork_and_die():
        if not os.fork():
            with open(fifo, "rb") as file:  # lives on, until somebody writes there
                file.read()
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        with ProcessPool(1) as pool, pytest.raises(WorkerDiedError) as caught:
            get({"x": (fork_and_die,)}, "x", pool=pool)
    finally:
        with open(fifo, "wb"):
            pass
    assert caught.value.key == "x"


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        ("return", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(5)", 5, ""),
        ("sys.exit('bye')", 1, "bye\n"),
        ("raise ValueError('bad')", 1, "ValueError: bad\n"),
    ],
)
def test_a_process_that_a_task_has_forked_ends_where_the_task_does(tmp_path, end, code, words):
    # and does not go on with the pool's tasks, or talk to the parent
    done = run_script(
        tmp_path,
        f"""
import os, sys
from taskloom.multiprocessing import get

def fork(_):
    pid = os.fork()
    if not pid:
        {end}
    return None if not pid else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def log(i, _):
    with open("log", "a") as file:
        file.write(f"{{i}}\\n")
    return i

graph = {{("log", i): (log, i, "first") for i in range(50)}} | {{"first": (abs, -0.5), "fork": (fork, "first")}}
values = get(graph, ["fork", *[("log", i) for i in range(50)]], num_workers=1)
print(values[0], values[1:] == tuple(range(50)))
print(get({{"x": (abs, -3)}}, "x", num_workers=1))
""",
    )
    assert done.stdout == f"{code} True\n3\n"
    assert done.stderr.endswith(words)
    assert (done.stderr == "") == (words == "")
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(50))


def test_tasks_that_still_run_when_another_one_failed_do_not_disturb_the_next_run(tmp_path):
    started = tmp_path / "started"

    def slow():
        started.touch()
        time.sleep(30)

    def fail(_):
        until(started.exists)
        raise ValueError("no")

    with ProcessPool(2) as pool:
        for _ in range(3):
            begin = time.monotonic()
            with pytest.raises(ValueError, match="no"):
                get(
                    {"slow": (slow,), "x": (inc, 1), "fail": (fail, "x"), "end": (max, "slow", "fail")},
                    "end",
                    pool=pool,
                )
            assert get({("x", i): (inc, i) for i in range(100)}, [("x", 99)], pool=pool) == (100,)
            assert time.monotonic() - begin < 20
            started.unlink()


# --- what does not pickle


class NoPickle:
    def __reduce__(self):
        raise TypeError("this is not to be sent")


class OnlyThere:
    """Pickles, but cannot be made anew where another process is."""

    def __init__(self, pid):
        self.pid = pid

    def __reduce__(self):
        return _only_in, (self.pid, os.getpid())


def _only_in(pid, made_in):
    if os.getpid() != made_in:
        raise LookupError(f"made in {made_in}, cannot be read in another process")
    return OnlyThere(pid)


def test_an_argument_that_does_not_pickle_is_named():
    with pytest.raises(
        SerializationError, match=r"argument 2 \(NoPickle\) of the task 'bad' .*not to be sent.*threaded"
    ):
        get({"x": (inc, 1), "bad": (max, 1, NoPickle()), "end": (max, "x", "bad")}, "end")


def test_a_function_that_does_not_pickle_is_named():
    lock = threading.Lock()

    def holds_a_lock():
        return lock

    with pytest.raises(SerializationError, match=r"the function .*holds_a_lock of the task \('bad', 1\) .*lock"):
        get({("bad", 1): (holds_a_lock,)}, ("bad", 1))


def test_data_in_the_graph_that_does_not_pickle_is_named():
    with pytest.raises(
        SerializationError, match=r"its input 'data' \(NoPickle\) of the task 'x'|'data'.*not to be sent"
    ):
        get({"data": NoPickle(), "x": (type, "data")}, "x")


def test_data_that_no_process_needs_need_not_pickle():
    data = NoPickle()
    assert get({"data": data, "x": (inc, 1)}, ["data", "x"]) == (data, 2)


def test_a_result_that_does_not_pickle_is_named():
    graph = {("x", i): (inc, i) for i in range(20)}
    graph["bad"] = (threading.Lock,)
    with pytest.raises(SerializationError, match=r"the result of the task 'bad' \(lock\) does not pickle"):
        get(graph, list(graph))


def test_a_result_that_cannot_be_read_here_is_named():
    with pytest.raises(SerializationError, match=r"the result of the task 'bad', when it arrived, .*cannot be read"):
        get({"bad": (OnlyThere, 1)}, "bad")


def test_an_argument_that_cannot_be_read_there_is_named():
    graph = {("x", i): (inc, i) for i in range(200)}
    graph["bad"] = (id, OnlyThere(1))
    graph["end"] = (lambda *args: len(args), "bad", *[("x", i) for i in range(200)])
    with pytest.raises(
        SerializationError, match=r"the task 'bad', in its process, .*cannot be read in another process"
    ):
        get(graph, "end")
    assert get({"x": (inc, 1)}, "x") == 2


def test_a_value_that_does_not_pickle_may_stay_in_its_process():
    """A chain stays where it is, so only what leaves needs to pickle."""
    graph = {"lock": (threading.Lock,), "locked": (lambda lock: lock.locked(), "lock")}
    assert get(graph, "locked") is False


# --- Ctrl-C, and a parent that dies

INTERRUPTED = """
import os, signal, sys, time, threading
import taskloom
import taskloom.system
from taskloom.multiprocessing import get

def forever(x):
    sys.stdout.write(f"pid {os.getpid()}\\n")  # in one piece: others write there too
    sys.stdout.flush()
    if x:
        time.sleep(600)
    while True:
        pass

try:
    get({("x", i): (forever, i) for i in range(2)}, [("x", 0), ("x", 1)], num_workers=2)
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(get({"y": (sum, [1, 2])}, "y"), flush=True)
"""


def test_ctrl_c_stops_at_once_and_the_next_get_works(tmp_path):
    (tmp_path / "script.py").write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        pids = [int(process.stdout.readline().split()[1]) for _ in range(2)]
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert out.split() == ["interrupted", "3"]
    assert err == ""
    assert process.returncode == 0
    until(lambda: all(map(gone, pids)), 5)


ORPHANS = """
import os, sys, time
import numpy
from taskloom.multiprocessing import get

def stuck(how):
    sys.stdout.write(f"pid {os.getpid()}\\n")  # in one piece: others write there too
    sys.stdout.flush()
    if how == "sleeps":
        time.sleep(600)
    elif how == "holds the GIL":
        sum(range(10**12))
    elif how == "in C without it":
        a = numpy.ones((6000, 6000))
        while True:
            a @ a

def fork():
    if not os.fork():
        time.sleep(600)  # holds copies of all that the parent had open

if sys.argv[1:] == ["forked"]:
    get({"x": (abs, 1)}, "x")
    fork()
if sys.argv[1:] == ["forked in the middle"]:
    from taskloom.diagnostics import Callback

    class Fork(Callback):
        def __init__(self):
            self.left = 3
        def pretask(self, key):
            self.left -= 1
            if not self.left:
                fork()
    Fork().register()
graph = {("x", how): (stuck, how) for how in ("sleeps", "holds the GIL", "in C without it")}
get(graph, list(graph), num_workers=3)
"""


@pytest.mark.parametrize("how", ["alone", "forked", "forked in the middle"])
def test_no_process_outlives_a_parent_that_was_killed(tmp_path, how):
    (tmp_path / "script.py").write_text(ORPHANS)
    process = subprocess.Popen(
        [sys.executable, "script.py", how], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        pids = [int(process.stdout.readline().split()[1]) for _ in range(3)]
        others = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
        assert others.issuperset(pids)
        process.kill()
        process.wait()
        until(lambda: all(map(gone, pids)), 2.0)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        process.stdout.close()


def test_a_program_that_ends_leaves_no_process(tmp_path):
    done = run_script(
        tmp_path,
        """
import os, taskloom
from taskloom.multiprocessing import get
print(*get({("x", i): (os.getpid,) for i in range(100)}, [("x", i) for i in range(100)]))
""",
    )
    assert done.stderr == ""
    pids = {int(pid) for pid in done.stdout.split()}
    assert pids
    until(lambda: all(map(gone, pids)), 5)


# --- functions and places


def test_no_main_guard_is_needed_and_classes_of_main_stay_themselves(tmp_path):
    done = run_script(
        tmp_path,
        """
import sys
from dataclasses import dataclass
from enum import Enum
from taskloom.multiprocessing import get

print("main runs")
factor = 3

class Colour(Enum):
    RED = 1

@dataclass
class Point:
    x: int
    colour: Colour = Colour.RED

def make(x):
    return Point(x * factor)

def check(point, again):
    return type(point) is Point and isinstance(again, Point) and point.colour is Colour.RED and point == again

a, b, same = get({"a": (make, 2), "b": (make, 2), "same": (check, "a", "b")}, ["a", "b", "same"])
print(a, type(a) is Point, a.colour is Colour.RED, a == b, same)
factor = 4
print(get({"a": (make, 2)}, "a").x, sys.argv[1:])
""",
        "argument",
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "main runs",
        "Point(x=6, colour=<Colour.RED: 1>) True True True True",
        "8 ['argument']",
    ]


def test_processes_are_where_the_program_is(tmp_path, monkeypatch):
    """A change of the working directory or of sys.path after the processes were started reaches them."""
    (tmp_path / "taskloom_test_module_of_ours.py").write_text("def triple(x):\n    return 3 * x\n")
    (tmp_path / "signal.py").write_text("raise SystemExit('the working directory was searched')\n")
    assert get({"x": (os.getcwd,)}, "x") == os.getcwd()
    monkeypatch.chdir(tmp_path)
    assert get({"x": (os.getcwd,)}, "x") == str(tmp_path)
    with ProcessPool(1) as pool:  # started here
        assert get({"x": (inc, 1)}, "x", pool=pool) == 2
    monkeypatch.syspath_prepend(str(tmp_path / "sub"))
    (tmp_path / "sub").mkdir()
    (tmp_path / "taskloom_test_module_of_ours.py").rename(tmp_path / "sub" / "taskloom_test_module_of_ours.py")
    import taskloom_test_module_of_ours as module

    try:
        assert get({"x": (module.triple, 2)}, "x") == 6
    finally:
        del sys.modules["taskloom_test_module_of_ours"]


def test_a_module_that_the_processes_cannot_import_travels_by_value(tmp_path):
    """As pytest's importlib mode and plugins load them: in sys.modules, and nowhere on the path."""
    import importlib.util

    path = tmp_path / "odd.py"
    path.write_text(
        "import math\nBASE = 10\ndef helper(x):\n    return BASE * x\n"
        "class Thing:\n    def __init__(self, x):\n        self.x = helper(x)\n"
        "def make(x):\n    return Thing(x)\n"
    )
    spec = importlib.util.spec_from_file_location("taskloom_test_odd", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["taskloom_test_odd"] = module
    try:
        spec.loader.exec_module(module)
        thing = get({"x": (module.make, 2), "y": (lambda x: module.helper(x.x), "x")}, ["x", "y"])
        assert type(thing[0]) is module.Thing
        assert (thing[0].x, thing[1]) == (20, 200)
    finally:
        del sys.modules["taskloom_test_odd"]


def test_a_module_with_a_pytest_run_that_is_not_on_the_path(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(
        "from taskloom.multiprocessing import get\n"
        "def inc(x):\n    return x + 1\n"
        "def test_it():\n    assert get({'x': (inc, 1)}, 'x') == 2\n"
    )
    command = [str(Path(sys.executable).with_name("pytest")), "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    done = subprocess.run([*command, "tests"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "1 passed" in done.stdout, done.stdout


def test_what_a_task_prints_comes_out_and_its_input_is_empty(tmp_path):
    done = run_script(
        tmp_path,
        """
import sys
from taskloom.multiprocessing import get

def speak(x):
    print("out", x)
    print("err", x, file=sys.stderr)
    return sys.stdin.read()

print(repr(get({"x": (speak, 1)}, "x")))
""",
        input="typed by somebody",
    )
    assert done.stdout.split() == ["out", "1", "''"]
    assert done.stderr.split() == ["err", "1"]


def test_a_get_in_a_task_runs_in_that_process():
    def outer(n):
        inner = taskloom.multiprocessing.get({"x": (os.getpid,), "n": (inc, n)}, ["x", "n"])
        return inner[0] == os.getpid(), inner[1], taskloom.delayed(inc)(n).compute()

    assert get({"x": (outer, 1)}, "x") == (True, 2, 2)


def test_runs_from_several_threads_at_once():
    def graph(n):
        dsk = {("x", 0): n}
        for i in range(1, 60):
            dsk["x", i] = (lambda *args: sum(args) % 1009, *[("x", j) for j in range(max(0, i - 3), i)])
        return dsk

    expected = [taskloom.get_sync(graph(n), ("x", 59)) for n in range(24)]
    with ProcessPool(2) as pool, ThreadPoolExecutor(12) as threads:
        found = list(threads.map(lambda n: get(graph(n), ("x", 59), pool=pool), range(24)))
        assert found == expected
        assert len(pool._idle) <= 2
        assert pool._lent == 0


def test_after_a_fork_the_child_has_processes_of_its_own():
    assert get({"x": (inc, 1)}, "x") == 2
    mine = {process.pid for process in shared_pool()._idle}
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            found = get({("x", i): (os.getpid,) for i in range(50)}, [("x", i) for i in range(50)])
            os.write(writer, b"good" if not mine.intersection(found) else b"the parent's")
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    assert os.read(reader, 100) == b"good"
    os.close(reader)
    assert {process.pid for process in shared_pool()._idle} == mine
    assert get({"x": (inc, 1)}, "x") == 2


# --- the pool


def test_an_initializer_is_called_once_in_each_process_before_its_first_task(tmp_path):
    def initialize():
        (tmp_path / str(os.getpid())).touch(exist_ok=False)
        os.environ["TASKLOOM_TEST_MARK"] = "set"

    def mark(_):
        return os.environ["TASKLOOM_TEST_MARK"], os.getpid()

    for _ in range(2):
        found = get({("x", i): (mark, i) for i in range(40)}, [("x", i) for i in range(40)], initializer=initialize)
        assert {mark for mark, _ in found} == {"set"}
        assert {str(pid) for _, pid in found} <= set(os.listdir(tmp_path))
    assert len(os.listdir(tmp_path)) <= 2
    # the shared pool without one is another pool
    assert get({"x": (lambda: "TASKLOOM_TEST_MARK" in os.environ,)}, "x") is False


def test_an_initializer_that_fails_says_so():
    def initialize():
        raise LookupError("nothing there")

    with pytest.raises(LookupError, match="nothing there") as caught:
        get({"x": (inc, 1)}, "x", initializer=initialize)
    assert any("raised in the initializer" in note for note in caught.value.__notes__)
    with pytest.raises(WorkerDiedError, match=r"ended with exit code 7 in the initializer"):
        get({"x": (inc, 1)}, "x", initializer=lambda: os._exit(7))
    with pytest.raises(SerializationError, match=r"the initializer .* does not pickle"):
        get({"x": (inc, 1)}, "x", initializer=threading.Lock().acquire)


def test_what_is_no_pool_is_refused():
    with ThreadPoolExecutor(1) as executor, pytest.raises(TypeError, match=r"ProcessPool, not ThreadPoolExecutor"):
        get({"x": 1}, "x", pool=executor)
    with ProcessPool(1) as pool, pytest.raises(TypeError, match="initializer= goes with the shared pool"):
        get({"x": 1}, "x", pool=pool, initializer=print)
    with pytest.raises(TypeError, match="initializer= takes a function, not 3 of type int"):
        get({"x": 1}, "x", initializer=3)
    with pytest.raises(RuntimeError, match=r"this pool is closed, .* make another ProcessPool, or leave out pool="):
        get({"x": (inc, 1)}, "x", pool=pool)
    for wrong in (0, -1, 1.5, "2"):
        with pytest.raises((ValueError, TypeError), match="num_workers"):
            get({"x": (inc, 1)}, "x", num_workers=wrong)
        with pytest.raises((ValueError, TypeError), match="num_workers"):
            ProcessPool(wrong)


def test_num_workers_is_how_many_processes_there_are():
    for count in (1, 3):
        with ProcessPool(2) as pool:
            graph = {("x", i): (lambda _: (os.getpid(), time.sleep(0.002))[0], i) for i in range(60)}
            assert 1 <= len(set(get(graph, list(graph), pool=pool, num_workers=count))) <= count
            assert len(pool._idle) == count or count == 1


def open_files():
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.add((name, os.readlink(f"/proc/self/fd/{name}")))
    return found


def test_a_pool_that_is_forgotten_leaves_nothing():
    before = open_files()
    pool = ProcessPool(2)
    pids = set(get({("x", i): (os.getpid,) for i in range(9)}, [("x", i) for i in range(9)], pool=pool))
    assert all(map(psutil.pid_exists, pids))
    del pool
    gc.collect()  # a ResourceWarning would be an error here
    assert not any(map(psutil.pid_exists, pids))
    assert open_files() - before == set()


def test_threads_of_blas_share_the_cpus():
    pytest.importorskip("threadpoolctl")

    def threads():
        import numpy  # noqa: F401
        import threadpoolctl

        return [(info["user_api"], info["num_threads"]) for info in threadpoolctl.threadpool_info()]

    cpus = taskloom.system.cpu_count()
    with ProcessPool(cpus) as pool:
        found = get({"x": (threads,)}, "x", pool=pool)
    assert found
    assert {count for _, count in found} == {1}


def test_a_thread_limit_that_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with ProcessPool(2) as pool:
        graph = {name: (lambda name=name: os.environ.get(name),) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        found = get(graph, list(graph), pool=pool)
    assert found == ("5", "1")


# --- data


def test_large_arrays_go_from_process_to_process_and_are_let_go():
    size = 300_000  # 2.4 MB, so it goes by its descriptor

    def make(i):
        return np.full(size, i, dtype=float)

    def add(a, b):
        a += b  # what arrives can be written to, and is seen by nobody else
        return a

    def open_files():
        return len(os.listdir("/proc/self/fd"))

    graph = {("a", i): (make, i) for i in range(32)}
    graph |= {("b", i): (add, ("a", i), ("a", (i * 7 + 5) % 32)) for i in range(32)}
    graph |= {("sum", i): (np.sum, ("b", i)) for i in range(32)}
    # which of the two writes first is open, so each gets a copy of its own
    graph |= {("b", i): (lambda a, b: a + b, ("a", i), ("a", (i * 7 + 5) % 32)) for i in range(32)}
    expected = tuple(float(size * (i + (i * 7 + 5) % 32)) for i in range(32))
    before = open_files()
    with ProcessPool(2) as pool:
        for _ in range(3):
            assert get(graph, [("sum", i) for i in range(32)], pool=pool) == expected
        whole = get({("a", i): (make, i) for i in range(8)}, [("a", i) for i in range(8)], pool=pool)
        assert [array[-1] for array in whole] == list(range(8))
        whole[0][:] = 5  # results are the caller's own
        del whole
        memory = get({"x": (lambda: psutil.Process().memory_info().rss,)}, "x", pool=pool)
        assert memory < 400e6
    assert open_files() <= before


def test_arrays_beyond_the_limit_of_descriptors():
    """Many at a time: more than one message may carry, and more than a process keeps mapped."""

    def make(i):
        return np.full(70_000, i, dtype=float)  # 560 kB

    graph = {("a", i): (make, i) for i in range(300)}
    graph["all"] = (lambda arrays: float(sum(array[0] for array in arrays)), [("a", i) for i in range(300)])
    keys = ["all", *[("a", i) for i in range(300)]]
    found = get(graph, keys)
    assert found[0] == sum(range(300))
    assert [array[-1] for array in found[1:]] == list(range(300))


def test_arguments_of_every_size():
    rng = np.random.default_rng(1)
    arrays = [
        rng.integers(0, 255, size, dtype=np.uint8) for size in (0, 1, 8191, 8192, 65536, 524_287, 524_288, 3_000_000)
    ]
    graph = {("a", n): array for n, array in enumerate(arrays)}
    graph |= {("n", n): (np.sum, ("a", n)) for n in range(len(arrays))}
    graph |= {("same", n): (np.copy, ("a", n)) for n in range(len(arrays))}
    found = get(graph, [[("n", n), ("same", n)] for n in range(len(arrays))])
    for array, (total, same) in zip(arrays, found, strict=True):
        assert total == array.sum()
        assert (same == array).all()


class Tell(Callback):
    def __init__(self):
        self.events = []

    def start(self, info):
        self.events.append(("start", info))

    def pretask(self, key):
        self.events.append(("pretask", key))

    def posttask(self, key, record):
        self.events.append(("posttask", key, record))

    def finish(self, info, error):
        self.events.append(("finish", error))


def test_callbacks_hear_of_every_task_once():
    graph = {"x": 1, **{("y", i): (inc, "x") for i in range(500)}}
    graph["z"] = (lambda values: (time.sleep(0.01), sum(values))[1], [("y", i) for i in range(500)])
    tell = Tell()
    assert get(graph, "z", callbacks=[tell]) == 1000
    kinds = [event[0] for event in tell.events]
    assert kinds[0] == "start"
    assert kinds[-1] == "finish"
    assert tell.events[0][1].total == len(graph)
    for kind in ("pretask", "posttask"):
        keys = [event[1] for event in tell.events if event[0] == kind]
        assert len(keys) == len(graph)
        assert set(keys) == set(graph)
    records = {event[1]: event[2] for event in tell.events if event[0] == "posttask"}
    assert all(re.fullmatch(r"process-\d+", records["y", i].worker) for i in range(500))
    assert records["z"].duration >= 0.01
    assert all(record.start <= record.stop for record in records.values())
    assert max(records["y", i].stop for i in range(500)) <= records["z"].start


def test_an_error_in_a_callback_ends_the_run_and_the_pool_works_again():
    class Bad(Callback):
        def posttask(self, key, record):
            raise RuntimeError("the callback is broken")

    with pytest.raises(RuntimeError, match="the callback is broken"):
        get({("x", i): (inc, i) for i in range(100)}, [("x", 5)], callbacks=[Bad()])
    assert get({"x": (inc, 1)}, "x") == 2


def test_an_error_of_a_task_is_itself_with_its_own_lines():
    def divide(x):
        return 1 / x

    with pytest.raises(ZeroDivisionError) as caught:
        get({"x": (inc, -1), "y": (divide, "x"), "z": (inc, "y")}, "z")
    names = []
    tb = caught.value.__traceback__
    while tb is not None:
        names.append(tb.tb_frame.f_code.co_name)
        tb = tb.tb_next
    assert names[-1] == "divide"
    assert not {"work", "run_block", "loop", "handle"}.intersection(names)
    assert "raised in the task 'y'" in caught.value.__notes__


def test_fused_chains_name_the_step():
    def divide(x):
        return 1 / x

    with pytest.raises(ZeroDivisionError) as caught:
        get({"x": (inc, -1), "y": (divide, "x"), "z": (inc, "y")}, "z", optimize_graph=True)
    assert any("step 2 of 3" in note for note in caught.value.__notes__)
    assert get({"x": (inc, 1), "y": (inc, "x"), "z": (inc, "y")}, "z", optimize_graph=True) == 4


def test_what_is_done_is_told_before_a_long_task_begins(tmp_path):
    """One process makes a value and then waits for another one to use it: it must have been told of."""
    used = tmp_path / "used"

    def use(x, n):
        if n:
            used.touch()
        else:
            until(used.exists)
        return x + n

    graph = {"first": (inc, 1), "wait": (use, "first", 0), "touch": (use, "first", 1)}
    assert get(graph, ["wait", "touch"], num_workers=2) == (2, 3)


def test_long_chains_are_fused_and_errors_name_the_task_that_raised():
    def divide(x):
        return 1 / (x - 5)

    graph = {("x", 0): (inc, 0)}
    for i in range(1, 20):
        graph["x", i] = (divide if i == 5 else inc, ("x", i - 1))
    with pytest.raises(ZeroDivisionError) as caught:
        get(graph, ("x", 19))
    assert "raised in the task ('x', 5)" in caught.value.__notes__
    graph["x", 5] = (inc, ("x", 4))
    tell = Tell()
    assert get(graph, ("x", 19)) == 20
    assert get(graph, ("x", 19), callbacks=[tell]) == 20
    assert tell.events[0][1].total == 20  # who listens hears of every task


def test_many_small_runs_keep_their_processes():
    with ProcessPool(2) as pool:
        pids = {get({"x": (os.getpid,)}, "x", pool=pool) for _ in range(200)}
    assert len(pids) <= 2


def test_the_shared_pool_is_one():
    assert multiprocessing.ProcessPool is ProcessPool
    assert shared_pool() is shared_pool()
