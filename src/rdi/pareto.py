"""Dominance, fronts and dominated volume. Pure arithmetic on arrays."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np


def non_dominated(values: np.ndarray, maximise: tuple[bool, ...]) -> np.ndarray:
    """Return bool per point: no other is at least as good in all objectives and better in one.

    values: of shape (points, objectives).
    maximise: per objective, True if larger is better. Equal points do not dominate one another.
    Raises ValueError for NaN or a wrong number of directions.
    """
    gains = _gains(values, maximise)
    order = np.lexsort(gains.T[::-1])[::-1]  # whatever dominates a point comes before it
    rows = gains[order]
    distinct = np.ones(len(rows), dtype=bool)
    distinct[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    kept = np.zeros(len(rows), dtype=bool)
    kept[distinct] = _maxima(rows[distinct])
    found = np.zeros(len(rows), dtype=bool)
    found[order] = kept[np.flatnonzero(distinct)[np.cumsum(distinct) - 1]]  # equal points share their fate
    return found


def _maxima(rows: np.ndarray) -> np.ndarray:
    """Per row, all distinct and in falling lexicographic order: no earlier one is at least as good in all columns."""
    if rows.shape[1] <= 3:
        stairs = _Staircase()
        wide = np.pad(rows, ((0, 0), (0, 3 - rows.shape[1])))
        return np.array([stairs.add(x, y) for _, x, y in wide.tolist()], dtype=bool)
    front = np.empty_like(rows)
    kept = np.zeros(len(rows), dtype=bool)
    for index, row in enumerate(rows):
        count = np.count_nonzero(kept)
        kept[index] = not (front[:count] >= row).all(axis=1).any()
        front[count] = row
    return kept


class _Staircase:
    """The maxima of the points (x, y) added so far, and the area of the rectangles from 0 to each of them.

    A point costs a binary search; every point leaves the staircase once at most.
    """

    def __init__(self) -> None:
        self.x: list[float] = []  # ascending
        self.y: list[float] = []  # falling
        self.area = 0.0

    def add(self, x: float, y: float) -> bool:
        """Return whether no point added before is at least as good in both."""
        end = bisect_left(self.x, x)
        if end < len(self.x) and self.y[end] >= y:
            return False
        begin = end
        while begin and self.y[begin - 1] <= y:
            begin -= 1
        left = self.x[begin - 1] if begin else 0.0
        self.area += y * (x - left)
        for k in range(begin, end):  # the steps that this one covers
            self.area -= self.y[k] * (self.x[k] - left)
            left = self.x[k]
        if end < len(self.x):
            self.area -= self.y[end] * (x - left)
            end += self.x[end] == x
        self.x[begin:end], self.y[begin:end] = [x], [y]
        return True


def hypervolume(values: np.ndarray, maximise: tuple[bool, ...], reference: Sequence[float]) -> float:
    """Compute the volume that the points dominate above `reference`; exact, for 2 or 3 objectives.

    values of shape (points, objectives), maximise: as in `non_dominated`.

    reference: the worst corner of the box; points that are not better than it in every objective add nothing. In the
        units of the objectives multiplied: divide by the box from `reference` to the best conceivable values for a
        share.
    Raises ValueError for NaN, for infinite values and for another number of objectives.
    """
    corner = np.atleast_2d(np.asarray(reference, dtype=float))
    gains = _gains(values, maximise) - _gains(corner, maximise)
    if len(maximise) not in (2, 3):
        raise ValueError(f"hypervolume is for 2 or 3 objectives, got {len(maximise)}")
    if not np.isfinite(gains).all():
        raise ValueError("values and reference must be finite")
    gains = gains[(gains > 0).all(axis=1)]
    return _area(gains) if len(maximise) == 2 else _volume(gains)


def _gains(values: np.ndarray, maximise: tuple[bool, ...]) -> np.ndarray:
    """Return the values with larger ones better in every objective."""
    if values.ndim != 2 or values.shape[1] != len(maximise):
        raise ValueError(f"values of shape {values.shape} do not fit {len(maximise)} directions")
    if np.isnan(values).any():
        raise ValueError("values must not be NaN")
    return np.where(np.asarray(maximise), values, -values)


def _area(gains: np.ndarray) -> float:
    """Area of the union of the rectangles from 0 to each point of (points, 2)."""
    ordered = gains[np.argsort(-gains[:, 0], kind="stable")]
    # from the right: each point adds what it rises above all those further right
    heights = np.maximum.accumulate(ordered[:, 1])
    return float(np.sum(ordered[:, 0] * np.diff(heights, prepend=0.0)))


def _volume(gains: np.ndarray) -> float:
    """Volume of the union of the boxes from 0 to each point of (points, 3): slices between the third coordinates."""
    ordered = gains[np.argsort(-gains[:, 2], kind="stable")]
    floors = np.append(ordered[:, 2], 0.0)[1:]
    stairs, volume = _Staircase(), 0.0
    for (x, y, top), floor in zip(ordered.tolist(), floors.tolist(), strict=True):
        stairs.add(x, y)  # all points that reach as high as this slice
        volume += stairs.area * (top - floor)
    return volume
