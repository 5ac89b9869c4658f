"""Non-uniform quantisation of one tensor: k-means on its non-zeros beside a centre that stays at zero."""

from __future__ import annotations

import torch

LLOYD_STEPS = 20


@torch.no_grad()
def quantise(tensor: torch.Tensor, bits: int) -> torch.Tensor:
    """Replace every entry by the nearest of at most 2**bits values or zero. It waits for the device.

    tensor: returned as it is if its non-zeros are so few that they need no more values.
    bits: at least 1.
    Source: Gui et al., NeurIPS 2019.
    """
    values = tensor[tensor != 0]
    if len(values) <= 2**bits:
        return tensor.clone()
    # sums in double on the CPU: the same bytes every time, which a GPU's running sums are not
    centres = one_dimensional_means(values.double().cpu().sort().values, 2**bits).to(tensor)
    between = (centres[1:] + centres[:-1]) / 2
    return centres[torch.bucketize(tensor, between)]


def one_dimensional_means(values: torch.Tensor, count: int) -> torch.Tensor:
    """Run Lloyd's algorithm on ascending non-zero float64 `values`; return at most `count` ascending centres and zero.

    Starts at evenly spaced ranks (the original: at random values), so it is deterministic. Only sorted values
    are needed: a cluster is a range of them, its mean a difference of running sums.
    """
    ranks = (torch.arange(count, dtype=torch.float64) + 0.5) * (len(values) / count)
    starts = values[ranks.long()].unique()
    zero = int((starts < 0).sum())
    # a cluster never reaches across zero, whose centre lies between: the order of centres is kept
    centres = torch.cat([starts[:zero], starts.new_zeros(1), starts[zero:]])
    sums = torch.cat([values.new_zeros(1), values.cumsum(0)])
    ends = torch.tensor([0, len(values)])
    for _ in range(LLOYD_STEPS):
        cuts = torch.searchsorted(values, (centres[1:] + centres[:-1]) / 2)
        edges = torch.cat([ends[:1], cuts, ends[1:]])
        sizes = edges.diff()
        moved = torch.where(sizes > 0, sums[edges].diff() / sizes.clamp(min=1), centres)
        moved[zero] = 0
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres
