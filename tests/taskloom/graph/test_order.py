from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskloom.graph.order import find_cycle, order


def reverse(deps):
    """The dependents of each id, as `order` wants them: None, an id, or a list."""
    lists = [[] for _ in deps]
    for i, needs in enumerate(deps):
        for d in needs:
            lists[d].append(i)
    return [None if not to else to[0] if len(to) == 1 else to for to in lists]


def run(deps, outputs):
    """Order and check that each id is there once, after what it needs."""
    result = order(deps, reverse(deps), outputs)
    assert sorted(result) == list(range(len(deps)))
    place = {t: i for i, t in enumerate(result)}
    assert all(place[d] < place[t] for t, needs in enumerate(deps) for d in needs)
    return result


def peak(deps, outputs, sequence):
    """The greatest number of values alive while one worker runs the tasks in this sequence."""
    waits = [0] * len(deps)
    for needs in deps:
        for d in set(needs):
            waits[d] += 1
    for o in set(outputs):
        waits[o] += 1
    now = most = 0
    for t in sequence:
        now += 1
        most = max(most, now)
        for d in set(deps[t]):
            waits[d] -= 1
            now -= not waits[d]
    return most


def postorder(deps, outputs):
    """Depth first from the outputs, what is needed in the order of the arguments."""
    result, seen = [], set()
    stack = [(o, False) for o in reversed(outputs)]
    while stack:
        t, ready = stack.pop()
        if ready:
            result.append(t)
        elif t not in seen:
            seen.add(t)
            stack.append((t, True))
            stack.extend((d, False) for d in reversed(deps[t]))
    return list(dict.fromkeys(result))


def numbered(graph, keys):
    """(deps, outputs, id of each key) of {key: keys it needs}, ids breadth-first from the keys asked for."""
    ids, queue = {}, list(keys)
    for k in queue:
        if k not in ids:
            ids[k] = len(ids)
            queue.extend(graph[k])
    return [tuple(ids[d] for d in graph[k]) for k in ids], [ids[k] for k in keys], ids


def named(graph, keys):
    """The keys of a graph in their order."""
    deps, outputs, ids = numbered(graph, keys)
    names = list(ids)
    return [names[t] for t in run(deps, outputs)]


@st.composite
def dags(draw, most=40):
    """(deps, outputs) of a graph with shared values, repeated inputs and several outputs, all reachable."""
    n = draw(st.integers(1, most))
    back = draw(st.sampled_from([2, 5, most]))
    needs = {i: draw(st.lists(st.integers(max(0, i - back), i - 1), max_size=4)) if i else [] for i in range(n)}
    used = {d for ds in needs.values() for d in ds}
    ends = [i for i in range(n) if i not in used]
    outputs = draw(st.permutations(ends)) + draw(st.lists(st.integers(0, n - 1), max_size=2))
    if draw(st.booleans()):
        deps, outputs, _ = numbered(needs, outputs)
        return deps, outputs
    # ids that say nothing about the direction
    new = draw(st.permutations(range(n)))
    deps = [()] * n
    for i, ds in needs.items():
        deps[new[i]] = tuple(new[d] for d in ds)
    return deps, [new[o] for o in outputs]


# -- a valid order


@given(dags())
@settings(max_examples=400, deadline=None)
def test_every_task_comes_once_and_after_what_it_needs(graph):
    deps, outputs = graph
    run(deps, outputs)


@given(dags())
@settings(max_examples=200, deadline=None)
def test_chains_stand_side_by_side(graph):
    deps, outputs = graph
    dependents = reverse(deps)
    result = run(deps, outputs)
    place = {t: i for i, t in enumerate(result)}
    for t, needs in enumerate(deps):
        if len(needs) == 1 and dependents[needs[0]] == t:
            assert place[t] == place[needs[0]] + 1


@given(dags())
@settings(max_examples=100, deadline=None)
def test_the_same_graph_has_the_same_order(graph):
    deps, outputs = graph
    assert run(deps, outputs) == run(deps, outputs)


def test_nothing_to_order():
    assert order([], [], []) == []


def test_without_dependencies_the_ids_stay_in_order():
    assert order([()] * 4, [None] * 4, [0, 1, 2, 3]) == [0, 1, 2, 3]


@pytest.mark.parametrize("shared", [False, True])
def test_a_long_chain(shared):
    n = 200_000
    deps = [(i + 1,) for i in range(n - 1)] + [()]
    if shared:  # the last value is used twice, which leaves the fast way for graphs without sharing
        deps[0] = (1, n - 1)
    assert run(deps, [0]) == list(range(n - 1, -1, -1))


def test_a_long_ladder():
    n = 50_000
    graph = {("a", 0): ()}
    for i in range(n):
        graph["b", i] = graph["c", i] = (("a", i),)
        graph["a", i + 1] = (("b", i), ("c", i))
    deps, outputs, _ = numbered(graph, [("a", n)])
    assert peak(deps, outputs, run(deps, outputs)) == 3


def test_the_inputs_are_left_as_they_were():
    deps = [(1, 2), (3, 3), (3,), ()]
    dependents = reverse(deps)
    outputs = [0, 2]
    order(deps, dependents, outputs)
    assert (deps, dependents, outputs) == ([(1, 2), (3, 3), (3,), ()], [None, 0, 0, [1, 1, 2]], [0, 2])


# -- exact small orders


def test_a_branch_is_reduced_before_the_next_is_loaded():
    graph = {"sum": ("ab", "cd"), "ab": ("a", "b"), "cd": ("c", "d"), "a": (), "b": (), "c": (), "d": ()}
    sequence = named(graph, ["sum"])
    assert sequence in (["a", "b", "ab", "c", "d", "cd", "sum"], ["d", "c", "cd", "b", "a", "ab", "sum"])


def test_the_heavier_input_comes_first():
    graph = {"end": ("light", "heavy"), "light": (), "heavy": ("x", "y", "z"), "x": (), "y": (), "z": ()}
    sequence = named(graph, ["end"])
    assert sequence[3:] == ["heavy", "light", "end"]


def test_a_value_is_released_before_the_next_load():
    # mean and deviation: each load feeds both
    graph = {"mean": ("m0", "m1", "m2"), "std": ("s0", "s1", "s2")}
    for i in range(3):
        graph |= {f"m{i}": (f"x{i}",), f"s{i}": (f"x{i}",), f"x{i}": ()}
    sequence = named(graph, ["mean", "std"])
    for i in range(3):
        assert {f"m{i}", f"s{i}"} <= set(sequence[sequence.index(f"x{i}") :][:4])


def test_a_value_that_waits_for_one_more_load_gets_it():
    # u and v squared, and their product: u must not wait until all of u is loaded
    graph = {k: tuple(f"{k}{i}" for i in range(5)) for k in ("uu", "vv", "uv")}
    for i in range(5):
        graph |= {f"u{i}": (), f"v{i}": (), f"uu{i}": (f"u{i}",), f"vv{i}": (f"v{i}",), f"uv{i}": (f"u{i}", f"v{i}")}
    sequence = named(graph, ["uu", "vv", "uv"])
    for i in range(5):
        assert abs(sequence.index(f"u{i}") - sequence.index(f"v{i}")) <= 3


def test_loads_come_as_late_as_they_can():
    # batches fitted one after another (dask-ml issue 206)
    graph = {"model0": (), "batch0": ()}
    for i in range(1, 6):
        graph |= {f"batch{i}": (), f"model{i}": (f"model{i - 1}", f"batch{i}")}
    graph["model0"] = ("batch0",)
    sequence = named(graph, ["model5"])
    for i in range(2, 6):
        assert sequence.index(f"batch{i}") > sequence.index(f"model{i - 1}")


def test_a_task_that_uses_its_input_twice_follows_it():
    graph = {"x": (), "square": ("x", "x"), "y": (), "end": ("y", "square")}
    sequence = named(graph, ["end"])
    assert sequence.index("square") == sequence.index("x") + 1


def test_outputs_of_equal_weight_keep_their_order():
    graph = {("out", i): (("in", i), ("in", i + 1)) for i in range(6)} | {("in", i): () for i in range(7)}
    sequence = named(graph, [("out", i) for i in range(6)])
    assert [k[1] for k in sequence if k[0] == "out"] == list(range(6))


def test_a_light_output_comes_before_a_heavy_one():
    # the heavy one holds a value for each input; the light one folds them in a tree
    graph = {("x", i): () for i in range(64)}
    graph |= {(f, i): (("x", i),) for f in "pm" for i in range(64)}
    level = [("m", i) for i in range(64)]
    while len(level) > 1:
        pairs = {("fold", len(level), i): tuple(level[i : i + 2]) for i in range(0, len(level), 2)}
        graph |= pairs
        level = list(pairs)
    graph["all"] = tuple(("p", i) for i in range(64))
    deps, outputs, _ = numbered(graph, ["all", *level])
    assert peak(deps, outputs, run(deps, outputs)) < 64 + 10


# -- memory


def chains(count, length):
    graph = {(i, j): ((i, j - 1),) if j else () for i in range(count) for j in range(length)}
    return graph, [(i, length - 1) for i in range(count)]


def tree(leaves):
    level = [("leaf", i) for i in range(leaves)]
    graph = dict.fromkeys(level, ())
    while len(level) > 1:
        pairs = {("node", len(level), i): tuple(level[i : i + 2]) for i in range(0, len(level), 2)}
        graph |= pairs
        level = list(pairs)
    return graph, level


def right_fold(count):
    graph = {("sum", i): (("x", i), ("sum", i + 1)) for i in range(count)} | {("x", i): () for i in range(count)}
    return graph | {("sum", count): ()}, [("sum", 0)]


def stencil(width, steps):
    graph = {(0, i): () for i in range(width)}
    for t in range(1, steps):
        for i in range(width):
            graph[t, i] = tuple((t - 1, j) for j in (i - 1, i, i + 1) if 0 <= j < width)
    return graph, [(steps - 1, i) for i in range(width)]


def climatology(groups, blocks):
    graph = {("x", i): () for i in range(blocks)}
    for g in range(groups):
        graph["mean", g] = tuple(("x", i) for i in range(g, blocks, groups))
    for i in range(blocks):
        graph["anomaly", i] = (("x", i), ("mean", i % groups))
        graph["size", i] = (("anomaly", i),)
    graph["total"] = tuple(("size", i) for i in range(blocks))
    return graph, ["total"]


def butterfly(bits):
    graph = {(0, i): () for i in range(2**bits)}
    for s in range(bits):
        for i in range(2**bits):
            graph[s + 1, i] = ((s, i), (s, i ^ (1 << s)))
    return graph, [(bits, i) for i in range(2**bits)]


def transpose(size):
    graph = {("x", i, j): () for i in range(size) for j in range(size)}
    graph |= {("s", i, j): (("x", i, j), ("x", j, i)) for i in range(size) for j in range(size)}
    return graph, [("s", i, j) for i in range(size) for j in range(size)]


@pytest.mark.parametrize(
    ("graph", "most"),
    [
        (chains(20, 5), 21),
        (tree(64), 8),
        (right_fold(50), 3),
        (stencil(16, 16), 20),
        (stencil(6, 60), 9),
        (climatology(4, 40), 51),
        (butterfly(5), 34),
        (transpose(8), 66),
    ],
    ids=["chains", "tree", "right fold", "stencil", "narrow stencil", "climatology", "butterfly", "transpose"],
)
def test_peak_is_small_and_no_worse_than_a_postorder(graph, most):
    deps, outputs, _ = numbered(*graph)
    ours = peak(deps, outputs, run(deps, outputs))
    assert ours <= most
    assert ours <= peak(deps, outputs, postorder(deps, outputs))


@given(st.lists(st.integers(0, 30), max_size=30))
@settings(max_examples=200, deadline=None)
def test_trees_are_ordered_optimally(parents):
    # task i+1 feeds parents[i] (taken modulo what there is): any tree; the label of its root is the least peak
    n = len(parents) + 1
    needs = [[] for _ in range(n)]
    for i, p in enumerate(parents, 1):
        needs[p % i].append(i)
    deps = [tuple(d) for d in needs]
    label = [0] * n
    for t in range(n - 1, -1, -1):
        held = sorted((label[d] for d in deps[t]), reverse=True)
        label[t] = max([len(held) + 1, *(i + own for i, own in enumerate(held))])
    assert peak(deps, [0], run(deps, [0])) == label[0]


def test_goals_that_wait_for_a_mean_of_everything():
    # each value waits for the mean, and the mean for all values; the way from the mean back to them is long and forks,
    # so looking for it again from each value would take quadratic (or exponential) time
    n = 3_000
    graph = {"mean": tuple(("part", i) for i in range(n)), "end": tuple(("out", i) for i in range(n))}
    graph[0, "c"] = ("mean",)
    for i in range(n):
        graph["x", i] = ()
        graph["part", i] = (("x", i),)
        graph["out", i] = (("x", i), (n, "c"))
        graph[i, "a"] = graph[i, "b"] = ((i, "c"),)
        graph[i + 1, "c"] = ((i, "a"), (i, "b"))
    deps, outputs, _ = numbered(graph, ["end"])
    run(deps, outputs)


# -- cycles


@pytest.mark.parametrize(
    ("deps", "outputs"),
    [
        ([(0,)], [0]),
        ([(1,), (0,)], [0]),
        ([(1,), (2,), (3,), (1,)], [0]),
        ([(1, 2), (2,), (3, 4), (1, 4), ()], [0]),
        ([(1, 2), (), (0,)], [0, 1]),
    ],
)
def test_a_cycle_gives_a_shorter_list_and_is_found(deps, outputs):
    assert len(order(deps, reverse(deps), outputs)) < len(deps)
    cycle = find_cycle(deps)
    assert len(cycle) > 1
    assert cycle[0] == cycle[-1]
    assert len(set(cycle)) == len(cycle) - 1
    assert all(b in deps[a] for a, b in pairwise(cycle))


def test_a_cycle_below_a_ladder_ends_soon():
    n = 2_000  # there are 2**n ways down to the cycle
    graph = {(n, "c"): ((n - 1, "c"),)}
    for i in range(n):
        graph[i, "c"] = ((i, "a"), (i, "b"))
        graph[i, "a"] = graph[i, "b"] = ((i + 1, "c"),)
    deps, outputs, _ = numbered(graph, [(0, "c")])
    assert len(order(deps, reverse(deps), outputs)) < len(deps)
    assert find_cycle(deps)


@given(dags(), st.integers(0, 10_000), st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_an_edge_back_is_a_cycle_or_not(graph, a, b):
    deps, outputs = graph
    a, b = a % len(deps), b % len(deps)
    deps = list(deps)
    deps[a] = (*deps[a], b)
    cycle = find_cycle(deps)
    result = order(deps, reverse(deps), outputs)
    assert (len(result) < len(deps)) == bool(cycle)
    assert all(y in deps[x] for x, y in pairwise(cycle))


def test_no_cycle_in_a_long_chain():
    n = 200_000
    assert find_cycle([(i + 1,) for i in range(n - 1)] + [()]) == []
    assert len(find_cycle([((i + 1) % n,) for i in range(n)])) == n + 1
