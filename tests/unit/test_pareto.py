"""Dominance against the definition, spelled out; dominated volume by hand and by throwing points."""

import tracemalloc

import numpy as np
import pytest

from rdi.pareto import hypervolume, non_dominated


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


@pytest.mark.parametrize(
    "maximise", [(True, False), (False, True), (True, True, False), (True,), (True, False, True, False)]
)
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


def test_memory_grows_with_the_points_and_not_with_their_pairs():
    values = np.random.default_rng(0).random((20_000, 3))
    tracemalloc.start()
    try:
        kept = non_dominated(values, (True, True, False))
        hypervolume(values, (True, True, False), (0, 0, 1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0 < kept.sum() < 2_000
    assert peak < 100 * values.nbytes, "20,000 x 20,000 pairs are 400 MB in bits"


def test_infinite_values_and_signed_zeros_have_their_place():
    values = np.array([[np.inf, 1.0, 0.0], [np.inf, 1.0, -0.0], [1.0, np.inf, 0.0], [1.0, 1.0, 0.0]])
    assert non_dominated(values, (True, True, True)).tolist() == [True, True, True, False]


def test_a_point_alone_and_no_points():
    assert non_dominated(np.array([[1.0, 2.0]]), (True, False)).tolist() == [True]
    assert non_dominated(np.zeros((0, 2)), (True, False)).tolist() == []


@pytest.mark.parametrize("values", [np.array([[np.nan, 1.0]]), np.zeros((3, 3)), np.zeros(3)])
def test_nan_and_wrong_shapes_are_refused(values):
    with pytest.raises(ValueError, match=r"NaN|do not fit"):
        non_dominated(values, (True, False))


BOX3 = (True, True, False)


@pytest.mark.parametrize(
    ("values", "maximise", "reference", "expected"),
    [
        ([[3.0, 2.0]], (True, True), (0, 0), 6.0),
        ([[3.0, 2.0]], (True, False), (0, 5), 9.0),
        ([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]], (True, True), (0, 0), 6.0),
        ([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]], (True, True), (1, 0), 3.0),
        ([[3.0, 2.0], [2.0, 1.0], [3.0, 2.0]], (True, True), (0, 0), 6.0),
        ([[0.0, 5.0], [-1.0, 9.0]], (True, True), (0, 0), 0.0),
        ([[2.0, 3.0, 4.0]], (True, True, True), (0, 0, 0), 24.0),
        ([[0.5, 0.25, 4.0]], BOX3, (0, 0, 10), 0.75),
        # two boxes of 2x1x1 and 1x2x1 share the unit cube, a third stands on it: 2 + 2 - 1 + 1
        ([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]], (True, True, True), (0, 0, 0), 4.0),
        ([[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]], (True, True, True), (0, 0, 0), 8.0),
    ],
)
def test_hypervolumes_by_hand(values, maximise, reference, expected):
    assert hypervolume(np.array(values), maximise, reference) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("maximise", [(True, False), (False, True), BOX3, (False, False, True)])
@pytest.mark.parametrize("seed", range(4))
def test_hypervolumes_equal_the_share_of_random_points_that_are_dominated(maximise, seed):
    chance = np.random.default_rng(seed)
    count = len(maximise)
    # some levels, so that coordinates are equal now and then, and some points outside the box
    values = chance.integers(-1, 11, (8, count)) / 10
    up = np.asarray(maximise)
    reference = np.where(up, 0.1, 0.9)
    thrown = chance.random((200_000, count)) * 0.9 + np.where(up, 0.1, 0.0)
    dominated = np.zeros(len(thrown), dtype=bool)
    for value in values:
        dominated |= np.where(up, value >= thrown, value <= thrown).all(axis=1)
    # a coordinate beyond the box of the throws would count only up to its edge
    inside = np.where(up, np.minimum(values, 1.0), np.maximum(values, 0.0))
    expected = dominated.mean() * 0.9**count
    assert 0 < expected < 0.9**count
    assert hypervolume(inside, maximise, reference) == pytest.approx(expected, abs=4 * 0.5 / 200_000**0.5)


@pytest.mark.parametrize("maximise", [(True, False), BOX3])
def test_hypervolume_is_that_of_the_front_whatever_the_order(maximise):
    chance = np.random.default_rng(1)
    values = chance.random((30, len(maximise)))
    reference = np.where(np.asarray(maximise), 0.0, 1.0)
    whole = hypervolume(values, maximise, reference)
    assert hypervolume(values[non_dominated(values, maximise)], maximise, reference) == pytest.approx(whole, rel=1e-12)
    assert hypervolume(values[chance.permutation(30)], maximise, reference) == pytest.approx(whole, rel=1e-12)
    better = np.where(np.asarray(maximise), 1.0, 0.0)[None]
    assert hypervolume(np.concatenate([values, better]), maximise, reference) == pytest.approx(1.0)
    assert hypervolume(values[:0], maximise, reference) == 0


@pytest.mark.parametrize(
    ("values", "maximise", "reference", "message"),
    [
        ([[1.0, np.nan]], (True, True), (0, 0), "NaN"),
        ([[1.0, 1.0]], (True, True), (0, np.nan), "NaN"),
        ([[1.0, np.inf]], (True, True), (0, 0), "finite"),
        ([[1.0, 1.0]], (True, True), (0, 0, 0), "do not fit"),
        ([[1.0]], (True,), (0,), "2 or 3"),
        ([[1.0, 1.0, 1.0, 1.0]], (True,) * 4, (0,) * 4, "2 or 3"),
    ],
)
def test_hypervolumes_that_make_no_sense_are_refused(values, maximise, reference, message):
    with pytest.raises(ValueError, match=message):
        hypervolume(np.array(values), maximise, reference)
