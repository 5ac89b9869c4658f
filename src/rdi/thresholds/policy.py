"""Exit policies: decide exit by exit who leaves, on the logits of the exits so far."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from rdi.checks import instance
from rdi.config import describe
from rdi.errors import UserError
from rdi.thresholds.gaps import EDGE
from rdi.thresholds.scores import Score


class Policy(ABC):
    """An exit policy: decides at every exit but the last which samples leave, on banks and in real early exit alike.

    exits: E.
    values: thresholds, for records; none for a policy that has no such numbers.
    draws: number of draws of the random thresholds that it is judged over; 1 for a policy without randomness.
    """

    exits: int
    values: tuple[float, ...] = ()
    draws: int = 1

    @abstractmethod
    def leaves(self, logits_NKC: torch.Tensor) -> torch.Tensor:
        """Return bool_N, which samples leave at exit K-1.

        logits_NKC: of exits 0..K-1 of the samples still running, 1 <= K < E.
        """

    def choose(self, logits_NEC: torch.Tensor) -> torch.Tensor:
        """Return exit_N (int64), the first exit at which each sample may leave, else E-1.

        logits_NEC: of all exits.
        Raises UserError when the logits have another number of exits than the policy.
        """
        self.check_exits(logits_NEC)
        exit_N = torch.full(logits_NEC.shape[:1], self.exits - 1, device=logits_NEC.device)
        for k in range(self.exits - 2, -1, -1):
            exit_N = torch.where(self.leaves(logits_NEC[:, : k + 1]), k, exit_N)
        return exit_N

    def answers(self, logits_NKC: torch.Tensor) -> torch.Tensor:
        """Return logits_NKC that the policy answers with at exits 0..K-1; by default the exits' own."""
        return logits_NKC

    def predict(self, logits_NEC: torch.Tensor, exits_N: torch.Tensor) -> torch.Tensor:
        """Return labels_N at the exits taken.

        logits_NEC: of all exits; those behind the exit taken may hold anything.
        exits_N: from `choose`.
        """
        rows = torch.arange(len(exits_N), device=exits_N.device)
        return self.answers(logits_NEC)[rows, exits_N].argmax(dim=1)

    def with_draw(self, draw: int) -> Policy:
        """Return the policy with the random thresholds of one draw, from its beginning; itself without randomness.

        draw: 0-based number.
        """
        del draw
        return self

    def deterministic(self) -> Policy:
        """Return the policy with every random threshold in its middle; itself without randomness."""
        return self

    def describe(self) -> dict[str, Any]:
        """Return the policy as a config node: plain values, for records."""
        node: dict[str, Any] = describe(self)
        return node

    def thresholds(self) -> ThresholdPolicy | None:
        """Return thresholds on `answers` that decide as the policy, or nearly, to differentiate through; None: none."""
        return None

    def __repr__(self) -> str:
        # part of the identity of an attack on this policy: every digit, no memory address
        return json.dumps(self.describe())

    def __str__(self) -> str:
        """Say in words what the policy does."""
        return "thresholds " + (", ".join(_shown(value) for value in self.values) or "none")

    def check_exits(self, logits_NEC: torch.Tensor) -> None:
        """Raise UserError when the logits have another number of exits than the policy."""
        if logits_NEC.shape[1] != self.exits:
            raise UserError(
                f"these thresholds are for {self.exits} exits, the network has {logits_NEC.shape[1]}: "
                f"give {logits_NEC.shape[1] - 1} values"
            )


class ThresholdPolicy(Policy):
    """Leave at the first exit whose score is strictly beyond that exit's threshold (Hu et al. 2020, section 3).

    score: of the exits.
    values: E-1 thresholds in the unit of the score; the last exit has none.
    Raises UserError for another score, and for values that are no numbers.
    """

    def __init__(self, score: Score, values: Sequence[float]) -> None:
        if isinstance(score, type) or not callable(score) or not hasattr(score, "higher_is_surer"):
            raise UserError(f"score must be a score, as rdi.thresholds.Entropy(), got {score!r}")
        self.score = score
        try:
            self.values = tuple(float(value) for value in values)
        except (TypeError, ValueError):
            raise UserError(f"thresholds must list a number for each exit but the last, got {values!r}") from None
        self.exits = len(self.values) + 1
        self._on_device: dict[torch.device, torch.Tensor] = {}
        if any(value != value for value in self.values):
            raise UserError(f"thresholds must be numbers, got {list(self.values)}")

    def choose(self, logits_NEC: torch.Tensor) -> torch.Tensor:
        """Return exit_N; all exits are scored at once."""
        self.check_exits(logits_NEC)
        return self.choose_scores(self.score(logits_NEC))

    def thresholds(self) -> ThresholdPolicy:
        """Return itself."""
        return self

    def __repr__(self) -> str:
        return f"ThresholdPolicy({type(self.score).__name__}, {list(self.values)})"

    def choose_scores(self, scores_NE: torch.Tensor) -> torch.Tensor:
        """Choose exits from the scores of all exits, to judge many thresholds on the same logits."""
        # in float64: in that of the scores a threshold between two neighbours would be rounded to one of them
        early = scores_NE[:, :-1].double()
        values = self._at(early.device)
        leaves = early > values if self.score.higher_is_surer else early < values
        if self.exits == 1:
            return torch.zeros(len(leaves), dtype=torch.long, device=leaves.device)
        # exits that are saved: the first that lets go saves most
        saved = torch.arange(self.exits - 1, 0, -1, dtype=torch.int16, device=leaves.device)
        return (self.exits - 1) - (leaves * saved).amax(dim=1).long()

    def _at(self, device: torch.device) -> torch.Tensor:
        """The thresholds as a tensor of float64, kept per device: a copy per batch would wait for the device."""
        if device not in self._on_device:
            self._on_device[device] = torch.tensor(self.values, dtype=torch.double, device=device)
        return self._on_device[device]

    def leaves(self, logits_NKC: torch.Tensor) -> torch.Tensor:
        """Return leaves_N: the score at exit K-1 is strictly beyond its threshold."""
        return self.beyond(logits_NKC[:, -1], logits_NKC.shape[1] - 1)

    def beyond(self, logits_NC: torch.Tensor, exit: int) -> torch.Tensor:
        """Return bool_N, whether the scores of these logits are strictly beyond the threshold of `exit`, 0-based."""
        score = self.score(logits_NC).double()
        value = self.values[exit]
        return score > value if self.score.higher_is_surer else score < value


def checked_policy(policy: object, exits: int) -> Policy:
    """Return `policy` if it is one, for so many exits. Raises UserError."""
    found = instance("policy", policy, Policy, "rdi.calibrate(model, rule, x, y)")  # type: ignore[type-abstract]
    if found.exits != exits:
        raise UserError(f"the thresholds are for {found.exits} exits, the network has {exits}")
    return found


def _shown(value: float) -> str:
    return f"{value:.3g}" if abs(value) < EDGE else ("-" if value < 0 else "+") + "inf"
