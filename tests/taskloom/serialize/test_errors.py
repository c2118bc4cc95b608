from __future__ import annotations

import dataclasses
import gc
import io
import os
import pdb
import pickle
import subprocess
import sys
import textwrap
import threading
import traceback
import tracemalloc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskloom.errors import RemoteError
from taskloom.serialize import dump_error, load_error


class Required(Exception):
    def __init__(self, code, reason):
        super().__init__(f"{reason} ({code})")
        self.code = code


class KeywordOnly(Exception):
    def __init__(self, *, code):
        super().__init__(f"code {code}")
        self.code = code


class NoSuper(Exception):
    def __init__(self, a, b):
        self.pair = (a, b)

    def __str__(self):
        return f"pair {self.pair}"


class Slotted(Exception):
    __slots__ = ("code", "unset")

    def __init__(self, code):
        super().__init__("slotted")
        self.code = code


class OwnNew(Exception):
    def __new__(cls, *, code):
        made = super().__new__(cls, "new")
        made.code = code
        return made

    def __init__(self, *, code):
        super().__init__("new")


class OwnReduce(Exception):
    def __init__(self, code):
        super().__init__("reduced")
        self.code = code

    def __reduce__(self):
        return type(self), (self.code,)


class OwnOSError(OSError):
    def __init__(self, path):
        super().__init__(2, "no such thing", path)
        self.code = path


class Inherits(Required, KeyError):
    pass


@dataclasses.dataclass
class Data(Exception):
    code: int


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


@dataclasses.dataclass(frozen=True)
class FrozenUnusual(Exception):
    code: int
    other: object = dataclasses.field(default_factory=threading.Lock)


class OwnGroup(ExceptionGroup):
    def __new__(cls, message, errors, *, code):
        made = super().__new__(cls, message, errors)
        made.code = code
        return made

    def __init__(self, *args, code):
        super().__init__(*args)

    def derive(self, errors):
        return OwnGroup(self.message, errors, code=self.code)


def raised(error, cause=None):
    """The error, with a traceback."""
    try:
        try:
            outer(error)
        except BaseException as found:
            if cause is None:
                raise
            raise found from cause
    except BaseException as found:
        return found


def outer(error):
    return [1, (None if error is None else inner(error)), 3]


def inner(error):
    raise error


def again(error):
    return load_error(dump_error(error))


def printed(error):
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    "error",
    [
        Required(3, "because"),
        KeywordOnly(code=3),
        NoSuper(1, 2),
        Slotted(3),
        OwnNew(code=3),
        OwnReduce(3),
        OwnOSError("/x"),
        Inherits(3, "because"),
        Data(3),
        Frozen(3),
        ValueError("x", 1),
        KeyError("x"),
        OSError(2, "no such file", "/x"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        SyntaxError("bad", ("file", 3, 1, "text\n")),
        StopIteration(5),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        ImportError("no", name="n", path="p"),
        RemoteError("far"),
        ValueError("ünï\ud800\0"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_as_itself(error):
    error = raised(error)
    BaseException.__setattr__(error, "__notes__", ["a note", "another"])
    found = again(error)
    assert found is not error
    assert type(found) is type(error)
    assert found.args == error.args
    assert str(found) == str(error)
    assert printed(found) == printed(error)
    for name in ("code", "pair", "errno", "strerror", "filename", "reason", "lineno", "value", "name", "path"):
        if hasattr(error, name):
            assert getattr(found, name) == getattr(error, name)
    assert not hasattr(found, "unset")
    assert [f.name for f in traceback.extract_tb(found.__traceback__)] == ["raised", "outer", "inner"]


def test_an_error_without_a_traceback():
    found = again(ValueError("x"))
    assert found.__traceback__ is None
    assert repr(found) == "ValueError('x')"


def test_the_marks_stand_where_they_stood():
    def work(values):
        return 1 + (values["a"]["b"] / 0) + 2

    try:
        work({"a": {"b": 1}})
    except ZeroDivisionError as error:
        original = error
    assert "~~~~~~~~~~~~~~~~^~~" in printed(original)
    assert printed(again(original)) == printed(original)


def test_marks_over_several_lines_and_in_long_ones():
    names = {}
    source = "def f():\n    x = 1; y = 0; text = '" + "x" * 300 + "'; x / y\n\ndef g():\n    return f(\n    )\n"
    exec(compile(source, __file__ + " (not a file)", "exec"), names)
    for _ in range(2):
        try:
            names["g"]()
        except ZeroDivisionError as error:
            found = again(again(error))
            positions = [list(f.tb_frame.f_code.co_positions())[f.tb_lasti // 2] for f in walk(error.__traceback__)]
            after = [list(f.tb_frame.f_code.co_positions())[f.tb_lasti // 2] for f in walk(found.__traceback__)]
            assert after == positions
            assert [f.tb_frame.f_code.co_qualname for f in walk(found.__traceback__)][1:] == ["g", "f"]


def walk(tb):
    while tb is not None:
        yield tb
        tb = tb.tb_next


def test_causes_and_contexts():
    first = raised(KeyError("first"))
    second = raised(ValueError("second"), cause=first)
    try:
        try:
            raise second
        except ValueError:
            raise Required(1, "third")
    except Required as error:
        third = error
    found = again(third)
    assert type(found.__context__) is ValueError
    assert found.__cause__ is None
    assert found.__suppress_context__ is False
    assert type(found.__context__.__cause__) is KeyError
    assert found.__context__.__suppress_context__ is True
    assert printed(found) == printed(third)
    third.__cause__ = None  # as `from None` does
    third.__suppress_context__ = True
    assert printed(again(third)) == printed(third)


def test_a_chain_may_be_a_loop():
    a, b = ValueError("a"), KeyError("b")
    a.__cause__, b.__cause__ = b, a
    a.__context__ = a
    found = again(a)
    assert type(found.__cause__) is KeyError
    assert found.__cause__.__cause__ is found
    assert found.__context__ is found
    assert printed(found) == printed(a)


def test_a_chain_of_thousands_is_cut():
    error = ValueError(0)
    for n in range(1, 5000):
        new = ValueError(n)
        new.__context__ = error
        error = new
    found = again(error)
    count = 0
    while found is not None:
        assert found.args == (4999 - count,)
        count += 1
        found = found.__context__
    assert 100 <= count < 1000


def test_a_deep_recursion():
    def down(n):
        return down(n + 1)

    try:
        down(0)
    except RecursionError as error:
        original = error
    found = again(original)
    assert type(found) is RecursionError
    frames = traceback.extract_tb(found.__traceback__)
    assert [f.name for f in frames[:2]] == ["test_a_deep_recursion", "down"]
    assert 500 <= len(frames) <= 1000
    assert "Previous line repeated" in printed(found)


def test_groups():
    bad = Required(1, "one")
    bad.lock = threading.Lock()
    group = ExceptionGroup("all", [raised(bad), ExceptionGroup("some", [raised(KeyError(2)), Slotted(3)])])
    group.add_note("noted")
    group.code = 7
    group = raised(group)
    found = again(group)
    assert type(found) is ExceptionGroup
    assert found.code == 7
    assert printed(found) == printed(group)
    assert found.exceptions[0].code == 1
    assert found.exceptions[0].lock == "<_thread.lock, which could not be sent>"
    assert found.exceptions[1].exceptions[1].code == 3
    assert found.subgroup(KeyError) is not None
    assert type(again(BaseExceptionGroup("x", [KeyboardInterrupt()]))) is BaseExceptionGroup


def test_a_group_of_an_own_class():
    group = OwnGroup("all", [ValueError(1), KeyError(2)], code=5)
    found = again(raised(group))
    assert type(found) is OwnGroup
    assert found.code == 5
    assert [type(error) for error in found.exceptions] == [ValueError, KeyError]
    assert found.message == "all"


def test_a_group_raised_from_one_of_its_members():
    group = ExceptionGroup("all", [ValueError(1)])
    group.__cause__ = group.exceptions[0]
    group.exceptions[0].__context__ = group
    found = again(group)
    assert found.__cause__ is found.exceptions[0]
    assert found.exceptions[0].__context__ is found


def test_a_large_group_says_what_is_missing():
    found = again(ExceptionGroup("all", [ValueError(n) for n in range(1000)]))
    count = len(found.exceptions)
    assert [error.args[0] for error in found.exceptions] == list(range(count))
    assert found.__notes__ == [f"{1000 - count} more errors of this group were not sent"]


def test_a_deep_nest_of_groups():
    group = ExceptionGroup("0", [ValueError()])
    for n in range(100):
        group = ExceptionGroup(str(n), [group])
    found = again(group)
    for _ in range(100):
        found = found.exceptions[0]
    assert type(found.exceptions[0]) is ValueError


def test_what_does_not_pickle_is_replaced():
    error = Required(threading.Lock(), "x")
    error.args = (threading.Lock(), 5)
    found = again(raised(error))
    assert type(found) is Required
    assert found.code == "<_thread.lock, which could not be sent>"
    assert found.args[0].startswith("<unlocked _thread.lock object at")
    assert found.args[1] == 5
    found = again(raised(FrozenUnusual(3)))
    assert type(found) is FrozenUnusual
    assert found.code == 3
    assert found.__traceback__ is not None


class Bad(BaseException):
    """Raised by the exceptions below: no `except Exception` catches it."""


def breaks(*names, raises=Bad):
    def fail(self, *args):
        raise raises("no")

    made = type("Breaks", (Exception,), dict.fromkeys(names, fail) | {"__module__": __name__})
    return made("x")


@pytest.mark.parametrize("raises", [ValueError, Bad, KeyboardInterrupt, SystemExit, RecursionError])
@pytest.mark.parametrize(
    "names",
    [
        ["__str__"],
        ["__repr__"],
        ["__str__", "__repr__"],
        ["__reduce__"],
        ["__reduce_ex__", "__str__"],
        ["__setattr__"],
        ["__eq__"],
        ["__getattribute__"],
        ["__getstate__"],
        ["__bool__"],
        ["__hash__"],
        ["__setstate__", "__str__", "__repr__"],
        ["__format__"],
    ],
    ids="-".join,
)
def test_methods_that_raise(names, raises):
    error = raised(breaks(*names, raises=raises))
    found = again(error)
    assert type(found).__name__ in ("Breaks", "RemoteError")
    if type(found) is RemoteError:
        assert "Breaks" in str(found)
    frames = traceback.extract_tb(BaseException.__getattribute__(found, "__traceback__"))
    assert [f.name for f in frames] == ["raised", "outer", "inner"]


def test_notes_that_are_none():
    for notes in (None, 5, [1, "x", None], ("a", "b"), [threading.Lock(), "y"]):
        error = ValueError("x")
        error.__notes__ = notes
        found = again(raised(error))
        assert isinstance(found, ValueError)
        assert found.args == ("x",)


class Unloadable(Exception):
    """Pickles, and does not come back."""

    def __init__(self, how):
        super().__init__("unloadable")
        self.how = how

    def __reduce__(self):
        return explode, (self.how,)


def explode(how):
    raise how("in unpickling")


@pytest.mark.parametrize("how", [ValueError, SystemExit, Bad, GeneratorExit, MemoryError])
def test_code_that_fails_while_it_is_unpickled(how):
    found = again(raised(Unloadable(how)))
    assert type(found) is Unloadable  # by its parts: the sender has seen that the usual way fails
    assert found.how is how


class OnlyHere(Exception):
    """Comes back only in the process that made it."""

    def __init__(self):
        super().__init__("only here")

    def __reduce__(self):
        return only_here, (os.getpid(),)

    def __new__(cls, *args):
        return super().__new__(cls)


def only_here(pid):
    if pid != os.getpid():
        raise SystemExit(7)
    return OnlyHere()


def elsewhere(code, *data, path=()):
    """What a fresh interpreter prints that gets these bytes as hex in `data`."""
    program = """
import sys
from taskloom.serialize import load_error
data = [bytes.fromhex(x) for x in sys.stdin.read().split()]
"""
    return subprocess.run(
        [sys.executable, "-c", program + textwrap.dedent(code)],
        input="\n".join(x.hex() for x in data),
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*path, *sys.path])},
    ).stdout


def test_a_class_that_the_other_side_does_not_have(tmp_path, monkeypatch):
    (tmp_path / "taskloom_only_here.py").write_text(
        "class Odd(Exception):\n    pass\n\nclass OddGroup(ExceptionGroup):\n    pass\n\ndef work():\n    raise Odd('strange')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import taskloom_only_here as module

    try:
        module.work()
    except module.Odd as error:
        odd = error
    odd.add_note("a note")
    odd.__cause__ = ValueError("why")
    group = module.OddGroup("many", [odd, KeyError(1)])
    holds = ValueError(module.Odd("inside"))
    try:
        raise OnlyHere
    except OnlyHere as error:
        only = error
    data = [dump_error(error) for error in (odd, group, holds, only)]
    monkeypatch.undo()
    out = elsewhere(
        """
        import traceback
        for one in data:
            error = load_error(one)
            print("##", type(error).__name__)
            traceback.print_exception(error, file=sys.stdout)
        """,
        *data,
    )
    odd, group, holds, only = out.split("## ")[1:]
    assert odd.startswith("RemoteError\nValueError: why\n")
    assert "the task raised taskloom_only_here.Odd, which cannot be unpickled here; where it was raised" in odd
    assert "taskloom_only_here.Odd: strange" in odd
    assert odd.count("a note") >= 1
    assert 'taskloom_only_here.py", line 8, in work' in odd
    assert group.startswith("ExceptionGroup\n")
    assert "it was a taskloom_only_here.OddGroup, which cannot be unpickled here" in group
    assert "KeyError: 1" in group
    assert holds.startswith("RemoteError\n")
    assert "the task raised ValueError" in holds
    assert only.startswith("RemoteError\n")
    assert "only here" in only


def test_a_debugger_walks_through_it(capsys, monkeypatch):
    found = again(raised(ValueError("x")))
    commands = io.StringIO("up\nlist\nwhere\ndown\np __name__\nquit\n")
    debugger = pdb.Pdb(stdin=commands, stdout=(out := io.StringIO()), nosigint=True)
    debugger.use_rawinput = False
    debugger.reset()
    debugger.interaction(None, found.__traceback__)
    text = out.getvalue()
    assert "-> raise error" in text
    assert "return [1, (None if error is None else inner(error)), 3]" in text
    assert "test_errors.py" in text
    assert f"'{__name__}'" in text


def test_a_huge_message():
    error = raised(ValueError("x" * 10_000_000))
    data = dump_error(error)
    assert len(data) < 10_010_000
    assert again(error).args == error.args
    own = dump_error(raised(Required(1, "x" * 10_000_000)))
    assert len(own) < 10_100_000  # the text for those who lack the class is a short one


def test_large_arrays_are_copied_once():
    error = Required(np.arange(4_000_000.0), "x")
    error = raised(error)
    dump_error(error)  # imports
    tracemalloc.start()
    try:
        data = dump_error(error)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        found = load_error(data)
        peak_load = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert (found.code == error.code).all()
    assert len(data) < 1.01 * error.code.nbytes
    assert peak < 1.6 * error.code.nbytes  # pickle's own buffer grows by half each time
    assert peak_load < 1.1 * error.code.nbytes


def test_nothing_is_left_in_cycles():
    """What was taken apart and put together goes when it is dropped, without the garbage collector."""

    error = raised(Required(1, "x"))
    error.__cause__ = ExceptionGroup("y", [Slotted(3), raised(OwnOSError("/x"))])
    gc.collect()
    gc.disable()
    try:
        found = again(error)
        gone = weakref.ref(found)
        del found
        assert gone() is None
    finally:
        gc.enable()


def test_array_in_a_cycle_that_the_collector_finds():
    """In a process of its own: a wrong use of buffers crashes the interpreter."""
    code = """
    import gc
    import numpy as np
    from taskloom.serialize import dump_error
    gc.set_threshold(5)
    class Holds(Exception):
        def __init__(self, array, more):
            super().__init__("holds")
            self.array = array
    for _ in range(20):
        try:
            raise Holds(np.zeros(10_000), 1)
        except Holds as error:
            error.me = error
            error.data = dump_error(error)
        gc.collect()
    print("alive")
    """
    assert elsewhere(code) == "alive\n"


def test_with_the_support_for_tracebacks_that_dask_installs():
    code = """
    import tblib.pickling_support
    from taskloom.serialize import dump_error
    tblib.pickling_support.install()
    try:
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")
    except UnicodeDecodeError as error:
        error.__cause__ = StopIteration(5)
        found = load_error(dump_error(error))
    print(found, found.__cause__.value)
    """
    assert elsewhere(code) == "'utf-8' codec can't decode byte 0x78 in position 0: bad 5\n"


def test_it_does_not_keep_what_the_frames_held():
    """A loaded error holds neither locals nor globals of the program that raised it."""
    found = again(raised(ValueError("x")))
    for tb in walk(found.__traceback__):
        assert set(tb.tb_frame.f_globals) - {"__builtins__"} <= {"__name__", "__file__"}
        assert tb.tb_frame.f_back is None
        assert tb.tb_frame.f_locals == {}
    traceback.clear_frames(found.__traceback__)


def test_bytes_that_are_no_error():
    for data in (
        b"",
        b"x",
        pickle.dumps(5),
        pickle.dumps([]),
        pickle.dumps([{}]),
        pickle.dumps([{"error": (b"", [])}]),
    ):
        assert isinstance(load_error(data), RemoteError)
    whole = dump_error(raised(Required(1, "x")))
    for end in range(0, len(whole), 7):
        assert isinstance(load_error(whole[:end]), RemoteError)


@given(st.binary(max_size=60))
def test_any_bytes(data):
    assert isinstance(load_error(data), BaseException)


class Weird(Exception):
    """Does what it was told to, whatever is asked of it."""

    def __init__(self, mood):
        super().__init__(mood)
        self.mood = mood

    def __str__(self):
        if self.mood == "str":
            raise Bad
        return "x" * 50_000 if self.mood == "long" else self.mood

    def __repr__(self):
        raise OSError

    def __reduce__(self):
        if self.mood == "reduce":
            raise SystemExit
        if self.mood == "name":
            return "taskloom_no_such_name"
        if self.mood == "lock":
            return threading.Lock, ()
        return super().__reduce__()


_leaf = st.one_of(
    st.text(max_size=5).map(ValueError),
    st.integers().map(KeyError),
    st.sampled_from(["str", "reduce", "name", "lock", "long", "fine"]).map(Weird),
    st.builds(Slotted, st.integers()),
    st.builds(KeywordOnly, code=st.integers()),
    st.builds(Frozen, st.integers()),
)
_tree = st.recursive(
    _leaf,
    lambda inner: st.builds(ExceptionGroup, st.text(max_size=3), st.lists(inner, min_size=1, max_size=3)),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(st.lists(_tree, min_size=1, max_size=5), st.data())
def test_any_graph_of_errors(errors, data):
    """Links in all directions, between errors of all kinds."""
    pick = st.integers(0, len(errors) - 1)
    for error in errors:
        if data.draw(st.booleans()):
            BaseException.__setattr__(error, "__cause__", errors[data.draw(pick)])
        if data.draw(st.booleans()):
            BaseException.__setattr__(error, "__context__", errors[data.draw(pick)])
        if data.draw(st.booleans()):
            raised(error)
    found = again(errors[0])
    seen = set()

    def compare(new, old):
        if (id(new), id(old)) in seen:
            return
        seen.add((id(new), id(old)))
        assert type(new) is type(old)
        assert new.args == old.args or isinstance(old, ExceptionGroup)
        for name in ("__cause__", "__context__"):
            a, b = getattr(new, name), getattr(old, name)
            assert (a is None) == (b is None)
            if b is not None:
                compare(a, b)
        assert (new.__traceback__ is None) == (old.__traceback__ is None)
        if isinstance(old, ExceptionGroup):
            assert new.message == old.message
            for a, b in zip(new.exceptions, old.exceptions, strict=True):
                compare(a, b)

    compare(found, errors[0])
