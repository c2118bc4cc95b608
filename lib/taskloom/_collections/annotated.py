"""Annotations on their way to a scheduler: graphs that have them.

Our collections tell theirs by key, see :mod:`taskloom._collections.annotations`. dask keeps those of ``with dask.annotate(...)``
at the layers of its graphs. Where it fuses tasks further than layers it loses them, so a graph that has some is not fused that
far here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping
from contextlib import nullcontext
from typing import Any

from taskloom.graph.convention import as_mapping

__all__ = ["AnnotatedGraph", "annotations_in", "opened", "optimized"]


class AnnotatedGraph(dict[Any, Any]):
    """A graph with annotations.

    Attributes:
        annotations: key -> names ("priority", "retries", "workers", "resources" and whatever else) and values.
    """

    def __init__(self, graph: Mapping[Any, Any], annotations: dict[Hashable, Mapping[str, Any]]) -> None:
        super().__init__(graph)
        self.annotations = annotations


def annotations_in(graph: Any) -> dict[Hashable, Mapping[str, Any]]:
    """The annotations of the tasks of a graph, by their keys: of one of dask's graphs in layers, or one of ours."""
    if isinstance(graph, AnnotatedGraph):
        return graph.annotations
    found: dict[Hashable, Mapping[str, Any]] = {}
    layers = getattr(graph, "layers", None)
    for layer in layers.values() if isinstance(layers, Mapping) else ():
        said = getattr(layer, "annotations", None)
        if not said:
            continue
        plain = {name: value for name, value in said.items() if not callable(value)}
        made = {name: function for name, function in said.items() if callable(function)}  # of each key
        for key in layer:
            found[key] = plain
            if made:
                values = {name: function(key) for name, function in made.items()}
                # where dask has nothing to say of a key, it says so by an object of its own
                values = {name: value for name, value in values.items() if "Tombstone" not in type(value).__name__}
                if plain or values:
                    found[key] = {**plain, **values}
                else:
                    del found[key]
    return found


def optimized(how: Callable[[Any, Any], Any], graph: Any, keys: Any) -> Any:
    """A graph in layers that has annotations, optimized as far as it keeps them."""
    config = sys.modules.get("dask.config")
    with nullcontext() if config is None else config.set({"optimization.fuse.active": False}):
        found = how(graph, keys)
    return found if hasattr(found, "layers") else graph


def opened(graph: Any) -> Any:
    """A graph as a scheduler is given it: one with annotations as :class:`AnnotatedGraph`, another one as it is."""
    if type(graph) is dict or isinstance(graph, AnnotatedGraph):
        return graph
    found = annotations_in(graph)
    if found:
        return AnnotatedGraph(as_mapping(graph), found)
    parts = getattr(graph, "operands", None)
    if not isinstance(parts, (list, tuple)) or not any(annotations_in(getattr(part, "hlg", None)) for part in parts):
        return graph
    # one of dask's expressions over graphs in layers, that it would optimize as soon as it is asked for its graph
    whole: dict[Any, Any] = {}
    for part in parts:
        layers = getattr(part, "hlg", None)
        if layers is None:
            whole.update(part.__dask_graph__())
            continue
        how = part.low_level_optimizer
        if annotations_in(layers) and how is not None:
            layers = optimized(how, layers, part.__dask_keys__())
        elif how is not None:
            layers = how(layers, part.__dask_keys__())
        found.update(annotations_in(layers))
        whole.update(as_mapping(layers))
    return AnnotatedGraph(whole, found)
