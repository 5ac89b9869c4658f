"""The tolerance of comparisons: two attacks on the same images, told apart by an exact test and not by points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from rdi.binomial import at_least

LEVEL = 0.01
"""Chance at most of a red line where nothing is wrong, for a whole check."""


def beats(strong_N: torch.Tensor, weak_N: torch.Tensor, comparisons: int = 1) -> bool:
    """Return whether fewer are right under `strong` than under `weak` (bool_N, the same images), beyond chance.

    Exact sign test over the images that differ (McNemar 1947), one-sided, at LEVEL / comparisons.
    """
    only_strong = int((weak_N & ~strong_N).sum())
    only_weak = int((strong_N & ~weak_N).sum())
    if only_strong <= only_weak:
        return False
    return at_least(only_strong, only_strong + only_weak, 0.5) < LEVEL / comparisons


def never_helps(right: Sequence[torch.Tensor], comparisons: int) -> bool:
    """Return whether no later one of these right_N, in the order of strength, is beaten by the one before it."""
    return not any(beats(weaker, stronger, comparisons) for weaker, stronger in pairwise(right))


def above(count: int, total: int, share: float) -> bool:
    """Return whether `count` of `total` is more than `share` allows, beyond chance: exact binomial test at LEVEL."""
    if share == 0 or total == 0:
        return count > 0
    return at_least(count, total, share) < LEVEL
