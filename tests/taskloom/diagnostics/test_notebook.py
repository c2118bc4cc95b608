"""A real notebook, run by a real kernel: what a user would see below each cell."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

CELLS = [
    # 0: nothing is imported that could be missed later
    """
import time
import taskloom
from taskloom.diagnostics import Profiler, ProgressBar, ResourceProfiler, track
class Point:
    def __init__(self, x): self.x = x
def double(p):
    return Point(2 * p.x)
def total(points):
    return sum(p.x for p in points)
graph = {("p", i): (double, Point(i)) for i in range(20)}
graph["total"] = (total, list(graph))
""",
    # 1, 2, 3: a bar on each backend, with functions and classes of cells
    """
with ProgressBar("in <threads> & more", dt=0.01):
    print(taskloom.threaded.get(graph, "total"))
""",
    """
with ProgressBar("processes", dt=0.01):
    print(taskloom.multiprocessing.get(graph, "total"))
""",
    """
with ProgressBar():
    print("before")
    print(taskloom.get_sync(graph, "total"))
    print("after")
""",
    # 4: two bars
    """
for x in track(range(3), "outer"):
    for y in track([1, 2], "inner", minimum=60):
        pass
with ProgressBar("second"):
    taskloom.get_sync({"x": (len, "abc")}, "x")
""",
    # 5: an error
    """
def fail(p):
    return 1 / (p.x - p.x)
with ProgressBar("fails"):
    taskloom.multiprocessing.get({"x": (fail, Point(1))}, "x")
""",
    # 6: to a file, though in a notebook
    """
import io
out = io.StringIO()
with ProgressBar("file", out=out):
    taskloom.get_sync({"x": 1}, "x")
print(out.getvalue().split(" in ")[0])
""",
    # 7: profiles are shown as tables
    """
with Profiler() as profile, ResourceProfiler(dt=0.01) as resources:
    taskloom.threaded.get(graph, "total")
display(profile, resources)
""",
    # 8: a delayed
    """
taskloom.delayed(double)(Point(1)).compute().x
""",
]

DRIVER = """
import json, sys, warnings
warnings.simplefilter("ignore")
import nbformat
from nbclient import NotebookClient
cells = json.load(sys.stdin)
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
NotebookClient(notebook, timeout=90, kernel_name="python3", allow_errors=True).execute()
nbformat.validate(notebook)
print(json.dumps([cell["outputs"] for cell in notebook.cells]))
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Of each cell, what stands below it in the saved notebook."""
    home = tmp_path_factory.mktemp("home")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(CELLS),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=home,
        env={
            **os.environ,
            "HOME": str(home),
            "IPYTHONDIR": str(home / "ipython"),
            "JUPYTER_PLATFORM_DIRS": "1",
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "JUPYTER_DATA_DIR": str(home / "data"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        },
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def text(value):
    return value if isinstance(value, str) else "".join(value)


def shown(outputs):
    """(plain, html) of what was displayed."""
    return [
        (text(out["data"]["text/plain"]), text(out["data"].get("text/html", "")))
        for out in outputs
        if out["output_type"] == "display_data"
    ]


def printed(outputs):
    return "".join(text(out["text"]) for out in outputs if out["output_type"] == "stream" and out["name"] == "stdout")


def test_nothing_is_shown_without_a_bar(outputs):
    assert outputs[0] == []


@pytest.mark.parametrize(("cell", "label"), [(1, "in <threads> & more"), (2, "processes"), (3, "")])
def test_a_bar_is_one_piece_of_html(outputs, cell, label):
    ((plain, html),) = shown(outputs[cell])
    start = re.escape(f"{label}: ") if label else ""
    assert re.fullmatch(start + r"(\d+) of \1 tasks done in [\d.]+ m?s", plain)
    assert '<progress max="1" value="1.0000"' in html
    assert label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in html
    assert "<threads>" not in html
    assert "380" in printed(outputs[cell])
    assert not [out for out in outputs[cell] if out.get("name") == "stderr"]


def test_what_is_printed_is_left_alone(outputs):
    assert printed(outputs[3]) == "before\n380\nafter\n"


def test_one_bar_after_the_other(outputs):
    first, second = shown(outputs[4])
    assert first[0].startswith("outer: 3 of 3 tasks done in")
    assert second[0].startswith("second: 1 of 1 tasks done in")


def test_an_error_shows_the_cells_line(outputs):
    ((plain, html),) = shown(outputs[5])
    assert re.fullmatch(r"fails: 0 of 1 tasks done, failed after [\d.]+ m?s", plain)
    assert "failed" in html
    (error,) = [out for out in outputs[5] if out["output_type"] == "error"]
    assert error["ename"] == "ZeroDivisionError"
    trace = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error["traceback"]))
    assert "return 1 / (p.x - p.x)" in trace
    assert "raised in the task 'x'" in trace
    assert "taskloom/local" not in trace


def test_a_file_gets_plain_lines(outputs):
    assert shown(outputs[6]) == []
    assert printed(outputs[6]) == "file: 1 of 1 tasks done\n"


def test_profiles_are_tables(outputs):
    profile, resources = shown(outputs[7])
    assert profile[0].startswith("function ")
    assert "<td>double</td><td>20</td>" in profile[1]
    assert resources[0].startswith("<ResourceProfiler: ")
    assert resources[1].startswith("<div>ResourceProfiler: ")


def test_values_come_back(outputs):
    (result,) = outputs[8]
    assert text(result["data"]["text/plain"]) == "2"
