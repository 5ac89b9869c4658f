"""Dominance, fronts and dominated volume. Pure arithmetic on arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def non_dominated(values: np.ndarray, maximise: tuple[bool, ...]) -> np.ndarray:
    """values of shape (points, objectives) -> bool per point: no other is at least as good in all and better in one.

    maximise: per objective, True if larger is better. Equal points do not dominate one another. Raises ValueError
    for NaN or a wrong number of directions.
    """
    gains = _gains(values, maximise)
    no_worse = (gains[:, None, :] >= gains[None, :, :]).all(axis=2)
    better = (gains[:, None, :] > gains[None, :, :]).any(axis=2)
    dominates = no_worse & better
    return np.asarray(~dominates.any(axis=0))


def hypervolume(values: np.ndarray, maximise: tuple[bool, ...], reference: Sequence[float]) -> float:
    """Volume that is dominated by at least one of the points and dominates `reference`; exact, for 2 or 3 objectives.

    values of shape (points, objectives), maximise: as in `non_dominated`. reference: the worst corner of the box;
    points that are not better than it in every objective add nothing. In the units of the objectives multiplied:
    divide by the box from `reference` to the best conceivable values for a share. Raises ValueError for NaN, for
    infinite values and for another number of objectives.
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
    """The same with larger values better in every objective."""
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
    floors = np.append(ordered[1:, 2], 0.0)
    # a slice between two neighbours in the third coordinate has the area of all points that reach that high
    slabs = enumerate(ordered[:, 2] - floors)
    return float(sum(height * _area(ordered[: k + 1]) for k, height in slabs if height > 0))
