"""A loss on the deployed decision: the mixture of exits that the soft attack climbs, made small while training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rdi.attacks.soft import log_shares
from rdi.checks import choice, number
from rdi.defenses.terms import ADVERSARIAL, CLEAN, Batch, Term
from rdi.thresholds.rules import ShareRule
from rdi.thresholds.scores import Score


@dataclass(frozen=True, kw_only=True)
class DeployedDecision(Term):
    """-log of the probability that the soft exit policy gives to the true class.

    score: what exits decide by, as rdi.thresholds.Entropy.
    shares: of the clean batch that leave at each exit, E numbers that sum to 1; None: equal. The thresholds are
        fitted anew on every batch's clean logits, without gradient, as `ShareRule` fits them for deployment.
    temperature: of the soft decision, in log-odds, > 0; towards 0 it is the hard policy.
    images: which are judged, "clean" or "adversarial".
    The loss is one number per batch, given to every exit, so exit weights do not change it. It is that of one score at
    every exit: a run that deploys an ensemble or another rule by `threshold=` is trained on this decision all the same.
    Raises UserError for values out of range.
    """

    score: Score
    shares: Sequence[float] | None = None
    temperature: float = 1.0
    images: str = ADVERSARIAL

    label = "deployed_decision"

    def __post_init__(self) -> None:
        super().__post_init__()
        number("temperature", self.temperature, 0, math.inf, open_low=True)
        choice("images", self.images, (CLEAN, ADVERSARIAL))
        ShareRule(score=self.score, shares=self.shares)  # refuses shares out of range

    @property
    def needs(self) -> frozenset[str]:
        """Return clean logits, for the thresholds, and those that are judged."""
        return frozenset({CLEAN, self.images})

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return the loss, repeated for every exit."""
        with torch.no_grad():
            policy = ShareRule(score=self.score, shares=self.shares).fit_logits(batch.logits[CLEAN].detach())
        logits = batch.logits[self.images]
        shares_NE = log_shares(policy, logits, self.temperature)
        mixed_NC = (shares_NE[:, :, None] + logits.log_softmax(dim=2)).logsumexp(dim=1)
        loss = -mixed_NC.gather(1, batch.y[:, None]).mean()
        return loss.expand(logits.shape[1])
