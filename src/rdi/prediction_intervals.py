"""Predict what a test split will show from the calibration split: intervals for accuracy and mean cost. Pure."""

from __future__ import annotations

import torch
from scipy.special import ndtri

from rdi.binomial import wilson
from rdi.errors import UserError
from rdi.evaluating import judge
from rdi.records import Expected
from rdi.thresholds import Calibration, Policy, Rule

FOLDS = 5
Z = float(ndtri(0.975))


def prediction_intervals(
    rule: Rule, policy: Policy, calibration: Calibration, images: dict[str, int]
) -> dict[str, Expected]:
    """Compute 95 % prediction intervals for the means over images[bank] new images of the same kind, by bank.

    policy: what `rule` makes of `calibration`. Rules choose thresholds that look good on these very samples, so
    accuracy is cross-fitted where the rule can be fitted on parts.
    """
    held_out = _cross_fitted(rule, calibration)
    found = {}
    for name, bank in calibration.banks().items():
        result = judge(bank.logits, bank.labels, policy, bank.skipped)
        macs = _per_sample(result.macs(calibration.costs.macs))
        right = _per_sample(result.correct.double()) if held_out is None else held_out[name]
        samples, new = len(bank.labels), images[name]
        # the mean over the new images varies as well: 1/n + 1/m
        effective = 1 / (1 / samples + 1 / new)
        half = Z * float(macs.std(correction=0)) / effective**0.5
        accuracy, mean = float(right.mean()), float(macs.mean())
        low, high = wilson(accuracy, effective)
        found[name] = Expected(
            accuracy=accuracy,
            accuracy_low=low,
            accuracy_high=high,
            mean_macs=mean,
            mean_macs_low=max(mean - half, 0.0 if bank.skipped is not None else float(calibration.costs.macs[0])),
            mean_macs_high=min(mean + half, float(calibration.costs.macs[-1])),
            samples=samples,
            images=new,
            folds=1 if held_out is None else FOLDS,
        )
    return found


def _cross_fitted(rule: Rule, calibration: Calibration) -> dict[str, torch.Tensor] | None:
    """Bank -> right_N of each sample under the thresholds of the other folds; None where these cannot be fitted."""
    if len(calibration) < 2 * FOLDS:
        return None
    rows = torch.arange(len(calibration))
    right = {name: torch.empty(len(bank.labels), dtype=torch.double) for name, bank in calibration.banks().items()}
    for fold in range(FOLDS):
        mine = rows % FOLDS == fold
        try:
            policy = rule.fit(calibration.rows(rows[~mine]))
        except UserError:
            return None
        for name, bank in calibration.rows(rows[mine]).banks().items():
            if len(bank.labels):
                correct = judge(bank.logits, bank.labels, policy).correct
                right[name][mine[: len(right[name])]] = _per_sample(correct.double())
    return right


def _per_sample(values: torch.Tensor) -> torch.Tensor:
    """Mean over draws, if there are several: values_N or values_DN -> values_N."""
    return values if values.dim() == 1 else values.mean(dim=0)
