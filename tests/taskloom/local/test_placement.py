"""Placement against processes that are played: no socket, no clock, every order of events that a seed can draw."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskloom.graph.compile import VALUE, compile_graph
from taskloom.local.placement import DONE, ELSEWHERE, MOST, OPEN, Packed, Placement
from taskloom.local.run import Run


def f(*args):
    return args


class Player:
    """A process as :mod:`taskloom.local.child` is: runs blocks in order, keeps values, answers later."""

    def __init__(self, game, share):
        self.game = game
        self.share = share
        self.inbox = []  # messages on their way here
        self.outbox = []  # messages on their way to the parent
        self.blocks = []
        self.values = set()
        self.refs = {}
        self.refusing = False
        self.report = []

    def receive(self):
        what, content = self.inbox.pop(0)
        if what == "tasks":
            drops, brought, tasks = content
            self.drop(drops)
            self.blocks.append((brought, tasks))
        elif what == "drop":
            self.drop(content)
        elif what == "fetch":
            for i in content:
                assert i in self.values, f"asked for {i}, which is not here"
                self.outbox.append(("value", i))
        elif what == "revoke":
            count = 0
            for block in reversed(self.blocks):
                tasks = [] if block == "resume" else block[1]
                while tasks and count < content:
                    tasks.pop()
                    count += 1
            self.outbox.append(("revoked", count))
        elif what == "resume":
            self.blocks.append("resume")

    def drop(self, ids):
        self.values.difference_update(ids)
        for block in self.blocks:
            if block != "resume":
                block[0].difference_update(ids)  # what a block that has not begun would bring back

    def step(self):
        """Run the next task, or end a block."""
        if self.blocks[0] == "resume":
            self.blocks.pop(0)
            self.refusing = False
            return
        brought, tasks = self.blocks[0]
        if not tasks:
            self.blocks.pop(0)
            self.flush()
            return
        if self.refusing:
            tasks.clear()
            return
        if self.game.poison.intersection(tasks):
            self.flush()
            self.refusing = True
            self.outbox.append(("unreadable", list(tasks)))
            tasks.clear()
            return
        self.values |= brought
        brought.clear()
        i = tasks.pop(0)
        game = self.game
        for d in game.plan.deps[i]:
            assert d in self.values, f"task {i} needs {d}, which is not here"
        assert i not in game.ran, f"task {i} ran twice"
        game.ran.add(i)
        self.values.add(i)
        self.refs[i] = game.uses_when_sent[i]
        for d in game.plan.deps[i]:
            if d in self.refs:
                self.refs[d] -= 1
                if not self.refs[d]:
                    self.values.discard(d)
        self.report.append(i)
        if game.draw.random() < 0.3:
            self.flush()

    def flush(self):
        if self.report:
            self.outbox.append(("done", self.report))
            self.report = []


class Game:
    """A run whose events come in an order that is drawn."""

    def __init__(self, graph, keys, count, seed, poison=()):
        self.draw = random.Random(seed)
        self.plan = compile_graph(graph, keys)
        self.run = Run(self.plan, "processes", count)
        self.placement = Placement(self.run, count)
        self.players = [Player(self, share) for share in self.placement.shares]
        self.poison = {self.plan.keys.index(key) for key in poison}
        self.ran = set()
        self.uses_when_sent = {}
        self.failed = None
        self.slow = [self.draw.random() < 0.3 for _ in self.players]
        # how long a task of each kind is said to take
        self.seconds = self.draw.choice([1e-6, 1e-4, 0.003, 0.05])

    def feed(self):
        placement, plan = self.placement, self.plan
        idle = busy = False
        for player in sorted(self.players, key=lambda player: player.share.load):
            share = player.share
            if placement.wants_more(share):
                block = placement.choose(share)
                assert len(set(block)) == len(block)
                if block:
                    brought = set()
                    for i in block:
                        self.uses_when_sent[i] = self.run.uses[i]
                        for d in plan.deps[i]:
                            if placement.state[d] == DONE and placement.place[d] != share.index and d not in share.has:
                                assert self.run.values[d] is not ELSEWHERE
                                brought.add(d)
                                share.has.add(d)
                                placement.used(share, d)
                    player.inbox.append(("tasks", (share.drops, brought, list(block))))
                    share.drops = []
            assert share.pending() <= MOST
            idle |= share.pending() == 0
            busy |= share.pending() > 1
        for player in self.players:
            share = player.share
            if share.fetches:
                player.inbox.append(("fetch", share.fetches))
                share.fetches = []
            if share.drops and not share.pending():
                player.inbox.append(("drop", share.drops))
                share.drops = []
        if idle and busy and self.draw.random() < 0.5:
            found = placement.to_take_back()
            if found is not None:
                share, count = found
                self.players[share.index].inbox.append(("revoke", count))

    def hear(self, player):
        kind, content = player.outbox.pop(0)
        share, placement, run = player.share, self.placement, self.run
        if kind == "done":
            ids = share.take(len(content), 0)
            assert ids == content
            for i in ids:
                large = self.draw.random() < 0.4 and i not in self.plan.outputs
                run.values[i] = ELSEWHERE if large else ("value", i)
            placement.learn(ids, [self.seconds * self.draw.uniform(0.5, 2)] * len(ids))
            placement.book(ids)
        elif kind == "value":
            placement.arrived(content, Packed([]))
        elif kind == "revoked":
            placement.taken_back(share, content)
        else:
            ids = placement.unreadable(share, len(content))
            assert ids == content
            if len(ids) == 1:
                self.failed = ids[0]
            else:
                player.inbox.append(("resume", None))

    def play(self):
        draw = self.draw
        self.feed()
        for _ in range(200 * (len(self.plan) + 10)):
            if not self.run.left or self.failed is not None:
                break
            moves = []
            for player, slow in zip(self.players, self.slow, strict=True):
                if player.inbox:
                    moves += [player.receive] * 2
                if player.blocks:
                    moves += [player.step] * (1 if slow else 4)
                elif player.report:
                    moves.append(player.flush)
                if player.outbox:
                    moves.append(lambda player=player: self.hear(player))
            assert moves, self.stalled()
            draw.choice(moves)()
            self.feed()
        else:
            raise AssertionError("it goes round and round")
        return self

    def stalled(self):
        state = self.placement.state
        left = {self.plan.keys[i]: state[i] for i in range(len(self.plan)) if state[i] != DONE}
        return f"nothing can happen any more; not done: {left}, queues {[p.share.queue for p in self.players]}"

    def check(self):
        plan = self.plan
        assert self.run.left == 0
        assert len(self.ran) == sum(spec != VALUE for spec in plan.specs)
        outputs = set(plan.outputs)
        for i in range(len(plan)):
            if i not in outputs:
                assert self.run.values[i] is None, f"{plan.keys[i]} is still held"
        assert all(player.share.load == 0 and not player.share.pending() for player in self.players)
        # what the processes keep, they have been told to drop, or will be with the next message
        for player in self.players:
            while player.inbox:
                player.receive()
            player.values.difference_update(player.share.drops)
            assert player.values <= outputs


def random_graph(draw, size, fan, reach):
    graph = {}
    for i in range(size):
        needs = {draw.randrange(max(0, i - reach), i) for _ in range(draw.randrange(fan + 1))} if i else set()
        if not needs and draw.random() < 0.3:
            graph[i, "x"] = draw.random()
        elif draw.random() < 0.1:
            graph[i, "x"] = (f, [(n, "x") for n in needs], 1)
        else:
            graph[i, "x"] = (f, *[(n, "x") for n in needs]) if needs else (f, i)
    return graph


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 60),
    fan=st.integers(0, 3),
    reach=st.integers(1, 60),
    count=st.integers(1, 4),
)
def test_every_task_runs_once_where_its_inputs_are(seed, size, fan, reach, count):
    draw = random.Random(seed)
    graph = random_graph(draw, size, fan, reach)
    keys = draw.sample(list(graph), draw.randint(1, min(5, size)))
    Game(graph, keys, count, seed).play().check()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 3))
def test_a_task_that_cannot_be_read_is_found(seed, count):
    draw = random.Random(seed)
    graph = random_graph(draw, 40, 2, 40)
    graph["bad"] = (f, *draw.sample(list(graph), 2))
    graph["end"] = (f, "bad", *draw.sample(list(graph), 3))
    game = Game(graph, ["end", *draw.sample(list(graph), 10)], count, seed, poison=["bad"]).play()
    assert game.failed is not None
    assert game.plan.keys[game.failed] == "bad"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_large_graph(count):
    draw = random.Random(5)
    graph = random_graph(draw, 3000, 2, 200)
    keys = [(i, "x") for i in range(2900, 3000)]
    Game(graph, keys, count, 7).play().check()


def test_a_chain_after_a_join_goes_along_with_it(monkeypatch):
    """The cursor passes the chain while the join waits for two processes; it is not sent task by task then."""
    monkeypatch.setattr("taskloom.local.placement.LEAST", 1)  # so that one does not get both
    graph = {"a": (f, 1), "b": (f, 2), ("c", 0): (f, "a", "b")}
    for i in range(500):
        graph["c", i + 1] = (f, ("c", i))
    plan = compile_graph(graph, ("c", 500))
    run = Run(plan, "processes", 2)
    placement = Placement(run, 2)
    one, two = placement.shares
    ids = {key: i for i, key in enumerate(plan.keys)}
    placement.costs.update({placement._kind(f): 1.0})  # long tasks, so a block is one of them
    assert placement.choose(one) == [ids["a"]]
    assert placement.choose(two) == [ids["b"]]
    for share in (one, two):
        assert placement.choose(share) == []
    placement.costs.clear()
    placement.costs.update({placement._kind(f): 1e-6})
    for share, key in ((one, "a"), (two, "b")):
        share.take(1, 0)
        run.values[ids[key]] = 1
        placement.book([ids[key]])
    assert len(placement.choose(one)) == 501


def test_what_was_taken_back_can_be_sent_ahead_again():
    """A chain that was taken back must not come out one task at a time."""
    graph = {("c", 0): (f, 1)}
    for i in range(1, 100):
        graph["c", i] = (f, ("c", i - 1))
    graph |= {("d", i): (f, i) for i in range(100)}
    graph["end"] = (f, ("c", 99), *[("d", i) for i in range(100)])
    plan = compile_graph(graph, "end")
    run = Run(plan, "processes", 1)
    placement = Placement(run, 1)
    (share,) = placement.shares
    placement.costs[placement._kind(f)] = 1e-6
    block = placement.choose(share)
    assert len(block) == 201
    assert placement.to_take_back() == (share, 100)
    assert not placement.wants_more(share)
    placement.taken_back(share, 100)
    assert all(placement.state[i] == OPEN for i in block[101:])
    assert placement.choose(share) == block[101:]


def test_nothing_is_taken_back_that_nobody_else_could_begin():
    graph = {("c", 0): (f, 1)}
    for i in range(1, 100):
        graph["c", i] = (f, ("c", i - 1))
    run = Run(compile_graph(graph, ("c", 99)), "processes", 2)
    placement = Placement(run, 2)
    placement.costs[placement._kind(f)] = 1e-6
    assert len(placement.choose(placement.shares[0])) == 100
    assert placement.choose(placement.shares[1]) == []
    assert placement.to_take_back() is None


def test_durations_are_learnt_by_code_and_by_class():
    class Call:
        def __call__(self, x):
            return x

        __hash__ = None  # a key it cannot be

    graph = {("lambda", i): (lambda x: x, i) for i in range(3)} | {("call", i): (Call(), i) for i in range(3)}
    graph |= {"list": [("lambda", 0)], "abs": (abs, 1)}
    plan = compile_graph(graph, list(graph))
    placement = Placement(Run(plan, "processes", 1), 1)
    kinds = {plan.keys[i]: placement._kind(task[0]) for i, task in enumerate(plan.tasks) if type(task) is tuple}
    assert len(set(kinds.values())) == 3
    ids = list(range(len(plan)))
    placement.learn(ids, [1.0] * len(ids))
    placement.learn_mean(ids, 1.0)
    assert set(placement.costs.values()) == {1.0}


def test_an_answer_that_was_overtaken_takes_nothing_back():
    """A process is asked to give back tasks, and says first that it could not read a block and threw all away."""
    graph = {("x", i): (f, i) for i in range(40)}
    plan = compile_graph(graph, list(graph))
    placement = Placement(Run(plan, "processes", 2), 2)
    placement.costs[placement._kind(f)] = 1e-6
    share = placement.shares[0]
    first = placement.choose(share)[:5]
    assert placement.to_take_back() == (share, 20)
    assert placement.unreadable(share, 5) == first
    assert not placement.wants_more(share)  # its answer is still to come
    assert share.pending() == 0
    assert placement.choose(placement.shares[1])
    placement.taken_back(share, 20)
    assert placement.wants_more(share)
    assert placement.shares[1].pending() == 1  # one of those that are sent one by one


@pytest.mark.parametrize("seed", range(8))
def test_values_that_a_block_brings_late_are_dropped_too(seed):
    # with these, tasks are taken back, run elsewhere, and the last use of a value ends before the block that brings it begins
    draw = random.Random(seed)
    graph = random_graph(draw, 1500, 2, 200)
    for count in (2, 3):
        Game(graph, [(i, "x") for i in range(1400, 1500)], count, seed + 7).play().check()


def test_a_task_stays_where_its_large_input_is():
    # two large values, made in two processes; both are done before anybody asks for more
    graph = {"a": (list, "a0"), "a0": (range, 3), "b": (list, "b0"), "b0": (range, 3)}
    graph |= {"x": (len, "a"), "y": (sum, "a"), "z": (len, "b")}
    run = Run(compile_graph(graph, ["x", "y", "z"]), "processes", 2)
    placement = Placement(run, 2)
    one, two = placement.shares
    ids = {key: run.plan.keys.index(key) for key in ("a0", "a", "b0", "b", "x", "y", "z")}
    for i in (ids["a0"], ids["a"]):
        placement.state[i], placement.place[i] = DONE, 0
        run.values[i] = ELSEWHERE
    placement.book([ids["a0"], ids["a"]])
    chosen = placement.choose(two)
    assert ids["x"] not in chosen
    assert ids["y"] not in chosen
    assert not one.fetches
    assert {ids["x"], ids["y"]} <= {*placement.choose(one), *placement.choose(one)}
