"""What callbacks hear, on each backend, and what Profiler makes of it."""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
import threading
from html.parser import HTMLParser
from time import perf_counter

import pytest

import taskloom
from taskloom.diagnostics import Callback, Profiler, Record, RunInfo

GETS = [taskloom.get_sync, taskloom.threaded.get, taskloom.multiprocessing.get]
IDS = ["sync", "threads", "processes"]


@pytest.fixture(params=GETS, ids=IDS)
def get(request):
    return request.param


def inc(x):
    return x + 1


def spin(seconds):
    """Busy for so long."""
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass
    return seconds


def fail(x):
    raise ValueError(x)


def where(x=None):
    return os.getpid(), threading.current_thread().name


class Log(Callback):
    """Everything it hears, in order."""

    def __init__(self):
        self.heard = []
        self.lock = threading.Lock()

    def note(self, *what):
        with self.lock:
            self.heard.append(what)

    def start(self, info):
        self.note("start", info)

    def pretask(self, key):
        self.note("pretask", key)

    def posttask(self, key, record):
        self.note("posttask", key, record)

    def finish(self, info, error):
        self.note("finish", info, error)

    def keys(self, kind):
        return [what[1] for what in self.heard if what[0] == kind]


GRAPH = {"a": 1, "b": (inc, "a"), "c": (inc, "b"), "d": (sum, ["a", "b", "c"])} | {("x", i): (inc, i) for i in range(5)}
KEYS = ["d", *[("x", i) for i in range(5)]]


def test_every_task_is_heard_of_once(get):
    log = Log()
    before = perf_counter()
    options = {"optimize_graph": False} if get is taskloom.multiprocessing.get else {}
    assert get(GRAPH, KEYS, callbacks=[log], **options) == (6, 1, 2, 3, 4, 5)
    after = perf_counter()
    assert log.heard[0][0] == "start"
    assert log.heard[-1][0] == "finish"
    info = log.heard[0][1]
    assert info == RunInfo(dict(zip(GETS, IDS, strict=True))[get], 9, info.workers)
    assert info.workers >= 1
    assert log.heard[-1][1:] == (info, None)
    for kind in ("pretask", "posttask"):
        assert sorted(log.keys(kind), key=str) == sorted(GRAPH, key=str)
    for key in GRAPH:
        kinds = [what[0] for what in log.heard if what[1] == key]
        assert kinds == ["pretask", "posttask"]
    records = {what[1]: what[2] for what in log.heard if what[0] == "posttask"}
    for key, record in records.items():
        assert isinstance(record, Record)
        assert record.key == key
        assert before <= record.start <= record.stop <= after
        assert record.duration == record.stop - record.start
        assert record.function == {"a": "literal", "d": "sum"}.get(key, "inc")
    # a task begins when those it needs have ended
    for task, needed in [("c", "b"), ("d", "c"), ("b", "a")]:
        assert records[needed].stop <= records[task].start + 1e-9


def test_the_worker_is_named(get):
    graph = {("x", i): (where, i) for i in range(6)}
    profile = Profiler()
    found = dict(zip(graph, get(graph, list(graph), callbacks=[profile]), strict=True))
    assert len(profile.results) == 6
    for record in profile.results:
        pid, thread = found[record.key]
        if get is taskloom.multiprocessing.get:
            assert pid != os.getpid()
            assert record.worker == f"process-{pid}"
        else:
            assert pid == os.getpid()
            assert record.worker == thread


def test_the_times_are_those_of_the_task(get):
    """Long tasks between short ones: each record has its own task's time, not its neighbours'."""
    graph = {("x", i): (spin, 0.03 if i % 3 == 0 else 0.0) for i in range(9)}
    profile = Profiler()
    before = perf_counter()
    get(graph, list(graph), callbacks=[profile])
    after = perf_counter()
    took = {record.key[1]: record.duration for record in profile.results}
    for i in range(9):
        assert took[i] >= (0.03 if i % 3 == 0 else 0)
    by_worker = {}
    for record in profile.results:
        by_worker.setdefault(record.worker, []).append((record.start, record.stop))
    for times in by_worker.values():
        times.sort()
        assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(times))
        assert before <= times[0][0]
        assert times[-1][1] <= after


def test_a_task_that_fails(get):
    log = Log()
    graph = {"a": (inc, 1), "b": (fail, "a"), "c": (inc, "b")}
    with pytest.raises(ValueError) as caught:
        get(graph, "c", callbacks=[log])
    assert log.heard[-1][0] == "finish"
    assert log.heard[-1][2] is caught.value
    assert "c" not in log.keys("posttask")
    assert "b" not in log.keys("posttask")


@pytest.mark.parametrize("method", ["start", "pretask", "posttask", "finish"])
def test_a_callback_that_fails_ends_the_run(get, method):
    class Bad(Callback):
        pass

    def bad(self, *args):
        raise LookupError(method)

    setattr(Bad, method, bad)
    log = Log()
    graph = {("x", i): (inc, i) for i in range(20)}
    with pytest.raises(LookupError, match=method):
        get(graph, list(graph), callbacks=[log, Bad()])
    assert [what[0] for what in log.heard].count("finish") == 1
    assert log.heard[-1][0] == "finish"
    # and the next run is none the worse
    assert get(graph, [("x", 3)]) == (4,)


def test_who_hears(get):
    given, entered, registered, deaf = Log(), Log(), Log(), Log()
    registered.register()
    registered.register()
    try:
        with deaf:
            pass
        with entered, entered:
            get({"x": (inc, 1)}, "x", callbacks=[given, entered])
        get({"x": (inc, 1)}, "x")
    finally:
        registered.unregister()
        registered.unregister()
    get({"x": (inc, 1)}, "x")
    assert [len(log.keys("start")) for log in (given, entered, registered, deaf)] == [1, 1, 2, 0]


def test_a_context_is_its_threads_own():
    log = Log()
    with log:
        thread = threading.Thread(target=taskloom.get_sync, args=({"x": (inc, 1)}, "x"))
        thread.start()
        thread.join()
    assert log.heard == []


def test_callbacks_are_left_in_any_order():
    first, second = Log(), Log()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    taskloom.get_sync({"x": 1}, "x")
    second.__exit__(None, None, None)
    second.__exit__(None, None, None)
    taskloom.get_sync({"x": 1}, "x")
    assert len(first.heard) == 0
    assert len(second.keys("start")) == 1


def test_what_is_not_overridden_is_not_called():
    class Counts(Callback):
        total = 0

        def finish(self, info, error):
            self.total += info.total

    counts = Counts()
    taskloom.threaded.get(GRAPH, KEYS, callbacks=[counts])
    assert counts.total == 9


def test_dask_collections_are_heard_too():
    import dask

    profile = Profiler()
    with profile, dask.config.set(scheduler=taskloom.threaded.get):
        assert dask.delayed(inc)(dask.delayed(inc)(1)).compute() == 3
    assert [record.function for record in profile.results].count("inc") >= 1


# --- Profiler


def profile_of(*records):
    profile = Profiler()
    for record in records:
        profile.posttask(record.key, record)
    return profile


def test_summary():
    profile = profile_of(
        Record("a", "f", 1.0, 3.0, "w"),
        Record("b", "g", 1.0, 1.5, "w"),
        Record("c", "f", 3.0, 4.0, "w"),
        Record("d", "e", 0.0, 0.5, "w"),
    )
    assert [tuple(item) for item in profile.summary()] == [
        ("f", 2, 3.0, 1.5, 2.0),
        ("e", 1, 0.5, 0.5, 0.5),
        ("g", 1, 0.5, 0.5, 0.5),
    ]
    assert repr(profile).splitlines() == [
        "function     tasks       total        mean     longest",
        "f                2      3.00 s      1.50 s      2.00 s",
        "e                1    500.0 ms    500.0 ms    500.0 ms",
        "g                1    500.0 ms    500.0 ms    500.0 ms",
    ]
    profile.clear()
    assert profile.results == []
    assert profile.summary() == []
    assert repr(profile).startswith("function ")


def test_a_table_of_many_functions_is_cut():
    profile = profile_of(*[Record(n, f"f{n}" + "x" * 60, 0.0, n / 1e6, "w") for n in range(50)])
    lines = repr(profile).splitlines()
    assert len(lines) == 22
    assert lines[-1] == "and 30 more functions; .summary() has them all"
    assert max(map(len, lines)) < 90
    assert lines[1].split()[0].endswith("...")


class Cells(HTMLParser):
    """Tags and texts of some HTML."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.texts = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def test_html_is_escaped():
    nasty = "<script>alert('&\"')</script>"
    profile = profile_of(Record("a", nasty, 0.0, 1.0, nasty))
    text = profile._repr_html_()
    assert "<script" not in text
    found = Cells(text)
    assert nasty in found.texts
    assert set(found.tags) == {"table", "thead", "tbody", "tr", "th", "td"}


def test_a_trace_is_what_a_viewer_reads(get, tmp_path):
    """Chrome's Trace Event Format, in its JSON object form."""
    profile = Profiler()
    graph = {("x", i): (spin, 0.001) for i in range(8)} | {'<&"\ud800': (inc, 1), "long" * 100: (inc, 1)}
    get(graph, list(graph), callbacks=[profile])
    profile.to_trace(tmp_path / "trace.json")
    with open(tmp_path / "trace.json", encoding="utf-8") as file:
        trace = json.load(file)
    events = trace["traceEvents"]
    tasks = [event for event in events if event["ph"] == "X"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert len(tasks) == len(profile.results) == 10
    assert min(event["ts"] for event in tasks) == 0
    records = {repr(record.key)[:197]: record for record in profile.results}
    for event in tasks:
        record = records[event["args"]["key"][:197]]
        assert event["name"] == record.function
        assert names[event["tid"]] == record.worker
        assert event["dur"] == pytest.approx(record.duration * 1e6, abs=0.01)
        assert type(event["pid"]) is int
        assert len(event["args"]["key"]) <= 200
    rows = {}
    for event in sorted(tasks, key=lambda event: event["ts"]):
        assert event["ts"] >= rows.get(event["tid"], 0) - 0.01
        rows[event["tid"]] = event["ts"] + event["dur"]


def test_an_empty_trace(tmp_path):
    Profiler().to_trace(str(tmp_path / "trace.json"))
    assert [event["ph"] for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]] == ["M"]
    with pytest.raises(OSError):
        Profiler().to_trace(tmp_path / "no" / "trace.json")


def test_keys_that_have_no_repr(tmp_path):
    class Key:
        def __repr__(self):
            raise ValueError

    profile = profile_of(Record(Key(), "f", 0.0, 1.0, "w"))
    profile.to_trace(tmp_path / "trace.json")
    assert "Key" in (tmp_path / "trace.json").read_text()


def test_a_profile_keeps_no_values():
    class Big:
        pass

    def make():
        return Big()

    profile = Profiler()
    taskloom.get_sync({"a": (make,), "b": (str, "a")}, "b", callbacks=[profile])
    gc.collect()
    assert not [x for x in gc.get_objects() if type(x) is Big]


def test_importing_diagnostics_is_lazy():
    code = """
import sys, taskloom.diagnostics as d
d.Callback
print([m for m in ('rich', 'psutil', 'IPython', 'json') if m in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    import taskloom.diagnostics

    assert set(taskloom.diagnostics.__all__) <= set(dir(taskloom.diagnostics))
    with pytest.raises(AttributeError, match="nothing"):
        taskloom.diagnostics.nothing


def test_the_first_task_of_all_fails(get):
    log = Log()
    with pytest.raises(ValueError) as caught:
        get({"a": (fail, 1)}, "a", callbacks=[log])
    assert [what[0] for what in log.heard] == ["start", "pretask", "finish"]
    assert log.heard[-1][2] is caught.value


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, r"a list of taskloom.diagnostics.Callback objects, not 3 of type int"),
        ([Profiler(), None], r"not None of type NoneType"),
        ([Profiler], "themselves, not the class Profiler: make one"),
        (Profiler, "themselves, not the class Profiler: make one"),
        (Profiler(), r"a list of callbacks: \[Profiler\(...\)\], or use it in a with block"),
        (print, "not <built-in function print> of type builtin_function_or_method"),
    ],
)
def test_what_is_no_callback_is_refused_before_anything_runs(given, words):
    ran = []
    for get in (taskloom.get_sync, taskloom.threaded.get, taskloom.multiprocessing.get):
        with pytest.raises(TypeError, match=words):
            get({"x": (ran.append, 1)}, "x", callbacks=given)
    assert ran == []
    # whatever can be iterated will do
    assert taskloom.get_sync({"x": (abs, -1)}, "x", callbacks=(each for each in [Profiler()])) == 1
