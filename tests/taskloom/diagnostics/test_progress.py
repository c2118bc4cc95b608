"""Progress bars anywhere but in a terminal: pipes, files, broken ones; and what they count."""

from __future__ import annotations

import gc
import io
import os
import re
import subprocess
import sys
import textwrap
import threading
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

import taskloom
from taskloom.diagnostics import ProgressBar, track
from taskloom.diagnostics.progress import _counts, _layout, _Line, _share, _times, clock, plain_text, span

GETS = [taskloom.get_sync, taskloom.threaded.get, taskloom.multiprocessing.get]
IDS = ["sync", "threads", "processes"]


def inc(x, *more):
    return x + 1


def fail(x):
    raise ValueError(x)


GRAPH = {("x", i): (inc, i) for i in range(10)} | {"sum": (sum, [("x", i) for i in range(10)])}


def program(code, **options):
    """A program whose three streams are no terminals."""
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys\nimport taskloom\nfrom taskloom.diagnostics import *\n" + textwrap.dedent(code),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=options.pop("stderr", subprocess.PIPE),
        text=True,
        env={**os.environ, **options.pop("env", {})},
        **options,
    )


def line(total=10, done=0, label="", state="running", seconds=0.0):
    made = _Line(label, total, 0.0, 0.1)
    made.done = done
    made.state = state
    now = made.started + seconds
    if state != "running":
        made.ended = now
    return made, now


@pytest.mark.parametrize("get", GETS, ids=IDS)
def test_a_file_gets_one_line_at_the_end(get):
    out = io.StringIO()
    with ProgressBar("sums", out=out):
        assert get(GRAPH, "sum") == 55
    assert re.fullmatch(r"sums: (\d+) of \1 tasks done in \d+(\.\d+)? m?s\n", out.getvalue())
    if get is not taskloom.multiprocessing.get:  # which fuses tasks
        assert "11 of 11" in out.getvalue()


@pytest.mark.parametrize("get", GETS, ids=IDS)
def test_a_run_that_fails(get):
    out = io.StringIO()
    with pytest.raises(ValueError), ProgressBar(out=out):
        get({"a": 1, "b": (fail, "a")}, "b")
    assert re.fullmatch(r"\d of \d tasks done, failed after \d+(\.\d+)? m?s\n", out.getvalue())


def test_a_run_that_is_interrupted():
    def interrupt():
        raise KeyboardInterrupt

    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt), ProgressBar("x", out=out):
        taskloom.get_sync({"a": 1, "b": (interrupt,)}, ["a", "b"])
    assert re.fullmatch(r"x: 1 of 2 tasks done, stopped after \d+(\.\d+)? m?s\n", out.getvalue())


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1", "TERM": "xterm"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_pipe_gets_plain_lines(variables):
    code = r"""
    with ProgressBar("gr\u00f6\u00dfe \u2603"):
        print(taskloom.threaded.get({"x": 1, "y": (sum, ["x", 2])}, "y"))
    for x in track([1, 2], "walk", out=sys.stdout):
        pass
    """
    with program(code, env={"PYTHONCOERCECLOCALE": "0", **variables}) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert re.fullmatch(r"3\nwalk: 2 of 2 tasks done in \d+ ms\n", out)
    assert re.fullmatch(r".*: 2 of 2 tasks done in \d+ ms\n", err)
    assert err.startswith("gr")


def test_lines_come_after_twice_as_long_each():
    from taskloom.diagnostics.progress import _Plain

    out = io.StringIO()
    painter = _Plain(out)
    one, now = line(total=100, label="long")
    seen = []
    for second in range(100):
        one.done = second
        painter.draw([one], now + second)
        seen.append(out.getvalue().count("\n"))
    assert [second for second in range(1, 100) if seen[second] > seen[second - 1]] == [10, 20, 40, 80]
    assert out.getvalue().splitlines()[0] == "long: 10 of 100 tasks done after 10.0 s, about 1 min 30 s left"


@pytest.mark.parametrize(
    "code",
    [
        "sys.stderr = None",
        "sys.stderr.close()",
        "os.close(2)",
        "sys.stderr = open('/dev/full', 'w')",
        "class Odd:\n    def write(self, text): raise SystemExit(9)\nsys.stderr = Odd()",
        "class Odd:\n    def write(self, text): raise RuntimeError\n    isatty = lambda self: True\nsys.stderr = Odd()",
        "class Odd: pass\nsys.stderr = Odd()",
    ],
)
def test_a_place_that_can_not_be_written_to_breaks_nothing(code):
    code = f"""
{code}
with ProgressBar("x"):
    print(taskloom.threaded.get({{"x": 1, "y": (sum, ["x", 2])}}, "y"), flush=True)
for x in track([1, 2]):
    pass
print("end", flush=True)
os._exit(0)
"""
    with program(code) as process:
        out, _ = process.communicate(timeout=60)
    assert out == "3\nend\n"
    assert process.returncode == 0


def test_a_pipe_whose_reader_has_gone():
    read, write = os.pipe()
    code = """
    with ProgressBar("x"):
        print(taskloom.threaded.get({"x": 1, "y": (sum, ["x", 2])}, "y"))
    """
    with program(code, stderr=write) as process:
        os.close(write)
        os.close(read)
        out, _ = process.communicate(timeout=60)
    assert out == "3\n"


def test_a_run_inside_of_a_run_is_the_same_line():
    def inner(x):
        return taskloom.get_sync({"a": x, "b": (inc, "a")}, "b")

    out = io.StringIO()
    with ProgressBar("both", out=out):
        assert taskloom.get_sync({"x": (inner, 1), "y": (inner, "x")}, "y") == 3
    assert out.getvalue().startswith("both: 6 of 6 tasks done in ")
    assert out.getvalue().count("\n") == 1


def test_a_run_inside_that_fails_and_is_forgiven():
    def inner():
        try:
            taskloom.get_sync({"a": (fail, 1), "b": (inc, "a")}, "b")
        except ValueError:
            return 0

    out = io.StringIO()
    with ProgressBar(out=out):
        assert taskloom.get_sync({"x": (inner,)}, "x") == 0
    assert re.match(r"1 of 1 tasks done in", out.getvalue())


def test_runs_at_the_same_time_under_one_bar_are_added_up():
    out = io.StringIO()
    bar = ProgressBar("together", out=out)
    meet = threading.Barrier(3)

    def wait(x):
        meet.wait()
        return x

    def run():
        taskloom.get_sync({"x": (wait, 1), "y": (inc, "x")}, "y", callbacks=[bar])
        meet.wait()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    meet.wait()
    meet.wait()
    for thread in threads:
        thread.join()
    assert sum(int(n) for n in re.findall(r"together: (\d+) of \d+ tasks done in", out.getvalue())) == 4


def test_counts_are_exact_with_many_threads():
    out = io.StringIO()
    graph = {("x", i): (inc, i) for i in range(5000)}
    with ProgressBar(out=out, dt=0.001):
        taskloom.threaded.get(graph, list(graph), num_workers=8)
    assert out.getvalue().startswith("5,000 of 5,000 tasks done in ")


def test_a_bar_can_be_used_again_and_registered():
    out = io.StringIO()
    bar = ProgressBar("again", out=out)
    for _ in range(2):
        with bar:
            taskloom.get_sync({"x": (inc, 1)}, "x")
    bar.register()
    try:
        taskloom.get_sync({"x": (inc, 1), "y": 1}, ["x", "y"])
    finally:
        bar.unregister()
    taskloom.get_sync({"x": (inc, 1)}, "x")
    assert re.findall(r"again: (\d) of", out.getvalue()) == ["1", "1", "2"]
    assert repr(bar) == "<ProgressBar 'again': 2/2 tasks>"


def test_nothing_to_do():
    out = io.StringIO()
    with ProgressBar(out=out):
        taskloom.get_sync({}, [])
    assert out.getvalue().startswith("0 of 0 tasks done in")


def test_a_short_run_shows_nothing():
    out = io.StringIO()
    with ProgressBar(out=out, minimum=60):
        taskloom.get_sync(GRAPH, "sum")
    list(track(range(5), out=out, minimum=60))
    assert out.getvalue() == ""


def test_its_thread_ends_and_nothing_is_kept():
    def painters():
        return [thread for thread in threading.enumerate() if thread.name == "taskloom-progress"]

    out = io.StringIO()
    bar = ProgressBar("x", out=out)
    with bar:
        taskloom.get_sync(GRAPH, "sum")
    for thread in painters():
        thread.join(10)
    assert painters() == []
    gone = weakref.ref(bar), weakref.ref(out)
    del bar, out
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_wrong_arguments():
    with pytest.raises(TypeError, match="minimum="):
        ProgressBar(1.0)
    with pytest.raises(ValueError, match="minimum"):
        ProgressBar(minimum=-1)
    for dt in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="dt"):
            ProgressBar(dt=dt)
        with pytest.raises(ValueError, match="dt"):
            next(track([1], dt=dt))


def test_track_walks_through_anything():
    out = io.StringIO()
    assert list(track(range(3), "range", out=out)) == [0, 1, 2]
    assert list(track((x for x in "ab"), "generator", out=out)) == ["a", "b"]
    assert list(track(iter([1]), "told", total=5, out=out)) == [1]
    assert list(track([], "none", out=out)) == []
    texts = out.getvalue().splitlines()
    assert [re.sub(r"\d+ ms", "T", text) for text in texts] == [
        "range: 3 of 3 tasks done in T",
        "generator: 2 done in T",
        "told: 1 of 5 tasks done in T",
        "none: 0 of 0 tasks done in T",
    ]


def test_track_that_is_left_early_or_fails():
    out = io.StringIO()
    for x in track(range(10), "left", out=out):
        if x == 3:
            break
    gc.collect()

    def failing():
        yield 1
        raise OSError

    with pytest.raises(OSError):
        list(track(failing(), "failed", out=out))
    texts = [re.sub(r"\d+ ms", "T", text) for text in out.getvalue().splitlines()]
    assert texts == ["left: 3 of 10 tasks done, stopped after T", "failed: 1 done, failed after T"]


def test_a_fork_makes_its_own():
    """A child that was forked while a bar moves neither waits for its thread nor draws its line."""
    code = """
    import warnings
    warnings.simplefilter("ignore")
    items = track(range(3), "parent", out=sys.stdout)
    next(items)
    pid = os.fork()
    if pid == 0:
        for x in track([1], "child", out=sys.stdout):
            pass
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    list(items)
    """
    with program(code) as process:
        out, err = process.communicate(timeout=60)
    assert [text.split(":")[0] for text in out.splitlines()] == ["child", "parent"], err


def test_texts():
    assert [clock(x) for x in (0, 7.9, 59.99, 60, 754, 3599, 3722, 360000)] == [
        "0:00",
        "0:07",
        "0:59",
        "1:00",
        "12:34",
        "59:59",
        "1:02:02",
        "100:00:00",
    ]
    assert [span(x) for x in (0, 0.012, 0.9994, 0.9996, 3.214, 9.996, 59.94, 59.96, 125, 3720, 86400)] == [
        "0 ms",
        "12 ms",
        "999 ms",
        "1.00 s",
        "3.21 s",
        "10.0 s",
        "59.9 s",
        "1 min 0 s",
        "2 min 5 s",
        "1 h 2 min",
        "24 h 0 min",
    ]
    assert (
        plain_text(*line(1000, 500, "half", seconds=20))
        == "half: 500 of 1,000 tasks done after 20.0 s, about 20.0 s left"
    )
    assert plain_text(*line(None, 5, "count", seconds=20)) == "count: 5 done after 20.0 s"
    assert plain_text(*line(5, 5, state="done", seconds=2)) == "5 of 5 tasks done in 2.00 s"
    assert plain_text(*line(5, 3, state="stopped", seconds=2)) == "3 of 5 tasks done, stopped after 2.00 s"


def test_what_is_left_is_seen_from_the_last_half_minute():
    one, now = line(1000)
    for second in range(200):  # a task a second, then ten
        one.done = second if second < 100 else 100 + (second - 100) * 4
        one.sample(now + second)
    assert one.left(now + 199) == pytest.approx((1000 - 496) / 4, rel=0.05)
    assert line(10, 0, seconds=5)[0].left(now) is None
    assert line(None, 5)[0].left(now) is None


@given(
    st.integers(1, 300),
    st.text(st.characters(codec="ascii", categories=["L"]), max_size=60),
    st.one_of(st.none(), st.integers(0, 10**9)),
    st.integers(0, 10**9),
    st.sampled_from(["running", "done", "failed", "stopped"]),
    st.floats(0, 10**6),
)
def test_a_line_has_room(room, label, total, done, state, seconds):
    one, now = line(total, done, label, state, seconds)
    numbers, column, width = _layout(one, now, len(label), room)
    least = len(_counts(one) if total is None else f"{int(100 * _share(one))}%")
    taken = len(numbers.rstrip()) + (column + 1 if column else 0) + (width + 1 if width else 0)
    assert taken <= room or (column == width == 0 and len(numbers) == least)
    assert width == 0 or width >= 4
    assert 0 <= column <= max(len(label), 24)
    if room >= 60 + len(label) + len(_counts(one)):
        assert _times(one, now) in numbers
