"""Bounds of exit scores over a box of logits, in closed form but for one number found by bisection."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from rdi.certificates.box import Box
from rdi.errors import UserError
from rdi.thresholds.scores import Confidence, Entropy, Margin, Score

HALVINGS = 60
LARGEST = 1e30
"""Logits are clipped to this magnitude: no product with them is infinite."""


def rounding(classes: int) -> float:
    """Bound the difference between a score in float32 and in exact arithmetic.

    A softmax has a relative error of at most 2 C u and a few units more, u = 2^-24; an entropy weighs that with log C
    at most. Twice that is returned.

    classes: C.
    Source: Blanchard, Higham and Higham, IMA Journal of Numerical Analysis 41, 2021, section 4.
    """
    return 4 * (classes + 64) * 2.0**-24 * (1 + math.log(classes))


def score_bounds(score: Score, box: Box) -> Box:
    """Bound a score over a box of logits_...C: box of shape ..., float64, rounding included.

    Raises UserError for a score without known bounds.
    """
    kind = type(score)
    if kind not in BOUNDS:
        raise UserError(f"the score {kind.__name__} has no known bounds: certify with Entropy, Confidence or Margin")
    low, high = (side.double().clamp(-LARGEST, LARGEST) for side in (box.low, box.high))
    found = BOUNDS[kind](low, high)
    return found.wider(rounding(low.shape[-1]))


def confidence(low: torch.Tensor, high: torch.Tensor) -> Box:
    """Bound the largest softmax probability; exact over the box.

    Smallest where every logit is as large as can be without exceeding the largest lower bound; largest where one is
    at its upper bound and the others at their lower ones.
    """
    top = low.amax(dim=-1, keepdim=True)
    least = (-(torch.minimum(high, top) - top).logsumexp(dim=-1)).exp()
    return Box(least, _extremes(low, high)[0].amax(dim=-1))


def margin(low: torch.Tensor, high: torch.Tensor) -> Box:
    """Bound the difference of the two largest softmax probabilities; exact over the box."""
    # largest: one at its upper bound, the others at their lower ones
    largest, others = _extremes(low, high)
    most = (largest - others).amax(dim=-1).clamp_min(0)
    # smallest: the largest lower bound against all upper ones, 0 where one of these reaches it
    top = low.argmax(dim=-1, keepdim=True)
    worst = high.scatter(-1, top, low.gather(-1, top))
    share = worst.softmax(dim=-1)
    second = share.scatter(-1, top, 0.0).amax(dim=-1)
    return Box((share.gather(-1, top).squeeze(-1) - second).clamp_min(0), most)


def _extremes(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax of every class at its upper bound with the others at their lower ones, and the largest of the others."""
    two = low.topk(2, dim=-1)
    first = two.indices[..., :1]
    classes = torch.arange(low.shape[-1], device=low.device)
    second = torch.where(classes == first, two.values[..., 1:], two.values[..., :1])
    pairs = torch.where(
        torch.eye(low.shape[-1], dtype=torch.bool, device=low.device), high[..., None], low[..., None, :]
    )
    total = pairs.logsumexp(dim=-1)
    return (high - total).exp(), (second - total).exp()


def entropy(low: torch.Tensor, high: torch.Tensor) -> Box:
    """Bound the entropy of the softmax, in nats."""
    return Box(_least_entropy(low, high), _largest_entropy(low, high))


def _largest_entropy(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The largest entropy over the box, within rounding.

    The derivative by logit i is p_i (E_p[z] - z_i), so at the maximum every logit is that number t = E_p[z] clipped
    to its interval. The bound holds for every t: by Gibbs' inequality entropy(p) <= log sum exp(c) - E_p[c] for any
    c, here c = clip(t), and E_p[c] - t >= sum of w_i (c_i - t) / sum of w_i over the weights w = exp(z) in the box.
    """
    t_low, t_high = low.amin(dim=-1), high.amax(dim=-1)
    for _ in range(HALVINGS):
        t = (t_low + t_high) / 2
        clipped = t[..., None].clamp(low, high)
        rises = (clipped.softmax(dim=-1) * clipped).sum(dim=-1) > t
        t_low, t_high = torch.where(rises, t, t_low), torch.where(rises, t_high, t)
    t = (t_low + t_high) / 2
    clipped = t[..., None].clamp(low, high)
    base = low.amax(dim=-1, keepdim=True)
    weights = torch.where(clipped < t[..., None], high, low) - base
    # only what lies below t can take the sum below 0, and then the total weight is at least that of the lower bounds
    missing = (weights.clamp_max(600).exp() * (clipped - t[..., None])).sum(dim=-1).clamp_max(0)
    missing = torch.where((weights > 600).any(dim=-1), -math.inf, missing)
    bound = clipped.logsumexp(dim=-1) - t - missing / (low - base).exp().sum(dim=-1)
    return bound.nan_to_num(nan=math.inf).clamp(0, math.log(low.shape[-1]))


def _least_entropy(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """A lower bound of the entropy over the box; the smallest entropy itself where the box is not wide.

    For each class i that may be the largest, with r_j = exp(z_j - z_i) in [a_j, b_j], b_j <= 1, S = 1 + sum of r_j:
    entropy >= h if S log S - sum of r_j log r_j - h S >= 0. S log S lies above its tangent at s = 1 + sum of a_j, which
    leaves a sum of concave functions r_j (log s + 1 - h - log r_j), each smallest at an end of its interval. The
    largest h for which that holds is found by halving.
    """
    classes = low.shape[-1]
    other = ~torch.eye(classes, dtype=torch.bool, device=low.device)
    log_a = (low[..., None, :] - high[..., :, None]).clamp_max(0)
    log_b = (high[..., None, :] - low[..., :, None]).clamp_max(0)
    a, b = log_a.exp() * other, log_b.exp() * other
    s = 1 + a.sum(dim=-1)
    least, most = torch.zeros_like(s), torch.full_like(s, math.log(classes))
    for _ in range(HALVINGS):
        h = (least + most) / 2
        c = s.log() + 1 - h
        ends = torch.minimum(a * (c[..., None] - log_a), b * (c[..., None] - log_b))
        holds = ends.sum(dim=-1) + c - s >= 0
        least, most = torch.where(holds, h, least), torch.where(holds, most, h)
    possible = high >= low.amax(dim=-1, keepdim=True)
    return torch.where(possible, least, math.inf).amin(dim=-1)


BOUNDS: dict[type, Callable[[torch.Tensor, torch.Tensor], Box]] = {
    Entropy: entropy,
    Confidence: confidence,
    Margin: margin,
}
"""Score -> its bounds over a box from low_...C to high_...C, float64."""
