"""Bounds of every exit's logits over all images in a ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdi.certificates import backward
from rdi.certificates.box import Box, ball, spread
from rdi.certificates.operations import Linear
from rdi.certificates.tracing import Step, Traced
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet

FLOAT64_SLACK = 1e-9
"""Relative rounding error of linear bounds in float64; far above 1e-16 times the number of terms."""


@dataclass(frozen=True)
class Bounds:
    """Bounds of N images at E exits.

    low, high: of the logits, NEC, float32.
    below, above: of logit j - logit y, NEC, 0 for j = y; bounded by themselves, which is tighter than differences of
        bounds.
    """

    low: torch.Tensor
    high: torch.Tensor
    below: torch.Tensor
    above: torch.Tensor

    def rows(self, rows: torch.Tensor | slice) -> Bounds:
        """Return the bounds of these samples."""
        return Bounds(self.low[rows], self.high[rows], self.below[rows], self.above[rows])

    def wins(self) -> torch.Tensor:
        """Return bool_NE: the true class has the largest logit on every image of the ball."""
        return (self.above >= 0).sum(dim=2) == 1


@dataclass(frozen=True)
class Pass:
    """The steps from the image to each exit's logits.

    image: the box that was passed.
    trunk, heads: steps of each stage, and of each head.
    logits: one box NC per exit.
    """

    image: Box
    trunk: list[list[Step]]
    heads: list[list[Step]]
    logits: list[Box]

    def steps(self, exit: int) -> list[Step]:
        """Return all steps that the logits of `exit` depend on."""
        return [step for part in self.trunk[: exit + 1] for step in part] + self.heads[exit]


class BoundedNetwork:
    """A multi-exit network that boxes can be passed through; it follows the network's parameters.

    net: BatchNorm uses its running statistics and dropout is off, whatever mode it is in.
    Raises UserError for a network with a layer that has no bound, by name, when boxes pass it first; at once for one
        with gates.
    """

    def __init__(self, net: MultiExitNet) -> None:
        if net.gated:
            raise UserError("gates have no bounds yet: certify a network with gates=none")
        self.stages = [Traced(stage, f"stages.{k}") for k, stage in enumerate(net.stages)]
        self.heads = [Traced(head, f"heads.{k}") for k, head in enumerate(net.heads)]

    def run(self, image: Box, *, rounded: bool) -> Pass:
        """Pass a box of images_NCHW.

        rounded: include rounding, as of Operation.forward; False for training.
        """
        trunk: list[list[Step]] = []
        heads: list[list[Step]] = []
        logits = []
        features = image
        for stage, head in zip(self.stages, self.heads, strict=True):
            trunk.append([])
            heads.append([])
            features = stage.run(features, trunk[-1], rounded)
            logits.append(head.run(features, heads[-1], rounded))
        return Pass(image, trunk, heads, logits)

    @torch.no_grad()
    def bounds(self, x: torch.Tensor, y: torch.Tensor, eps: float, *, linear: bool = True) -> Bounds:
        """Bound the logits over an L-infinity ball.

        x: images_NCHW in [0, 1], float32 or float64.
        y: labels_N.
        eps: radius of the ball, pixel units.
        linear: add linear bounds where an exit is right on the image itself, intervals do not show that it stays right,
            and every layer has them; else intervals alone.

        The bounds hold in floating point, for sums in any order, and in exact arithmetic; not for bfloat16 or
        transformed convolutions (Winograd, FFT). Convolutions on a GPU do not use TensorFloat-32 meanwhile.

        Raises UserError where a bound is not finite.
        """
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            return self._bounds(x, y, eps, linear)

    def _bounds(self, x: torch.Tensor, y: torch.Tensor, eps: float, linear: bool) -> Bounds:
        done = self.run(ball(x, eps), rounded=True)
        pairs = [differences(box, steps, y, rounded=True) for box, steps in zip(done.logits, done.heads, strict=True)]
        found = Bounds(
            *(torch.stack([getattr(box, side) for box in done.logits], dim=1) for side in ("low", "high")),
            *(torch.stack([getattr(box, side) for box in pairs], dim=1) for side in ("low", "high")),
        )
        if linear:
            plain = self.run(Box(x, x), rounded=False).logits
            for k in range(len(self.heads)):
                # where the image itself is not answered right, no bound can say that the true class wins
                open_N = ~found.wins()[:, k] & (plain[k].low.argmax(dim=1) == y)
                if bool(open_N.any()) and backward.has_linear_bounds(done.steps(k)):
                    below, above = self._linear(x[open_N], y[open_N], eps, k)
                    found.below[open_N, k] = torch.maximum(found.below[open_N, k], below)
                    found.above[open_N, k] = torch.minimum(found.above[open_N, k], above)
        if not bool(found.low.isfinite().all() & found.high.isfinite().all()):
            raise UserError("the bounds of the logits are not finite: the network's numbers overflow within the ball")
        return found

    def _linear(self, x: torch.Tensor, y: torch.Tensor, eps: float, exit: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Bounds_NC of the differences at one exit, by linear bounds."""
        done = self.run(ball(x, eps), rounded=True)
        bounds_SN = difference_bounds(done, exit, y, torch.float64)
        bounds_SN = bounds_SN + FLOAT64_SLACK * (1 + bounds_SN.abs())
        above, below = bounds_SN.T.chunk(2, dim=1)
        out = torch.finfo(x.dtype).eps
        return (-below - out * below.abs()).to(x.dtype), (above + out * above.abs()).to(x.dtype)


def difference_bounds(
    done: Pass, exit: int, y: torch.Tensor, dtype: torch.dtype, *, below: bool = True
) -> torch.Tensor:
    """Bound logit j - logit y for every class j by linear bounds from above: bounds_SN.

    done: a pass, of which `exit` is bounded.
    y: labels_N.
    dtype: of the computation.
    below: then also bound logit y - logit j.
    """
    classes = done.logits[exit].shape[1]
    eye = torch.eye(classes, dtype=dtype, device=y.device)
    a_CNC = eye[:, None, :] - eye[y][None, :, :]
    return backward.upper_bounds(torch.cat([a_CNC, -a_CNC]) if below else a_CNC, done.steps(exit), done.image)


def differences(logits: Box, steps: list[Step], y: torch.Tensor, *, rounded: bool) -> Box:
    """Bound logit j - logit y by intervals: a box NC.

    Where the head ends with a linear layer, the difference of two rows of its weights is one row, so that what both
    logits share does not count twice.

    logits: of one exit, NC.
    steps: of its head.
    y: labels_N.
    rounded: include rounding.
    Source: last-layer elision, Gowal et al., ICCV 2019, section 3.
    """
    last = steps[-1] if steps else None
    if last is None or not isinstance(last.operation, Linear) or logits.low.ndim != 2:
        at = y[:, None]
        low = logits.low - logits.high.gather(1, at)
        high = logits.high - logits.low.gather(1, at)
        slack = 2 * torch.finfo(low.dtype).eps * (low.abs() + high.abs()) if rounded else torch.zeros_like(low)
    else:
        weight, offset = last.operation.weight, last.operation.offset
        (box,) = last.boxes
        middle, radius = (box.low + box.high) / 2, (box.high - box.low) / 2
        if rounded:
            radius = torch.maximum(box.high - middle, middle - box.low)
        # by true class: C matrices of C rows each
        pairs_YCF = weight[None, :, :] - weight[:, None, :]
        centre = (pairs_YCF[y] @ middle[:, :, None]).squeeze(2)
        if offset is not None:
            centre = centre + (offset[None, :] - offset[:, None])[y]
        width = (pairs_YCF[y].abs() @ radius[:, :, None]).squeeze(2)
        low, high = centre - width, centre + width
        slack = torch.zeros_like(low)
        if rounded:
            assert last.slack is not None, "rounded passes know what rounding may do"
            # each logit of the network, and this sum, of no larger terms than those of both logits
            slack = 2 * (last.slack + last.slack.gather(1, y[:, None]))
            slack = slack + spread(1, low.dtype) * (low.abs() + high.abs())
    same = torch.zeros_like(low, dtype=torch.bool).scatter(1, y[:, None], True)
    return Box(*(side.masked_fill(same, 0.0) for side in (low - slack, high + slack)))
