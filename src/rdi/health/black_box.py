"""An attack without gradients must not find what those with gradients miss (Athalye et al., ICML 2018)."""

from __future__ import annotations

from rdi.attacks import Square
from rdi.health.evaluation import Evaluation, Extent, percent
from rdi.health.paired import beats
from rdi.records import Check

NAME = "black-box"
MEANING = "Blind search finds mistakes that gradients miss: the gradients are masked, and the robustness with them."


def black_box(evaluation: Evaluation, extent: Extent) -> Check:
    """Compare the Square attack on the policy with the per-image worst of the static and the adaptive attacks."""
    square = Square(eps=evaluation.main.eps, norm=evaluation.main.norm, queries=extent.queries)
    if unable := square.unable():
        return Check(name=NAME, passed=True, figure=f"not checked: {unable}", meaning=MEANING)
    white = evaluation.adaptive_worst() & evaluation.under(evaluation.static).right
    black = evaluation.under(square).right
    missed = int((white & ~black).sum())
    return Check(
        name=NAME,
        passed=not beats(black, white),
        figure=f"accuracy {percent(black)} % after {extent.queries} queries, {percent(white)} % with gradients; "
        f"{missed} found by queries only",
        meaning=MEANING,
    )
