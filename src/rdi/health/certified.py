"""Check that no image was fooled that a certificate says cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rdi.certificates import Bounds
from rdi.evaluating import judge
from rdi.health.evaluation import Evaluation
from rdi.records import Check

BEYOND = 1e-6
"""Excess over eps that a perturbation may have by rounding alone."""
SHOWN = 3
"""Most fooled images that are named."""


@dataclass(frozen=True)
class Claim:
    """A certificate of images.

    eps: radius of the ball, pixel units.
    indices: int64_N, position in the source.
    right: bool_N: the image cannot be fooled within eps.
    bounds: that prove it.
    """

    eps: float
    indices: np.ndarray
    right: torch.Tensor
    bounds: Bounds


@dataclass(frozen=True)
class Trial:
    """An attack on images.

    name: of the attack.
    eps: radius that it was allowed, pixel units.
    linf: its largest perturbation.
    indices, labels: int64_N.
    logits: _NEC.
    """

    name: str
    eps: float
    linf: float
    indices: np.ndarray
    labels: torch.Tensor
    logits: torch.Tensor


def certified(evaluation: Evaluation, claims: Sequence[Claim], trials: Sequence[Trial]) -> Check:
    """Check that no certified image is fooled: by the stored attacks, or by those of the other checks.

    evaluation: the network under check.
    claims: certificates of its policy.
    trials: the stored attacks.
    """
    own = [
        _trial(evaluation, attack.eps, type(attack).__name__, verdict.images) for attack, verdict in evaluation.history
    ]
    checked, faults = 0, []
    for claim in claims:
        row = {int(index): n for n, index in enumerate(claim.indices) if claim.right[n]}
        for trial in (*trials, *own):
            if trial.eps > claim.eps + BEYOND:
                continue
            wrong = ~judge(trial.logits, trial.labels, evaluation.policy).correct
            here = [(n, row[int(index)]) for n, index in enumerate(trial.indices) if int(index) in row]
            checked += len(here)
            faults += [
                f"image {int(trial.indices[n])} under {trial.name}: {_side(trial, n, claim, m)}"
                for n, m in here
                if wrong[n]
            ]
    if not claims:
        figure = "no certificate here: `rdi certify` gives one"
    else:
        figure = f"{len(faults)} of {checked} certified images that were attacked"
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return Check(
        name="certified image fooled",
        passed=not faults,
        figure="; ".join([figure, *faults[:SHOWN]]) + more,
        meaning="A certificate rules these images out, so one side is wrong: the bounds, the rule of the policy, or an "
        "attack that left its ball. No certified accuracy of this run may be quoted.",
    )


def _trial(evaluation: Evaluation, eps: float, name: str, images: torch.Tensor) -> Trial:
    with torch.inference_mode():
        parts = [evaluation.net(x).float().cpu() for x in evaluation.batches(images)]
    linf = float((images - evaluation.clean).abs().max())
    return Trial(
        f"{name} of this check", eps, linf, evaluation.split.indices, evaluation.split.labels.cpu(), torch.cat(parts)
    )


def _side(trial: Trial, n: int, claim: Claim, m: int) -> str:
    """Say which of the two is wrong, of a certified image that was fooled."""
    if trial.linf > claim.eps + BEYOND:
        return f"the attack is wrong, it moved pixels by {trial.linf:.6g} (eps {claim.eps:g})"
    logits = trial.logits[n]
    outside = (logits < claim.bounds.low[m]) | (logits > claim.bounds.high[m])
    if bool(outside.any()):
        exits = sorted(set(outside.nonzero()[:, 0].tolist()))
        return f"the bounds are wrong, logits of exit {', '.join(map(str, exits))} lie outside"
    return "the policy's certificate is wrong, all logits lie within their bounds"
