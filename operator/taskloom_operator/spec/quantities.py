"""Kubernetes' quantities: "500m", "2Gi", "1e3"."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from typing import Any

__all__ = ["PATTERN", "quantity", "whole"]

#: What the API server takes for one; see "Resource quantities" in its documentation.
PATTERN = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
)
_FORM = re.compile(r"([+-]?[0-9.]+)(?:([eE][+-]?[0-9]+)|([A-Za-z]*))")
_UNITS = {
    "": Decimal(1),
    **{unit: Decimal(10) ** power for unit, power in zip("numkMGTPE", (-9, -6, -3, 3, 6, 9, 12, 15, 18), strict=True)},
    **{f"{unit}i": Decimal(1024) ** (n + 1) for n, unit in enumerate("KMGTPE")},
}


def quantity(value: Any) -> Decimal:
    """The number that a quantity stands for.

    Args:
        value: a string, or a number.

    Raises:
        ValueError: it is none.

    >>> quantity("1500m"), quantity("2Ki"), quantity(3), quantity("1e3")
    (Decimal('1.500'), Decimal('2048'), Decimal('3'), Decimal('1E+3'))
    """
    text = str(value).strip()
    found = _FORM.fullmatch(text)
    if found is None or not re.match(PATTERN, text) or (found[3] or "") not in _UNITS:
        raise ValueError(f"{value!r} is no quantity, such as 500m or 2Gi")
    return Decimal(found[1] + (found[2] or "")) * _UNITS[found[3] or ""]


def whole(value: Any) -> int:
    """The same, rounded up.

    >>> whole("1500m"), whole("0.5Gi")
    (2, 536870912)
    """
    return int(quantity(value).to_integral_value(ROUND_CEILING))
