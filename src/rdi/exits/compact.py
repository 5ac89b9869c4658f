"""Take samples out of a batch: who stays, and their rows of the features."""

from __future__ import annotations

import torch


def staying(gone: torch.Tensor) -> torch.Tensor:
    """Return the ascending rows (int64) that stay, given bool_N of those that leave. Waits for the device."""
    return gone.logical_not().nonzero().squeeze(1)


def closed_up(gone: torch.Tensor, stay: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Plan an in-place compaction: copying rows `movers` to `holes` makes the first len(stay) rows the survivors.

    gone: bool_N of the rows that leave.
    stay: the other rows (int64), ascending.
    Returns (holes, movers): at most as many rows move as leave.
    """
    holes = gone[: len(stay)].nonzero().squeeze(1)
    return holes, stay[len(stay) - len(holes) :]


def close_up(features: torch.Tensor, holes: torch.Tensor, movers: torch.Tensor, kept: int) -> torch.Tensor:
    """Move the rows as `closed_up` says, in place, and return the first `kept` of features_N..., format unchanged."""
    if len(holes):
        rows = features
        if not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last):
            rows = features.permute(0, 2, 3, 1)
        rows.index_copy_(0, holes, rows.index_select(0, movers))
    return features[:kept]


def take(features: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the given rows of features_N..., memory format unchanged (index_select alone would lose channels-last)."""
    if not features.is_contiguous() and features.is_contiguous(memory_format=torch.channels_last):
        return features.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return features.index_select(0, rows)
