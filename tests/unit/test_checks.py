"""Range checks say the option, the range and what was given."""

import math

import numpy as np
import pytest

from rdi.checks import choice, integer, number
from rdi.errors import UserError


@pytest.mark.parametrize("value", [0, 0.5, 1, np.float32(0.25), np.int64(1)])
def test_numbers_in_range_come_back_as_floats(value):
    assert number("x", value, 0, 1) == value
    assert type(number("x", value, 0, 1)) is float


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, True, None, "0.5", [0.5]])
def test_other_numbers_are_refused(value):
    with pytest.raises(UserError, match=r"x must be .*\[0, 1\], got"):
        number("x", value, 0, 1)


def test_open_and_endless_ranges_are_shown_as_such():
    with pytest.raises(UserError, match=r"\(0, inf\), got 0"):
        number("x", 0, 0, math.inf, open_low=True)
    assert number("x", 1e30, 0, math.inf, open_low=True) == 1e30
    with pytest.raises(UserError):
        number("x", math.inf, 0, math.inf)


def test_a_fraction_of_255_says_how_to_write_it():
    with pytest.raises(UserError, match=r"'eps=\$\{px:8\}'"):
        number("eps", "8/255", 0, 1)


def test_whole_numbers():
    assert integer("n", 3, 1) == 3
    assert type(integer("n", np.int64(3), 1)) is int
    assert integer("n", 3, 1, 3) == 3
    for value, low, high in ((0, 1, None), (4, 1, 3), (2.0, 1, None), (True, 0, None), ("3", 1, None), (None, 1, None)):
        with pytest.raises(UserError, match=r"n must be"):
            integer("n", value, low, high)


def test_choices():
    assert choice("mode", "a", ("a", "b")) == "a"
    with pytest.raises(UserError, match="mode must be one of a, b; got 'c'"):
        choice("mode", "c", ("a", "b"))
