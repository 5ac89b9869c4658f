"""Tails and intervals of the binomial distribution; scipy.special alone, as scipy.stats takes a second to import."""

from __future__ import annotations

import math

from scipy.special import bdtr, bdtrc, ndtri


def at_most(count: int, total: int, share: float) -> float:
    """Return P(X <= count) of `total` independent trials that succeed with the chance `share`, count in [0, total]."""
    return float(bdtr(count, total, share))


def at_least(count: int, total: int, share: float) -> float:
    """Return P(X >= count) of `total` independent trials that succeed with the chance `share`, count in [0, total]."""
    return float(bdtrc(count - 1, total, share))


def wilson(share: float, samples: float, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval, within [0, 1], of a share that was seen in so many samples (Wilson, 1927).

    samples: above 0, no whole number where it is an effective size; level: of confidence, in (0, 1).
    """
    z = float(ndtri(0.5 + 0.5 * level))
    denominator = 2 * (samples + z**2)
    centre = (2 * samples * share + z**2) / denominator
    half = z / denominator * math.sqrt(4 * samples * share * (1 - share) + z**2)
    return 0.0 if share == 0 else max(centre - half, 0.0), 1.0 if share == 1 else min(centre + half, 1.0)
