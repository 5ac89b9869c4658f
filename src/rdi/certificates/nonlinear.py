"""Nonlinear operations on boxes: monotone functions; of these with linear bounds ReLU, clamping and max pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from rdi.certificates.box import Box
from rdi.certificates.operations import Back, Operation, Relaxed


@dataclass(frozen=True)
class Monotone(Operation):
    """A function whose every output is non-decreasing in every element of x.

    run: the function.
    units: units in the last place that its result may be off.
    """

    run: Callable[[torch.Tensor], torch.Tensor]
    units: int = 0

    def forward(self, boxes: Sequence[Box], rounded: bool) -> tuple[Box, torch.Tensor | None]:
        """Apply the function to both bounds."""
        box = Box(self.run(boxes[0].low), self.run(boxes[0].high))
        if not rounded or not self.units:
            return box, None
        slack = self.units * torch.finfo(box.low.dtype).eps * (1 + box.largest)
        return box.wider(slack), slack


class ReLU(Monotone, Relaxed):
    """max(x, 0). Source of its linear bounds: Zhang et al. (CROWN, NeurIPS 2018), section 3.2."""

    def __init__(self) -> None:
        super().__init__(F.relu)

    def back(self, a: torch.Tensor, boxes: Sequence[Box]) -> Back:
        """Bound a crossing unit from above by its chord, from below by the steeper of 0 and x."""
        low, high = boxes[0].low.to(a.dtype), boxes[0].high.to(a.dtype)
        crossing = (low < 0) & (high > 0)
        slope = torch.where(crossing, high / (high - low).clamp_min(torch.finfo(a.dtype).tiny), (low >= 0).to(a.dtype))
        above = torch.where(crossing, -low * slope, 0.0)
        below = (torch.where(crossing, (high > -low).to(a.dtype), slope)).detach()
        positive, negative = a.clamp_min(0), a.clamp_max(0)
        return [positive * slope + negative * below], (positive * above).flatten(2).sum(dim=2)


class Clamp(Monotone, Relaxed):
    """min(max(x, least), most), as ReLU6 and hardtanh are.

    least, most: may be infinite.
    """

    def __init__(self, least: float, most: float) -> None:
        super().__init__(lambda x: x.clamp(least, most))
        self.least, self.most = least, most

    def back(self, a: torch.Tensor, boxes: Sequence[Box]) -> Back:
        """Bound every element by one line from above and one from below.

        From above: the chord, or where the upper end is cut off the line through the lower end and the upper kink, or
        the constant `most`, whichever is lower in the middle. From below: the same of -x.
        """
        low, high = boxes[0].low.to(a.dtype), boxes[0].high.to(a.dtype)
        slope, above = _line_above(low, high, self.least, self.most)
        slope_below, minus_below = _line_above(-high, -low, -self.most, -self.least)
        positive, negative = a.clamp_min(0), a.clamp_max(0)
        constant = positive * above - negative * minus_below
        return [positive * slope + negative * slope_below], constant.flatten(2).sum(dim=2)


def _line_above(low: torch.Tensor, high: torch.Tensor, least: float, most: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (slope, offset) of a line that clamp(x, least, most) stays under for x in [low, high]."""
    first = low.clamp(least, most)
    end = high.clamp(max=most)  # of the line: the upper end, or the kink before it
    last = end.clamp(min=least)
    slope = (last - first) / (end - low).clamp_min(torch.finfo(low.dtype).tiny)
    middle = first + slope * (high - low) / 2
    flat = (high > most) & ((low >= most) | (middle >= most))
    slope = torch.where(flat, 0.0, slope)
    return slope, torch.where(flat, last, first - slope * low)


@dataclass(frozen=True)
class MaxPool(Monotone, Relaxed):
    """Maximum of each window.

    kernel, stride: (down, right), of windows that lie inside the image.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)

    def _windows(self, x: torch.Tensor) -> torch.Tensor:
        (height, width), (down, right) = self.kernel, self.stride
        return x.unfold(2, height, down).unfold(3, width, right).flatten(4)

    def back(self, a: torch.Tensor, boxes: Sequence[Box]) -> Back:
        """Bound each maximum by the element with the largest lower bound.

        From below by that element; from above by that element and what others may exceed it by, or by the largest upper
        bound, whichever is less.
        """
        low, high = (self._windows(bound.to(a.dtype)) for bound in (boxes[0].low, boxes[0].high))
        best = low.argmax(dim=4, keepdim=True)
        least = low.gather(4, best).squeeze(4)
        others = high.scatter(4, best, -math.inf).amax(dim=4)
        dominant = high.gather(4, best).squeeze(4) >= others
        excess = torch.where(dominant, (others - least).clamp_min(0), others)
        positive, negative = a.clamp_min(0), a.clamp_max(0)
        through = positive * dominant + negative
        places = torch.arange(math.prod(boxes[0].shape[2:]), device=a.device).view(1, 1, *boxes[0].shape[2:])
        index = self._windows(places).expand(*low.shape).gather(4, best).flatten(2)
        back = a.new_zeros(*a.shape[:2], boxes[0].shape[1], places.numel())
        back = back.scatter_add(3, index.expand(len(a), *index.shape), through.flatten(3))
        return [back.unflatten(3, boxes[0].shape[2:])], (positive * excess).flatten(2).sum(dim=2)
