"""Counts, means and moments of items that are gone over once: what the numeric reductions call.

Sources: T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances", 1979, for joining moments; two passes over each stretch of items for the moments themselves.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import count as counter
from itertools import islice
from operator import itemgetter
from typing import Any, TypeAlias

__all__ = ["Moments", "count", "join_moments", "mean_of", "moments", "total_and_count", "variance"]

# How many, their mean, what is missing from the mean because it is rounded, the sum of squared distances from it.
Moments: TypeAlias = tuple[int, Any, Any, Any]

_STRETCH = 1 << 15  # items at a time
_FLOATS = {float, int, bool}
_first = itemgetter(0)
_NOTHING: Moments = (0, 0.0, 0.0, 0.0)


def count(items: Iterable[Any]) -> int:
    """How many items there are; only one of them is held at a time."""
    if isinstance(items, list):
        return len(items)
    numbers = counter()
    deque(zip(items, numbers, strict=False), maxlen=0)
    return next(numbers)


def total_and_count(items: Iterable[Any]) -> tuple[Any, int]:
    """Their sum and how many there are."""
    if isinstance(items, list):
        return sum(items), len(items)
    numbers = counter()
    # zip asks for a number only where there is an item
    total = sum(map(_first, zip(items, numbers, strict=False)))
    return total, next(numbers)


def mean_of(pairs: Iterable[tuple[Any, int]]) -> Any:
    """The mean, from sums and counts.

    Raises:
        ValueError: there are no items.
    """
    pairs = list(pairs)
    number = sum([n for _, n in pairs])
    if not number:
        raise ValueError("the mean of an empty bag: it has no items")
    return sum([total for total, n in pairs if n]) / number


def moments(items: Iterable[Any]) -> Moments:
    """Number, mean (in two parts) and sum of squared distances from the mean."""
    items = iter(items)
    made: Moments = _NOTHING
    while stretch := list(islice(items, _STRETCH)):
        made = _joined(made, _moments(stretch))
    return made


def _moments(items: Sequence[Any]) -> Moments:
    n = len(items)
    total = _fsum if set(map(type, items)) <= _FLOATS else sum
    mean = total(items) / n
    distances = [x - mean for x in items]
    squares = total([d * d for d in distances])
    # The distances would add up to nothing if the mean were exact: what they add up to tells its rounding error.
    rest = total(distances)
    return n, mean, rest / n, squares - rest * rest / n


def _fsum(items: Iterable[Any]) -> Any:
    items = list(items)
    try:
        return math.fsum(items)
    except (OverflowError, ValueError):  # infinities of both signs, or integers that no float can hold
        return sum(items)


def join_moments(many: Iterable[Moments]) -> Moments:
    """The moments of all items, from those of parts of them."""
    made: Moments = _NOTHING
    for one in many:
        made = _joined(made, one)
    return made


def _joined(a: Moments, b: Moments) -> Moments:
    n_a, mean_a, rest_a, squares_a = a
    n_b, mean_b, rest_b, squares_b = b
    if not n_a:
        return b
    if not n_b:
        return a
    n = n_a + n_b
    apart = (mean_b - mean_a) + (rest_b - rest_a)
    # The new mean in two parts, as Dekker and Knuth add numbers without an error: the rounding of means far from zero
    # would else outweigh distances that are small.
    step = rest_a + apart * n_b / n
    mean = mean_a + step
    back = mean - step
    rest = (mean_a - back) + (step - (mean - back))
    return n, mean, rest, squares_a + squares_b + apart * apart * n_a * n_b / n


def variance(ddof: float, many: Iterable[Moments]) -> Any:
    """The variance, from the moments of all partitions.

    Raises:
        ValueError: there are not more than ``ddof`` items.
    """
    n, _, _, squares = join_moments(many)
    if n - ddof <= 0:
        what = "an empty bag" if not n else f"{n} item{'s' if n > 1 else ''}"
        raise ValueError(f"the variance of {what} with ddof={ddof}: there have to be more than ddof items")
    return squares / (n - ddof)
