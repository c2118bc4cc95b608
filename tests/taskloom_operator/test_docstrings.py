"""The examples in the operator's docstrings are so."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import taskloom_operator

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(taskloom_operator.__path__, "taskloom_operator.")
    if not module.name.endswith(".__main__")  # that one runs the operator
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name):
    outcome = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS, raise_on_error=False)
    assert outcome.failed == 0


def test_there_are_some():
    finder = doctest.DocTestFinder()
    found = [one for name in MODULES for one in finder.find(importlib.import_module(name)) if one.examples]
    assert len(found) > 10
