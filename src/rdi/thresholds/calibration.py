"""Data that rules are fitted on: logits of the calibration split, clean and under attack, with labels and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from rdi.errors import UserError
from rdi.records import Costs

KINDS = ("clean", "adversarial", "mixed")
"""Data that a rule may be fitted on; mixed: clean and attacked images, by default half each."""


@dataclass(frozen=True)
class Bank:
    """Logits of all exits under one attack, or clean.

    logits: _NEC.
    labels: int64_N.
    skipped: int64_NE, MACs that gates left out up to each exit; None of a network without gates.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    skipped: torch.Tensor | None = None


@dataclass(frozen=True)
class Mixture:
    """A part of what a rule is fitted on: the same N samples in B banks.

    weight: in the whole, which sums to 1.
    """

    banks: tuple[Bank, ...]
    weight: float


@dataclass(frozen=True)
class Calibration:
    """The calibration split that rules are fitted on.

    logits: clean, NEC.
    labels: int64_N.
    costs: MACs per exit, of an image whose gates are all open, if there are some.
    attacked: attack -> bank of the first M of the same samples, in the same order; M is the same for all attacks.
    skipped: int64_NE, MACs that gates left out of the clean images up to each exit; None of a network without gates.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    costs: Costs
    attacked: Mapping[str, Bank] = field(default_factory=dict)
    skipped: torch.Tensor | None = None

    @property
    def clean(self) -> Bank:
        """The clean images as a bank."""
        return Bank(self.logits, self.labels, self.skipped)

    def __len__(self) -> int:
        return len(self.labels)

    def banks(self) -> dict[str, Bank]:
        """Return all banks by name, "clean" first."""
        return {"clean": self.clean, **self.attacked}

    def of_kind(self, kind: str, robust: float = 0.5) -> list[Mixture]:
        """Return the banks that `kind` (of KINDS) asks for.

        robust: share of the attacked images where they are mixed.
        Raises UserError when it asks for attacked ones and none are.
        """
        attacked = tuple(self.attacked.values())
        if kind != "clean" and not attacked:
            raise UserError(
                f"threshold.data={kind} needs attacked calibration images: make some with "
                "`rdi attack run=... split=calibration attack=average`"
            )
        clean = (self.clean,)
        return {
            "clean": [Mixture(clean, 1.0)],
            "adversarial": [Mixture(attacked, 1.0)],
            "mixed": [Mixture(clean, 1 - robust), Mixture(attacked, robust)],
        }[kind]

    def rows(self, rows: torch.Tensor) -> Calibration:
        """Return these samples only (int64, ascending)."""

        def of(bank: Bank) -> Bank:
            mine = rows[rows < len(bank.labels)]
            return Bank(bank.logits[mine], bank.labels[mine], None if bank.skipped is None else bank.skipped[mine])

        clean = of(self.clean)
        return replace(
            self,
            logits=clean.logits,
            labels=clean.labels,
            attacked={name: of(bank) for name, bank in self.attacked.items()},
            skipped=clean.skipped,
        )

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Calibration:
        """Apply `change` to the logits_NEC of every bank."""
        return replace(
            self,
            logits=change(self.logits),
            attacked={name: replace(bank, logits=change(bank.logits)) for name, bank in self.attacked.items()},
        )
