"""What a gradient attack climbs: maps (logits_NKC, y_N) -> loss_N over the exits that it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

from rdi.checks import integer
from rdi.errors import UserError


class Objective(Protocol):
    """A per-sample loss over some exits, larger = better for the attacker."""

    def exits(self, total: int) -> list[int]:
        """The exits (0-based, ascending) whose logits are needed, out of `total`; nothing behind them is run."""

    def __call__(self, logits_NKC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
        """Loss_N of the logits of exactly those K exits."""


@dataclass(frozen=True)
class OneExit:
    """Cross-entropy of one exit (official `ifgm_k`; with exit -1 the last, `ifgm_main`)."""

    exit: int

    def __post_init__(self) -> None:
        integer("attack.exit", self.exit, -1)

    def exits(self, total: int) -> list[int]:
        """The chosen exit. Raises UserError when the network has no such exit."""
        if self.exit >= total:
            raise UserError(f"attack.exit={self.exit} does not exist: this network has exits 0 to {total - 1}")
        return [self.exit % total]

    def __call__(self, logits_NKC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
        """logits_N1C, y_N -> loss_N."""
        return cross_entropy(logits_NKC, y_N)[:, 0]


@dataclass(frozen=True)
class MeanOfExits:
    """Mean of the cross-entropies of all exits (the paper's average form, official `ifgm_branchy`)."""

    def exits(self, total: int) -> list[int]:
        """All exits."""
        return list(range(total))

    def __call__(self, logits_NKC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
        """logits_NEC, y_N -> loss_N."""
        return cross_entropy(logits_NKC, y_N).mean(dim=1)


def cross_entropy(logits_NKC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
    """Cross-entropy per sample and exit, loss_NK, in nats."""
    targets = y_N[:, None].expand(logits_NKC.shape[:2])
    return F.cross_entropy(logits_NKC.flatten(0, 1), targets.reshape(-1), reduction="none").view_as(targets)


def share_fooled(logits_NKC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
    """Share of the exits that are wrong, per sample, in [0, 1]."""
    return (logits_NKC.argmax(dim=2) != y_N[:, None]).float().mean(dim=1)
