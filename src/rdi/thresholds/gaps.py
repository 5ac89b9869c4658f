"""Put a threshold in the middle of the gap between two scores, so that no sample leaves by its last bit."""

from __future__ import annotations

import numpy as np

EDGE = 1e9
"""Beyond every score: a threshold here lets nobody leave, or everybody, and a record can hold it."""


def middle(uncertainty_N: np.ndarray, edge: float) -> float:
    """Return the threshold halfway between the samples that must leave and the next one.

    uncertainty_N: scores of which small is certain.
    edge: exactly the samples below it leave; -EDGE is returned where nobody is below, EDGE where everybody is.

    Scores are float32, so the middle of two of them is a float64 that equals neither.
    """
    below = uncertainty_N < edge
    if not below.any():
        return -EDGE
    if below.all():
        return EDGE
    return (float(uncertainty_N[below].max()) + float(uncertainty_N[~below].min())) / 2
