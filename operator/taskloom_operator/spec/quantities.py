"""Quantities as Kubernetes writes them (``"100m"``, ``"2Gi"``, ``"1e3"``, ``4``), as exact numbers.

The grammar is that of ``resource.Quantity`` in Kubernetes' API: a sign, digits with or without a point, and one suffix, which is
binary (``Ki Mi Gi Ti Pi Ei``), decimal (``n u m k M G T P E``) or an exponent (``e3``, ``E-2``). As there, a quantity is a
whole number of billionths, rounded away from zero, and none is larger than 2**63 - 1.
"""

from __future__ import annotations

import math
import re
from decimal import ROUND_CEILING, ROUND_UP, Context, Decimal
from typing import Any

__all__ = ["LONGEST", "PATTERN", "QuantityError", "quantity", "whole"]

_NUMBER = r"([0-9]+(\.[0-9]*)?|\.[0-9]+)"
_SUFFIX = r"([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?"

#: What quantities look like that are not negative, for schemas.
PATTERN = f"^[+]?{_NUMBER}{_SUFFIX}$"
#: How many characters one has at most; Kubernetes has no such limit, but nobody needs more.
LONGEST = 64

_FORM = re.compile(rf"(?P<sign>[+-]?)(?P<number>{_NUMBER})(?P<suffix>{_SUFFIX})", re.ASCII)
_UNITS = {
    "": Decimal(1),
    **{unit: Decimal(10) ** power for unit, power in zip("numkMGTPE", (-9, -6, -3, 3, 6, 9, 12, 15, 18), strict=True)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)},
}
_LARGEST = Decimal(2**63 - 1)
_SMALLEST = Decimal("1e-9")
_EXACT = Context(prec=2 * LONGEST + 64)  # digits enough for any text of that length, times any unit
_FAR = 2 * LONGEST  # ten to this power is too large, or too small, for whatever digits stand before it


class QuantityError(ValueError):
    """This is no quantity; the message says what one looks like."""


def quantity(value: Any) -> Decimal:
    """The number that a quantity stands for.

    Args:
        value: as it is in the JSON of an object: text or a number.

    Raises:
        QuantityError: it is none.

    >>> quantity("1500m"), quantity("2Ki"), quantity(3), quantity(".5")
    (Decimal('1.5'), Decimal('2048'), Decimal('3'), Decimal('0.5'))
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        raise QuantityError(f"{value!r} is no quantity: that is text such as '500m' or '2Gi', or a number")
    text = value if isinstance(value, str) else _text(value)
    match = _FORM.fullmatch(text) if len(text) <= LONGEST else None
    if match is None:
        shown = text if len(text) <= LONGEST else text[:57] + "..."
        raise QuantityError(
            f"{shown!r} is no quantity: that is a number, and behind it nothing, one of n, u, m, k, M, G, T, P, E, Ki, Mi, Gi, "
            f"Ti, Pi, Ei, or an exponent such as e3"
        )
    digits, suffix = Decimal(match["number"]), match["suffix"]
    if suffix in _UNITS:
        size = _EXACT.multiply(digits, _UNITS[suffix])
    else:
        size = _EXACT.scaleb(digits, max(-_FAR, min(_FAR, int(suffix[1:]))))
    size = min(_LARGEST, size).quantize(_SMALLEST, ROUND_UP, _EXACT)
    size = size.to_integral_value() if size == size.to_integral_value() else size.normalize(_EXACT)
    return -size if match["sign"] == "-" else size


def _text(value: int | float | Decimal) -> str:
    if isinstance(value, int):
        return str(max(-int(_LARGEST), min(int(_LARGEST), value)))
    if not math.isfinite(value):
        raise QuantityError(f"{value!r} is no quantity: it is not finite")
    return f"{value}"


def whole(value: Any) -> int:
    """A quantity as a whole number, rounded up: bytes of memory, CPUs as threads.

    Raises:
        QuantityError: it is no quantity.

    >>> whole("2Gi"), whole("1500m")
    (2147483648, 2)
    """
    return int(quantity(value).to_integral_value(ROUND_CEILING))
