"""Take samples out of a batch: who stays, and their rows of the features."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def staying(leaving: Sequence[torch.Tensor]) -> torch.Tensor:
    """bool_N per exit, at least one -> ascending rows (int64) that leave at none of them. Waits for the device."""
    gone = leaving[0]
    for more in leaving[1:]:
        gone = gone | more
    return gone.logical_not().nonzero().squeeze(1)


def take(features: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The given rows of features_N..., in the same memory format (index_select alone would lose channels-last)."""
    if not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last):
        return features.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return features.index_select(0, rows)
