"""The synchronous scheduler is plain code: what debuggers, profilers and Ctrl-C find there."""

from __future__ import annotations

import cProfile
import os
import pstats
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from textwrap import dedent

import pytest

import taskloom


@contextmanager
def started(code: str):
    """A program that is running, and is not when the block is left."""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


class Terminal:
    """A program on a terminal of its own, and who types there."""

    def __init__(self, path, code: str) -> None:
        script = path / "typed.py"
        script.write_text(dedent(code))
        self.fd, inner = pty.openpty()
        env = os.environ | {"TERM": "dumb", "PYTHON_COLORS": "0", "PYTHON_BASIC_REPL": "1"}
        env.pop("PYTHONBREAKPOINT", None)
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=inner, stdout=inner, stderr=inner, env=env, start_new_session=True
        )
        os.close(inner)

    def read_until(self, text: str) -> str:
        """What comes up to and with this text; fails when the program ends before, or after half a minute."""
        shown = ""
        deadline = time.monotonic() + 30
        while text not in shown:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {text!r} in {shown!r}"
            try:
                # one at a time: what comes after it is for the next call
                shown += os.read(self.fd, 1).decode(errors="replace")
            except OSError:  # the other end is closed
                raise AssertionError(f"the program ended; no {text!r} in {shown!r}") from None
        return shown

    def type(self, line: str) -> str:
        """Type a line at the debugger's prompt, and read until the next prompt."""
        os.write(self.fd, line.encode() + b"\n")
        return self.read_until("(Pdb) ")

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


def test_pdb_inside_a_task(tmp_path):
    code = """
        import taskloom

        def double(x):
            y = x * 2
            breakpoint()
            return y

        def outer():
            return taskloom.get_sync({"x": 21, "y": (double, "x"), "z": (lambda y: y + 1000, "y")}, "z")

        print("result", outer())
    """
    with Terminal(tmp_path, code) as terminal:
        terminal.read_until("(Pdb) ")
        where = terminal.type("where")
        # one stack, from the program down to the task, in the thread that called
        assert where.index("<module>") < where.index("outer()") < where.index("double(")
        assert "42" in terminal.type("p y")
        assert "MainThread" in terminal.type("p __import__('threading').current_thread().name")
        terminal.type("y = 100")
        assert "return y" in terminal.type("n")
        os.write(terminal.fd, b"c\n")
        terminal.read_until("result 1100")
        assert terminal.process.wait(timeout=30) == 0


def test_pdb_after_an_error(tmp_path):
    code = """
        import pdb, sys, taskloom

        def fails(x):
            secret = x + 1
            return secret / 0

        try:
            taskloom.get_sync({"x": 41, "y": (fails, "x")}, "y")
        except ZeroDivisionError:
            pdb.post_mortem(sys.exc_info()[2])
        print("went on")
    """
    with Terminal(tmp_path, code) as terminal:
        assert "fails" in terminal.read_until("(Pdb) ")
        assert "42" in terminal.type("p secret")
        up = terminal.type("up")
        assert "typed.py" in up
        assert "taskloom.get_sync(" in up  # the next frame up is the user's: ours are cut
        os.write(terminal.fd, b"q\n")
        terminal.read_until("went on")
        assert terminal.process.wait(timeout=30) == 0


def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def once(x):
    return x


def test_cprofile_sees_the_users_functions():
    graph: dict = {("o", i): (once, i * 1.0) for i in range(37)} | {"f": (fibonacci, 10)}
    profile = cProfile.Profile()
    # a callback too: it takes the other path through the loop
    for callbacks in ([], [taskloom.diagnostics.Profiler()]):
        profile.clear()
        profile.enable()
        taskloom.get_sync(graph, list(graph), callbacks=callbacks)
        profile.disable()
        stats = pstats.Stats(profile).stats
        calls = {name: (primitive, total) for (_, _, name), (primitive, total, *_) in stats.items()}
        assert calls["once"] == (37, 37)
        assert calls["fibonacci"] == (1, 177)
        assert calls["get_sync"] == (1, 1)


def test_sys_settrace_and_the_calling_thread():
    seen = []

    def trace(frame, event, arg):
        if frame.f_code is once.__code__:
            seen.append((event, threading.current_thread()))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        taskloom.get_sync({"x": (once, 1)}, "x")
    finally:
        sys.settrace(before)
    assert [event for event, _ in seen] == ["call", "line", "return"]
    assert {thread for _, thread in seen} == {threading.current_thread()}


WAITS = {
    "sleeps": "import time\ndef wait():\n    say('begun'); time.sleep(3600)",
    "computes": "def wait():\n    say('begun')\n    while True: pass",
    "reads": "import os\ndef wait():\n    r, w = os.pipe(); say('begun'); os.read(r, 1)",
    "waits": "import threading\ndef wait():\n    e = threading.Event(); say('begun'); e.wait()",
}


@pytest.mark.parametrize("way", WAITS)
@pytest.mark.parametrize("callbacks", ["", "callbacks=[taskloom.diagnostics.Profiler()]"])
def test_ctrl_c_stops_at_once_and_the_next_run_works(way, callbacks):
    code = f"""
import taskloom
def say(text): print(text, flush=True)
{WAITS[way]}
try:
    taskloom.get_sync({{"x": (wait,), "y": (say, "x")}}, "y", {callbacks})
except KeyboardInterrupt:
    say("stopped")
say(taskloom.get_sync({{"x": 1, "y": (sum, ["x", 10])}}, "y"))
"""
    with started(code) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == ("stopped\n11\n", "", 0)


def test_an_interruption_between_any_two_lines_comes_out():
    # again and again until it is heard: one that strikes in a destructor is lost, as in any program
    code = """
import random, signal, taskloom
class Struck(BaseException): pass
def strike(number, frame): raise Struck
def once(x): return x
graph = {("x", i): (once, i * 1.0) for i in range(500)}
graph["sum"] = (sum, list(graph))
signal.signal(signal.SIGALRM, strike)
random = random.Random(3)
struck = 0
for _ in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-3), 1)
        while True:
            assert taskloom.get_sync(graph, "sum") == sum(range(500))
    except Struck:
        struck += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print(struck, taskloom.get_sync(graph, "sum"))
"""
    with started(code) as process:
        out, err = process.communicate(timeout=90)
    assert (out, process.returncode) == ("300 124750.0\n", 0), err


def test_nesting_without_end_is_a_recursion_error():
    def nested():
        return taskloom.get_sync({"x": (nested,)}, "x")

    with pytest.raises(RecursionError):
        nested()
    assert taskloom.get_sync({"x": 1}, "x") == 1
