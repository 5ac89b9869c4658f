"""Objectives of gradient attacks: map (logits_NKC, y_N) to loss_N over the exits that they ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

from rdi.checks import choice, integer
from rdi.errors import UserError
from rdi.thresholds.scores import FLOOR


class Objective(Protocol):
    """A per-sample loss over some exits, larger = better for the attacker."""

    def exits(self, total: int) -> list[int]:
        """Return the exits (0-based, ascending) whose logits are needed, out of `total`; none behind them is run."""

    def __call__(self, logits_NKC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
        """Compute loss_N from the logits of exactly those K exits."""


@dataclass(frozen=True)
class OneExit:
    """Loss of one exit (official `ifgm_k`; with exit -1 the last, `ifgm_main`).

    loss: "ce" or "dlr".
    """

    exit: int
    loss: str = "ce"

    def __post_init__(self) -> None:
        integer("attack.exit", self.exit, -1)
        loss_named(self.loss)

    def exits(self, total: int) -> list[int]:
        """Return the chosen exit. Raises UserError when the network has no such exit."""
        if self.exit >= total:
            raise UserError(f"attack.exit={self.exit} does not exist: this network has exits 0 to {total - 1}")
        return [self.exit % total]

    def __call__(self, logits_NKC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
        """Compute loss_N of logits_N1C."""
        return loss_named(self.loss)(logits_NKC, y_N)[:, 0]


@dataclass(frozen=True)
class MeanOfExits:
    """Mean of the losses of all exits (the paper's average form, official `ifgm_branchy`).

    loss: "ce" or "dlr".
    """

    loss: str = "ce"

    def __post_init__(self) -> None:
        loss_named(self.loss)

    def exits(self, total: int) -> list[int]:
        """Return all exits."""
        return list(range(total))

    def __call__(self, logits_NKC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
        """Compute the mean loss_N of logits_NEC."""
        return loss_named(self.loss)(logits_NKC, y_N).mean(dim=1)


def cross_entropy(logits_NKC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
    """Compute the cross-entropy per sample and exit, loss_NK, in nats."""
    targets = y_N[:, None].expand(logits_NKC.shape[:2])
    return F.cross_entropy(logits_NKC.flatten(0, 1), targets.reshape(-1), reduction="none").view_as(targets)


def wrong_margin(logits_NKC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
    """Compute the largest wrong logit minus the true one, margin_NK; positive = wrong."""
    targets = y_N[:, None, None].expand(*logits_NKC.shape[:2], 1)
    wrong = logits_NKC.scatter(2, targets, -torch.inf).amax(dim=2)
    return wrong - logits_NKC.gather(2, targets)[..., 0]


def dlr(logits_NKC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
    """Compute the difference-of-logits ratio, loss_NK, at most 1 and positive where wrong.

    -(z_y - max_{i != y} z_i) / (z_1st - z_3rd): unlike cross-entropy it does not vanish when the logits are scaled up.

    Raises UserError for fewer than 3 classes.
    Source: Croce and Hein, ICML 2020, eq. 6.
    """
    if logits_NKC.shape[2] < 3:
        raise UserError(f"attack.loss=dlr needs at least 3 classes, this network has {logits_NKC.shape[2]}: use ce")
    # of -inf, excluded classes, the limit
    logits_NKC = logits_NKC.clamp_min(FLOOR)
    top = logits_NKC.topk(3, dim=2).values
    return wrong_margin(logits_NKC, y_N) / (top[..., 0] - top[..., 2] + 1e-12)


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"ce": cross_entropy, "dlr": dlr}


def loss_named(name: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the loss of that name, "ce" or "dlr": (logits_NKC, y_N) -> loss_NK. Raises UserError for another one."""
    return LOSSES[choice("attack.loss", name, tuple(LOSSES))]


def share_fooled(logits_NKC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
    """Return the share of the exits that are wrong, per sample, in [0, 1]."""
    return (logits_NKC.argmax(dim=2) != y_N[:, None]).float().mean(dim=1)
