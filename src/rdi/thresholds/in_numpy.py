"""Decisions of the common policies in numpy: on few rows an operator of torch takes ten times as long."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rdi.thresholds.ensemble import EnsemblePolicy
from rdi.thresholds.policy import Policy, ThresholdPolicy
from rdi.thresholds.scores import FLOOR, Confidence, Entropy, Margin

NEAR = 1e-4
"""Distance of a score from a threshold up to which torch is asked: its digits, not numpy's, decide."""
Decision = Callable[[Sequence[np.ndarray]], tuple[np.ndarray, np.ndarray]]
"""Logits of the exits so far, each _NC or _C -> the answers' logits of that shape, and bool_N or one, who leaves by
them; at the last exit the second means nothing."""


def decision(policy: Policy) -> Decision | None:
    """Return how a policy decides; None for one that only torch decides by."""
    if type(policy) is ThresholdPolicy and type(policy.score) in SCORES:
        return lambda rows: (rows[-1], _leaves(policy, policy, rows, rows[-1]))
    if type(policy) is EnsemblePolicy and policy.mean == "geometric":
        inner = policy.policy
        if type(inner) is ThresholdPolicy and type(inner.score) in SCORES:
            weights = [1.0] * policy.exits if policy.weights is None else policy.weights

            def by_mean(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
                answers = _mean(rows, weights)
                return answers, _leaves(policy, inner, rows, answers)

            return by_mean
    return None


def softmax(logits: np.ndarray) -> np.ndarray:
    """Compute the softmax of logits_..C."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Compute the log of the softmax of logits_..C, at least FLOOR."""
    logits = logits - logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return np.maximum(logits, np.float32(FLOOR), out=logits)


def _mean(rows: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Log of the weighted geometric mean of the probabilities, as EnsemblePolicy computes it."""
    total = log_softmax(rows[0])
    total *= np.float32(weights[0])
    for row, weight in zip(rows[1:], weights[1:], strict=False):
        total += log_softmax(row) * np.float32(weight)
    total /= np.float32(math.fsum(weights[: len(rows)]))
    return total


def _leaves(policy: Policy, inner: ThresholdPolicy, rows: Sequence[np.ndarray], answers: np.ndarray) -> np.ndarray:
    if len(rows) == policy.exits:
        return np.zeros(answers.shape[:-1], dtype=bool)
    found, threshold = SCORES[type(inner.score)](answers), inner.values[len(rows) - 1]
    one = found.ndim == 0
    scores: Any = float(found) if one else found.astype(float)  # numpy takes five times as long for one number
    near: Any = abs(scores - threshold) < NEAR
    if near if one else near.any():  # one operation in another order would decide otherwise
        logits = torch.from_numpy(np.stack(rows, axis=-2))
        return policy.leaves(logits.reshape(-1, *logits.shape[-2:])).numpy().reshape(found.shape)
    return scores > threshold if inner.score.higher_is_surer else scores < threshold


def _entropy(logits: np.ndarray) -> np.ndarray:
    log_p = log_softmax(logits)
    return -(np.exp(log_p) * log_p).sum(axis=-1)


def _confidence(logits: np.ndarray) -> np.ndarray:
    return 1 / np.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1)


def _margin(logits: np.ndarray) -> np.ndarray:
    first = np.partition(softmax(logits), -2, axis=-1)
    return first[..., -1] - first[..., -2]


SCORES: dict[type, Callable[[np.ndarray], np.ndarray]] = {Entropy: _entropy, Confidence: _confidence, Margin: _margin}
