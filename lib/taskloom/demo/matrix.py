"""A product of two matrices in blocks, as a plain loop and as a graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

Blocks = dict[tuple[int, int], Any]


def make_blocks(count: int, size: int, seed: int) -> Blocks:
    """A random matrix of ``count`` x ``count`` blocks of ``size`` x ``size`` float64, by place."""
    draw = np.random.default_rng(seed)
    return {(i, j): draw.standard_normal((size, size)) for i in range(count) for j in range(count)}


def multiply(a: Any, b: Any) -> Any:
    return a @ b


def add_up(products: list[Any]) -> Any:
    total = products[0].copy()
    for product in products[1:]:
        total += product
    return total


def plain_loop(a: Blocks, b: Blocks, places: Iterable[tuple[int, int]], count: int) -> Blocks:
    """Block by block, for the blocks of the product at these places."""
    return {(i, j): add_up([multiply(a[i, k], b[k, j]) for k in range(count)]) for i, j in places}


def make_graph(a: Blocks, b: Blocks, count: int) -> tuple[dict[Any, Any], list[Any]]:
    """The same as a graph: a dict of keys and what is to be computed for them.

    Returns:
        The graph, and the keys of the product's blocks.
    """
    graph: dict[Any, Any] = {}
    for place, block in a.items():
        graph["a", *place] = block
    for place, block in b.items():
        graph["b", *place] = block
    for i in range(count):
        for j in range(count):
            for k in range(count):
                # a task: a function and its arguments, here two keys, so it needs what those two give
                graph["product", i, j, k] = (multiply, ("a", i, k), ("b", k, j))
            graph["c", i, j] = (add_up, [("product", i, j, k) for k in range(count)])
    return graph, [("c", i, j) for i in range(count) for j in range(count)]


def is_product(blocks: Blocks, a: Blocks, b: Blocks, count: int) -> bool:
    """Whether blocks are the product of two matrices, without multiplying them again.

    For a random vector x, (A B) x has to be A (B x): Freivalds, "Probabilistic machines can use less running time", 1977.
    """
    x = np.random.default_rng(0).standard_normal((count, len(a[0, 0])))
    return bool(np.allclose(times(blocks, x), times(a, times(b, x))))


def times(blocks: Blocks, x: Any) -> Any:
    """A matrix times a vector, which is in pieces as long as a block."""
    count = len(x)
    return np.array([sum(blocks[i, j] @ x[j] for j in range(count)) for i in range(count)])
