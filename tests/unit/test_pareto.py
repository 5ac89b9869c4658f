"""Dominance against the definition, spelled out."""

import numpy as np
import pytest

from rdi.pareto import non_dominated


def brute_force(values, maximise):
    kept = []
    for candidate in values:
        beaten = False
        for other in values:
            signs = [1 if up else -1 for up in maximise]
            differences = [s * (b - a) for s, a, b in zip(signs, candidate, other, strict=True)]
            beaten |= all(d >= 0 for d in differences) and any(d > 0 for d in differences)
        kept.append(not beaten)
    return kept


@pytest.mark.parametrize("maximise", [(True, False), (False, True), (True, True, False), (True,)])
@pytest.mark.parametrize("seed", range(5))
def test_fronts_equal_the_definition(maximise, seed):
    # few levels, so that equal points and equal coordinates are common
    values = np.random.default_rng(seed).integers(0, 5, (40, len(maximise))).astype(float)
    expected = brute_force(values.tolist(), maximise)
    found = non_dominated(values, maximise)
    assert found.dtype == bool
    assert found.tolist() == expected
    assert 0 < sum(expected) < 40


def test_equal_points_stay_together():
    values = np.array([[0.9, 10.0], [0.9, 10.0], [0.8, 10.0], [0.9, 11.0]])
    assert non_dominated(values, (True, False)).tolist() == [True, True, False, False]


def test_a_point_alone_and_no_points():
    assert non_dominated(np.array([[1.0, 2.0]]), (True, False)).tolist() == [True]
    assert non_dominated(np.zeros((0, 2)), (True, False)).tolist() == []


@pytest.mark.parametrize("values", [np.array([[np.nan, 1.0]]), np.zeros((3, 3)), np.zeros(3)])
def test_nan_and_wrong_shapes_are_refused(values):
    with pytest.raises(ValueError, match=r"NaN|do not fit"):
        non_dominated(values, (True, False))
