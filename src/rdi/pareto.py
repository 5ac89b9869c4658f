"""Dominance and fronts over any number of objectives. Pure arithmetic on arrays."""

from __future__ import annotations

import numpy as np


def non_dominated(values: np.ndarray, maximise: tuple[bool, ...]) -> np.ndarray:
    """values of shape (points, objectives) -> bool per point: no other is at least as good in all and better in one.

    maximise: per objective, True if larger is better. Equal points do not dominate one another. Raises ValueError
    for NaN or a wrong number of directions.
    """
    if values.ndim != 2 or values.shape[1] != len(maximise):
        raise ValueError(f"values of shape {values.shape} do not fit {len(maximise)} directions")
    if np.isnan(values).any():
        raise ValueError("values must not be NaN")
    gains = np.where(np.asarray(maximise), values, -values)
    no_worse = (gains[:, None, :] >= gains[None, :, :]).all(axis=2)
    better = (gains[:, None, :] > gains[None, :, :]).any(axis=2)
    dominates = no_worse & better
    return np.asarray(~dominates.any(axis=0))
