"""The size of a compressed network, in words."""

from __future__ import annotations

from rdi.records import Costs, Size
from rdi.report.tables import percent


def describe(size: Size, costs: Costs) -> str:
    """Say what is stored, its size by both counts, and its cost by both rules; costs: of the compressed network."""
    effective = "" if size.nonzeros == size.nonzeros_effective else f", {size.nonzeros_effective:,} in effect"
    held = f" (of them {shares(size)} % in the full, the square and the sparse factor)" if size.factors else ""
    dense = size.costs_dense
    return (
        f"{size.nonzeros:,} weights stored of {size.dense_weights:,} ({percent(size.ratio)} %){held}{effective}, "
        f"{size.bits_per_weight} bits each; size {percent(size.size)} % of the dense network's, published count "
        f"{percent(size.size_published)} % (no positions). To the end {costs.macs[-1] / 1e6:.2f} of "
        f"{dense.macs[-1] / 1e6:.2f} M MACs, paper MACs (non-zero weights only) {costs.macs_paper[-1] / 1e6:.2f} of "
        f"{dense.macs_paper[-1] / 1e6:.2f} M"
    )


def shares(size: Size) -> str:
    """Return the shares of the non-zeros that the factors hold, in percent: full/square/sparse."""
    return "/".join(percent(count / max(1, size.nonzeros)) for count in size.factors.values())
