"""How many workers follow from a wish."""

from __future__ import annotations

import pytest

from taskloom_operator.desired.autoscale import needed, wanted_of_default, wanted_of_group
from taskloom_operator.observe import UnmetView, WishView

SCALE = {"min": 1, "max": 5}


@pytest.mark.parametrize(
    ("wish", "others", "unmet", "before", "wanted"),
    [
        (WishView(3, "work"), 0, 0, 0, 3),
        (WishView(0, "nothing"), 0, 0, 4, 1),
        (WishView(9, "work"), 0, 0, 0, 5),
        (WishView(4, "work"), 2, 0, 0, 2),  # two of another group are there
        (WishView(1, "memory"), 2, 0, 3, 1),
        (WishView(0, "nothing"), 0, 2, 0, 2),  # tasks that nobody there may run
        (WishView(1, "work", settled=False), 0, 0, 4, 4),  # others may still come back
        (WishView(2, "settling", settled=False), 0, 0, 0, 1),
        (None, 0, 0, 3, 3),  # nobody knows
        (None, 0, 0, 9, 5),
    ],
)
def test_the_clusters_own_workers(wish, others, unmet, before, wanted):
    assert wanted_of_default(wish, SCALE, others, unmet, before) == wanted


@pytest.mark.parametrize(
    ("wish", "unmet", "there", "before", "wanted"),
    [
        (WishView(0, "nothing"), 3, 0, 0, 3),
        (WishView(0, "nothing"), 2, 3, 3, 3),  # those that are on their way count
        (WishView(9, "work"), 0, 3, 3, 1),  # who is idle may go
        (WishView(0, "nothing"), 9, 0, 0, 5),
        (None, 0, 2, 4, 4),
    ],
)
def test_a_group(wish, unmet, there, before, wanted):
    assert wanted_of_group(wish, SCALE, unmet, there, before) == wanted


def test_each_need_goes_to_the_first_group_that_can_meet_it():
    wish = WishView(
        0,
        "nothing",
        (
            UnmetView((), {"gpu": 1}, 1),
            UnmetView((), {"gpu": 1, "large": 1}, 2),
            UnmetView((), {}, 3),
            UnmetView(("somebody",), {}, 4),
            UnmetView((), {"gpu": 8}, 5),
        ),
    )
    groups = [("default", {}), ("gpu", {"gpu": 2}), ("both", {"gpu": 2, "large": 1})]
    assert needed(wish, groups) == {"gpu": 1, "both": 2, "default": 3}
