from __future__ import annotations

import collections.abc
import os.path
import pickle
import sys
import types

import pytest

from taskloom.serialize.objects import dumps_whole


@pytest.mark.parametrize(
    "thing", [collections.abc.Container, collections.abc.Mapping, os.path.join, pickle.dumps, types.SimpleNamespace]
)
def test_modules_with_a_second_name_go_by_name(thing):
    # Python 3.13 has no file for collections.abc, only the name in sys.modules
    assert len(dumps_whole(thing)) < 100
    assert pickle.loads(dumps_whole(thing)) is thing


def test_a_module_that_nobody_else_can_import_goes_by_value(monkeypatch, tmp_path):
    file = tmp_path / "made_here.py"
    file.write_text("def double(x):\n    return 2 * x\n")
    module = types.ModuleType("made_here")
    module.__file__ = str(file)
    exec(compile(file.read_text(), str(file), "exec"), vars(module))
    monkeypatch.setitem(sys.modules, "made_here", module)
    data = dumps_whole(module.double)
    monkeypatch.delitem(sys.modules, "made_here")
    assert pickle.loads(data)(4) == 8
