"""Scores: map logits_..C to one number per sample that says how certain an exit is."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch

from rdi.errors import UserError

FLOOR = -1e30
"""Replaces the log of a probability of zero: finite, so that no product or difference with it is NaN."""


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Compute the log-softmax of logits_..C in float32, at least FLOOR; all logits but one may be -inf."""
    return logits.float().log_softmax(dim=-1).clamp_min(FLOOR)


class Score(Protocol):
    """A map from logits to one number per sample.

    higher_is_surer: whether larger scores are more certain.
    """

    higher_is_surer: ClassVar[bool]

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Map logits of shape (..., C) to scores of shape (...)."""


def scored(score: Score, logits: torch.Tensor) -> torch.Tensor:
    """Return the scores of logits_..C, as rules fit on them. Raises UserError for what no threshold can lie between."""
    found = score(logits)
    if found.shape != logits.shape[:-1]:
        raise UserError(
            f"{type(score).__name__} must map {tuple(logits.shape)} to {tuple(logits.shape[:-1])}, a number "
            f"per image and exit, and returns {tuple(found.shape)}"
        )
    if found.isnan().any():
        raise UserError(f"{type(score).__name__} returns NaN, which no threshold can be compared with")
    return found


class Entropy:
    """Softmax entropy in nats, in [0, ln C]; smaller is surer. The paper's score (its code adds 1e-5 in the log)."""

    higher_is_surer: ClassVar[bool] = False

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the entropy, shape (...), of logits of shape (..., C)."""
        log_p = log_probabilities(logits)
        return (log_p.exp() * -log_p).sum(dim=-1)


class Confidence:
    """Largest softmax probability, in [1/C, 1]; larger is surer (Huang et al., MSDNet, ICLR 2018)."""

    higher_is_surer: ClassVar[bool] = True

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the largest probability, shape (...), of logits of shape (..., C)."""
        return logits.float().softmax(dim=-1).amax(dim=-1)


class Margin:
    """Difference of the two largest softmax probabilities, in [0, 1]; larger is surer."""

    higher_is_surer: ClassVar[bool] = True

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the difference, shape (...), for logits of shape (..., C)."""
        top = logits.float().softmax(dim=-1).topk(2, dim=-1).values
        return top[..., 0] - top[..., 1]
