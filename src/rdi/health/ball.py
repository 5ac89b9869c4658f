"""Check that what was judged is what the threat model allows."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rdi.health.evaluation import Evaluation
from rdi.records import Check

ROUNDING = 1e-6
"""Most that a perturbation may be longer than a radius up to 1, and as a share of a larger radius."""


def ball_and_range(evaluation: Evaluation, stored: Mapping[str, tuple[float, float]]) -> Check:
    """Check all images judged so far against ball and pixel range.

    stored: bank name -> (largest perturbation, eps), in the norm of the attack.
    """
    clean = evaluation.clean
    excess, low, high = [], [], []
    for attack, verdict in evaluation.history:
        # NaN stays NaN in a maximum, and fails every comparison below
        excess.append(beyond(float(attack.ball.length(verdict.images - clean).max()), attack.eps))
        low.append(float(verdict.images.min()))
        high.append(float(verdict.images.max()))
    banks = [beyond(length, eps) for length, eps in stored.values()]
    fits = torch.tensor([*excess, *banks]).le(ROUNDING).all() and torch.tensor(low).ge(0).all()
    return Check(
        name="ball and range",
        passed=bool(fits and torch.tensor(high).le(1).all()),
        figure=f"{len(excess)} attacks and {len(banks)} stored banks: at most {max([0.0, *excess, *banks]):.1e} beyond "
        f"eps, pixels {min(low):g} to {max(high):g}",
        meaning="Images were judged that the threat model does not allow: the accuracy is that of another attacker.",
    )


def beyond(length: float, eps: float) -> float:
    """Return how far a perturbation of this length goes beyond the radius, as a share of radii above 1."""
    return (length - eps) / max(eps, 1.0)
