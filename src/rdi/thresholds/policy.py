"""Who leaves where: a policy decides exit by exit, on the logits seen so far."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from rdi.errors import UserError
from rdi.thresholds.scores import Score


class Policy(ABC):
    """Decides at every exit but the last who leaves. The same object serves banks and real early exit."""

    exits: int

    @abstractmethod
    def leaves(self, logits_NKC: torch.Tensor) -> torch.Tensor:
        """Logits of exits 0..K-1 of the samples still running, K < E -> bool_N, who leaves at exit K-1."""

    def choose(self, logits_NEC: torch.Tensor) -> torch.Tensor:
        """Logits of all exits -> exit_N (int64), the first exit that lets the sample go, else E-1.

        Raises UserError when the logits have another number of exits than the policy.
        """
        if logits_NEC.shape[1] != self.exits:
            raise UserError(
                f"these thresholds are for {self.exits} exits, the network has {logits_NEC.shape[1]}: "
                f"give {logits_NEC.shape[1] - 1} values"
            )
        exit_N = torch.full(logits_NEC.shape[:1], self.exits - 1, device=logits_NEC.device)
        for k in range(self.exits - 2, -1, -1):
            exit_N = torch.where(self.leaves(logits_NEC[:, : k + 1]), k, exit_N)
        return exit_N


class ThresholdPolicy(Policy):
    """Leave at the first exit whose score is strictly beyond that exit's threshold (Hu et al. 2020, section 3).

    values: E-1 thresholds in the unit of the score; the last exit has none. NaN is refused (UserError).
    """

    def __init__(self, score: Score, values: Sequence[float]) -> None:
        self.score = score
        self.values = tuple(float(value) for value in values)
        self.exits = len(self.values) + 1
        if any(value != value for value in self.values):
            raise UserError(f"thresholds must be numbers, got {list(self.values)}")

    def __repr__(self) -> str:
        # part of the identity of an attack on this policy: every digit of the thresholds, no memory address
        return f"ThresholdPolicy({type(self.score).__name__}, {list(self.values)})"

    def choose_scores(self, scores_NE: torch.Tensor) -> torch.Tensor:
        """`choose` from the scores of all exits, for those who judge many thresholds on the same logits."""
        values = scores_NE.new_tensor(self.values)
        early = scores_NE[:, :-1]
        leaves = early > values if self.score.higher_is_surer else early < values
        # the last column lets everybody go; argmax returns the first of equals
        return torch.cat([leaves, leaves.new_ones(len(leaves), 1)], dim=1).to(torch.uint8).argmax(dim=1)

    def leaves(self, logits_NKC: torch.Tensor) -> torch.Tensor:
        """See Policy."""
        score = self.score(logits_NKC[:, -1])
        value = self.values[logits_NKC.shape[1] - 1]
        return score > value if self.score.higher_is_surer else score < value
