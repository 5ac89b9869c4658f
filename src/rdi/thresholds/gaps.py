"""Put a threshold in the middle of the gap between two scores, so that no sample leaves by its last bit."""

from __future__ import annotations

import numpy as np

EDGE = 1e9
"""Beyond every score: a threshold here lets nobody leave, or everybody, and a record can hold it."""


def middle(doubt_N: np.ndarray, edge: float) -> float:
    """The threshold that lets go exactly the samples whose doubt is below `edge`: halfway to the next above them.

    doubt_N: small is sure. -EDGE where nobody is below, EDGE where everybody is. Scores are float32, so the middle of
    two of them is a float64 that equals neither.
    """
    below = doubt_N < edge
    if not below.any():
        return -EDGE
    if below.all():
        return EDGE
    return (float(doubt_N[below].max()) + float(doubt_N[~below].min())) / 2
