"""Logits and labels of a small batch in double precision."""

import torch

N, E, C = 5, 3, 4


def logits(seed):
    return torch.randn(N, E, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_(True)


def labels():
    return torch.tensor([0, 3, 1, 2, 2])
