"""placeholder"""
from taskloom.graph.compile import compile_graph
from taskloom.graph.convention import as_mapping
def cull(graph, keys):
    dsk = as_mapping(graph)
    return {k: dsk[k] for k in compile_graph(dsk, keys).keys}
