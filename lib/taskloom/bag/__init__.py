"""Bags: many items, worked on in parallel, a partition of them in each task; see ``docs/bag.md``.

>>> from taskloom import bag
>>> lines = bag.from_sequence(["a b", "b c", "a b"], npartitions=2)
>>> lines.str.split().flatten().frequencies(sort=True).compute(scheduler="sync")
[('b', 3), ('a', 2), ('c', 1)]

Some of the names are those of builtins, so use them as ``bag.map``, ``bag.zip`` and ``bag.range``.
"""

from taskloom.bag.base import Item
from taskloom.bag.core import Bag, concat, from_delayed, from_sequence, range, zip
from taskloom.bag.elements import map_items as map
from taskloom.bag.elements import map_partitions
from taskloom.bag.text import read_text, to_textfiles

__all__ = [
    "Bag",
    "Item",
    "concat",
    "from_delayed",
    "from_sequence",
    "map",
    "map_partitions",
    "range",
    "read_text",
    "to_textfiles",
    "zip",
]
