"""Task graphs: the convention, compiling, ordering, optimizing. A pure room: no clock, thread, socket or setting."""

from taskloom.graph.compile import Plan, compile_graph
from taskloom.graph.convention import Graph, Key, as_mapping, flatten_keys, is_task
from taskloom.graph.node import Literal
from taskloom.graph.order import find_cycle, order

__all__ = [
    "Graph",
    "Key",
    "Literal",
    "Plan",
    "as_mapping",
    "compile_graph",
    "find_cycle",
    "flatten_keys",
    "is_task",
    "order",
]
