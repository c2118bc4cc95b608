"""Rules broken on purpose: each has to be noticed by a seed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from taskloom.testing.cluster import SimulatedCluster
from taskloom.testing.mutations import BY_NAME, MUTATIONS, find
from taskloom.testing.simulate import BEGIN, END, WITHIN

DOCUMENT = Path(__file__).parents[3] / "docs" / "reliability.md"
ROW = re.compile(r"\| (?P<name>[^|]+) \| (?P<seed>\d+) \| `.*` \|")


def documented():
    rows = DOCUMENT.read_text().split(BEGIN)[1].split(END)[0].splitlines()
    return {match["name"]: int(match["seed"]) for match in map(ROW.fullmatch, rows) if match}


def test_none_is_found_because_it_is_written_wrongly():
    assert "TypeError" not in DOCUMENT.read_text().split(BEGIN)[1].split(END)[0]


def test_the_document_has_them_all():
    assert list(documented()) == [mutation.name for mutation in MUTATIONS]
    assert max(documented().values()) < WITHIN


@pytest.mark.parametrize("name", list(BY_NAME))
def test_it_is_noticed(name):
    """The document's seed may have come to tell another story since; then a near one has to notice."""
    seed = documented()[name]
    assert find(BY_NAME[name], range(seed, seed + 1))[0] >= 0 or find(BY_NAME[name], range(WITHIN))[0] >= 0


def test_a_rule_holds_again_afterwards():
    method = getattr(MUTATIONS[0].owner, MUTATIONS[0].method)
    with MUTATIONS[0].in_force():
        assert getattr(MUTATIONS[0].owner, MUTATIONS[0].method) is not method
    assert getattr(MUTATIONS[0].owner, MUTATIONS[0].method) is method
    SimulatedCluster(find(MUTATIONS[0])[0]).run()
