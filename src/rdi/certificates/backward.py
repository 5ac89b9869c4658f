"""Linear bounds of a network's outputs, carried back to the image (CROWN, Zhang et al., NeurIPS 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rdi.certificates.box import Box
from rdi.certificates.operations import Relaxed
from rdi.certificates.tracing import Step


def has_linear_bounds(steps: Sequence[Step]) -> bool:
    """Return whether every step has linear bounds."""
    return all(isinstance(step.operation, Relaxed) for step in steps)


def upper_bounds(a: torch.Tensor, steps: Sequence[Step], image: Box) -> torch.Tensor:
    """Bound sum(a_SNC * logits_NC) from above for all images in a box: bounds_SN, in the type of `a`.

    a: coefficients; use float64, whose rounding is negligible beside that of the network, which the steps hold.
    steps: of a pass that ends with the logits, each with linear bounds; their boxes are those of intervals.
    image: the box that the pass began with.
    Source: CROWN-IBP, Zhang et al., ICLR 2020, section 3.
    """
    reached: dict[int, torch.Tensor] = {id(steps[-1].box): a}
    bound = a.new_zeros(a.shape[:2])
    for step in reversed(steps):
        if (here := reached.pop(id(step.box), None)) is None:
            continue
        if step.slack is not None:
            bound = bound + (here.abs() * step.slack.to(a.dtype)).flatten(2).sum(dim=2)
        assert isinstance(step.operation, Relaxed), "every step has linear bounds"
        back, constant = step.operation.back(here, step.boxes)
        bound = bound + constant
        for box, one in zip(step.boxes, back, strict=True):
            reached[id(box)] = reached[id(box)] + one if id(box) in reached else one
    at_image = reached[id(image)]
    low, high = image.low.to(a.dtype), image.high.to(a.dtype)
    return bound + (at_image.clamp_min(0) * high + at_image.clamp_max(0) * low).flatten(2).sum(dim=2)
