"""The simulated cluster: seeds through and through, and rules broken on purpose."""

from __future__ import annotations

import pytest

from taskloom.testing.cluster import SimulatedCluster, SimulationError


@pytest.mark.parametrize("start", range(0, 400, 50))
def test_seeds(start):
    for seed in range(start, start + 50):
        SimulatedCluster(seed).run()


def test_seeds_where_nothing_breaks():
    for seed in range(100):
        cluster = SimulatedCluster(seed, chaos=False).run()
        assert set(cluster.ran.values()) <= {1, 2, 3}  # those that raise are tried again


def test_a_larger_one():
    SimulatedCluster(1, workers=6, clients=3, tasks=600, validate_every=20).run()


def test_a_seed_replays():
    one, two = SimulatedCluster(7).run(), SimulatedCluster(7).run()
    assert one.log == two.log
    assert one.clock.now == two.clock.now
    assert one.steps == two.steps


def test_a_failing_seed_names_itself_and_tells_its_story(monkeypatch):
    monkeypatch.setattr(SimulatedCluster, "evaluate", staticmethod(lambda function, args, inputs: object()))
    with pytest.raises(SimulationError, match=r"seed 3: client \d+, task \d+ is .*\n\n.*submits"):
        SimulatedCluster(3).run()
