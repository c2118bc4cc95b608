"""How many values an order keeps alive, ours against dask's, over a broad set of graphs.

Run it as ``python benchmarks/ordering.py [--write docs/ordering.md] [--only TEXT]``. It needs dask with its array and
dataframe parts, and xarray (``pip install 'taskloom[test]'``).

The model: one worker runs the tasks in the given order; a value is alive from the moment it is computed until its
last dependent has run, and a value that the caller asked for until the end. While a task runs, its inputs and its
result are alive together. All values count one: neither side knows their sizes.

The set of graphs lives in this file: a function for each shape gives ``{key: keys it needs}`` and the keys that are
asked for. Keys of the made-up shapes hold integers only, as their hashes (and so the order of dask's sets) are then
the same in each run; for the graphs that dask and xarray make, this program starts itself again with a fixed
PYTHONHASHSEED. No graph was left out because of its result.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Key = Hashable
Graph = dict[Any, tuple[Any, ...]]
Case = tuple[Graph, list[Any]]

CASES: dict[str, Callable[[], Case]] = {}
"""Name of a graph -> the function that makes it: (what each key needs, the keys asked for)."""

REAL: dict[str, Callable[[], Any]] = {}
"""Name of a graph -> the function that makes the dask or xarray collections whose graph it is."""


def case(name: str, *args: Any) -> Callable[[Callable[..., Case]], Callable[..., Case]]:
    """Enter a function's graph into the set, once for each use of the decorator."""

    def enter(function: Callable[..., Case]) -> Callable[..., Case]:
        CASES[name] = lambda: function(*args)
        return function

    return enter


def real(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Enter the graph of a dask collection into the set."""

    def enter(function: Callable[[], Any]) -> Callable[[], Any]:
        REAL[name] = function
        return function

    return enter


# ---------------------------------------------------------------------------------------------------------------------
# chains, trees, folds


@case("chains 100 x 10", 100, 10)
@case("one chain of 2,000", 1, 2000)
def chains(count: int, length: int) -> Case:
    graph: Graph = {(i, j): ((i, j - 1),) if j else () for i in range(count) for j in range(length)}
    return graph, [(i, length - 1) for i in range(count)]


@case("load, process, store, barrier", 300)
def barrier(count: int) -> Case:
    graph: Graph = {}
    for i in range(count):
        graph[0, i] = ()
        graph[1, i] = ((0, i),)
        graph[2, i] = ((1, i),)
    graph[3, 0] = tuple((2, i) for i in range(count))
    return graph, [(3, 0)]


@case("tree, fan-in 2, 1,024 leaves", 1024, 2)
@case("tree, fan-in 10, 1,000 leaves", 1000, 10)
@case("tree, fan-in 3, 500 leaves", 500, 3)
@case("tree, fan-in 16, 700 leaves of 3 tasks", 700, 16, 3)
def tree(leaves: int, fan_in: int, leaf_tasks: int = 1) -> Case:
    graph: Graph = {}
    for i in range(leaves):
        for j in range(leaf_tasks):
            graph[-j, i] = ((-j + 1, i),) if j else ()
    level, width, name = 1, leaves, 1 - leaf_tasks
    while width > 1:
        parts = [tuple((name, j) for j in range(i, min(i + fan_in, width))) for i in range(0, width, fan_in)]
        for i, part in enumerate(parts):
            graph[level, i] = part
        name, width, level = level, len(parts), level + 1
    return graph, [(name, 0)]


@case("random tree, any fan-in", 1000, 1)
@case("random tree, deep", 1000, 2, 8)
def random_tree(count: int, seed: int, back: int = 0) -> Case:
    """Each task but the first feeds one random earlier task (out of the last ``back``)."""
    rng = random.Random(seed)
    needs: dict[int, list[int]] = {i: [] for i in range(count)}
    for i in range(1, count):
        needs[rng.randrange(max(0, i - back) if back else 0, i)].append(i)
    return {i: tuple(d) for i, d in needs.items()}, [0]


@case("fold from the left, loads of 3 tasks", 300, True)
@case("fold from the right, loads of 3 tasks", 300, False)
def fold(count: int, left: bool) -> Case:
    graph: Graph = {}
    for i in range(count):
        graph[0, i] = ()
        graph[1, i] = ((0, i),)
        graph[2, i] = ((1, i),)
        if i:
            graph[3, i] = ((3, i - 1) if i > 1 else (2, 0), (2, i))
            if not left:
                graph[3, i] = graph[3, i][::-1]
    return graph, [(3, count - 1)]


@case("split tree, then merge tree", 7)
def divide(depth: int) -> Case:
    """Divide and conquer: halves of halves, then merged pairwise, as in a merge sort."""
    graph: Graph = {(0, 0, 0): ()}
    for level in range(1, depth + 1):
        for i in range(2**level):
            graph[0, level, i] = ((0, level - 1, i // 2),)
    for i in range(2**depth):
        graph[1, depth, i] = ((0, depth, i),)
    for level in range(depth - 1, -1, -1):
        for i in range(2**level):
            graph[1, level, i] = ((1, level + 1, 2 * i), (1, level + 1, 2 * i + 1))
    return graph, [(1, 0, 0)]


# ---------------------------------------------------------------------------------------------------------------------
# stencils and neighbours


@case("stencil 1-D, 32 wide, 32 steps", 32, 32)
@case("stencil 1-D, 200 wide, 5 steps", 200, 5)
@case("stencil 1-D, 8 wide, 150 steps", 8, 150)
@case("stencil 1-D, ring of 32, 20 steps", 32, 20, True)
def stencil(width: int, steps: int, ring: bool = False) -> Case:
    graph: Graph = {(0, i): () for i in range(width)}
    for t in range(1, steps):
        for i in range(width):
            near = (i - 1, i, i + 1)
            graph[t, i] = tuple((t - 1, j % width) for j in near if ring or 0 <= j < width)
    return graph, [(steps - 1, i) for i in range(width)]


@case("stencil 2-D, 12 x 12, 6 steps", 12, 6)
@case("stencil 2-D, 30 x 30, 2 steps", 30, 2)
def stencil2(width: int, steps: int) -> Case:
    graph: Graph = {(0, i, j): () for i in range(width) for j in range(width)}
    for t in range(1, steps):
        for i in range(width):
            for j in range(width):
                near = ((i, j), (i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))
                graph[t, i, j] = tuple((t - 1, a, b) for a, b in near if 0 <= a < width and 0 <= b < width)
    return graph, [(steps - 1, i, j) for i in range(width) for j in range(width)]


@case("overlap 1-D, shared borders, sum", 200)
def overlap(width: int) -> Case:
    graph: Graph = {}
    for i in range(width):
        graph[0, i] = ()
        graph[1, i] = ((0, i),)  # the left border, for the neighbour
        graph[2, i] = ((0, i),)  # the right border
        graph[3, i] = tuple(k for k in ((2, i - 1), (0, i), (1, i + 1)) if 0 <= k[1] < width)
        graph[4, i] = ((3, i),)
        graph[5, i] = ((4, i),)
    graph[6, 0] = tuple((5, i) for i in range(width))
    return graph, [(6, 0)]


@case("wavefront 30 x 30, the last cell", 30, False)
@case("wavefront 30 x 30, the last row", 30, True)
def wavefront(size: int, row: bool) -> Case:
    """Dynamic programming over two sequences: a cell needs the cells above, left and both."""
    graph: Graph = {}
    for i in range(size):
        for j in range(size):
            graph[i, j] = tuple((a, b) for a, b in ((i - 1, j), (i, j - 1), (i - 1, j - 1)) if a >= 0 and b >= 0)
    return graph, [(size - 1, j) for j in range(size)] if row else [(size - 1, size - 1)]


@case("double difference, 60 x 3", 60)
def double_difference(width: int) -> Case:
    """Differences of differences of neighbours, each with its own slices."""
    graph: Graph = {}
    for i in range(width):
        graph[0, i] = ()
    for level in range(3):
        for i in range(width - level - 1):
            graph[level + 1, i] = ((10 + level, i), (20 + level, i + 1))
            graph[10 + level, i] = ((level, i),)
            graph[20 + level, i + 1] = ((level, i + 1),)
    return graph, [(3, i) for i in range(width - 3)]


# ---------------------------------------------------------------------------------------------------------------------
# linear algebra in blocks


@case("matmul 7 x 7 x 7, sums in one task", 7, "sum")
@case("matmul 7 x 7 x 7, sums along a chain", 7, "chain")
@case("matmul 12 x 12 x 2, sums in one task", 12, "sum", 2)
def matmul(size: int, how: str, inner: int = 0) -> Case:
    inner = inner or size
    graph: Graph = {(0, i, k): () for i in range(size) for k in range(inner)}
    graph |= {(1, k, j): () for k in range(inner) for j in range(size)}
    for i in range(size):
        for j in range(size):
            for k in range(inner):
                graph[2, i, j, k] = ((0, i, k), (1, k, j))
                if how == "chain":
                    graph[3, i, j, k] = ((2, i, j, k),) + (((3, i, j, k - 1),) if k else ())
            if how == "sum":
                graph[3, i, j, inner - 1] = tuple((2, i, j, k) for k in range(inner))
    return graph, [(3, i, j, inner - 1) for i in range(size) for j in range(size)]


@case("cholesky 12 x 12", 12)
def cholesky(size: int) -> Case:
    """Right-looking: 0 is the input, 1 a tile's update after step k, 2 the finished tile."""
    graph: Graph = {}
    for i in range(size):
        for j in range(i + 1):
            graph[0, i, j] = ()
            last: Key = (0, i, j)
            for k in range(j):
                graph[1, i, j, k] = (last, (2, i, k), (2, j, k))
                last = (1, i, j, k)
            graph[2, i, j] = (last,) if i == j else (last, (2, j, j))
    return graph, [(2, i, j) for i in range(size) for j in range(i + 1)]


@case("lu 9 x 9", 9)
def lu(size: int) -> Case:
    graph: Graph = {}
    for i in range(size):
        for j in range(size):
            graph[0, i, j] = ()
            last: Key = (0, i, j)
            for k in range(min(i, j)):
                graph[1, i, j, k] = (last, (2, i, k), (2, k, j))
                last = (1, i, j, k)
            graph[2, i, j] = (last,) if i == j else (last, (2, min(i, j), min(i, j)))
    return graph, [(2, i, j) for i in range(size) for j in range(size)]


@case("triangular solve, 40", 40)
def triangular(size: int) -> Case:
    """Forward substitution: the blocks of the matrix are loaded, the sums go along a chain."""
    graph: Graph = {}
    for i in range(size):
        graph[0, i] = ()
        last: Key = (0, i)
        for j in range(i):
            graph[1, i, j] = ()
            graph[2, i, j] = (last, (1, i, j), (3, j))
            last = (2, i, j)
        graph[1, i, i] = ()
        graph[3, i] = (last, (1, i, i))
    return graph, [(3, i) for i in range(size)]


@case("tall-skinny qr, 64 blocks", 64)
def tsqr(blocks: int) -> Case:
    """QR by a binary tree; q comes back down the tree, one output a block and r."""
    graph: Graph = {}
    width, level = blocks, 0
    for i in range(blocks):
        graph[0, i] = ()
        graph[1, 0, i] = ((0, i),)  # qr
        graph[2, 0, i] = ((1, 0, i),)  # q
        graph[3, 0, i] = ((1, 0, i),)  # r
    while width > 1:
        level += 1
        width //= 2
        for i in range(width):
            graph[1, level, i] = ((3, level - 1, 2 * i), (3, level - 1, 2 * i + 1))
            graph[2, level, i] = ((1, level, i),)
            graph[3, level, i] = ((1, level, i),)
    top = level
    for lev in range(top - 1, -1, -1):
        for i in range(blocks >> lev):
            up = (2, top, 0) if lev + 1 == top else (4, lev + 1, i // 2)
            graph[4, lev, i] = ((2, lev, i), up)
    return graph, [(4, 0, i) for i in range(blocks)] + [(3, top, 0)]


@case("conjugate gradient, 12 blocks, 10 steps", 12, 10)
def conjugate_gradient(blocks: int, steps: int) -> Case:
    graph: Graph = {}
    for b in range(blocks):
        graph[0, b] = ()
        graph[1, 0, b] = ()
        graph[2, 0, b] = ((1, 0, b),)
        graph[3, 0, b] = ((1, 0, b),)
    for s in range(1, steps + 1):
        graph[4, s] = tuple((5, s, b) for b in range(blocks))
        graph[6, s] = tuple((7, s, b) for b in range(blocks))
        for b in range(blocks):
            near = [c for c in (b - 1, b, b + 1) if 0 <= c < blocks]
            graph[8, s, b] = ((0, b), *((3, s - 1, c) for c in near))
            graph[5, s, b] = ((8, s, b), (3, s - 1, b))
            graph[2, s, b] = ((2, s - 1, b), (8, s, b), (4, s))
            graph[1, s, b] = ((1, s - 1, b), (3, s - 1, b), (4, s))
            graph[7, s, b] = ((2, s, b),)
            graph[3, s, b] = ((2, s, b), (3, s - 1, b), (6, s))
    return graph, [(1, steps, b) for b in range(blocks)]


# ---------------------------------------------------------------------------------------------------------------------
# everything to everything


@case("transpose and add, 20 x 20 blocks", 20, False)
@case("transpose, add and sum, 20 x 20 blocks", 20, True)
def transpose(size: int, total: bool) -> Case:
    graph: Graph = {(0, i, j): () for i in range(size) for j in range(size)}
    for i in range(size):
        for j in range(size):
            graph[1, i, j] = ((0, j, i),)
            graph[2, i, j] = ((0, i, j), (1, i, j))
    if not total:
        return graph, [(2, i, j) for i in range(size) for j in range(size)]
    for i in range(size):
        for j in range(size):
            graph[3, i, j] = ((2, i, j),)
        graph[4, i] = tuple((3, i, j) for j in range(size))
    graph[5, 0] = tuple((4, i) for i in range(size))
    return graph, [(5, 0)]


@case("rows to columns, 20 x 20", 20, 20)
@case("rows to columns, 6 x 80", 6, 80)
@case("rows to columns, 80 x 6", 80, 6)
def rows_to_columns(rows: int, columns: int) -> Case:
    """The same as one stage of a shuffle: each input is cut in pieces, each output joins one piece of each."""
    graph: Graph = {(0, i): () for i in range(rows)}
    for j in range(columns):
        for i in range(rows):
            graph[1, i, j] = ((0, i),)
        graph[2, j] = tuple((1, i, j) for i in range(rows))
    return graph, [(2, j) for j in range(columns)]


@case("shuffle in 3 stages of 4, then a sum each", 4, 3)
def staged_shuffle(base: int, stages: int) -> Case:
    count = base**stages
    graph: Graph = {(0, i): () for i in range(count)}
    for s in range(stages):
        step = base**s
        for i in range(count):
            digit = i // step % base
            home = i - digit * step
            for d in range(base):
                graph[1, s, i, d] = ((0, i) if s == 0 else (2, s - 1, i),)
            graph[2, s, i] = tuple((1, s, home + d * step, digit) for d in range(base))
    for i in range(count):
        graph[3, i] = ((2, stages - 1, i),)
    return graph, [(3, i) for i in range(count)]


@case("rechunk by neighbours, 90 to 60", 90, 60)
def rechunk(many: int, few: int) -> Case:
    """Chunks of 2 into chunks of 3: a piece of each overlap."""
    graph: Graph = {(0, i): () for i in range(many)}
    for j in range(few):
        lo, hi = j * many / few, (j + 1) * many / few
        parts = [i for i in range(many) if i < hi and i + 1 > lo]
        for i in parts:
            graph[1, i, j] = ((0, i),)
        graph[2, j] = tuple((1, i, j) for i in parts)
    return graph, [(2, j) for j in range(few)]


@case("butterfly of 64", 6)
def butterfly(bits: int) -> Case:
    graph: Graph = {(0, i): () for i in range(2**bits)}
    for s in range(bits):
        for i in range(2**bits):
            graph[s + 1, i] = ((s, i), (s, i ^ (1 << s)))
    return graph, [(bits, i) for i in range(2**bits)]


@case("all pairs of 40, then a sum", 40)
def pairs(count: int) -> Case:
    graph: Graph = {(0, i): () for i in range(count)}
    for i in range(count):
        for j in range(i):
            graph[1, i, j] = ((0, i), (0, j))
    graph[2, 0] = tuple((1, i, j) for i in range(count) for j in range(i))
    return graph, [(2, 0)]


@case("fold by key, 60 maps, 12 reducers", 60, 12)
def fold_by_key(maps: int, reducers: int) -> Case:
    graph: Graph = {}
    for m in range(maps):
        graph[0, m] = ()
        graph[1, m] = ((0, m),)
        for r in range(reducers):
            graph[2, m, r] = ((1, m),)
    for r in range(reducers):
        graph[3, r] = tuple((2, m, r) for m in range(maps))
        graph[4, r] = ((3, r),)
    graph[5, 0] = tuple((4, r) for r in range(reducers))
    return graph, [(5, 0)]


@case("join of two tables, 10 x 10 pieces, sum", 10)
def join(parts: int) -> Case:
    graph: Graph = {}
    for side in range(2):
        for i in range(parts):
            graph[0, side, i] = ()
            graph[1, side, i] = ((0, side, i),)
            for j in range(parts):
                graph[2, side, i, j] = ((1, side, i),)
        for j in range(parts):
            graph[3, side, j] = tuple((2, side, i, j) for i in range(parts))
    for j in range(parts):
        graph[4, j] = ((3, 0, j), (3, 1, j))
        graph[5, j] = ((4, j),)
    graph[6, 0] = tuple((5, j) for j in range(parts))
    return graph, [(6, 0)]


# ---------------------------------------------------------------------------------------------------------------------
# scans


@case("cumulative sum, 200 blocks, carried along", 200)
def cumulative(blocks: int) -> Case:
    graph: Graph = {}
    for i in range(blocks):
        graph[0, i] = ()
        graph[1, i] = ((0, i),)
        graph[2, i] = ((1, i),)
        graph[3, i] = ((2, i), (3, i - 1)) if i else ((2, i),)
        graph[4, i] = ((1, i), (3, i - 1)) if i else ((1, i),)
    return graph, [(4, i) for i in range(blocks)]


@case("cumulative sum by Blelloch's tree, 128", 7)
def blelloch(bits: int) -> Case:
    width = 2**bits
    graph: Graph = {}
    for i in range(width):
        graph[0, i] = ()
        graph[1, 0, i] = ((0, i),)
    for level in range(1, bits):
        for i in range(width >> level):
            graph[1, level, i] = ((1, level - 1, 2 * i), (1, level - 1, 2 * i + 1))
    # 2, level, i: the sum of all that is left of node i; none for the leftmost
    for level in range(bits - 1, -1, -1):
        for i in range(1, width >> level):
            up = (2, level + 1, i // 2) if i // 2 else None
            if i % 2 == 0:
                graph[2, level, i] = (up,)
            else:
                graph[2, level, i] = ((1, level, i - 1), up) if up else ((1, level, i - 1),)
    for i in range(width):
        graph[3, i] = ((0, i), (2, 0, i)) if i else ((0, i),)
    return graph, [(3, i) for i in range(width)]


# ---------------------------------------------------------------------------------------------------------------------
# several reductions of the same inputs


def _reduce(graph: Graph, name: int, leaves: list[Any], fan_in: int) -> Any:
    level = 0
    while len(leaves) > 1:
        parts = [tuple(leaves[i : i + fan_in]) for i in range(0, len(leaves), fan_in)]
        leaves = []
        for i, part in enumerate(parts):
            graph[name, level, i] = part
            leaves.append((name, level, i))
        level += 1
    return leaves[0]


@case("mean and deviation, 200 blocks, trees of 4", 200, 4)
@case("mean and deviation, 200 blocks, trees of 16", 200, 16)
def mean_std(blocks: int, fan_in: int) -> Case:
    graph: Graph = {}
    for i in range(blocks):
        graph[0, i] = ()
        graph[1, i] = ((0, i),)
        graph[2, i] = ((0, i),)
        graph[3, i] = ((2, i),)
    mean = _reduce(graph, 10, [(1, i) for i in range(blocks)], fan_in)
    std = _reduce(graph, 11, [(3, i) for i in range(blocks)], fan_in)
    graph[12, 0] = (mean, std)
    graph[13, 0] = (mean,)
    return graph, [(12, 0), (13, 0)]


@case("means of u, v, uv, 150 blocks", 150, 5)
def quadratic_means(blocks: int, fan_in: int) -> Case:
    """The 'array against dataframe' graph of dask's tests."""
    graph: Graph = {}
    for i in range(blocks):
        graph[0, i] = ()
        graph[1, i] = ()
        graph[2, i] = ((0, i),)
        graph[3, i] = ((1, i),)
        graph[4, i] = ((0, i), (1, i))
    roots = [_reduce(graph, 10 + v, [(v, i) for i in range(blocks)], fan_in) for v in (2, 3, 4)]
    return graph, roots


@case("normalize by mean and deviation, 60 blocks", 60)
def normalize(blocks: int) -> Case:
    """Each input is kept (or would be loaded again) until the reduction over all is done."""
    graph: Graph = {}
    for i in range(blocks):
        graph[0, i] = ()
        graph[1, i] = ((0, i),)
        graph[2, i] = ((0, i),)
    mean = _reduce(graph, 10, [(1, i) for i in range(blocks)], 8)
    std = _reduce(graph, 11, [(2, i) for i in range(blocks)], 8)
    for i in range(blocks):
        graph[3, i] = ((0, i), mean)
        graph[4, i] = ((3, i), std)
    return graph, [(4, i) for i in range(blocks)]


@case("climatology, 12 groups, 240 blocks, anomalies", 12, 240, "all")
@case("climatology, 12 groups, 240 blocks, one mean of anomalies", 12, 240, "mean")
@case("climatology, 5 groups, 200 blocks, a mean for each group", 5, 200, "groups")
def climatology(groups: int, blocks: int, ask: str) -> Case:
    graph: Graph = {}
    for i in range(blocks):
        graph[0, i] = ()
        graph[1, i] = ((0, i),)
        graph[2, i] = ((1, i),)
    means = [_reduce(graph, 10 + g, [(2, i) for i in range(g, blocks, groups)], 4) for g in range(groups)]
    for i in range(blocks):
        graph[3, i] = (means[i % groups],)
        graph[4, i] = ((0, i), (3, i))
        graph[5, i] = ((4, i),)
    if ask == "all":
        return graph, [(5, i) for i in range(blocks)]
    if ask == "mean":
        return graph, [_reduce(graph, 100, [(5, i) for i in range(blocks)], 4)]
    return graph, [_reduce(graph, 100 + g, [(5, i) for i in range(g, blocks, groups)], 4) for g in range(groups)]


@case("climatology, 6 groups in 90 blocks of shared loads", 6, 90)
def flox(groups: int, blocks: int) -> Case:
    """Each load is cut into a piece for each group; the groups' reductions share all loads."""
    graph: Graph = {}
    for i in range(blocks):
        graph[0, i] = ()
        for g in range(groups):
            graph[1, i, g] = ((0, i),)
            graph[2, i, g] = ((1, i, g),)
    roots = [_reduce(graph, 10 + g, [(2, i, g) for i in range(blocks)], 4) for g in range(groups)]
    graph[9, 0] = tuple(roots)
    return graph, [(9, 0)]


@case("cohorts: groups of 3 loads out of 60, slices", 60)
def cohorts(loads: int) -> Case:
    graph: Graph = {(0, 0): ()}
    for i in range(loads):
        graph[1, i] = ((0, 0),)
        for s in range(2):
            graph[2, i, s] = ((1, i),)
            graph[3, i, s] = ((2, i, s),)
    for g in range(loads // 3):
        for s in range(2):
            graph[4, g, s] = tuple((3, i, s) for i in range(3 * g, 3 * g + 3))
            graph[5, g, s] = ((4, g, s),)
    return graph, [(5, g, s) for g in range(loads // 3) for s in range(2)]


@case("three variables, reduced across, 20 x 3", 20)
def xarray_like(width: int) -> Case:
    graph: Graph = {}
    for x in range(width):
        graph[0, 0, x] = ()
        graph[0, 1, x] = ()
        graph[1, 0, x] = ((0, 0, x),)
        graph[1, 1, x] = ((0, 0, x), (0, 1, x))
        graph[1, 2, x] = ((0, 1, x),)
        for v in range(3):
            graph[2, v, x] = ((1, v, x),)
    for v in range(3):
        graph[3, v] = tuple((2, v, x) for x in range(width))
    return graph, [(3, v) for v in range(3)]


@case("reducers with many inputs in common, 50 x 8", 50, 8)
def common_inputs(inputs: int, reducers: int) -> Case:
    """After dask's issue about reductions with many common dependents: partial sums of everything, each output."""
    graph: Graph = {}
    for i in range(inputs):
        graph[0, i] = ()
        graph[1, i] = ((0, i),)
    for r in range(reducers):
        for c in range(0, inputs, 5):
            graph[2, r, c] = tuple((1, i) for i in range(c, c + 5))
        graph[3, r] = tuple((2, r, c) for c in range(0, inputs, 5))
        graph[4, r] = ((3, r),)
    return graph, [(4, r) for r in range(reducers)]


# ---------------------------------------------------------------------------------------------------------------------
# one to many and many to many


@case("one value to 500 tasks, summed", 500, 1, True)
@case("one value to 100 chains of 5", 100, 5, False)
def broadcast(width: int, length: int, total: bool) -> Case:
    graph: Graph = {(0, 0): ()}
    for i in range(width):
        for j in range(length):
            graph[1, i, j] = ((1, i, j - 1),) if j else ((0, 0),)
    ends = [(1, i, length - 1) for i in range(width)]
    if total:
        graph[2, 0] = tuple(ends)
        return graph, [(2, 0)]
    return graph, ends


@case("broadcast a model to loads, 100, partial sums", 100)
def predict(blocks: int) -> Case:
    graph: Graph = {(0, 0): (), (0, 1): ((0, 0),)}
    for i in range(blocks):
        graph[1, i] = ()
        graph[2, i] = ((1, i), (0, 1))
        graph[3, i] = ((2, i), (1, i))
    return graph, [_reduce(graph, 10, [(3, i) for i in range(blocks)], 8)]


@case("outputs over a sliding window of 4 inputs", 150, 4)
def sliding(count: int, window: int) -> Case:
    graph: Graph = {(0, i): () for i in range(count + window)}
    for i in range(count):
        graph[1, i] = tuple((0, i + k) for k in range(window))
    return graph, [(1, i) for i in range(count)]


@case("outputs over a sliding window, asked for shuffled", 150, 4)
def shuffled_sliding(count: int, window: int) -> Case:
    graph, outputs = sliding(count, window)
    graph = graph | {(2, k): (k,) for k in outputs}
    outputs = [(2, k) for k in outputs]
    random.Random(7).shuffle(outputs)
    return graph, outputs


@case("outputs over 3 random inputs each", 150, 60, 3)
def random_sharing(count: int, inputs: int, each: int) -> Case:
    rng = random.Random(11)
    graph: Graph = {}
    for i in range(count):
        graph[1, i] = tuple((0, k) for k in rng.sample(range(inputs), each))
        graph |= dict.fromkeys(graph[1, i], ())
    return graph, [(1, i) for i in range(count)]


@case("grid search, 5 folds, 30 settings", 5, 30)
def grid_search(folds: int, settings: int) -> Case:
    graph: Graph = {(0, 0): ()}
    for f in range(folds):
        graph[1, f] = ((0, 0),)
        graph[2, f] = ((0, 0),)
    for s in range(settings):
        for f in range(folds):
            graph[3, s, f] = ((1, f),)
            graph[4, s, f] = ((3, s, f), (2, f))
        graph[5, s] = tuple((4, s, f) for f in range(folds))
    graph[6, 0] = tuple((5, s) for s in range(settings))
    graph[7, 0] = ((0, 0), (6, 0))
    return graph, [(7, 0)]


@case("gradient descent, 15 blocks, 12 steps", 15, 12)
def gradient(blocks: int, steps: int) -> Case:
    graph: Graph = {(0, b): () for b in range(blocks)}
    graph |= {(1, b): () for b in range(blocks)}
    graph[2, 0] = ()
    for s in range(1, steps + 1):
        for b in range(blocks):
            graph[3, s, b] = ((0, b), (2, s - 1))
            graph[4, s, b] = ((3, s, b), (1, b))
            graph[5, s, b] = ((0, b), (4, s, b))
        graph[2, s] = ((2, s - 1), *((5, s, b) for b in range(blocks)))
    return graph, [(2, steps)]


@case("normal equations, 100 blocks", 100)
def normal_equations(blocks: int) -> Case:
    graph: Graph = {}
    for b in range(blocks):
        graph[0, b] = ()
        graph[1, b] = ()
        graph[2, b] = ((0, b),)
        graph[3, b] = ((0, b), (1, b))
        graph[6, b] = ((0, b), (1, b), (5, 0))
    left = _reduce(graph, 10, [(2, b) for b in range(blocks)], 8)
    right = _reduce(graph, 11, [(3, b) for b in range(blocks)], 8)
    graph[5, 0] = (left, right)
    return graph, [(5, 0), _reduce(graph, 12, [(6, b) for b in range(blocks)], 8)]


@case("incremental fit, 60 batches cut from 2 values", 60)
def incremental(depth: int) -> Case:
    """dask-ml issue 206: batches of a shared value, fitted one after another; loads of batches must come late."""
    graph: Graph = {(0, 0): (), (1, 0): (), (2, 0): (), (3, 0): ((0, 0), (1, 0), (2, 0))}
    for i in range(1, depth):
        graph[1, i] = ((1, 0),)
        graph[2, i] = ((2, 0),)
        graph[3, i] = ((3, i - 1), (1, i), (2, i))
    return graph, [(3, depth - 1)]


@case("incremental fit, 60 loaded batches, scored after each", 60)
def incremental_scored(depth: int) -> Case:
    graph: Graph = {(0, 0): (), (9, 0): ()}
    for i in range(1, depth):
        graph[1, i] = ()
        graph[2, i] = ((1, i),)
        graph[3, i] = ((1, i),)
        graph[0, i] = ((0, i - 1), (2, i), (3, i))
        graph[4, i] = ((0, i), (9, 0))
    graph[5, 0] = tuple((4, i) for i in range(1, depth))
    return graph, [(5, 0), (0, depth - 1)]


# ---------------------------------------------------------------------------------------------------------------------
# diamonds and random graphs


@case("chain of 200 diamonds", 200, 2)
@case("chain of 60 wide diamonds of chains", 60, 6, 3)
def diamonds(count: int, width: int, length: int = 1) -> Case:
    graph: Graph = {(0, 0): ()}
    for i in range(count):
        for w in range(width):
            for j in range(length):
                graph[1, i, w, j] = ((1, i, w, j - 1),) if j else ((0, i),)
        graph[0, i + 1] = tuple((1, i, w, length - 1) for w in range(width))
    return graph, [(0, count)]


@case("fork and join, 30 wide, 20 times, uneven branches", 30, 20)
def fork_join(width: int, times: int) -> Case:
    rng = random.Random(3)
    graph: Graph = {(0, 0): ()}
    for t in range(times):
        ends = []
        for w in range(width):
            length = rng.randrange(1, 6)
            for j in range(length):
                graph[1, t, w, j] = ((1, t, w, j - 1),) if j else ((0, t),)
            ends.append((1, t, w, length - 1))
        graph[0, t + 1] = tuple(ends)
    return graph, [(0, times)]


@case("random DAG, 1 input each, 60 outputs", 1000, 1, 0, 21, 60)
@case("random DAG, 2 inputs each", 1000, 2, 0, 22)
@case("random DAG, 2 inputs near by", 1000, 2, 30, 23)
@case("random DAG, 3 inputs near by", 1000, 3, 60, 24)
@case("random DAG, 3 inputs each", 1000, 3, 0, 25)
@case("random DAG, 6 inputs each", 600, 6, 0, 26)
@case("random DAG, 0 to 4 inputs near by, 40 outputs", 1500, -4, 40, 27, 40)
@case("random DAG, 0 to 2 inputs near by", 1500, -2, 25, 28)
def random_dag(count: int, each: int, back: int, seed: int, outputs: int = 0) -> Case:
    """Task i needs ``each`` (or 0 to -each) of the last ``back`` (or of all) earlier tasks."""
    rng = random.Random(seed)
    graph: Graph = {}
    for i in range(count):
        lo = max(0, i - back) if back else 0
        k = each if each > 0 else rng.randrange(0, -each + 1)
        graph[i] = tuple(rng.sample(range(lo, i), min(k, i - lo)))
    used = {d for deps in graph.values() for d in deps}
    ends = [i for i in graph if i not in used]
    if outputs:
        ends += rng.sample(range(count), outputs)
        return graph, list(dict.fromkeys(ends))
    return graph, ends


@case("random layers, 25 x 40, 2 inputs", 25, 40, 2, 31)
@case("random layers, 60 x 12, 3 inputs", 60, 12, 3, 32)
def random_layers(layers: int, width: int, each: int, seed: int) -> Case:
    rng = random.Random(seed)
    graph: Graph = {(0, i): () for i in range(width)}
    for t in range(1, layers):
        for i in range(width):
            graph[t, i] = tuple((t - 1, j) for j in rng.sample(range(width), each))
    return graph, [(layers - 1, i) for i in range(width)]


@case("random series-parallel graph", 900, 41)
def series_parallel(count: int, seed: int) -> Case:
    """Edges are split in series or doubled by a path, at random."""
    rng = random.Random(seed)
    needs: dict[int, list[int]] = {0: [], 1: [0]}
    edges = [(0, 1)]
    for new in range(2, count):
        i = rng.randrange(len(edges))
        a, b = edges[i]
        needs[new] = [a]
        if rng.random() < 0.5:
            edges[i] = (a, new)
            edges.append((new, b))
            needs[b][needs[b].index(a)] = new
        else:
            edges += [(a, new), (new, b)]
            needs[b].append(new)
    return {i: tuple(d) for i, d in needs.items()}, [1]


# ---------------------------------------------------------------------------------------------------------------------
# small graphs of dask's own tests (dask/tests/test_order.py), said again with integers


def _numbered(text: str) -> Case:
    """Read 'c:a b, d:c' as c needs a and b, d needs c; what nothing needs is asked for."""
    graph: Graph = {}
    for part in text.split(","):
        name, _, needs = part.strip().partition(":")
        graph[name] = tuple(needs.split())
    for deps in list(graph.values()):
        for d in deps:
            graph.setdefault(d, ())
    number = {k: i for i, k in enumerate(sorted(graph))}
    used = {d for deps in graph.values() for d in deps}
    return {number[k]: tuple(number[d] for d in v) for k, v in graph.items()}, [
        number[k] for k in graph if k not in used
    ]


@case("dask test: nearest neighbour")
def nearest() -> Case:
    return _numbered("a1:b1, a2:b1, a3:b1 b2, a4:b2, a5:b2 b3, a6:b3, a7:b3 b4, a8:b4, a9:b4")


@case("dask test: smaller sections")
def smaller_sections() -> Case:
    return _numbered("b:a c, d:c e, bb:cc, aa:d bb, dd:cc")


@case("dask test: structure, not keys")
def structure() -> Case:
    return _numbered(
        "b5:a2, b7:a0 a2, b9:a7 a0 a2, b1:a4 a7 a0, b2:a9 a4 a7, b4:a6 a9 a4, b3:a5 a6 a9, b8:a1 a5 a6, b6:a8 a1 a5,"
        "b0:a3 a8 a1"
    )


@case("dask test: many branches")
def many_branches() -> Case:
    return _numbered(
        "a1:a0, a2:a1, b1:a0, b2:b1, c1:a0, d1:a0, d2:d1, f1:a0, f2:f1, f3:d2 f2, e1:a0, e2:e1, g1:a0, g2:g1, g3:e2 g2,"
        "a3:a2 b2 c1 f3 g3"
    )


@case("dask test: eager, to free a parent")
def eager_parent() -> Case:
    return _numbered(
        "00:06 08, 01:28 26, 02:24 21, 03:22 25, 04:29 20, 05:23 27, 06:04 02, 07:00 01, 08:05 03, 09:43, "
        "10:36, 11:33, 12:47, 13:44, 14:42, 15:37, 16:48, 17:49, 18:35, 19:46, 20:55, 21:53, 22:60, "
        "23:54, 24:59, 25:56, 26:61, 27:52, 28:57, 29:58, 30:19, 31:07, 32:30 31, 33:58, 34:11 09, 35:60, "
        "36:52, 37:61, 38:14 10, 39:38 40, 40:18 17, 41:34 50, 42:54, 43:55, 44:53, 45:16 15, 46:51 45, "
        "47:59, 48:57, 49:56, 50:12 13, 51:41 39, 52:62, 53:68, 54:70, 55:67, 56:71, 57:64, 58:65, 59:63, "
        "60:69, 61:66"
    )


@case("dask test: two maxima of all pairs", 4)
@case("two maxima of all pairs of 12", 12)
def equal_dependents(width: int) -> Case:
    graph: Graph = {}
    for x in range(width):
        graph |= {(x, 0): (), (x, 1): ((x, 0),), (x, 2, 0): ((x, 0),), (x, 2, 1): ((x, 1),)}
        for y in range(width):
            graph[x, 3, y] = ((x, 2, 0), (y, 2, 1))
            graph[x, 4, y] = ((x, 3, y),)
            for k in range(2):
                graph[x, 5, y, k] = ((x, 4, y),)
                graph[x, 6, y, k] = ((x, 5, y, k),)
    return graph, [(x, 6, y, k) for x in range(width) for y in range(width) for k in range(2)]


@case("dask test: back from a terminal task")
def terminal() -> Case:
    return _numbered("b0:a0 a1, b1:a1 a2, s0:b0, s1:b1, b2:a3 a4, b3:a4 a5, s2:b2, s3:b3, z:s0 s1 s2 s3")


@case("dask test: raw mean of anomalies")
def anom_mean_raw() -> Case:
    return _numbered(
        "d0:a0 v0, d1:a1 v1, d2:a2 v2, d3:a3 v3, d4:a4 v4, e0:g1, e1:g3, b00:a0, b01:a2, b02:a4, c00:b00, c01:b01,"
        "c02:b02, g1:c00 c01 c02, b20:a1, b21:a3, c10:b20, c11:b21, g3:c10 c11, v0:e0, v1:e1, v2:e0, v3:e1, v4:e0,"
        "c20:d0, c21:d1, c22:d2, c23:d3, c24:d4, h0:c20 c21 c22 c23, h1:c24, g2:h0 h1"
    )


@case("dask test: map overlap")
def test_overlap() -> Case:
    return _numbered(
        "d1:e1, c1:d1, b1:c1 c2, c2:d1 d2 d3, d3:e3, c3:d3, b3:c2 c3 c4, c4:d3 d4 d5, d5:e5, c5:d5, b5:c4 c5"
    )


@case("dask test: stack of rasters, 24 pixels", 24)
def rasters(count: int) -> Case:
    """One table; each raster is read, used by one output whole and by the other in two pieces."""
    graph: Graph = {(0, 0): (), (0, 1): ((0, 0),)}
    for i in range(count):
        graph[1, i] = ((0, 1),)
        graph[2, i] = ((1, i),)
        graph[3, i] = ((2, i),)
        graph[4, i] = ((3, i),)
        graph[5, i] = ((4, i),)
        graph[6, i] = ((1, i),)
        graph[7, i] = ((6, i),)
        graph[8, i] = ((3, i),)
        graph[9, i] = ((7, i), (8, i))
        graph[10, i] = ((9, i),)
    for o, piece in ((0, 5), (1, 10)):
        for g in range(0, count, 4):
            graph[11, o, g] = tuple((piece, i) for i in range(g, g + 4))
            graph[12, o, g] = ((11, o, g),)
    return graph, [(12, o, g) for o in range(2) for g in range(0, count, 4)]


# ---------------------------------------------------------------------------------------------------------------------
# graphs that dask and xarray make


def _random(shape: tuple[int, ...], chunks: Any) -> Any:
    import dask.array as da

    _random_calls[0] += 1  # two arrays are two, not one computed once
    return da.random.default_rng(_random_calls[0]).random(shape, chunks=chunks)


_random_calls = [0]


@real("dask.array: (x + x.T).sum(axis=0)")
def _da_transpose() -> Any:
    import dask.array as da

    x = da.ones((200, 200), chunks=(20, 20))
    return (x + x.T).sum(axis=0)


@real("dask.array: x @ y")
def _da_matmul() -> Any:
    x = _random((80, 80), chunks=(10, 10))
    y = _random((80, 80), chunks=(10, 10))
    return x @ y


@real("dask.array: (x - x.mean(0)) / x.std(0)")
def _da_standardize() -> Any:
    x = _random((400, 40), chunks=(10, 20))
    return (x - x.mean(axis=0)) / x.std(axis=0)


@real("dask.array: cholesky")
def _da_cholesky() -> Any:
    import dask.array as da

    return da.linalg.cholesky(da.ones((100, 100), chunks=(10, 10)))


@real("dask.array: qr")
def _da_qr() -> Any:
    import dask.array as da

    return list(da.linalg.qr(_random((1000, 10), chunks=(20, 10))))


@real("dask.array: svd_compressed")
def _da_svd() -> Any:
    import dask.array as da

    return list(da.linalg.svd_compressed(_random((1000, 60), chunks=(50, 30)), k=5, n_power_iter=2))


@real("dask.array: rechunk rows to columns")
def _da_rechunk() -> Any:
    return _random((300, 300), chunks=(10, 150)).rechunk((150, 10)).sum(axis=0)


@real("dask.array: map_overlap 2-D")
def _da_overlap() -> Any:
    x = _random((120, 120), chunks=(12, 12))
    return x.map_overlap(lambda b: b + 1, depth=1, boundary="reflect", meta=x._meta)


@real("dask.array: cumsum and difference")
def _da_cumsum() -> Any:
    import dask.array as da

    x = _random((2000,), chunks=20)
    return da.diff(da.cumsum(x))


@real("dask.array: fft2 by rechunk")
def _da_fft() -> Any:
    import dask.array as da

    x = _random((120, 120), chunks=(120, 12))
    y = da.fft.fft(x, axis=0).rechunk((12, 120))
    return abs(da.fft.fft(y, axis=1)).mean()


@real("dask.array: broadcast, then sum over two axes")
def _da_critical() -> Any:
    x = _random((40, 40, 40), chunks=(10, 10, 10))
    y = x.sum(axis=2)
    return (x * y[:, :, None]).sum(axis=(1, 2))


@real("dask.array: a video's background")
def _da_video() -> Any:
    x = _random((300, 20, 20), chunks=(10, 20, 20))
    background = x.mean(axis=0)
    motion = abs(x - background)
    return [motion.max(axis=0), motion.sum(axis=(1, 2)), background]


@real("dask.array: percentile, histogram, mean of one array")
def _da_statistics() -> Any:
    import dask.array as da

    x = _random((4000,), chunks=40)
    counts, _ = da.histogram(x, bins=10, range=(0, 1))
    return [da.percentile(x, [5, 50, 95]), counts, x.mean()]


@real("dask.array: power iteration")
def _da_power() -> Any:
    import dask.array as da

    x = _random((100, 100), chunks=(20, 20))
    v = da.ones((100,), chunks=20)
    for _ in range(6):
        v = x @ v
        v = v / da.sqrt((v**2).sum())
    return v


def _frame(parts: int = 30, seed: int = 1) -> Any:
    import dask.dataframe as dd
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(seed)
    pdf = pd.DataFrame({"k": rng.integers(0, 9, 600), "a": rng.random(600), "b": rng.random(600)})
    return dd.from_pandas(pdf, npartitions=parts)


@real("dask.dataframe: groupby aggregate, split out")
def _dd_groupby() -> Any:
    return _frame().groupby("k").agg({"a": "mean", "b": "std"}, split_out=4)


@real("dask.dataframe: merge by shuffle")
def _dd_merge() -> Any:
    return _frame(16).merge(_frame(12, 2), on="k", shuffle_method="tasks", broadcast=False).a_x.sum()


@real("dask.dataframe: set_index by tasks")
def _dd_set_index() -> Any:
    return _frame(20).set_index("a", divisions=[i / 20 for i in range(21)], shuffle_method="tasks").b.cumsum()


@real("dask.dataframe: rolling mean, describe")
def _dd_rolling() -> Any:
    df = _frame(40)
    return [df.rolling(3).mean().a.sum(), df.describe()]


@real("dask.dataframe: drop duplicates, join back")
def _dd_duplicates() -> Any:
    df = _frame(24)
    return (
        df[["k"]]
        .drop_duplicates(split_out=3, shuffle_method="tasks")
        .merge(df, on="k", shuffle_method="tasks", broadcast=False)
    )


def _climate(steps: int, chunk: int, groups: int) -> Any:
    import numpy as np
    import xarray as xr

    data = _random((steps, 8), chunks=(chunk, -1))
    return xr.DataArray(data, dims=["time", "x"], coords={"day": ("time", np.arange(steps) % groups)}, name="t")


@real("xarray: mean of anomalies by group")
def _xr_anom_mean() -> Any:
    arr = _climate(200, 1, 5)
    return (arr.groupby("day") - arr.groupby("day").mean(dim="time")).mean(dim="time")


@real("xarray: anomalies by group, blocks of 5")
def _xr_anomalies() -> Any:
    arr = _climate(240, 5, 12)
    return arr.groupby("day") - arr.groupby("day").mean(dim="time")


def _quad() -> Any:
    import xarray as xr

    ds = xr.Dataset({n: (["time", "j", "i"], _random((500, 9, 12), chunks=(5, -1, -1))) for n in ("anom_u", "anom_v")})
    quad = ds**2
    quad["uv"] = ds.anom_u * ds.anom_v
    return quad.mean("time")


@real("xarray: means of u2, v2, uv")
def _xr_quad() -> Any:
    return _quad()


@real("xarray: means of u2, v2, uv as a dataframe")
def _xr_quad_df() -> Any:
    return _quad().to_dask_dataframe()


@real("xarray: rolling mean and coarsen")
def _xr_rolling() -> Any:
    arr = _climate(300, 10, 5)
    return [arr.rolling(time=5).mean().data, arr.coarsen(time=15).mean().data]


@real("xarray: product with a shared vector, map_blocks")
def _xr_shared() -> Any:
    import numpy as np
    import xarray as xr

    ds = xr.Dataset({"a": (("x", "y"), np.arange(400).reshape(40, 10)), "b": (("y"), np.arange(10))}).chunk(x=1)
    return ds.map_blocks(lambda d: (d.a * d.b * d.b).sum("y"))


@real("xarray: weighted mean, minus its monthly mean")
def _xr_weighted() -> Any:
    import numpy as np
    import xarray as xr

    arr = xr.DataArray(
        _random((120, 20, 20), chunks=(6, 10, 10)),
        dims=["time", "y", "x"],
        coords={"month": ("time", np.arange(120) // 6 % 12)},
    )
    mean = arr.weighted(xr.DataArray(np.linspace(1, 2, 20), dims=["y"])).mean(["x", "y"])
    return arr.groupby("month").mean("time") - mean.mean("time")


def _flat(keys: Any) -> Iterator[Any]:
    if isinstance(keys, list):
        for k in keys:
            yield from _flat(k)
    else:
        yield keys


def _collections(value: Any) -> list[Any]:
    return [c for v in value for c in _collections(v)] if isinstance(value, list) else [value]


def dask_graph(value: Any) -> tuple[dict[Any, Any], list[Any]]:
    """The optimized graph (key -> dask task) of dask or xarray collections, and the keys they ask for."""
    from dask._task_spec import convert_legacy_graph
    from dask.base import collections_to_expr

    expr = collections_to_expr(_collections(value)).optimize()
    dsk = convert_legacy_graph(expr.__dask_graph__())
    return dsk, list(dict.fromkeys(_flat(list(expr.__dask_keys__()))))


# ---------------------------------------------------------------------------------------------------------------------
# measuring


def numbered(
    graph: Mapping[Any, Sequence[Any]], keys: Sequence[Any]
) -> tuple[list[tuple[int, ...]], list[int | list[int] | None], list[int], list[Any]]:
    """Give the tasks ids, breadth-first from the keys asked for: (deps, dependents, outputs, key of each id)."""
    ids: dict[Any, int] = {}
    names: list[Any] = []
    queue = deque(keys)
    while queue:
        k = queue.popleft()
        if k not in ids:
            ids[k] = len(names)
            names.append(k)
            queue.extend(graph[k])
    deps = [tuple([ids[d] for d in graph[k]]) for k in names]
    return deps, reverse(deps), [ids[k] for k in keys], names


def reverse(deps: Sequence[tuple[int, ...]]) -> list[int | list[int] | None]:
    """The dependents of each id: None, an id, or a list of ids."""
    dependents: list[int | list[int] | None] = [None] * len(deps)
    for i, needs in enumerate(deps):
        for d in needs:
            known = dependents[d]
            if known is None:
                dependents[d] = i
            elif type(known) is int:
                dependents[d] = [known, i]
            else:
                known.append(i)  # type: ignore[union-attr]
    return dependents


def alive(sequence: Sequence[int], deps: Sequence[tuple[int, ...]], outputs: Sequence[int]) -> tuple[int, float]:
    """(peak, mean) of the number of values alive while one worker runs the tasks in this sequence."""
    waits = [0] * len(deps)
    for needs in deps:
        for d in set(needs):
            waits[d] += 1
    for o in set(outputs):
        waits[o] += 1
    done = [False] * len(deps)
    now = peak = total = 0
    for t in sequence:
        now += 1
        if now > peak:
            peak = now
        total += now
        if done[t]:
            raise AssertionError(f"task {t} twice in the order")
        done[t] = True
        for d in set(deps[t]):
            if not done[d]:
                raise AssertionError(f"task {t} before {d}, which it needs")
            waits[d] -= 1
            if not waits[d]:
                now -= 1
    if len(sequence) != len(deps):
        raise AssertionError(f"{len(sequence)} of {len(deps)} tasks in the order")
    return peak, total / max(1, len(sequence))


def timed(function: Callable[[], Any], repeat: int) -> tuple[Any, float]:
    """(result, the shortest of ``repeat`` times in seconds), with the garbage collector off."""
    best = float("inf")
    result = None
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeat):
            start = time.perf_counter()
            result = function()
            best = min(best, time.perf_counter() - start)
    finally:
        gc.enable()
    return result, best


def _nothing(*_: Any) -> None:
    """What the tasks given to dask would run."""


Row = tuple[str, int, int, int, float, float, float, float]
"""name, tasks, our peak, dask's peak, our mean, dask's mean, our us a task, dask's us a task"""


def compare(name: str) -> Row:
    """Order one graph of the set with both."""
    from dask._task_spec import Task, TaskRef
    from dask.order import order as dask_order

    from taskloom.graph.order import order

    original = None
    if name in CASES:
        graph, keys = CASES[name]()
    else:
        original, keys = dask_graph(REAL[name]())
        graph = {k: tuple(t.dependencies) for k, t in original.items()}
    deps, dependents, outputs, names = numbered(graph, keys)
    n = len(deps)
    result, our_time = timed(lambda: order(deps, dependents, outputs), 5)
    ours = alive(result, deps, outputs)

    ids = {k: i for i, k in enumerate(names)}
    # dask's order sees more in its own graphs (it treats data and aliases in their own way); where it does better
    # with the bare dependencies, it is given those.
    graphs = [{k: Task(k, _nothing, *[TaskRef(d) for d in graph[k]]) for k in names}]
    if original is not None:
        graphs.insert(0, {k: original[k] for k in names})
    theirs = []
    for dsk in graphs:
        place, seconds = timed(lambda dsk=dsk: dask_order(dsk), 1)
        theirs.append((*alive([ids[k] for k in sorted(dsk, key=place.__getitem__)], deps, outputs), seconds))
    peak, mean, seconds = min(theirs)
    return name, n, ours[0], peak, ours[1], mean, our_time / n * 1e6, seconds / n * 1e6


LARGE: dict[str, Callable[[int], Case]] = {
    "no dependencies": lambda n: (dict.fromkeys(range(n), ()), list(range(n))),
    "one chain": lambda n: chains(1, n),
    "tree, fan-in 2": lambda n: tree(n // 2, 2),
    "tree, fan-in 10": lambda n: tree(n * 9 // 10, 10),
    "stencil 1-D, 100 wide": lambda n: stencil(100, n // 100),
    "random DAG, 2 inputs near by": lambda n: random_dag(n, 2, 30, 1),
    "random DAG, 2 inputs each": lambda n: random_dag(n, 2, 0, 1),
    "random DAG, 3 inputs each": lambda n: random_dag(n, 3, 0, 1),
    "climatology": lambda n: climatology(12, n // 6, "mean"),
    "mean that all inputs wait for": lambda n: normalize(n // 5),
}


def growth(name: str, sizes: Sequence[int]) -> list[float]:
    """us a task of our order for one shape in several sizes."""
    from taskloom.graph.order import order

    found = []
    for size in sizes:
        deps, dependents, outputs, _ = numbered(*LARGE[name](size))
        repeat = 5 if size <= 10_000 else 2
        _, seconds = timed(lambda d=deps, u=dependents, o=outputs: order(d, u, o), repeat)
        found.append(seconds / len(deps) * 1e6)
    return found


ABOUT = """# The order of a graph

`taskloom.graph.order.order` decides, once and where the graph is made, in which order one worker should run the tasks.
The place of a task in it is its priority in all schedulers. The aim is to drop values early; the means is to run a
task soon after the tasks that it needs, and to load something new only when nothing else can be done.

How it works, in linear time:

1. There is a stack of goals, at first the outputs that were asked for. A goal that cannot run yet puts the tasks that
   it needs on top of itself. So loads are done late, and what was begun is finished first.
2. Of several needed tasks the heaviest comes first. Its weight is a label after Sethi and Ullman (1970): how many
   values must be alive at once to compute it. Where no value has two uses, the label is exact and the order is optimal.
3. When a task has run, each dependent that is ready and releases one of its inputs runs at once. It costs no memory.
   So the tasks of a chain stand side by side.
4. When a value waits for one last dependent, and that one lacks only one more input, this input becomes the next goal.
5. When all that is left to do with a value could run without a new load, and also the tasks after it, these become the
   next goals, if they do not leave more values than they release.
6. Outputs that need much less memory than others come first; apart from that, outputs keep their order.

Where values are shared, finding the best order is NP-complete (Sethi 1975), so rules 3 to 6 are rules of thumb. The
rules were chosen by the table below, so it shows them in a good light.

## Values alive, ours against dask's

One worker runs the tasks in the given order. A value is alive from when it is computed until its last dependent has
run, an output until the end. *Peak* and *mean* are the greatest and the mean number of values alive; less is better.
All values count one. The shapes are functions in `benchmarks/ordering.py`; those that begin with `dask.` and
`xarray:` are the optimized graphs that these libraries make. Where dask's peak is lower, ours has a mark (>).
"""


def report(names: Sequence[str], sizes: Sequence[int]) -> Iterator[str]:
    """The lines of the page, each when it is known."""
    import dask

    yield from ABOUT.splitlines()
    yield ""
    yield f"Python {platform.python_version()}, dask {dask.__version__}, {platform.machine()}, {os.cpu_count()} cores."
    yield ""
    yield "| graph | tasks | ours peak | dask peak | ours mean | dask mean | ours us a task | dask us a task |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    rows = []
    for name in names:
        row = compare(name)
        rows.append(row)
        _, n, peak, dask_peak, mean, dask_mean, us, dask_us = row
        mark = "> " if peak > dask_peak else ""
        yield (
            f"| {name} | {n:,} | {mark}{peak} | {dask_peak} | {mean:.1f} | {dask_mean:.1f} | {us:.2f} | {dask_us:.1f} |"
        )
    n, peak, dask_peak, mean, dask_mean = (sum(row[i] for row in rows) for i in range(1, 6))
    us, dask_us = (sum(row[1] * row[i] for row in rows) / n for i in (6, 7))
    yield (
        f"| **all {len(rows)}** | {n:,} | **{peak:,}** | **{dask_peak:,}** | **{mean:,.0f}** | **{dask_mean:,.0f}** |"
        f" **{us:.2f}** | **{dask_us:.1f}** |"
    )
    yield ""
    better = sum(row[2] < row[3] for row in rows)
    worse = [row[2] - row[3] for row in rows if row[2] > row[3]]
    yield (
        f"Peak lower than dask's in {better} graphs, the same in {len(rows) - better - len(worse)}, higher in "
        f"{len(worse)}" + (f" (by {sum(worse)} values in all)." if worse else ".")
    )
    if sizes:
        yield ""
        yield "## Time, with the number of tasks"
        yield ""
        yield "Microseconds a task of our order. Random graphs take longer when they are large, though not more steps"
        yield "(3.4 turns of the loops a task at each size, with 2 inputs each): probably cache misses."
        yield ""
        yield "| graph |" + "".join(f" {size:,} tasks |" for size in sizes)
        yield "|---|" + "--:|" * len(sizes)
        for name in LARGE:
            yield f"| {name} |" + "".join(f" {us:.2f} |" for us in growth(name, sizes))


def main() -> None:
    """Read the command line, print the page and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", metavar="PATH", help="write the page there too, for instance docs/ordering.md")
    parser.add_argument("--only", metavar="TEXT", default="", help="only the graphs whose name holds TEXT; no timing")
    args = parser.parse_args()
    try:
        import dask.array
        import dask.dataframe
        import xarray
    except ImportError as error:
        sys.exit(
            f"This benchmark compares with dask, and {error.name} is not installed: "
            "pip install 'dask[array,dataframe]' xarray (or 'taskloom[test]')."
        )
    if os.environ.get("PYTHONHASHSEED") != "0":
        # dask breaks ties by the order of sets of strings, which differs from run to run
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    del dask, xarray
    names = [name for name in (*CASES, *REAL) if args.only in name]
    if not names:
        sys.exit(f"no graph has {args.only!r} in its name")
    lines = []
    for line in report(names, () if args.only else (10_000, 100_000, 1_000_000)):
        print(line, flush=True)
        lines.append(line)
    if args.write:
        Path(args.write).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
