"""Tracebacks without our frames, notes."""

from __future__ import annotations

import sys
import traceback

import pytest

import taskloom
from taskloom.errors import GraphError
from taskloom.local import frames
from taskloom.local.frames import cut_frames, note_callback, note_task, quiet_frames

# Code of ours and code of the user's, as the file names say.
OURS = frames._PACKAGE + "made_up.py"
USERS = "/somewhere/script.py"


def function(source: str, filename: str, **names):
    exec(compile(source, filename, "exec"), names)
    return names["f"]


def raised(call):
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def lines(error):
    return [frame.filename for frame in traceback.extract_tb(error.__traceback__)]


def test_ours_go_wherever_they_stand():
    fails = function("def f(): return 1 / 0", USERS)
    middle = function("def f(): return g()", OURS, g=fails)
    again = function("def f(): return g()", USERS, g=middle)
    outer = function("def f(): return g()", OURS, g=again)
    error = raised(outer)
    assert lines(error)[-4:] == [OURS, USERS, OURS, USERS]
    cut_frames(error)
    assert lines(error)[-2:] == [USERS, USERS]
    assert OURS not in lines(error)
    before = error.__traceback__
    cut_frames(error)
    assert error.__traceback__ is before


def test_the_last_may_stay_and_nothing_may_be_left():
    error = raised(function("def f(): return g()", OURS, g=function("def f(): 1 / 0", OURS)))
    error.__traceback__ = error.__traceback__.tb_next
    cut_frames(error, last=True)
    assert lines(error) == [OURS]
    cut_frames(error)
    assert error.__traceback__ is None
    cut_frames(error)


def test_the_demo_is_the_users():
    assert not frames.is_ours(frames._USERS + "/logs.py")
    assert frames.is_ours(frames.__file__)
    assert not frames.is_ours("/work/taskloom_tools.py")


def test_public_functions_show_our_own_faults_by_one_line():
    ours = quiet_frames(function("def f(): return g()", OURS, g=function("def f(): return None.x", OURS)))
    assert lines(raised(ours)).count(OURS) == 1
    # what we say on purpose, and what a task has raised, shows none
    for source in ("def f(): raise GraphError('no')", "def f(): raise noted"):
        noted = ValueError()
        note_task(noted, "x")
        ours = quiet_frames(function(source, OURS, GraphError=GraphError, noted=noted))
        assert lines(raised(ours)).count(OURS) == 0


def test_public_functions_keep_their_names_and_let_go_of_their_arguments():
    class Large:
        pass

    def public(x):
        """Says something."""
        raise ValueError("no")

    quiet = quiet_frames(public)
    assert (quiet.__name__, quiet.__doc__) == ("public", "Says something.")
    large = Large()
    count = sys.getrefcount(large)
    try:
        quiet(large)
    except ValueError as caught:
        error = caught
    # the frame of the decorator, which the error leads to, has them no longer; public's own, a user's here, has
    assert sys.getrefcount(large) == count + 1
    del error
    assert sys.getrefcount(large) == count


def test_a_note_is_made_once_and_never_in_the_way():
    error = ValueError()
    note_task(error, ("x", 1))
    note_task(error, "another")
    note_callback(error, "Bar.start", "x")
    assert error.__notes__ == ["raised in the task ('x', 1)"]
    for kind in (KeyboardInterrupt, SystemExit, GeneratorExit):
        error = kind()
        note_task(error, "x")
        assert not hasattr(error, "__notes__")
    error = ValueError()
    error.__notes__ = 3  # nobody's business, and no reason to fail
    note_task(error, "x")
    assert error.__notes__ == 3
    error = ValueError()
    note_callback(error, "Bar.posttask", "x")
    assert error.__notes__ == ["raised by the callback Bar.posttask, which was told of the task 'x'"]


def test_what_a_user_sees():
    def mine(x):
        return 1 / x

    with pytest.raises(ZeroDivisionError) as caught:
        taskloom.get_sync({"x": 0, "y": (mine, "x")}, "y")
    text = "".join(traceback.format_exception(caught.value))
    assert text.count("File ") == 2  # the call, and the task
    assert text.endswith("ZeroDivisionError: division by zero\nraised in the task 'y'\n")
