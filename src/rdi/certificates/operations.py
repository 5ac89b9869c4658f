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
"""(coefficients_SN... of each input, constant to add to the bound_SN)."""


class Operation(ABC):
    """An operation on boxes, with the parameters that the network has now."""

    @abstractmethod
    def forward(self, boxes: Sequence[Box], rounded: bool) -> tuple[Box, torch.Tensor | None]:
        """Return the box of all results, and the rounding slack of each result (None: exact).

        boxes: of the inputs.
        rounded: widen the box by the slack; without, the box can be differentiated.
        """


class Relaxed(Operation):
    """An operation that has linear bounds as well."""

    @abstractmethod
    def back(self, a: torch.Tensor, boxes: Sequence[Box]) -> Back:
        """Bound sum(a_SN... * result_N...) from above by a sum over the inputs.

        a: coefficients of the result, one set per bound S.
        boxes: of the inputs, from `forward`.
        """


class Affine(Relaxed):
    """result = linear(x) + offset.

    terms: products in one sum.
    offset: broadcasts to the result; None: 0.
    """

    terms: int
    offset: torch.Tensor | None

    @abstractmethod
    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the linear part, in the type of x."""

    @abstractmethod
    def absolute(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the linear part with the absolute values of its weights."""

    @abstractmethod
    def transposed(self, a: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Map coefficients_M... of results to those of inputs of `shape` (without the first axis)."""

    def magnitude(self) -> torch.Tensor | float:
        """Return the absolute value of what is added."""
        return 0.0 if self.offset is None else self.offset.abs()

    def forward(self, boxes: Sequence[Box], rounded: bool) -> tuple[Box, torch.Tensor | None]:
        """Bound by the middle of the box and its radius, through `linear` and `absolute`."""
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
        """Carry the coefficients back through the transpose; exact."""
        samples = a.shape[:2]
        back = self.transposed(a.flatten(0, 1), boxes[0].shape[1:]).unflatten(0, samples)
        if self.offset is None:
            return [back], 0.0
        return [back], (a * self.offset.to(a.dtype)).flatten(2).sum(dim=2)


@dataclass(frozen=True)
class Convolution(Affine):
    """2-d convolution with zero padding, without transposition.

    weight: (out, in / groups, height, width).
    offset: (1, out, 1, 1), or None.
    stride, padding, dilation: (down, right), as of torch.nn.functional.conv2d.
    """

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
        """Convolve, without the offset."""
        return self._run(x, self.weight)

    def absolute(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve with absolute weights."""
        return self._run(x, self.weight.abs())

    def transposed(self, a: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Convolve the coefficients with the transposed kernel."""
        return conv2d_input(
            [len(a), *shape], self.weight.to(a.dtype), a, self.stride, self.padding, self.dilation, self.groups
        )


@dataclass(frozen=True)
class Linear(Affine):
    """Matrix product on the last axis. weight_OI; offset_O."""

    weight: torch.Tensor
    offset: torch.Tensor | None
    terms: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", self.weight.shape[1])

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by the weight."""
        return F.linear(x, self.weight.to(x.dtype))

    def absolute(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by the absolute weight."""
        return F.linear(x, self.weight.abs().to(x.dtype))

    def transposed(self, a: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Multiply the coefficients by the weight."""
        return a @ self.weight.to(a.dtype)


@dataclass(frozen=True)
class Scale(Affine):
    """x * factor + offset, elementwise.

    factor, offset: broadcast to x.
    size: absolute values added on the way, where these are more than the offset.
    """

    factor: torch.Tensor | float
    offset: torch.Tensor | None = None
    size: torch.Tensor | None = None
    terms: int = 8

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by the factor."""
        return x * _typed(self.factor, x)

    def absolute(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by the absolute factor."""
        return x * abs(_typed(self.factor, x))

    def transposed(self, a: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Multiply the coefficients by the factor."""
        return a * _typed(self.factor, a)

    def magnitude(self) -> torch.Tensor | float:
        """Return `size`, or the absolute offset without one."""
        return super().magnitude() if self.size is None else self.size


def _typed(factor: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(factor, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Average(Affine):
    """A mean over some elements of x.

    run: a linear operation whose weights are not negative.
    """

    run: Callable[[torch.Tensor], torch.Tensor]
    terms: int
    offset: None = None

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the mean."""
        return self.run(x)

    absolute = linear

    def transposed(self, a: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Differentiate the mean, which is its transpose."""
        with torch.enable_grad():
            at = torch.zeros(len(a), *shape, dtype=a.dtype, device=a.device, requires_grad=True)
            (found,) = torch.autograd.grad(self.run(at), at, a, create_graph=a.requires_grad)
        return found


@dataclass(frozen=True)
class Reshape(Relaxed):
    """A view of the same elements in the same order."""

    run: Callable[[torch.Tensor], torch.Tensor]

    def forward(self, boxes: Sequence[Box], rounded: bool) -> tuple[Box, torch.Tensor | None]:
        """Reshape both bounds; exact."""
        return Box(self.run(boxes[0].low), self.run(boxes[0].high)), None

    def back(self, a: torch.Tensor, boxes: Sequence[Box]) -> Back:
        """Reshape the coefficients back."""
        return [a.reshape(*a.shape[:2], *boxes[0].shape[1:])], 0.0


class Sum(Relaxed):
    """The sum of two boxes of one shape."""

    def forward(self, boxes: Sequence[Box], rounded: bool) -> tuple[Box, torch.Tensor | None]:
        """Add both bounds."""
        first, second = boxes
        box = Box(first.low + second.low, first.high + second.high)
        if not rounded:
            return box, None
        slack = 2 * torch.finfo(box.low.dtype).eps * (first.largest + second.largest)
        return box.wider(slack), slack

    def back(self, a: torch.Tensor, boxes: Sequence[Box]) -> Back:
        """Copy the coefficients to both inputs."""
        return [a, a], 0.0


@dataclass(frozen=True)
class Joined(Relaxed):
    """A concatenation along an axis other than that of the samples.

    dim: the axis.
    """

    dim: int

    def forward(self, boxes: Sequence[Box], rounded: bool) -> tuple[Box, torch.Tensor | None]:
        """Concatenate both bounds; exact."""
        return Box(*(torch.cat([getattr(box, side) for box in boxes], self.dim) for side in ("low", "high"))), None

    def back(self, a: torch.Tensor, boxes: Sequence[Box]) -> Back:
        """Split the coefficients among the inputs."""
        dim = self.dim + 1 if self.dim > 0 else self.dim
        return list(a.split([box.shape[self.dim] for box in boxes], dim)), 0.0
