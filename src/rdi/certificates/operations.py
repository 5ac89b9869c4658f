"""Operations of a network on boxes: forward by intervals, backward by linear bounds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from rdi.certificates.box import Box, spread

Back = tuple[list[torch.Tensor], torch.Tensor | float]
"""Coefficients_SN... of each input, and what is added to the bound_SN."""


class Operation(ABC):
    """An operation on boxes, with the parameters that the network has now.

    has_linear_bounds: whether `back` is there.
    """

    has_linear_bounds = True

    @abstractmethod
    def forward(self, boxes: Sequence[Box], rounded: bool) -> tuple[Box, torch.Tensor | None]:
        """Box of all results, and how far rounding may take a result of the network from that of exact arithmetic.

        rounded: whether the box holds what floating point makes of it too; without, the box can be differentiated.
        None: results are exact.
        """

    def back(self, a: torch.Tensor, boxes: Sequence[Box]) -> Back:
        """Bound sum(a_SN... * result_N...) from above by a sum over the inputs; see Back."""
        raise NotImplementedError


class Affine(Operation):
    """result = linear(x) + offset.

    terms: products in one sum."""

    terms: int
    offset: torch.Tensor | None

    @abstractmethod
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """The linear part, in the type of x."""

    @abstractmethod
    def absolute(self, x: torch.Tensor) -> torch.Tensor:
        """The same with the absolute values of the weights."""

    @abstractmethod
    def transposed(self, a: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Coefficients_M... of results -> coefficients of inputs of `shape` (the first axis left out)."""

    def magnitude(self) -> torch.Tensor | float:
        """Absolute value of what is added."""
        return 0.0 if self.offset is None else self.offset.abs()

    def forward(self, boxes: Sequence[Box], rounded: bool) -> tuple[Box, torch.Tensor | None]:
        """See Operation."""
        (box,) = boxes
        middle = (box.low + box.high) / 2
        centre = self.linear(middle)
        if self.offset is not None:
            centre = centre + self.offset
        if not rounded:
            radius = self.absolute((box.high - box.low) / 2)
            return Box(centre - radius, centre + radius), None
        radius = torch.maximum(box.high - middle, middle - box.low)
        both = self.absolute(torch.cat([radius, box.largest]))
        radius, size = both.chunk(2)
        tiny = torch.finfo(size.dtype).tiny * (self.terms + 16)
        slack = spread(self.terms, size.dtype) * (size + self.magnitude()) + tiny
        radius = radius + slack
        return Box(centre - radius, centre + radius), slack

    def back(self, a: torch.Tensor, boxes: Sequence[Box]) -> Back:
        """See Operation."""
        samples = a.shape[:2]
        back = self.transposed(a.flatten(0, 1), boxes[0].shape[1:]).unflatten(0, samples)
        if self.offset is None:
            return [back], 0.0
        return [back], (a * self.offset.to(a.dtype)).flatten(2).sum(dim=2)


@dataclass(frozen=True)
class Convolution(Affine):
    """2-d convolution with zero padding. weight_OIHW; offset_1O11."""

    weight: torch.Tensor
    offset: torch.Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    terms: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", math.prod(self.weight.shape[1:]))

    def _run(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight.to(x.dtype), None, self.stride, self.padding, self.dilation, self.groups)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """See Affine."""
        return self._run(x, self.weight)

    def absolute(self, x: torch.Tensor) -> torch.Tensor:
        """See Affine."""
        return self._run(x, self.weight.abs())

    def transposed(self, a: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """See Affine."""
        return conv2d_input(
            [len(a), *shape], self.weight.to(a.dtype), a, self.stride, self.padding, self.dilation, self.groups
        )


@dataclass(frozen=True)
class Linear(Affine):
    """weight_OI on the last axis; offset_O."""

    weight: torch.Tensor
    offset: torch.Tensor | None
    terms: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", self.weight.shape[1])

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """See Affine."""
        return F.linear(x, self.weight.to(x.dtype))

    def absolute(self, x: torch.Tensor) -> torch.Tensor:
        """See Affine."""
        return F.linear(x, self.weight.abs().to(x.dtype))

    def transposed(self, a: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """See Affine."""
        return a @ self.weight.to(a.dtype)


@dataclass(frozen=True)
class Scale(Affine):
    """x * factor + offset, elementwise; both broadcast.

    size: of what is added on the way, where that is more."""

    factor: torch.Tensor | float
    offset: torch.Tensor | None = None
    size: torch.Tensor | None = None
    terms: int = 8

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """See Affine."""
        return x * _typed(self.factor, x)

    def absolute(self, x: torch.Tensor) -> torch.Tensor:
        """See Affine."""
        return x * abs(_typed(self.factor, x))

    def transposed(self, a: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """See Affine."""
        return a * _typed(self.factor, a)

    def magnitude(self) -> torch.Tensor | float:
        """See Affine."""
        return super().magnitude() if self.size is None else self.size


def _typed(factor: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(factor, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Average(Affine):
    """A mean over some elements of x.

    run: the operation, whose weights are not negative."""

    run: Callable[[torch.Tensor], torch.Tensor]
    terms: int
    offset: None = None

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """See Affine."""
        return self.run(x)

    absolute = linear

    def transposed(self, a: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """See Affine."""
        with torch.enable_grad():
            at = torch.zeros(len(a), *shape, dtype=a.dtype, device=a.device, requires_grad=True)
            (found,) = torch.autograd.grad(self.run(at), at, a, create_graph=a.requires_grad)
        return found


@dataclass(frozen=True)
class Reshape(Operation):
    """A view of the same elements in the same order."""

    run: Callable[[torch.Tensor], torch.Tensor]

    def forward(self, boxes: Sequence[Box], rounded: bool) -> tuple[Box, torch.Tensor | None]:
        """See Operation."""
        return Box(self.run(boxes[0].low), self.run(boxes[0].high)), None

    def back(self, a: torch.Tensor, boxes: Sequence[Box]) -> Back:
        """See Operation."""
        return [a.reshape(*a.shape[:2], *boxes[0].shape[1:])], 0.0


@dataclass(frozen=True)
class Monotone(Operation):
    """A function that no element of x lowers as it grows.

    units: in the last place that its result may be off."""

    run: Callable[[torch.Tensor], torch.Tensor]
    units: int = 0
    has_linear_bounds = False

    def forward(self, boxes: Sequence[Box], rounded: bool) -> tuple[Box, torch.Tensor | None]:
        """See Operation."""
        box = Box(self.run(boxes[0].low), self.run(boxes[0].high))
        if not rounded or not self.units:
            return box, None
        slack = self.units * torch.finfo(box.low.dtype).eps * (1 + box.largest)
        return box.wider(slack), slack


class ReLU(Monotone):
    """max(x, 0); its linear bounds are those of Zhang et al. (CROWN, NeurIPS 2018), section 3.2."""

    has_linear_bounds = True

    def __init__(self) -> None:
        super().__init__(F.relu)

    def back(self, a: torch.Tensor, boxes: Sequence[Box]) -> Back:
        """See Operation."""
        low, high = boxes[0].low.to(a.dtype), boxes[0].high.to(a.dtype)
        crossing = (low < 0) & (high > 0)
        slope = torch.where(crossing, high / (high - low).clamp_min(torch.finfo(a.dtype).tiny), (low >= 0).to(a.dtype))
        above = torch.where(crossing, -low * slope, 0.0)
        below = (torch.where(crossing, (high > -low).to(a.dtype), slope)).detach()
        positive, negative = a.clamp_min(0), a.clamp_max(0)
        return [positive * slope + negative * below], (positive * above).flatten(2).sum(dim=2)


@dataclass(frozen=True)
class MaxPool(Monotone):
    """Largest of each window.

    kernel, stride: of windows that lie inside the image; None: others, intervals only."""

    kernel: tuple[int, int] | None = None
    stride: tuple[int, int] = (1, 1)

    @property
    def has_linear_bounds(self) -> bool:  # type: ignore[override]
        """Whether windows lie inside the image."""
        return self.kernel is not None

    def _windows(self, x: torch.Tensor) -> torch.Tensor:
        assert self.kernel is not None, "asked for only where there are linear bounds"
        (height, width), (down, right) = self.kernel, self.stride
        return x.unfold(2, height, down).unfold(3, width, right).flatten(4)

    def back(self, a: torch.Tensor, boxes: Sequence[Box]) -> Back:
        """See Operation. The element with the largest lower bound bounds the maximum from below.

        From above that element and what others may exceed it by, or the largest upper bound, whichever is less.
        """
        low, high = (self._windows(bound.to(a.dtype)) for bound in (boxes[0].low, boxes[0].high))
        best = low.argmax(dim=4, keepdim=True)
        least = low.gather(4, best).squeeze(4)
        others = high.scatter(4, best, -math.inf).amax(dim=4)
        leads = high.gather(4, best).squeeze(4) >= others
        excess = torch.where(leads, (others - least).clamp_min(0), others)
        positive, negative = a.clamp_min(0), a.clamp_max(0)
        through = positive * leads + negative
        places = torch.arange(math.prod(boxes[0].shape[2:]), device=a.device).view(1, 1, *boxes[0].shape[2:])
        index = self._windows(places).expand(*low.shape).gather(4, best).flatten(2)
        back = a.new_zeros(*a.shape[:2], boxes[0].shape[1], places.numel())
        back = back.scatter_add(3, index.expand(len(a), *index.shape), through.flatten(3))
        return [back.unflatten(3, boxes[0].shape[2:])], (positive * excess).flatten(2).sum(dim=2)


class Sum(Operation):
    """Of two boxes of one shape."""

    def forward(self, boxes: Sequence[Box], rounded: bool) -> tuple[Box, torch.Tensor | None]:
        """See Operation."""
        first, second = boxes
        box = Box(first.low + second.low, first.high + second.high)
        if not rounded:
            return box, None
        slack = 2 * torch.finfo(box.low.dtype).eps * (first.largest + second.largest)
        return box.wider(slack), slack

    def back(self, a: torch.Tensor, boxes: Sequence[Box]) -> Back:
        """See Operation."""
        return [a, a], 0.0


@dataclass(frozen=True)
class Joined(Operation):
    """Boxes one behind the other along an axis that is not that of the samples."""

    dim: int

    def forward(self, boxes: Sequence[Box], rounded: bool) -> tuple[Box, torch.Tensor | None]:
        """See Operation."""
        return Box(*(torch.cat([getattr(box, side) for box in boxes], self.dim) for side in ("low", "high"))), None

    def back(self, a: torch.Tensor, boxes: Sequence[Box]) -> Back:
        """See Operation."""
        dim = self.dim + 1 if self.dim > 0 else self.dim
        return list(a.split([box.shape[self.dim] for box in boxes], dim)), 0.0
