"""Certify a network with its exit policy on plain tensors, as `rdi certify` does, without files."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdi.certificates.bounds import BoundedNetwork
from rdi.certificates.policies import Certificates, check
from rdi.certificates.policies import certify as certify_policy
from rdi.checks import flag, number
from rdi.direct import batches, check_inputs, network_costs
from rdi.exits.net import MultiExitNet, checked
from rdi.thresholds import Policy
from rdi.thresholds.policy import checked_policy


@dataclass(frozen=True)
class Certified:
    """Guarantees for N images against every attack within an L-infinity ball; shares and savings are fractions.

    eps: radius of the ball, pixel units.
    right: bool_N, the policy is right on every image of the ball.
    accuracy: share of such images, a lower bound of the accuracy under any attack.
    accuracy_low, accuracy_high: its 95 % Wilson interval.
    exit_accuracy: share of the images on which each exit alone is right on the whole ball.
    exit_may: share of the images that an attacker may make leave at each exit; these may sum to more than 1.
    mean_macs: largest multiply-adds that an attacker can cause, mean over the images.
    saving: of the MACs of the network without early exits, at mean_macs; below 0 where heads cost more than is saved.
    """

    eps: float
    right: torch.Tensor
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    exit_accuracy: tuple[float, ...]
    exit_may: tuple[float, ...]
    mean_macs: float
    saving: float


def certify(
    model: MultiExitNet,
    images: torch.Tensor,
    labels: torch.Tensor,
    policy: Policy,
    *,
    eps: float,
    linear: bool = True,
    batch_size: int = 250,
) -> Certified:
    """Certify a network with its exit policy: what no attack within eps can change.

    model, images, labels, batch_size: as of `attack`. Only networks trained for it can be certified for much.
    policy: thresholds on entropy, confidence or margin, patience, or an ensemble of these.
    eps: radius of the L-infinity ball, pixel units, in [0, 1].
    linear: linear bounds (CROWN, Zhang et al., NeurIPS 2018) where intervals leave the answer open; slower.
    Raises UserError for inputs outside the contract, for another policy, and for a layer without a known bound.
    """
    checked_policy(policy, checked(model).exits)
    check_inputs(model, images, labels, policy, batch_size)
    check(policy)
    radius, network = number("eps", eps, 0, 1), BoundedNetwork(model)
    flag("linear", linear)
    parts, wins = [], []
    for _, x, y in batches(model, images, labels, batch_size):
        bounds = network.bounds(x, y, radius, linear=linear)
        parts.append(certify_policy(policy, bounds, y))
        wins.append(bounds.wins().cpu())
    right, taken = (torch.cat([getattr(one, field).cpu() for one in parts]) for field in ("right", "taken"))
    figures = Certificates(right, taken).figures(torch.cat(wins), network_costs(model, images))
    return Certified(eps=radius, right=right, **figures)
