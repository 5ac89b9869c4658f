"""Images on both sides: held out of training here, and trained on elsewhere or in the training split itself."""

from __future__ import annotations

import numpy as np

from rdi.data.base import DataSet

HELD_OUT = ("calibration", "validation", "test")


def held_out_overlap(data: DataSet, keys: np.ndarray) -> dict[str, int]:
    """Split -> how many of its images are among the keys `seen`, for the splits that are held out of training.

    An image that the split shares with the training split of `data` itself does not count: that is the data's own.
    """
    own = data.keys("train")
    found = {}
    for name in HELD_OUT:
        mine = data.keys(name)
        met = np.isin(mine, keys).any(axis=1) & ~np.isin(mine, own).any(axis=1)
        found[name] = int(met.sum())
    return {name: count for name, count in found.items() if count}


def train_overlap(data: DataSet) -> dict[str, int]:
    """Split -> how many of its images the training split of the same data has too, for those that have any."""
    own = data.keys("train")
    found = {name: int(np.isin(data.keys(name), own).any(axis=1).sum()) for name in HELD_OUT}
    return {name: count for name, count in found.items() if count}
