"""Quantities: what Kubernetes means by them, exactly."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kubernetes.utils.quantity import parse_quantity

from taskloom_operator.spec.quantities import PATTERN, QuantityError, quantity, whole

LARGEST = 2**63 - 1


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", "0"),
        ("1", "1"),
        ("+1", "1"),
        ("-1", "-1"),
        ("5.", "5"),
        (".5", "0.5"),
        ("100m", "0.1"),
        ("1n", "0.000000001"),
        ("2u", "0.000002"),
        ("3k", "3000"),
        ("1M", "1000000"),
        ("1E", "1000000000000000000"),
        ("1e3", "1000"),
        ("1E3", "1000"),
        ("12e-1", "1.2"),
        ("1.5Ki", "1536"),
        ("2Gi", "2147483648"),
        ("0.1Ei", "115292150460684697.6"),
        (7, "7"),
        (0.25, "0.25"),
        (1e21, str(LARGEST)),
        (10**30, str(LARGEST)),
        (-(10**30), str(-LARGEST)),
        ("8Ei", str(LARGEST)),
        ("1e999999999999", str(LARGEST)),
        ("1e-999999999999", "0.000000001"),
        ("0e999999999999", "0"),
        ("0.1n", "0.000000001"),
        ("-0.1n", "-0.000000001"),
        ("1.0000000001", "1.000000001"),
    ],
)
def test_it_is_the_number_that_kubernetes_takes_it_for(text, number):
    assert quantity(text) == Decimal(number)


@pytest.mark.parametrize(
    "value",
    ["", " ", "1 ", " 1", "Gi", "1gi", "1KI", "1K", "1 Gi", "1e", "1e1.5", "--1", "1..0", ".", "1_0", "٣", "0x1", "inf", "nan",
     None, True, [], {}, float("nan"), float("inf"), "9" * 65, b"1"],
)  # fmt: skip
def test_what_is_none_is_refused(value):
    with pytest.raises(QuantityError, match="no quantity"):
        quantity(value)


numbers = st.from_regex(r"\A(0|[1-9][0-9]{0,9})(\.[0-9]{1,9})?\Z")
suffixes = st.sampled_from(["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])


@given(st.sampled_from(["", "+", "-"]), numbers, suffixes)
def test_the_client_library_means_the_same(sign, number, suffix):
    theirs = Fraction(parse_quantity(sign + number + suffix))
    size = min(Fraction(math.ceil(abs(theirs) * 10**9), 10**9), Fraction(LARGEST))
    if len(number) < 17:  # beyond, the library rounds
        assert Fraction(quantity(sign + number + suffix)) == (size if theirs >= 0 else -size)


@given(
    st.from_regex(PATTERN.replace("^", r"\A").replace("$", r"\Z"), fullmatch=True).filter(lambda text: len(text) <= 64)
)
@example("1E5")
@example("00000000000000000000000000000000000000000000000000000001.e-0003")
def test_what_the_schema_lets_pass_is_a_quantity(text):
    assert 0 <= quantity(text) <= LARGEST
    assert quantity(text) <= whole(text) < quantity(text) + 1


@given(st.text(max_size=8))
def test_what_is_a_quantity_and_not_negative_the_schema_lets_pass(text):
    try:
        number = quantity(text)
    except QuantityError:
        return
    assert number < 0 or text.startswith("-") or re.search(PATTERN, text)


@given(st.decimals(min_value=0, max_value=10**15, places=6))
def test_written_plainly_it_is_the_same_again(number):
    assert quantity(f"{quantity(str(number)):f}") == number
