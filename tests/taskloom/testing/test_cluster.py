"""The simulated cluster: seeds through and through."""

from __future__ import annotations

import pytest

from taskloom.core.scheduler.machine import TRANSITIONS
from taskloom.core.scheduler.state import NAMES
from taskloom.testing import cluster as cluster_module
from taskloom.testing.cluster import HARMLESS, LONG, TROUBLES, SimulatedCluster, SimulationError


@pytest.mark.parametrize("start", range(0, 500, 50))
def test_seeds(start):
    for seed in range(start, start + 50):
        SimulatedCluster(seed).run()


@pytest.mark.parametrize("seed", range(4))
def test_large_ones(seed):
    SimulatedCluster(seed, profile=LONG).run()


def runs_of(cluster):
    """How often each task ran that is no ancestor of one that fails; what fails is tried again."""
    failing = {client.machine.uuid: client.failing() for client in cluster.clients}
    return {runs for (uuid, counter), runs in cluster.ran.items() if counter not in failing[uuid]}


def test_where_nothing_breaks_everything_runs_once():
    for seed in range(100):
        assert runs_of(SimulatedCluster(seed, chaos=False).run()) <= {1}


@pytest.mark.parametrize("trouble", HARMLESS)
def test_what_breaks_nothing_has_nothing_run_twice(trouble):
    """A scheduler that dies, too, while all workers come back within its grace."""
    for seed in range(40):
        assert runs_of(SimulatedCluster(seed, troubles=[trouble]).run()) <= {1}


@pytest.mark.parametrize("trouble", sorted(TROUBLES))
def test_each_trouble_alone(trouble):
    for seed in range(15):
        SimulatedCluster(seed, troubles=[trouble]).run()


def test_a_seed_replays():
    one, two = SimulatedCluster(7).run(), SimulatedCluster(7).run()
    assert one.log == two.log
    assert one.clock.now == two.clock.now
    assert one.steps == two.steps


def test_a_failing_seed_names_itself_and_tells_its_story(monkeypatch):
    monkeypatch.setattr(SimulatedCluster, "evaluate", staticmethod(lambda function, args, inputs: object()))
    with pytest.raises(SimulationError, match=r"seed 3: client \d+, task \d+ .*\n\n.*submits"):
        SimulatedCluster(3, tasks=20, chaos=False).run()


def test_an_exception_inside_a_machine_is_the_seeds_too(monkeypatch):
    monkeypatch.setattr(cluster_module, "validate", lambda scheduler: scheduler.tasks.live and 1 / 0)
    with pytest.raises(SimulationError, match=r"seed 3: ZeroDivisionError: .*\n\n.*submits"):
        SimulatedCluster(3, tasks=20, chaos=False).run()


def test_every_transition_of_the_table_happens():
    """And no other: the schedulers of the simulation refuse it."""
    seen = set()
    for seed in range(1500):
        # that a task which runs is adopted while its input is nowhere takes a rare meeting of these two
        for troubles in (TROUBLES, ("scheduler dies", "worker dies")):
            seen |= SimulatedCluster(seed, validate_every=10**9, troubles=troubles).run().transitions
        if seen == set(TRANSITIONS):
            return
    missing = [f"{NAMES[a]} -> {NAMES[b]}" for a, b in set(TRANSITIONS) - seen]
    raise AssertionError(f"never seen: {missing}")
