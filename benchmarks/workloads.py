"""The workloads: graphs with known results, the plain loop that does the same, and the check.

NumPy is imported by those that need it only, so that it does not weigh on the others.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["CLUSTER", "LOCAL", "WORKLOADS", "Parts", "Workload", "make_data"]

Graph = dict[Any, Any]
GRAPH, FUTURES, TRIPS = "graph", "futures", "trips"


# The tasks' functions. They stand in a module of their own, so every system sends them by name.


def noop(x: Any) -> Any:
    return x


def inc(x: int) -> int:
    return x + 1


def add(x: Any, y: Any) -> Any:
    return x + y


def mix(*values: int) -> int:
    """Cheap, and wrong as soon as one input is."""
    total = 1
    for value in values:
        total = (total * 31 + value) % 1_000_003
    return total


def multiply(a: Any, b: Any) -> Any:
    return a @ b


def add_up(arrays: list[Any]) -> Any:
    total = arrays[0].copy()
    for other in arrays[1:]:
        total += other
    return total


def random_block(seed: int, size: int) -> Any:
    import numpy

    return numpy.random.default_rng(seed).standard_normal((size, size))


def probe(block: Any, seed: int) -> Any:
    """What a block makes of a vector: so much of it that a wrong one is found, and little that goes to the client."""
    import numpy

    return block @ numpy.random.default_rng(seed).standard_normal(block.shape[1])


def make_array(i: int, items: int) -> Any:
    import numpy

    return numpy.arange(i, items + i, dtype=numpy.float64)


def transform(array: Any) -> Any:
    import numpy

    return numpy.sqrt(array) + 1.0


def make_and_transform(job: tuple[int, int]) -> Any:
    return transform(make_array(*job))


def read_records(path: str) -> tuple[int, int]:
    """Parse a file of JSON lines; how many records were fine, and the bytes they counted."""
    fine = size = 0
    with open(path, encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            if record["status"] < 400:
                fine += 1
                size += record["bytes"]
    return fine, size


def is_fine(record: dict[str, Any]) -> bool:
    return bool(record["status"] < 400)


def size_of(record: dict[str, Any]) -> int:
    return int(record["bytes"])


def add_pairs(pairs: list[tuple[int, int]]) -> tuple[int, int]:
    return sum(fine for fine, _ in pairs), sum(size for _, size in pairs)


class Parts(NamedTuple):
    """A workload without dependencies, for systems that only map.

    Attributes:
        function: takes one item.
        items: its arguments, one a call.
        finish: makes the workload's value of the list of results, in the calling process.
    """

    function: Callable[[Any], Any]
    items: Sequence[Any]
    finish: Callable[[list[Any]], Any]


class Workload:
    """One workload; made anew in each process.

    Attributes:
        title: one line that says what it is.
        in_us: whether the table shows microseconds a task, or else milliseconds in all.
        split: whether the table has a row for perfectly split work, see :class:`benchmarks.systems.Split`.
        parts: None where tasks depend on each other.
        kind: what the clock is held to: GRAPH, values of a graph; FUTURES, one for each item of ``parts``, gathered; or TRIPS:
            many times one task and its value, and what counts is the median.
        cold: whether each run has a pool that has never done anything.
        tasks: how many tasks count for the time a task.
        graph, keys: what is asked for.

    Args:
        quick: a smaller one, to see that it works.
        data: folder with the files of :func:`make_data`.
    """

    title = ""
    in_us = True
    split = False
    parts: Parts | None = None
    kind = GRAPH
    cold = False
    tasks = 0

    def __init__(self, quick: bool = False, data: str = "") -> None:
        self.quick = quick
        self.data = data
        self.graph: Graph = {}
        self.keys: Any = []
        self.prepare()

    def prepare(self) -> None:
        """Fill in the attributes."""
        raise NotImplementedError

    def plain(self) -> Any:
        """The same in a plain loop: the value that the graph has too."""
        raise NotImplementedError

    def check(self, value: Any) -> bool:
        """Whether a value is right."""
        return bool(_listed(value) == _listed(self.plain()))

    def bag(self, module: Any) -> Any:
        """The same as a bag of a module like ``dask.bag``, not computed yet; None where that makes no sense."""
        return None


def _listed(value: Any) -> Any:
    """Systems answer with a list or a tuple, both are fine."""
    return list(value) if isinstance(value, (list, tuple)) else value


class NoOps(Workload):
    title = "10,000 tasks that do nothing and do not depend on each other"

    def prepare(self) -> None:
        self.tasks = 1_000 if self.quick else 10_000
        self.graph = {("noop", i): (noop, i) for i in range(self.tasks)}
        self.keys = list(self.graph)
        self.parts = Parts(noop, range(self.tasks), list)

    def plain(self) -> list[int]:
        return [noop(i) for i in range(self.tasks)]


class Chain(Workload):
    title = "a chain: 10,000 tasks, each needs the one before"
    full = 10_000

    def prepare(self) -> None:
        self.tasks = self.full // 10 if self.quick else self.full
        self.graph = {("chain", 0): (inc, 0)}
        for i in range(1, self.tasks):
            self.graph["chain", i] = (inc, ("chain", i - 1))
        self.keys = ("chain", self.tasks - 1)

    def plain(self) -> int:
        value = 0
        for _ in range(self.tasks):
            value = inc(value)
        return value


class LongChain(Chain):
    title = "a chain of 100,000"
    full = 100_000


class Tree(Workload):
    title = "a binary tree: 4,096 leaves summed up in pairs, 8,191 tasks"

    def prepare(self) -> None:
        self.leaves = 512 if self.quick else 4_096
        level = 0
        self.graph = {("tree", 0, i): (inc, i) for i in range(self.leaves)}
        width = self.leaves
        while width > 1:
            width //= 2
            level += 1
            for i in range(width):
                self.graph["tree", level, i] = (add, ("tree", level - 1, 2 * i), ("tree", level - 1, 2 * i + 1))
        self.keys = ("tree", level, 0)
        self.tasks = len(self.graph)

    def plain(self) -> int:
        values = [inc(i) for i in range(self.leaves)]
        while len(values) > 1:
            values = [add(values[i], values[i + 1]) for i in range(0, len(values), 2)]
        return values[0]


class Stencil(Workload):
    title = "a stencil: 100 steps of 100 cells, each needs itself and its two neighbours of the step before"

    def prepare(self) -> None:
        self.side = 30 if self.quick else 100
        side = self.side
        self.graph = {("cell", 0, i): (inc, i) for i in range(side)}
        for step in range(1, side):
            for i in range(side):
                self.graph["cell", step, i] = (
                    mix,
                    ("cell", step - 1, (i - 1) % side),
                    ("cell", step - 1, i),
                    ("cell", step - 1, (i + 1) % side),
                )
        self.keys = [("cell", side - 1, i) for i in range(side)]
        self.tasks = len(self.graph)

    def plain(self) -> list[int]:
        side = self.side
        row = [inc(i) for i in range(side)]
        for _ in range(1, side):
            row = [mix(row[i - 1], row[i], row[(i + 1) % side]) for i in range(side)]
        return row


class RandomGraph(Workload):
    title = "a random graph: 10,000 tasks, each needs 0 to 3 of the 500 before it"

    def prepare(self) -> None:
        self.tasks = 1_000 if self.quick else 10_000
        draw = random.Random(20)
        self.needs: list[list[int]] = []
        used: set[int] = set()
        for i in range(self.tasks):
            needs = sorted({draw.randrange(max(0, i - 500), i) for _ in range(draw.randrange(4))}) if i else []
            self.needs.append(needs)
            used.update(needs)
        self.graph = {
            ("node", i): (mix, *[("node", n) for n in needs]) if needs else (inc, i)
            for i, needs in enumerate(self.needs)
        }
        self.wanted = [i for i in range(self.tasks) if i not in used]
        self.keys = [("node", i) for i in self.wanted]

    def plain(self) -> list[int]:
        values: list[int] = []
        for i, needs in enumerate(self.needs):
            values.append(mix(*[values[n] for n in needs]) if needs else inc(i))
        return [values[i] for i in self.wanted]


class MatMul(Workload):
    title = "a matrix product in blocks of 512 x 512 (NumPy, float64)"
    in_us = False

    def prepare(self) -> None:
        import numpy

        self.block, self.count = (64, 3) if self.quick else (512, 6)
        side = self.block * self.count
        draw = numpy.random.default_rng(7)
        self.a = draw.standard_normal((side, side))
        self.b = draw.standard_normal((side, side))
        span = range(self.count)
        self.blocks_a = {(i, k): self._block(self.a, i, k) for i in span for k in span}
        self.blocks_b = {(k, j): self._block(self.b, k, j) for k in span for j in span}
        self.graph = {("a", *place): block for place, block in self.blocks_a.items()}
        self.graph |= {("b", *place): block for place, block in self.blocks_b.items()}
        for i in span:
            for j in span:
                for k in span:
                    self.graph["product", i, j, k] = (multiply, ("a", i, k), ("b", k, j))
                self.graph["c", i, j] = (add_up, [("product", i, j, k) for k in span])
        self.keys = [[("c", i, j) for j in span] for i in span]
        self.tasks = self.count**3 + self.count**2

    def _block(self, matrix: Any, i: int, j: int) -> Any:
        size = self.block
        return matrix[i * size : (i + 1) * size, j * size : (j + 1) * size].copy()

    def plain(self) -> Any:
        span = range(self.count)
        return [
            [add_up([multiply(self.blocks_a[i, k], self.blocks_b[k, j]) for k in span]) for j in span] for i in span
        ]

    def check(self, value: Any) -> bool:
        import numpy

        # A random vector finds any wrong block in n^2 steps instead of n^3 (Freivalds 1977).
        product = numpy.block([list(row) for row in value])
        vector = numpy.random.default_rng(8).standard_normal(len(product))
        return bool(numpy.allclose(product @ vector, self.a @ (self.b @ vector), rtol=1e-9, atol=1e-6))


class Arrays(Workload):
    title = "64 arrays of 4 MB made, mapped, and added up in pairs (NumPy)"
    in_us = False

    def prepare(self) -> None:
        self.count = 8 if self.quick else 64
        self.items = 4_000_000 // 8
        self.graph = {("make", i): (make_array, i, self.items) for i in range(self.count)}
        self.graph |= {("map", 0, i): (transform, ("make", i)) for i in range(self.count)}
        level, width = 0, self.count
        while width > 1:
            width //= 2
            level += 1
            for i in range(width):
                self.graph["map", level, i] = (add, ("map", level - 1, 2 * i), ("map", level - 1, 2 * i + 1))
        self.keys = ("map", level, 0)
        self.tasks = len(self.graph)
        self.parts = Parts(make_and_transform, [(i, self.items) for i in range(self.count)], self._reduce)
        self.expected: Any = None

    def _reduce(self, arrays: list[Any]) -> Any:
        while len(arrays) > 1:
            arrays = [add(arrays[i], arrays[i + 1]) for i in range(0, len(arrays), 2)]
        return arrays[0]

    def plain(self) -> Any:
        # One after the other, as a loop would: the order of additions differs, so the check allows for rounding.
        total = make_and_transform((0, self.items))
        for i in range(1, self.count):
            total = add(total, make_and_transform((i, self.items)))
        return total

    def check(self, value: Any) -> bool:
        import numpy

        if self.expected is None:
            self.expected = self.plain()
        return bool(numpy.allclose(value, self.expected, rtol=1e-12))


class Json(Workload):
    title = "32 files of JSON lines parsed, records filtered and summed up"
    in_us = False
    split = True

    def prepare(self) -> None:
        self.paths = sorted(str(path) for path in Path(self.data).glob("records-*.json"))
        if not self.paths:
            raise FileNotFoundError(f"no records-*.json in {self.data!r}; make_data() writes them")
        self.graph = {("read", i): (read_records, path) for i, path in enumerate(self.paths)}
        self.graph["sum"] = (add_pairs, [("read", i) for i in range(len(self.paths))])
        self.keys = "sum"
        self.tasks = len(self.graph)
        self.parts = Parts(read_records, self.paths, add_pairs)
        self.expected = tuple(json.loads((Path(self.data) / "expected.json").read_text()))

    def plain(self) -> Any:
        return add_pairs([read_records(path) for path in self.paths])

    def check(self, value: Any) -> bool:
        return tuple(value) == self.expected


class JsonBag(Json):
    title = "the same with a bag: read_text(files).map(json.loads).filter(...).map(...).sum()"

    def plain(self) -> Any:
        return super().plain()[1]

    def check(self, value: Any) -> bool:
        return int(value) == self.expected[1]

    def bag(self, module: Any) -> Any:
        return module.read_text(self.paths).map(json.loads).filter(is_fine).map(size_of).sum()


# Those of the cluster.


class Futures(NoOps):
    title = "10,000 futures of tasks that do nothing, by map, gathered"
    kind = FUTURES


class ShortChain(Chain):
    title = "a chain of 600, on a cluster that has run others"
    full = 600


class ColdChain(ShortChain):
    title = "a chain of 600, the first that a new cluster does"
    cold = True


class RoundTrip(Workload):
    title = "one task and its value, submit(...).result(), one after the other; the median"
    kind = TRIPS

    def prepare(self) -> None:
        self.tasks = 1
        self.parts = Parts(inc, range(50 if self.quick else 200), list)

    def plain(self) -> list[int]:
        assert self.parts is not None
        return [inc(item) for item in self.parts.items]


class BlockedMatMul(Workload):
    title = (
        "a matrix product in blocks of 400 x 400, made, multiplied, added up and probed with a vector by tasks (NumPy)"
    )
    in_us = False

    def prepare(self) -> None:
        self.block, self.count = (40, 3) if self.quick else (400, 6)
        size, span = self.block, range(self.count)
        self.graph = {}
        for i in span:
            for k in span:
                self.graph["a", i, k] = (random_block, i * self.count + k, size)
                self.graph["b", i, k] = (random_block, 1000 + i * self.count + k, size)
        for i in span:
            for j in span:
                for k in span:
                    self.graph["product", i, j, k] = (multiply, ("a", i, k), ("b", k, j))
                self.graph["c", i, j] = (add_up, [("product", i, j, k) for k in span])
                self.graph["probe", i, j] = (probe, ("c", i, j), j)
        self.keys = [("probe", i, j) for i in span for j in span]
        self.tasks = len(self.graph)
        self.expected: Any = None

    def _blocks(self) -> tuple[dict[Any, Any], dict[Any, Any]]:
        size, places = self.block, [(i, k) for i in range(self.count) for k in range(self.count)]
        a = {(i, k): random_block(i * self.count + k, size) for i, k in places}
        return a, {(i, k): random_block(1000 + i * self.count + k, size) for i, k in places}

    def plain(self) -> Any:
        a, b = self._blocks()
        span = range(self.count)
        return [probe(add_up([multiply(a[i, k], b[k, j]) for k in span]), j) for i in span for j in span]

    def check(self, value: Any) -> bool:
        import numpy

        if self.expected is None:
            # In another order of multiplications: (a b) v is a (b v).
            a, b = self._blocks()
            span = range(self.count)
            self.expected = [sum(a[i, k] @ probe(b[k, j], j) for k in span) for i in span for j in span]
        return len(value) == len(self.expected) and bool(
            numpy.allclose(list(value), self.expected, rtol=1e-9, atol=1e-6)
        )


WORKLOADS: dict[str, type[Workload]] = {
    "noops": NoOps,
    "chain": Chain,
    "chain-100k": LongChain,
    "tree": Tree,
    "stencil": Stencil,
    "random": RandomGraph,
    "matmul": MatMul,
    "json": Json,
    "json-bag": JsonBag,
    "arrays": Arrays,
    "futures": Futures,
    "chain-600-cold": ColdChain,
    "chain-600": ShortChain,
    "round-trip": RoundTrip,
    "matmul-400": BlockedMatMul,
}
"""Name -> workload, in the order of the tables."""

CLUSTER = ("noops", "futures", "chain-600-cold", "chain-600", "tree", "stencil", "random", "round-trip", "matmul-400")
"""Those that the cluster's tables have."""

LOCAL = ("noops", "chain", "chain-100k", "tree", "stencil", "random", "matmul", "json", "json-bag", "arrays")
"""Those that the tables of the local schedulers have."""


def make_data(folder: str, quick: bool = False) -> None:
    """Write the files that :class:`Json` reads: 32 files of some 2 MB each, always the same.

    Args:
        folder: an empty folder.
        quick: 8 files of 20 KB.
    """
    files, records = (8, 100) if quick else (32, 10_000)
    draw = random.Random(4)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=8)) for _ in range(200)]
    fine = total = 0
    for n in range(files):
        lines = []
        for i in range(records):
            status = draw.choice((200, 200, 200, 200, 204, 301, 404, 500))
            size = draw.randrange(50_000)
            lines.append(
                json.dumps(
                    {
                        "id": n * records + i,
                        "time": f"2026-03-{1 + n % 28:02d}T{i % 24:02d}:{i % 60:02d}:00Z",
                        "user": {"name": draw.choice(words), "tags": draw.sample(words, 4)},
                        "path": "/" + "/".join(draw.sample(words, 3)),
                        "status": status,
                        "bytes": size,
                        "seconds": round(draw.random(), 6),
                    }
                )
            )
            if status < 400:
                fine += 1
                total += size
        Path(folder, f"records-{n:02d}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Path(folder, "expected.json").write_text(json.dumps([fine, total]), encoding="utf-8")
