"""How calls are packed and opened."""

from __future__ import annotations

import importlib
import sys
import textwrap
import threading

import pytest

from taskloom.node import calls


def test_a_module_that_another_thread_is_importing_is_waited_for(tmp_path, monkeypatch):
    """One thread is in the midst of the package's first import when another one unpickles what needs it."""
    package = tmp_path / "slowly_imported"
    package.mkdir()
    (package / "__init__.py").write_text(
        textwrap.dedent("""
        import threading
        begun, go = threading.Event(), threading.Event()
        import sys
        sys.modules["slowly_imported_events"] = sys.modules[__name__]
        begun.set()
        go.wait(20)

        def double(x):
            return 2 * x
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    # by name: it is a pickle of slowly_imported.double, made without importing it
    payload = calls.Payload([b"\x80\x04cslowly_imported\ndouble\n."])
    first = threading.Thread(target=importlib.import_module, args=("slowly_imported",))
    first.start()
    found = []
    try:
        while "slowly_imported_events" not in sys.modules:
            threading.Event().wait(0.001)
        events = sys.modules["slowly_imported_events"]
        second = threading.Thread(target=lambda: found.append(calls.open_function(payload)(21)))
        second.start()
        events.go.set()
        second.join(20)
    finally:
        first.join(20)
        for name in ("slowly_imported", "slowly_imported_events"):
            sys.modules.pop(name, None)
    assert found == [42]


class Unfinished:
    """Unpickling that meets an unfinished module so many times."""

    def __init__(self, times):
        self.times = times
        self.seen = 0

    def loads(self, data, buffers=()):
        self.seen += 1
        if self.seen <= self.times:
            raise ImportError(
                "cannot import name 'x' from partially initialized module 'json.decoder' (most likely due to ...)"
            )
        return 42


def test_two_threads_that_import_parts_of_a_package_at_once(monkeypatch):
    unfinished = Unfinished(2)
    monkeypatch.setattr(calls.pickle, "loads", unfinished.loads)
    assert calls.open_value(calls.Payload([b"abc"])) == 42


def test_an_import_that_gets_no_further_is_told(monkeypatch):
    unfinished = Unfinished(10**9)
    monkeypatch.setattr(calls.pickle, "loads", unfinished.loads)
    with pytest.raises(ImportError, match="partially initialized"):
        calls.open_value(calls.Payload([b"abc"]))
