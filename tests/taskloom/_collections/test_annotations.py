from __future__ import annotations

import contextvars
import threading

import pytest

from taskloom import annotate, delayed, get_annotations
from taskloom._collections import annotations_of


def inc(x):
    return x + 1


def test_blocks_nest_and_end():
    assert get_annotations() == {}
    with annotate(priority=1, retries=2):
        with annotate(priority=5, workers="one", colour="red"):
            assert get_annotations() == {"priority": 5, "retries": 2, "workers": ["one"], "colour": "red"}
        assert get_annotations() == {"priority": 1, "retries": 2}
        with pytest.raises(ZeroDivisionError), annotate(retries=0):
            raise ZeroDivisionError
        assert get_annotations() == {"priority": 1, "retries": 2}
    assert get_annotations() == {}


def test_what_is_told_is_a_copy():
    with annotate(priority=1):
        get_annotations()["priority"] = 2
        assert get_annotations() == {"priority": 1}
        x = delayed(inc)(1)
    annotations_of(x)[x.key]["priority"] = 3
    assert annotations_of(x) == {x.key: {"priority": 1}}


def test_only_what_was_made_in_the_block_has_them():
    before = delayed(inc)(1)
    with annotate(resources={"GPU": 1.5}):
        inside = delayed(inc)(before) + 1
    after = delayed(inc)(inside)
    told = annotations_of(after, 5, before)
    assert before.key not in told
    assert after.key not in told
    assert told[inside.key] == {"resources": {"GPU": 1.5}}
    assert after.compute(scheduler="sync") == 5  # local schedulers run them all the same


def test_threads_have_their_own_and_contexts_take_theirs_along():
    seen = []
    with annotate(priority=1):
        thread = threading.Thread(target=lambda: seen.append(get_annotations()))
        thread.start()
        thread.join()
        context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: seen.append(context.run(get_annotations)))
    thread.start()
    thread.join()
    assert seen == [{}, {"priority": 1}]


@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        ({"priority": "high"}, TypeError, "priority is a number, not 'high'"),
        ({"priority": True}, TypeError, "priority is a number, not True"),
        ({"retries": 1.5}, TypeError, "retries is a whole number, not 1.5"),
        ({"retries": -1}, ValueError, "retries is 0 or more, not -1"),
        ({"workers": [1]}, TypeError, "workers are addresses or names"),
        ({"resources": ["GPU"]}, TypeError, "resources is a mapping such as"),
        ({"resources": {"GPU": "one"}}, TypeError, "the resource 'GPU' is a number, not 'one'"),
    ],
)
def test_wrong_ones(wrong, error, told):
    with pytest.raises(error, match=told), annotate(**wrong):
        pass
    assert get_annotations() == {}
