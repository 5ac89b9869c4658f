"""A weakness that is known to be there must be found: the binarisation test of Zimmermann et al. (NeurIPS 2022)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from rdi.attacks.base import Attack
from rdi.checks import LINF
from rdi.data import to_float
from rdi.data.base import Split
from rdi.evaluating import judge
from rdi.exits.net import MultiExitNet
from rdi.health.evaluation import Evaluation, Extent, Verdict
from rdi.health.paired import above
from rdi.health.strength import Noise
from rdi.records import Check
from rdi.seeds import generator
from rdi.thresholds import ShareRule
from rdi.thresholds.policy import ThresholdPolicy

MISSED = 0.05
"""Share of planted weaknesses that the attack may miss."""
PLANTABLE = 0.5
"""Share of images, at least, in which one can be planted."""
INNER = 0.5
"""Radius of the points that stay right, as a share of eps."""
NARROW = 0.9
"""Position of the boundary, as a share of the way from the farthest benign point (0) to the planted one (1)."""
CLEAN_MARGIN = 3.0
RIDGE = 1e-3


class TwoClasses(nn.Module):
    """A head that answers 0 or 1 by a line of each image's own through the original head's logits."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, head: nn.Module, weight_NC: torch.Tensor, bias_N: torch.Tensor) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("weight", weight_NC)
        self.register_buffer("bias", bias_N)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Compute logits_N2 from the features of exactly the images that the lines belong to, in their order."""
        margin = (self.head(features) * self.weight).sum(dim=1) + self.bias
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


@dataclass(frozen=True)
class Planted:
    """A network right (class 0) on a batch and around it, wrong at one known end of each image's ball.

    holds_N: whether that came out, judged by `policy`; where a network does not tell the corner from the points
    around the image, it cannot.
    """

    net: MultiExitNet
    policy: ThresholdPolicy
    split: Split
    holds: torch.Tensor


def planted_weakness(evaluation: Evaluation, extent: Extent) -> Check:
    """Measure the share of planted weaknesses that the main attack finds, next to what noise finds."""
    holds, found, by_noise = [], [], []
    for begin in range(0, len(evaluation.split), evaluation.batch_size):
        part = slice(begin, begin + evaluation.batch_size)
        one = plant(
            evaluation,
            Split(
                "planted", evaluation.split.images[part], evaluation.split.labels[part], evaluation.split.indices[part]
            ),
            extent,
        )
        holds.append(one.holds)
        # the lines belong to the rows, so nobody may leave the batch
        attack = replace(evaluation.main, early_stop=False).for_policy(one.policy)
        found.append(~_verdict(evaluation, one, attack).right & one.holds)
        by_noise.append(
            ~_verdict(evaluation, one, Noise(eps=evaluation.main.eps, norm=evaluation.main.norm)).right & one.holds
        )
    planted, hits, noise_hits = (int(torch.cat(column).sum()) for column in (holds, found, by_noise))
    total = len(evaluation.split)
    return Check(
        name="planted weakness",
        passed=planted >= PLANTABLE * total and not above(planted - hits, planted, MISSED),
        figure=f"{hits} of {planted} found, by noise {noise_hits}; planted in {planted} of {total} images "
        f"(allowed to miss {100 * MISSED:g} % and chance)",
        meaning="The attack misses mistakes that are known to be there, or none can be planted: what it does not find "
        "in the network itself proves nothing.",
    )


def _verdict(evaluation: Evaluation, planted: Planted, attack: Attack) -> Verdict:
    return evaluation.verdict(planted.net, planted.policy, planted.split, attack, evaluation.engine)


def plant(evaluation: Evaluation, split: Split, extent: Extent) -> Planted:
    """Plant one weakness per image of `split`, at most a batch, in a copy that shares the network's stages."""
    ball, device = evaluation.main.ball, split.images.device
    x = to_float(split.images[:])
    stream = generator(device, evaluation.seed, "planted", int(split.indices[0]))
    if ball.norm == LINF:
        direction = 2.0 * torch.randint(2, x.shape, generator=stream, device=device) - 1
    else:
        direction = ball.steepest(torch.randn(x.shape, generator=stream, device=device), x)
    corner = ball.project(x + ball.eps * direction, x)
    around = [x]
    for _ in range(extent.draws - 1):
        around.append(ball.project(x + ball.noise(x, stream, INNER), x))
    with torch.inference_mode():
        inner_MNEC = torch.stack([evaluation.net(one).float() for one in around]).clone()
        corner_NEC = evaluation.net(corner).float().clone()
    lines = [line(inner_MNEC[:, :, k], corner_NEC[:, k]) for k in range(evaluation.net.exits)]
    heads = [TwoClasses(head, *each) for head, each in zip(evaluation.net.heads, lines, strict=True)]
    net = MultiExitNet(evaluation.net.stages, heads).eval()
    with torch.inference_mode():
        inner = torch.stack([net(one).float() for one in around])
        at_corner = net(corner).float()
    # thresholds that use every exit, as the network's own do
    scored = evaluation.policy.thresholds()
    assert scored is not None, "see Evaluation"
    policy = ShareRule(score=scored.score).fit_logits(inner.flatten(0, 1))
    zeros = torch.zeros_like(split.labels)
    stays = torch.stack([judge(one, zeros, policy).correct for one in inner]).all(dim=0)
    holds = stays & ~judge(at_corner, zeros, policy).correct
    return Planted(net, policy, Split(split.name, split.images, zeros, split.indices), holds.cpu())


def line(inner_MNC: torch.Tensor, corner_NC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight_NC, bias_N of the line that tells each image's corner from the points around the image.

    Fisher's direction; the margin is -CLEAN_MARGIN at the image itself (point 0), 0 at NARROW of the way from the
    farthest inner point to the corner. Zero weights, so class 0 everywhere, where the corner is not the farthest.
    """
    inner, corner = inner_MNC.double(), corner_NC.double()
    mean = inner.mean(dim=0)
    spread = inner - mean
    covariance = torch.einsum("mnc,mnd->ncd", spread, spread) / len(inner)
    scale = covariance.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None].clamp(min=1e-30)
    eye = torch.eye(inner.shape[2], dtype=inner.dtype, device=inner.device)
    weight = torch.linalg.solve(covariance / scale + RIDGE * eye, (corner - mean)[:, :, None])[:, :, 0]
    height = (inner * weight).sum(dim=2)
    far, top = height.amax(dim=0), (corner * weight).sum(dim=1)
    boundary = far + NARROW * (top - far)
    separable = (top > far) & (boundary > height[0])
    stretch = torch.where(
        separable, CLEAN_MARGIN / (boundary - height[0]).where(separable, torch.ones_like(boundary)), 0.0
    )
    bias = torch.where(separable, -boundary * stretch, -CLEAN_MARGIN)
    return (weight * stretch[:, None]).float(), bias.float()
