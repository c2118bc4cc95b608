"""Pictures of graphs, through the package ``graphviz``."""

from __future__ import annotations

import os
import sys
from typing import Any

from taskloom.graph.compile import VALUE, Plan, compile_graph
from taskloom.graph.node import Literal
from taskloom.local.run import function_name, name_of

__all__ = ["draw"]

_SOURCE = ("dot", "gv")  # formats that are what we make ourselves
_DARK, _LIGHT = (68, 1, 84), (253, 231, 37)  # first and last under color="order"


def draw(
    graph: dict[Any, Any],
    keys: list[Any],
    filename: str | os.PathLike[str] | None,
    format: str | None,
    color: str | None,
    attributes: dict[str, Any],
) -> Any:
    """Draw a graph; see :func:`taskloom.visualize`.

    Args:
        keys: the wanted keys; none: all of the graph is drawn.
    """
    if color not in (None, "order"):
        raise ValueError(f"color is None or 'order', not {color!r}")
    if not graph:
        raise ValueError("there is nothing to draw: no argument is a collection or a graph")
    try:
        import graphviz
    except ImportError as error:
        raise ImportError(
            "drawing a graph needs the package graphviz: pip install 'taskloom[visualize]', or pip install graphviz; "
            "and, for all formats but 'dot', the program dot: apt install graphviz, brew install graphviz or "
            "conda install graphviz"
        ) from error
    plan = compile_graph(graph, keys or list(graph))
    picture = graphviz.Digraph(
        "taskloom",
        graph_attr={"rankdir": "BT", **{name: str(value) for name, value in attributes.items()}},
        node_attr={"fontname": "helvetica", "fontsize": "11"},
    )
    wanted = set(plan.outputs) if keys else {i for i in range(len(plan)) if plan.dependents[i] is None}
    positions = plan.positions()
    for i in range(len(plan)):
        node = {"tooltip": graphviz.escape(repr(plan.keys[i]))}
        if _is_data(plan, i):
            node |= {"shape": "box", "label": graphviz.escape(_short(_data(plan, i)))}
        else:
            node |= {"shape": "ellipse", "label": graphviz.escape(_label(plan, i))}
            if color == "order":
                dark = positions[i] / max(1, len(plan) - 1) < 0.6
                node |= {
                    "style": "filled",
                    "fillcolor": _shade(positions[i] / max(1, len(plan) - 1)),
                    "fontcolor": "white" if dark else "black",
                    "label": f"{positions[i]}: {node['label']}",
                }
        if i in wanted:
            node["peripheries"] = "2"
        picture.node(str(i), **node)
    for i, needed in enumerate(plan.deps):
        for d in dict.fromkeys(needed):
            picture.edge(str(d), str(i))
    if filename is None:
        if format is not None:
            picture.format = format
        return picture
    return _written(picture, os.fspath(filename), format)


def _written(picture: Any, filename: str, format: str | None) -> Any:
    ending = os.path.splitext(filename)[1].lstrip(".").lower()
    if format is None:
        format = ending or "png"
    path = filename if ending == format else f"{filename}.{format}"
    if format in _SOURCE:
        data = picture.source.encode()
    else:
        import graphviz

        try:
            data = picture.pipe(format=format)
        except graphviz.ExecutableNotFound as error:
            raise RuntimeError(
                f"drawing a graph as {format!r} needs the program dot of Graphviz: apt install graphviz, brew install "
                "graphviz or conda install graphviz; without it, a filename that ends with .dot writes the drawing's "
                "source, and filename=None returns it"
            ) from error
    with open(path, "wb") as file:
        file.write(data)
    if format in ("png", "jpg", "jpeg", "svg") and _in_ipython():
        from IPython.display import SVG, Image

        return SVG(path) if format == "svg" else Image(path)
    return path


def _in_ipython() -> bool:
    """Whether somebody would see an image: a program may have imported IPython for other reasons."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def _is_data(plan: Plan, i: int) -> bool:
    task = plan.tasks[i]
    return plan.specs[i] == VALUE or (type(task) is tuple and len(task) == 1 and type(task[0]) is Literal)


def _data(plan: Plan, i: int) -> Any:
    task = plan.tasks[i]
    if plan.specs[i] != VALUE:
        task = task[0]
    return task.value if type(task) is Literal else task


def _label(plan: Plan, i: int) -> str:
    """The function's name, in brackets the functions that are called inside, and what the key says beyond that."""
    name = function_name(plan, i)
    inner: dict[str, None] = {}
    task = plan.tasks[i]
    stack = list(task[:0:-1]) if type(task) is tuple else []
    while stack:
        item = stack.pop()
        if type(item) is tuple and item and callable(item[0]):
            if type(item[0]) is not Literal:
                inner[name_of(item[0])] = None
            stack.extend(item[:0:-1])
        elif type(item) is list:
            stack.extend(reversed(item))
    label = name
    if inner:
        names = list(inner)
        label += f"({', '.join(names if len(names) <= 4 else [*names[:4], '...'])})"
    key = plan.keys[i]
    if type(key) is tuple and len(key) > 1:
        label += "\n" + _short(", ".join(map(str, key[1:])), quoted=False)
    elif isinstance(key, str) and not key.startswith(f"{name.rsplit('.', 1)[-1].strip('<>')}-"):
        label += "\n" + _short(key, quoted=False)
    return label


def _short(value: Any, quoted: bool = True) -> str:
    if quoted:
        try:
            value = repr(value)
        except Exception:  # a drawing should not fail for a __repr__
            value = f"<{type(value).__name__}>"
    return str(value) if len(value) <= 24 else value[:21] + "..."


def _shade(share: float) -> str:
    mixed = [round(dark + (light - dark) * share) for dark, light in zip(_DARK, _LIGHT, strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mixed)
