"""A stronger attack never leaves more right: steps, restarts, eps, and the order of attacks (Carlini et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from rdi.attacks import Attack
from rdi.exits.net import MultiExitNet
from rdi.health.evaluation import Evaluation, Extent, percent, with_eps
from rdi.health.paired import above, beats, never_helps
from rdi.records import Check

LARGE_LEFT = 0.01
"""Share of images that may survive a ball so large that any image can become plain grey."""


@dataclass(kw_only=True)
class Noise(Attack):
    """One uniform draw from the ball: an attack that knows nothing."""

    def run(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return the images with uniform noise of the ball's radius."""
        return self.ball.start(x, generator)


def steps(evaluation: Evaluation, extent: Extent) -> Check:
    """Compare 1 step, a quarter, all, and twice as many, of the main adaptive attack and the static one."""
    counts = sorted({1, max(1, extent.steps // 4), extent.steps, 2 * extent.steps})
    attacks = (evaluation.main, evaluation.static)
    right = [[evaluation.under(replace(attack, steps=count)).right for count in counts] for attack in attacks]
    shown = [f"{type(attack).__name__} {join_percent(line)}" for attack, line in zip(attacks, right, strict=True)]
    return Check(
        name="more steps",
        passed=all(never_helps(line, len(attacks) * (len(counts) - 1)) for line in right),
        figure=f"accuracy after {join_numbers(counts)} steps: {', '.join(shown)} %",
        meaning="A longer attack leaves more images right: it does not climb what it is judged by, or its steps are "
        "too large.",
    )


def restarts(evaluation: Evaluation, extent: Extent) -> Check:
    """Compare one start with several, of the main adaptive attack; the policy picks the best."""
    counts = sorted({1, extent.restarts})
    right = [evaluation.under(replace(evaluation.main, restarts=count)).right for count in counts]
    return Check(
        name="more restarts",
        passed=never_helps(right, 1),
        figure=f"accuracy after {join_numbers(counts)} starts: {join_percent(right)} %",
        meaning="More starts leave more images right: successes of one start are thrown away for another's.",
    )


def eps_sweep(evaluation: Evaluation, extent: Extent) -> list[Check]:
    """Compare balls from nothing to twice the threat's, and one so large that nothing may survive."""
    eps, widest = evaluation.main.eps, span(evaluation)
    large = max(min(2 * eps, widest), extent.large_eps * widest)
    radii = sorted({eps / 2, eps, min(2 * eps, widest), large})
    attacked = [evaluation.under(with_eps(evaluation.main, radius)).right for radius in radii]
    right = [evaluation.under(None).right, *attacked]
    left = attacked[-1] & evaluation.under(with_eps(evaluation.static, large)).right
    return [
        Check(
            name="larger eps",
            passed=never_helps(right, len(radii)),
            figure=f"accuracy at eps {'/'.join(f'{radius:.3g}' for radius in [0, *radii])}: {join_percent(right)} %",
            meaning="A larger ball, which holds the smaller one, leaves more images right: the attack loses its way.",
        ),
        Check(
            name="large eps",
            passed=not above(int(left.sum()), len(left), LARGE_LEFT),
            figure=f"accuracy at eps {large:.3g}: {percent(left)} % (allowed {100 * LARGE_LEFT:g} % and chance)",
            meaning="Images survive a ball in which nothing can be recognised: the attack fails, not the network wins.",
        ),
    ]


def span(evaluation: Evaluation) -> float:
    """Return the distance of a black image from a white one, in the norm of the threat model."""
    white = torch.ones_like(evaluation.clean[:1])
    return float(evaluation.main.ball.length(white))


def order(evaluation: Evaluation) -> Check:
    """Check the order of clean, noise, one step, many steps and the worst of the adaptive attacks.

    The best one must find more than noise. Where so few images fall that no test could tell, as of a robust network in
    a small ball, this is asked in a larger one.
    """
    fgsm = replace(evaluation.static, steps=1, step_size=evaluation.static.eps, random_start=False)
    attacks = (None, Noise(eps=evaluation.main.eps, norm=evaluation.main.norm), fgsm, evaluation.static)
    right = [*(evaluation.under(attack).right for attack in attacks), evaluation.adaptive_worst()]
    noise, best, radius = right[1], right[-1], evaluation.main.eps
    hopeless, widest = not noise.any(), span(evaluation)
    while not hopeless and _too_few(best, noise) and 2 * radius <= widest:
        radius *= 2
        noise = evaluation.under(Noise(eps=radius, norm=evaluation.main.norm)).right
        best = evaluation.under(with_eps(evaluation.main, radius)).right
    larger = (
        ""
        if radius == evaluation.main.eps
        else (f"; too few fell to tell from noise: at eps {radius:.3g} noise/adaptive {join_percent([noise, best])} %")
    )
    return Check(
        name="order of attacks",
        passed=never_helps(right, len(attacks)) and (hopeless or beats(best, noise)),
        figure=f"accuracy clean/noise/FGSM/PGD/adaptive: {join_percent(right)} %{larger}",
        meaning="An attack that knows more finds less, or the best one finds no more than noise: its gradients do not "
        "lead to mistakes.",
    )


def _too_few(strong: torch.Tensor, weak: torch.Tensor) -> bool:
    """Return whether so few images differ that `beats` would say no even if all of them were on its side."""
    differ = int((strong != weak).sum())
    return not beats(torch.zeros(differ, dtype=torch.bool), torch.ones(differ, dtype=torch.bool))


def join_percent(right: Iterable[torch.Tensor]) -> str:
    """Format accuracies in percent, as 61.0/48.0."""
    return "/".join(percent(one) for one in right)


def join_numbers(counts: Iterable[int]) -> str:
    """Format counts, as 1/5/20."""
    return "/".join(map(str, counts))
