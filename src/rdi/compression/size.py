"""The size of a compressed network: counted as published, and with the positions of its non-zeros."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import torch

from rdi.compression.base import Compression, Parts, layer_weights
from rdi.exits.net import MultiExitNet
from rdi.records import Costs, Size

FLOAT_BITS = 32


def measure(compression: Compression, dense: MultiExitNet, net: MultiExitNet, parts: Parts, costs_dense: Costs) -> Size:
    """Measure the size of a deployed network.

    compression: what made it.
    dense: the network before, of which only shapes are read.
    net: the deployed network.
    parts: what is stored, as Compression.deployed gives it.
    costs_dense: MACs of `dense`.
    """
    dense_weights = sum(weight.numel() for weight in layer_weights(dense).values())
    effective = {name: weight.detach() for name, weight in layer_weights(net).items()}
    stored = parts or effective
    nonzeros = sum(int(tensor.count_nonzero()) for tensor in stored.values())
    published = sum(value_bits(tensor, compression.bits) for tensor in stored.values())
    bits = published + sum(position_bits(tensor) for tensor in stored.values())
    bits_dense = FLOAT_BITS * dense_weights
    weights = sum(tensor.numel() for tensor in effective.values())
    floats = sum(tensor.numel() for tensor in floating(net.state_dict().values()))
    return Size(
        dense_weights=dense_weights,
        weights=weights,
        nonzeros=nonzeros,
        nonzeros_effective=sum(int(tensor.count_nonzero()) for tensor in effective.values()),
        budget=compression.budget(dense),
        bits_per_weight=compression.bits or FLOAT_BITS,
        bits_dense=bits_dense,
        bits_published=published,
        bits=bits,
        bits_outside=FLOAT_BITS * (floats - weights),
        ratio=nonzeros / dense_weights,
        size_published=published / bits_dense,
        size=bits / bits_dense,
        costs_dense=costs_dense,
        factors=factor_counts(parts),
    )


def factor_counts(parts: Parts) -> dict[str, int]:
    """Count the non-zeros of stored factors "<layer>.A", B and C by what they are, see rdi.records.Size."""
    found: Counter[str] = Counter(dict.fromkeys(("full", "square", "sparse") if parts else (), 0))
    for name, part in parts.items():
        layer, _, letter = name.rpartition(".")
        # where both have the shape of the weight, A stands for it
        whole = "A" if parts[f"{layer}.A"].shape == parts[f"{layer}.C"].shape else "B"
        kind = "sparse" if letter == "C" else "full" if letter == whole else "square"
        found[kind] += int(part.count_nonzero())
    return dict(found)


def floating(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Select the tensors of floating point: BatchNorm's count of batches is not part of a deployed network."""
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def value_bits(tensor: torch.Tensor, bits: int | None) -> int:
    """Count the bits of one tensor's values: its non-zeros, each 32 bits or an entry of a dictionary.

    Source: Gui et al., NeurIPS 2019.
    bits: that the values were quantised to; a tensor of too few entries or non-zeros for a dictionary has none.
    """
    values = tensor[tensor != 0]
    if bits is None or tensor.numel() <= 2**bits or len(values) < 2**bits:
        return FLOAT_BITS * len(values)
    entries = len(values.unique())
    return len(values) * math.ceil(math.log2(entries)) + FLOAT_BITS * entries


def position_bits(tensor: torch.Tensor) -> int:
    """Count the bits of the non-zeros' positions: one per entry or an index each, the cheaper; 0 if none is zero."""
    entries, nonzeros = tensor.numel(), int(tensor.count_nonzero())
    return 0 if nonzeros in (0, entries) else min(entries, nonzeros * math.ceil(math.log2(entries)))
