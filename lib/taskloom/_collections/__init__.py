"""What all collections share: the protocol, running them, their names, their pictures.

The protocol has dask's own names, so that our collections run in dask and dask's run here. A collection has

- ``__dask_graph__()``: its graph, a dict; see :mod:`taskloom.graph.convention`;
- ``__dask_keys__()``: the wanted keys, a list, nested as the values are wanted;
- ``__dask_postcompute__()``: ``(finalize, args)``; ``finalize(values, *args)`` makes of the values of the keys, nested
  in the same way, what ``compute()`` returns;
- ``__dask_postpersist__()``: ``(rebuild, args)``; ``rebuild(graph, *args, rename=None)`` makes a collection of the same
  kind from a graph that has its keys;
- ``__dask_optimize__``: ``(graph, keys) -> graph`` or None;
- ``__dask_scheduler__``: the ``get`` function that runs it where nothing else is said;
- ``__dask_tokenize__()``: what :func:`tokenize` takes for it.

It imports neither dask nor a scheduler before one is asked for.
"""

from taskloom._collections.annotations import annotate, annotations_of, get_annotations
from taskloom._collections.protocol import Collection, is_collection, quote, unpack
from taskloom._collections.running import (
    compute,
    default_client,
    default_clients,
    get_processes,
    get_scheduler,
    get_sync,
    get_threads,
    optimize,
    persist,
    visualize,
)
from taskloom._collections.tokens import tokenize

__all__ = [
    "Collection",
    "annotate",
    "annotations_of",
    "compute",
    "default_client",
    "default_clients",
    "get_annotations",
    "get_processes",
    "get_scheduler",
    "get_sync",
    "get_threads",
    "is_collection",
    "optimize",
    "persist",
    "quote",
    "tokenize",
    "unpack",
    "visualize",
]
