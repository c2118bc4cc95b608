"""What tasks say, here: keys in log records, and cells of notebooks."""

from __future__ import annotations

import logging
import subprocess
import time

import pytest

import taskloom
from taskloom.client import wait
from taskloom.client.graphs import Graphs


def log(x, *_):
    logging.getLogger("of.tasks").warning("it is %s", x)
    return x


@pytest.fixture
def keys(client, caplog, until):
    """Keys of the tasks whose log records have come, once there are so many; there is no more of it then."""

    def keys(count):
        def found():
            return {record.getMessage(): record.taskloom_key for record in caplog.records if record.name == "of.tasks"}

        until(lambda: len(found()) >= count)
        taken = found()
        caplog.clear()
        return taken

    return keys


def test_log_records_have_the_keys_of_their_tasks(client, keys):
    one = client.submit(log, "one", key=("k", 1))
    many = client.map(log, ["a", "b"])
    scattered = client.scatter({"data": "x"})["data"]
    wait([one, *many, scattered])
    assert keys(3) == {"it is one": ("k", 1), "it is a": many[0].key, "it is b": many[1].key}
    graph = {("x", 0): (log, "inner"), "y": (log, "outer", ("x", 0)), "z": scattered}
    assert client.get(graph, ["y", "z"]) == ("outer", "x")
    assert keys(2) == {"it is inner": ("x", 0), "it is outer": "y"}
    inner = taskloom.delayed(log)("inner", dask_key_name="i")
    outer = taskloom.delayed(log)("outer", inner, dask_key_name="o")
    future = client.compute(outer)
    assert future.result() == "outer"
    assert keys(2) == {"it is inner": "i", "it is outer": "o"}
    kept = client.persist(outer)
    assert kept.compute() == "outer"
    assert keys(2) == {"it is inner": "i", "it is outer": "o"}


def test_names_of_tasks_of_graphs_are_forgotten_with_them(client, until):
    graphs = client._engine.graphs
    client.get({"x": (log, 1)}, "x")
    with pytest.raises(ZeroDivisionError):
        client.get({"x": (divmod, 1, 0)}, "x")
    with pytest.raises(TypeError):
        client.get({"x": (log, (n for n in "x"))}, "x")
    with pytest.raises(TypeError):
        client.get({"x": (log, (n for n in "x"))}, "x", sync=False)
    kept = [client.compute(taskloom.delayed(abs)(-n)) for n in range(100)]
    assert client.gather(kept) == list(range(100))
    assert len(graphs._found) >= 100
    one = kept[5]
    del kept
    until(lambda: len(client._engine.labels) < 50)
    for n in range(200):
        client.compute(taskloom.delayed(abs)(n)).result()
    until(lambda: len(graphs._found) < 150)
    assert graphs.key_of(one.counter - 1) != one.counter - 1
    assert one.result() == 5


def test_a_graph_is_kept_while_an_output_has_a_future():
    labels = {}
    graphs = Graphs(labels)
    for n in range(40):
        graphs.add(10 * n, [0, 1], [f"a{n}", f"b{n}"])
        if n != 7:
            if n % 10 == 0:
                labels[10 * n + 1] = f"b{n}"
            graphs.keep(10 * n, [10 * n + 1])
    assert [graphs.key_of(10 * n) for n in (0, 7, 10, 20, 30)] == ["a0", "a7", "a10", "a20", "a30"]
    assert graphs.key_of(11) == 11  # of another one nothing is left
    assert len(graphs._found) < 40
    graphs.forget(70)
    assert graphs.key_of(70) == 70


# --- notebooks


@pytest.fixture(scope="module")
def kernel():
    """Runs a cell in a kernel."""
    manager = pytest.importorskip("jupyter_client.manager")
    pytest.importorskip("ipykernel")
    kernel, client = manager.start_new_kernel(kernel_name="python3", stderr=subprocess.DEVNULL)
    names = {}
    shown = {}

    def take():
        message = client.get_iopub_msg(timeout=60)
        cell = names.get(message["parent_header"].get("msg_id"))
        if message["msg_type"] == "stream":
            shown[cell] = shown.get(cell, "") + message["content"]["text"]
        assert message["msg_type"] != "error", message["content"]
        return message["msg_type"] == "status" and message["content"]["execution_state"] == "idle" and cell

    def run(name, code):
        """Run a cell; what has been shown below each cell since."""
        names[client.execute(code)] = name
        while take() != name:
            pass
        found = dict(shown)
        shown.clear()
        return found

    def wait_for(text):
        """Until that is shown: below which cells what is."""
        deadline = time.monotonic() + 60
        while text not in "".join(shown.values()):
            assert time.monotonic() < deadline
            take()
        found = dict(shown)
        shown.clear()
        return found

    run.wait_for = wait_for
    try:
        yield run
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)


def test_what_tasks_print_appears_below_the_cell_that_is_running(kernel, tmp_path):
    gate = str(tmp_path / "gate")
    kernel(
        "make",
        f"""
import logging, os, time, warnings
import taskloom
client = taskloom.Client(n_workers=1, threads_per_worker=1)
def say(x, wait=False):
    while wait and not os.path.exists({gate!r}):
        time.sleep(0.001)
    print("says", x)
    return x
def complain(x):
    warnings.warn("complains " + x)
    logging.getLogger("of.tasks").error("logs " + x)
""",
    )
    assert kernel("submit", "print('before'); client.submit(say, 1).result()") == {"submit": "before\nsays 1\n"}
    assert kernel("get", "client.get({'x': (say, 2)}, 'x')") == {"get": "says 2\n"}
    assert kernel("begin", "future = client.submit(say, 3, True)") == {}
    assert kernel("open", f"open({gate!r}, 'w').close(); future.result()") == {"open": "says 3\n"}
    found = kernel("complain", "client.submit(complain, 'much').result()")
    assert found.keys() == {"complain"}
    assert "complains much" in found["complain"]
    assert "logs much" in found["complain"]
    assert kernel("other", "future = client.submit(say, 4); future.result()") == {"other": "says 4\n"}
    os_remove = (
        f"os.remove({gate!r}); late = client.submit(say, 5, True); late.add_done_callback(lambda f: print('called'))"
    )
    assert kernel("late", os_remove) == {}
    assert kernel("newest", "pass") == {}
    (tmp_path / "gate").touch()
    assert kernel.wait_for("called") == {"newest": "says 5\ncalled\n"}
    kernel("close", "client.close()")
