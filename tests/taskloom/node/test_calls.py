"""How calls are packed and opened."""

from __future__ import annotations

import importlib
import sys
import textwrap
import threading

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


def test_what_is_wrong_for_good_is_told(monkeypatch):
    """An import that never gets further."""
    seen = []

    def loads(data, buffers=()):
        seen.append(data)
        raise ImportError(
            "cannot import name 'x' from partially initialized module 'json' (most likely a circular import)"
        )

    monkeypatch.setattr(calls.pickle, "loads", loads)
    try:
        calls.open_value(calls.Payload([b"abc"]))
    except ImportError as error:
        assert "partially initialized" in str(error)
    assert 2 <= len(seen) <= 10
