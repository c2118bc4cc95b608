"""Progress bars in a real terminal: a pty, with a terminal emulator at its other end to look at."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import time

import pyte
import pytest

PRELUDE = """
import os, signal, sys, threading
import taskloom
from taskloom.diagnostics import ProgressBar, track

steps = int(sys.argv[1])

def step(x, *more):
    os.read(steps, 1)  # until the test lets it go on
    return x

def graph(n=4, f=step):
    return {("x", i): (f, i, *([("x", i - 1)] if i else [])) for i in range(n)}

def keys(n=4):
    return [("x", i) for i in range(n)]
"""

PATIENCE = 30.0  # seconds


class Terminal:
    """A program in a terminal of its own, and what is on its screen.

    Args:
        code: the program; a function `step` waits for :meth:`step`.
        stdout: where its output goes instead of the terminal.
        program: instead of an interpreter that runs the code.
    """

    def __init__(self, code, *, columns=80, rows=24, stdout=None, env=None):
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.master, slave = pty.openpty()
        self._set_size(columns, rows)
        steps, self.steps = os.pipe()
        environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(steps)],
                stdin=slave,
                stdout=slave if stdout is None else stdout,
                stderr=slave,
                pass_fds=(steps,),
                env={**environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **(env or {})},
                start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(2, termios.TIOCSCTTY, 0),
            )
        finally:
            os.close(slave)
            os.close(steps)

    def _set_size(self, columns, rows):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        if self.steps >= 0:
            os.close(self.steps)

    def step(self, count=1):
        os.write(self.steps, b"x" * count)

    def resize(self, columns, rows):
        self.screen.resize(rows, columns)
        self._set_size(columns, rows)

    def press(self, keys):
        os.write(self.master, keys)

    def lines(self):
        """What is on the screen, without empty lines."""
        return [line.rstrip() for line in self.screen.display if line.strip()]

    def read(self, deadline):
        if not select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise AssertionError("nothing more came; on the screen is:\n" + "\n".join(self.lines()))
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:  # nobody has the other end any more
            data = b""
        self.raw += data
        self.stream.feed(data)
        return bool(data)

    def until(self, condition):
        """Read on until the lines on the screen meet a condition, or one of them a pattern."""
        if isinstance(condition, str):
            pattern = re.compile(condition)

            def condition(lines):
                return any(pattern.search(line) for line in lines)

        deadline = time.monotonic() + PATIENCE
        while not condition(self.lines()):
            assert self.read(deadline), "it ended; on the screen is:\n" + "\n".join(self.lines())
        return self.lines()

    def end(self, code=0):
        """The last screen, when the program has ended."""
        deadline = time.monotonic() + PATIENCE
        while self.read(deadline):
            pass
        assert self.process.wait(PATIENCE) == code, "\n".join(self.lines())
        assert not self.screen.cursor.hidden
        return self.lines()

    def colours(self, row):
        """Runs of (colour, text) of a line."""
        found = []
        for n in range(self.screen.columns):
            char = self.screen.buffer[row][n]
            if found and found[-1][0] == char.fg:
                found[-1][1] += char.data
            else:
                found.append([char.fg, char.data])
        return [(colour, text) for colour, text in found]


BAR = "━"


def test_a_bar_that_moves():
    code = """
    with ProgressBar("sums", dt=0.01):
        print(sum(taskloom.get_sync(graph(), keys())))
    """
    with Terminal(code) as terminal:
        (line,) = terminal.until(r"^sums {21}━+ +0/4 +0%  0:0\d$")
        assert line.count(BAR) == 17
        assert terminal.screen.cursor.hidden
        assert not any(colour == "magenta" for colour, _ in terminal.colours(0))
        terminal.step()
        terminal.until(r"^sums {21}━+ +1/4 +25%  0:0\d, left 0:\d\d$")
        assert ("magenta", BAR * 4) in terminal.colours(0)
        assert sum(text.count(BAR) for _, text in terminal.colours(0)) == 17
        terminal.step(3)
        lines = terminal.end()
        assert len(lines) == 2
        assert re.fullmatch(r"sums {21}━{17} +4/4 100%  \d+(\.\d+)? m?s", lines[0])
        assert ("green", BAR * 17) in terminal.colours(0)
        assert lines[1] == "6"
        assert terminal.screen.cursor.y == 2


@pytest.mark.parametrize("get", ["threaded.get", "multiprocessing.get"])
def test_the_other_backends(get):
    code = f"""
    def quick(x, *more):
        return x
    with ProgressBar("work", dt=0.01):
        taskloom.{get}(graph(300, quick), keys(300))
    print("end")
    """
    with Terminal(code) as terminal:
        lines = terminal.end()
        assert len(lines) == 2
        assert re.match(r"work +━+ +300/300 100%", lines[0])


def test_what_the_program_prints_goes_above():
    code = """
    def talk(x, *more):
        os.read(steps, 1)
        print("out", x)
        print("err", x, file=sys.stderr)
        if x == 3:
            print("half a line", end="")
        return x
    with ProgressBar("talk", dt=0.01):
        taskloom.threaded.get(graph(4, talk), keys())
    print(" and its end")
    """
    with Terminal(code) as terminal:
        terminal.until("0/4")
        for n in range(3):
            terminal.step()
            terminal.until(rf"{n + 1}/4")
        lines = terminal.lines()
        assert lines[:-1] == ["out 0", "err 0", "out 1", "err 1", "out 2", "err 2"]
        terminal.step()
        lines = terminal.end()
        assert sorted(lines[6:8]) == ["err 3", "out 3"]
        bar = [n for n, line in enumerate(lines) if "4/4 100%" in line]
        assert len(bar) == 1
        assert "half a line" in "\n".join(lines)
        assert "and its end" in lines[-1]


def test_several_bars_stand_below_each_other():
    code = """
    def run(name, count, f):
        with ProgressBar(name, dt=0.01):
            taskloom.get_sync(graph(count, f), keys(count))
    gates = {name: threading.Semaphore(0) for name in "abc"}
    def wait(name):
        def f(x, *more):
            gates[name].acquire()
        return f
    threads = []
    for n, name in enumerate("abc", 2):
        thread = threading.Thread(target=run, args=("bar " + name, n, wait(name)))
        thread.start()
        threads.append(thread)
        os.read(steps, 1)
    for name in "bbbaacccc":
        os.read(steps, 1)
        gates[name].release()
    for thread in threads:
        thread.join()
    print("end")
    """
    with Terminal(code) as terminal:
        terminal.until(lambda lines: len(lines) == 1 and "0/2" in lines[0])
        terminal.step()
        terminal.until(lambda lines: len(lines) == 2 and "0/3" in lines[1])
        terminal.step()
        terminal.until(lambda lines: len(lines) == 3)
        terminal.step()
        terminal.step(2)
        lines = terminal.until(r"bar b .* 2/3")
        assert [line[:5] for line in lines] == ["bar a", "bar b", "bar c"]
        terminal.step()
        # what has ended stands above what moves, and keeps still
        lines = terminal.until(lambda lines: len(lines) == 3 and lines[0].startswith("bar b"))
        assert "3/3 100%" in lines[0]
        assert [line[:5] for line in lines[1:]] == ["bar a", "bar c"]
        terminal.step(2)
        terminal.until(r"bar a .* 2/2 100%")
        terminal.step(4)
        lines = terminal.end()
        assert [line[:5] for line in lines] == ["bar b", "bar a", "bar c", "end"]
        assert all("100%" in line for line in lines[:3])


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (200, r"a label {18}━{40} +4/4 100%  .*s"),
        (60, r"a label ━+ 4/4 100% .*s"),
        (30, r"a label ━{4,9} 4/4 100% [\d.]+ m?s"),
        (24, r"a label 4/4 100% [\d.]+ m?s|a label ━+ 4/4 100%"),
        (16, r"a label 4/4 100%"),
        (12, r"a label 100%"),
        (8, r"a … 100%"),
        (4, r"100%"),
    ],
)
def test_narrow_and_wide_terminals(columns, expected):
    code = """
    with ProgressBar("a label", dt=0.01):
        taskloom.get_sync(graph(), keys())
    """
    with Terminal(code, columns=columns) as terminal:
        terminal.step(4)
        lines = terminal.end()
        assert len(lines) == 1
        assert re.fullmatch(expected, lines[0]), lines


def test_labels_of_any_letters():
    code = r"""
    for label in ("größe ☃", "日本語のラベル", "two\nlines\t\x1b[31mred\x07", "long " * 30, "e\u0301" * 5, ""):
        with ProgressBar(label, dt=0.01):
            taskloom.get_sync({"x": (int, "1")}, "x")
    """
    with Terminal(code) as terminal:
        lines = terminal.end()
        assert len(lines) == 6
        assert lines[0].startswith("größe ☃  ")
        assert lines[1].replace(" ", "").startswith("日本語のラベル━")
        assert lines[2].startswith("two lines [31mred ")
        assert lines[3].startswith("long long long")
        assert all("100%" in line for line in lines)
        assert lines[5].lstrip().startswith(BAR)
        assert b"\x07" not in terminal.raw


def test_a_window_that_changes_its_size():
    code = """
    print("before")
    with ProgressBar("sizes", dt=0.01):
        taskloom.get_sync(graph(), keys())
    print("after")
    """
    with Terminal(code) as terminal:
        terminal.until(r"0/4")
        terminal.resize(100, 24)
        terminal.step()
        terminal.until(r"1/4")
        assert len(terminal.until(lambda lines: lines[-1].count(BAR) > 17)) == 2
        terminal.resize(40, 24)
        terminal.step()
        (line,) = [line for line in terminal.until(r"2/4") if "2/4" in line]
        assert len(line) <= 40
        terminal.step(2)
        lines = terminal.end()
        assert lines[0] == "before"
        assert lines[-1] == "after"
        assert re.match(r"sizes ━+ 4/4 100%", lines[-2])


def test_without_colours():
    code = """
    with ProgressBar("grey", dt=0.01):
        taskloom.get_sync(graph(), keys())
    """
    with Terminal(code, env={"NO_COLOR": "1"}) as terminal:
        terminal.step()
        terminal.until(r"^grey {21}━{4} {14,} +1/4")  # the part that is to come can't be grey, so it is blank
        terminal.step(3)
        (line,) = terminal.end()
        assert "4/4 100%" in line
        assert not re.search(rb"\x1b\[[\d;]*m", terminal.raw.replace(b"\x1b[0m", b""))


def test_a_dumb_terminal_gets_plain_lines():
    code = """
    with ProgressBar("dumb", dt=0.01):
        taskloom.get_sync(graph(), keys())
    print("end")
    """
    for kind in ("dumb", "unknown"):
        with Terminal(code, env={"TERM": kind}) as terminal:
            terminal.step(4)
            lines = terminal.end()
            assert re.fullmatch(r"dumb: 4 of 4 tasks done in \d.*s", lines[0])
            assert lines[1:] == ["end"]
            assert b"\x1b" not in terminal.raw


@pytest.mark.parametrize("columns", [80, 30, 6])
def test_a_terminal_that_only_knows_ascii(columns):
    code = r"""
    print(sys.stderr.encoding)
    with ProgressBar("gr\u00f6\u00dfe \u2603 und mehr", dt=0.01):
        taskloom.get_sync(graph(), keys())
    """
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with Terminal(code, env=env, columns=columns) as terminal:
        terminal.step(4)
        lines = terminal.end()
        assert "100%" in lines[-1]
        assert terminal.raw.isascii()
        if columns == 80:
            assert "ascii" in lines[0] or "646" in lines[0]  # what ASCII is called differs
            assert "###" in lines[-1]
            assert lines[-1].startswith("gr")


def test_the_programs_output_can_go_elsewhere(tmp_path):
    """Only the terminal gets control codes; a redirected stdout gets what was printed, at once and as it was."""
    code = """
    def talk(x, *more):
        print("out", x, flush=True)
        return step(x)
    with ProgressBar("talk", dt=0.01):
        taskloom.get_sync(graph(4, talk), keys())
    """
    with open(tmp_path / "out", "w") as out, Terminal(code, stdout=out) as terminal:
        terminal.step()
        terminal.until("1/4")
        terminal.step(3)
        (line,) = terminal.end()
        assert "4/4 100%" in line
    assert (tmp_path / "out").read_text() == "out 0\nout 1\nout 2\nout 3\n"


def test_an_error():
    code = """
    def bad(x, *more):
        if x == 2:
            raise ValueError("bad")
        return step(x)
    with ProgressBar("bad", dt=0.01):
        taskloom.threaded.get(graph(4, bad), keys())
    """
    with Terminal(code) as terminal:
        terminal.step(2)
        lines = terminal.end(1)
        assert re.fullmatch(r"bad +━+ +2/4  50%  [\d.]+ m?s, failed", lines[0])
        assert any(colour == "red" for colour, _ in terminal.colours(0))
        assert lines[1] == "Traceback (most recent call last):"
        assert "ValueError: bad" in lines


@pytest.mark.parametrize("get", ["get_sync", "threaded.get", "multiprocessing.get"])
def test_ctrl_c(get):
    code = f"""
    if "{get}" == "multiprocessing.get":
        def step(x, *more):  # the pipe is not in the pool's processes
            if x == 1:
                threading.Event().wait()
            return x
    else:
        step = globals()["step"]
    with ProgressBar("stop", dt=0.01):
        taskloom.{get}(graph(4, step), keys())
    """
    with Terminal(code) as terminal:
        terminal.until("0/4|1/4")
        if get != "multiprocessing.get":
            terminal.step()
            terminal.until("1/4")
        terminal.press(b"\x03")
        terminal.end(-signal.SIGINT)
        lines = [line for line in terminal.lines() if line != "^C"]
        (bar,) = [line for line in lines if "stop  " in line]
        assert re.search(r"stop +━+ +[01]/4 +\d+%  [\d.]+ m?s, stopped$", bar)
        assert lines[-1] == "KeyboardInterrupt"


def test_a_program_that_ends_in_the_middle():
    code = """
    items = track(range(10), "left alone", dt=0.01)
    for _ in range(3):
        next(items)
    os.read(steps, 1)
    print("bye")
    sys.exit(3)
    """
    with Terminal(code) as terminal:
        terminal.until(r"2/10")
        assert terminal.screen.cursor.hidden
        terminal.step()
        lines = terminal.end(3)
        assert "bye" in lines
        assert [line for line in lines if "2/10" in line and "stopped" in line]


def test_track_without_a_length():
    code = """
    for x in track(iter(range(3)), "count", dt=0.01):
        os.read(steps, 1)
    """
    with Terminal(code) as terminal:
        terminal.step()
        line = terminal.until(r"^count .* 1  0:0\d$")[0]
        assert "%" not in line
        terminal.step(2)
        (line,) = terminal.end()
        assert re.fullmatch(r"count +━+ +3  [\d.]+ m?s", line)


def test_a_short_run_shows_nothing():
    code = """
    with ProgressBar("short", minimum=60):
        taskloom.get_sync(graph(), keys())
    print("end")
    """
    with Terminal(code) as terminal:
        terminal.step(4)
        assert terminal.end() == ["end"]
        assert b"\x1b" not in terminal.raw


def test_two_runs_one_after_the_other():
    code = """
    with ProgressBar("twice", dt=0.01):
        taskloom.get_sync(graph(2), keys(2))
        print("between")
        taskloom.get_sync(graph(3), keys(3))
    """
    with Terminal(code) as terminal:
        terminal.step(5)
        first, between, second = terminal.end()
        assert "2/2" in first
        assert between == "between"
        assert "3/3" in second
