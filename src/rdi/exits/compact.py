"""Take samples out of a batch: who stays, and their rows of the features."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def staying(leaving: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the ascending rows (int64) that leave at none of the exits, given bool_N each. Waits for the device."""
    gone = leaving[0]
    for more in leaving[1:]:
        gone = gone | more
    return gone.logical_not().nonzero().squeeze(1)


def closed_up(stay: torch.Tensor, samples: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Plan an in-place compaction: copying rows `movers` to `holes` makes the first len(stay) rows the survivors.

    stay: ascending rows (int64) that survive of `samples`. Returns (order, holes, movers); order: which row each of
    the first len(stay) then is. At most as many rows move as leave.
    """
    kept = len(stay)
    empty = torch.ones(samples, dtype=torch.bool, device=stay.device).index_fill_(0, stay, False)
    holes = empty[:kept].nonzero().squeeze(1)
    movers = stay[kept - len(holes) :]
    order = torch.arange(kept, device=stay.device).index_copy_(0, holes, movers)
    return order, holes, movers


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
