from __future__ import annotations

import os
import shutil
import subprocess
import sys

import dask.array
import pytest

import taskloom
from taskloom import delayed, visualize
from taskloom.errors import MissingKeyError

HAS_DOT = shutil.which("dot") is not None


def inc(x):
    return x + 1


def add(x, y):
    return x + y


def total():
    x = delayed(inc)(1, task_key="x")
    return delayed(add)(x, delayed(inc)(x, task_key="y"), task_key="sum")


def test_the_source_shows_tasks_edges_and_what_is_wanted():
    source = visualize(total(), filename=None).source
    assert "rankdir=BT" in source
    for label in ("inc\nx", "inc\ny", "add\nsum"):
        assert f'label="{label}"' in source
    assert source.count(" -> ") == 3
    assert source.count("peripheries=2") == 1


def test_graphs_are_drawn_as_they_are():
    graph = {"a": 1, ("b", 0): (inc, "a"), "c": (add, "a", (inc, ("b", 0))), "d": ["a", "c"]}
    source = visualize(graph, filename=None).source
    assert 'label="inc\n0"' in source
    assert 'label="add(inc)\nc"' in source
    assert "shape=box" in source
    assert source.count(" -> ") == 5
    assert source.count("peripheries=2") == 1
    with pytest.raises(MissingKeyError):
        visualize({"a": taskloom.graph.Literal(1), "b": dask._task_spec.Alias("b", "z")}, filename=None)


def test_labels_are_escaped_and_short():
    nasty = 'say "\\N" <b>' + "x" * 500
    source = visualize({nasty: (inc, 1), "y": (len, nasty), "data": nasty * 2}, filename=None).source
    assert max(len(line) for line in source.splitlines()) < 1200

    class Bad:
        def __repr__(self):
            raise ValueError

    assert "Bad" in visualize({"x": Bad()}, filename=None).source


def test_the_order_in_colour():
    source = visualize(total(), filename=None, color="order").source
    assert source.count("fillcolor=") == 3
    for place in range(3):
        assert f'label="{place}: ' in source
    with pytest.raises(ValueError, match="color is None or 'order', not 'rainbow'"):
        visualize(total(), filename=None, color="rainbow")


def test_attributes_of_the_whole_drawing():
    assert "rankdir=LR" in visualize(total(), filename=None, rankdir="LR").source


def test_collections_of_dask_optimized_or_not():
    array = (dask.array.ones(4, chunks=2) + 1) * 2
    as_made = visualize(array, filename=None).source
    as_run = visualize(array, filename=None, optimize_graph=True).source
    assert as_made.count(" -> ") > as_run.count(" -> ")


def test_the_source_is_written_without_the_program(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = str(tmp_path / "graph.dot")
    assert visualize(total(), filename=path) == path
    assert (tmp_path / "graph.dot").read_text().startswith("digraph taskloom {")
    assert total().visualize(tmp_path / "other", format="gv") == str(tmp_path / "other.gv")
    with pytest.raises(RuntimeError, match=r"needs the program dot of Graphviz: .*a filename that ends with \.dot"):
        visualize(total(), filename=str(tmp_path / "graph.png"))
    assert sorted(os.listdir(tmp_path)) == ["graph.dot", "other.gv"]


@pytest.mark.skipif(not HAS_DOT, reason="the program dot is not installed")
@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a", b"\x89PNG")])
def test_pictures(tmp_path, name, begins):
    path = visualize(total(), filename=str(tmp_path / name))
    assert path == str(tmp_path / name) + ("" if "." in name else ".png")
    with open(path, "rb") as file:
        assert file.read().startswith(begins)


@pytest.mark.skipif(not HAS_DOT, reason="the program dot is not installed")
@pytest.mark.parametrize(
    ("begin", "expected"),
    [
        ("import IPython", "str a.png str a.svg"),
        ("from IPython.core.interactiveshell import InteractiveShell as S; S.instance()", "Image SVG"),
    ],
)
def test_an_image_is_given_where_it_is_seen(tmp_path, begin, expected):
    # somewhere else the path, even if a library has imported IPython
    code = (
        f"{begin}; import taskloom\n"
        "for name in ('a.png', 'a.svg'):\n"
        "    found = taskloom.visualize({'x': (abs, 1)}, filename=name)\n"
        "    print(type(found).__name__, found if isinstance(found, str) else '')"
    )
    env = {**os.environ, "IPYTHONDIR": str(tmp_path / "ipython")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=env
    )
    assert done.stdout.split() == expected.split()


def test_without_the_package():
    code = (
        "import sys; sys.modules['graphviz'] = None; import taskloom\n"
        "try: taskloom.visualize({'x': 1}, filename=None)\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "needs the package graphviz: pip install 'taskloom[visualize]'" in done.stdout


def test_nothing_to_draw():
    for args in ((), (5,), ([],), ({},)):
        with pytest.raises(ValueError, match="nothing to draw"):
            visualize(*args, filename=None)
