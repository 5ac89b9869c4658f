"""The balls that attacks stay in: projection, steepest step and random start of L-infinity, L2 and L1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rdi.checks import LINF, NORMS, choice, distance
from rdi.seeds import drawn

SPARSE = 0.01
"""Share of the pixels that one L1 step moves, at least one (Tramer & Boneh, NeurIPS 2019: the largest 1 %)."""
ORDERS = {LINF: torch.inf, "l2": 2, "l1": 1}
TINY = 1e-12


@dataclass(frozen=True)
class Ball:
    """All images in [0, 1] that are at most `eps` from an image.

    eps: radius, pixel units: in [0, 1] in L-infinity, at least 0 in other norms.
    norm: "linf", "l2" or "l1", over all channels and pixels of an image.
    Raises UserError for other values.
    """

    eps: float
    norm: str = LINF

    def __post_init__(self) -> None:
        choice("norm", self.norm, tuple(NORMS))
        distance("eps", self.eps, self.norm)

    def project(self, x_adv: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the nearest images of the ball: exactly, of the ball and of [0, 1] together.

        x_adv: NCHW.
        x: centres, in [0, 1], NCHW.
        """
        if self.norm == LINF:
            return torch.minimum(torch.maximum(x_adv, (x - self.eps).clamp_(min=0)), (x + self.eps).clamp_(max=1))
        delta = x_adv - x
        away = delta.abs().flatten(1)
        room = torch.where(delta > 0, 1 - x, x).flatten(1)
        moved = _l2_lengths(away, room, self.eps) if self.norm == "l2" else _l1_lengths(away, room, self.eps)
        # what rounding leaves too much is given back along the way to x, which stays in [0, 1]
        moved = moved * (self.eps / _length(moved, self.norm).clamp_min(TINY)).clamp_(max=1)[:, None]
        return (x + delta.sign() * moved.view_as(x)).clamp_(0, 1)

    def step(self, x_adv: torch.Tensor, grad: torch.Tensor, size: float) -> torch.Tensor:
        """Move x_adv_NCHW by `size` along the steepest ascent; not projected. Writes over `grad`_NCHW."""
        if self.norm == LINF:
            return x_adv.add(grad.sign_(), alpha=size)
        return x_adv + size * self.steepest(grad, x_adv)

    def steepest(self, grad: torch.Tensor, x_adv: torch.Tensor) -> torch.Tensor:
        """Return the direction of length 1 that climbs fastest, per image; 0 where the gradient is.

        L-infinity: the sign of the gradient; L2: the gradient, scaled; L1: the sign of its largest entries, SPARSE of
        them, among pixels that are not yet at the end of [0, 1] that they would move to.

        grad: NCHW.
        x_adv: where it was taken, NCHW.
        """
        if self.norm == LINF:
            return grad.sign()
        if self.norm == "l1":
            return sparse_sign(grad, x_adv, torch.full((len(grad),), SPARSE, device=grad.device))
        # scaled first: the square of a gradient of 1e-30 is 0
        scaled = grad / grad.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(grad.dtype).tiny)
        return scaled / scaled.flatten(1).norm(dim=1).clamp_min(TINY)[:, None, None, None]

    def noise(self, x: torch.Tensor, generator: torch.Generator, scale: float = 1.0) -> torch.Tensor:
        """Draw perturbations of x_NCHW, uniform in a ball of `scale` times the radius, [0, 1] left aside.

        L2 and L1: a direction uniform on the sphere times eps * u^(1/d), with u uniform and d the number of pixels
        (Barthe et al., Annals of Probability 2005).
        """

        def draw(shape: Sequence[int], kind: Callable[..., torch.Tensor] = torch.rand) -> torch.Tensor:
            return drawn(lambda s: kind(*s, generator=generator, device=x.device, dtype=x.dtype), shape, generator)

        # drawn contiguous whatever the memory format of x, so that the same seed gives the same image
        if self.norm == LINF:
            return (2 * draw(x.shape) - 1) * (scale * self.eps)
        radius = scale * self.eps * draw((len(x), 1, 1, 1)) ** (1 / x.shape[1:].numel())
        if self.norm == "l2":
            found = draw(x.shape, torch.randn)
        else:
            found = -torch.log1p(-draw(x.shape)) * (2 * draw(x.shape).round() - 1)
        return found * (radius / _length(found.flatten(1), self.norm).clamp_min(TINY)[:, None, None, None])

    def start(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw starting points x_NCHW, uniform in the ball, then brought into [0, 1]."""
        return self.project(x + self.noise(x, generator), x)

    def length(self, delta: torch.Tensor) -> torch.Tensor:
        """Return length_N of perturbations_NCHW in this norm, float64."""
        return _length(delta.double().flatten(1), self.norm)


def project(x_adv: torch.Tensor, x: torch.Tensor, eps: float, norm: str = LINF) -> torch.Tensor:
    """Return the nearest images in the ball and in [0, 1].

    x_adv: NCHW.
    x: centres, in [0, 1], NCHW.
    eps: radius, pixel units.
    norm: "linf", "l2" or "l1".
    """
    return Ball(eps, norm).project(x_adv, x)


def sparse_sign(grad: torch.Tensor, x_adv: torch.Tensor, share_N: torch.Tensor) -> torch.Tensor:
    """Return the sign of the largest entries of the gradient, scaled to L1 length 1, per image.

    grad: NCHW. x_adv: where it was taken, NCHW: pixels that cannot move on stay.
    share_N: of the entries that are taken, in (0, 1], at least one.
    """
    stuck = ((grad > 0) & (x_adv >= 1)) | ((grad < 0) & (x_adv <= 0))
    size = grad.abs().masked_fill(stuck, 0).flatten(1)
    count = (share_N * size.shape[1]).long().clamp(1, size.shape[1])
    least = size.sort(dim=1, descending=True).values.gather(1, count[:, None] - 1)
    chosen = torch.where((size >= least) & (size > 0), grad.flatten(1).sign(), 0.0)
    return (chosen / chosen.abs().sum(dim=1, keepdim=True).clamp_min(1)).view_as(grad)


def _length(delta_ND: torch.Tensor, norm: str) -> torch.Tensor:
    return torch.linalg.vector_norm(delta_ND, ORDERS[norm], dim=1)


def _l2_lengths(away: torch.Tensor, room: torch.Tensor, eps: float) -> torch.Tensor:
    """Return how far each entry moves, moved_ND in [0, room]: min(t * away, room), the largest t <= 1 within eps.

    away, room: what each wants to move, and can, _ND >= 0. The optimality conditions of the projection onto ball and
    box: entries are shortened alike, or at the end of their room. Sorted by where they end, the length is a closed
    form in t between two such points.
    """
    share, order = (room / away.clamp_min(TINY)).sort(dim=1)
    away_sorted, room_sorted = away.gather(1, order), room.gather(1, order)
    full = room_sorted.square()
    # entry by entry from the front: those before it have ended, it and those behind it have not
    ended = full.cumsum(dim=1) - full
    free = away_sorted.square().flip(1).cumsum(dim=1).flip(1)
    stretch = ((eps * eps - ended).clamp_min(0) / free.clamp_min(TINY * TINY)).sqrt()
    # the first piece whose end lies beyond eps; none: everything may move as far as there is room
    inside = stretch <= share
    first = inside.float().argmax(dim=1, keepdim=True)
    t = torch.where(inside.any(dim=1, keepdim=True), stretch.gather(1, first), torch.inf).clamp(max=1)
    return torch.minimum(t * away, room)


def _l1_lengths(away: torch.Tensor, room: torch.Tensor, eps: float) -> torch.Tensor:
    """Return how far each entry moves, moved_ND in [0, room]: away - s within [0, room], the least s >= 0 within eps.

    Arguments as of `_l2_lengths`. As a function of s the length is linear between the points away and away - room of
    the entries; they are sorted, the largest first, and summed up from length 0 (Croce & Hein, ICML 2021, section 3).
    """
    inside = torch.minimum(away, room)
    points = torch.cat([away, away - inside], dim=1)
    # below its first point an entry grows as s falls, below its second it has no more room
    change = torch.cat([torch.ones_like(away), -torch.ones_like(away)], dim=1)
    points, order = points.sort(dim=1, descending=True)
    slope = change.gather(1, order).cumsum(dim=1)
    gaps = points[:, :-1] - points[:, 1:]
    # the length at every point
    length = torch.cat([torch.zeros_like(points[:, :1]), (slope[:, :-1] * gaps).cumsum(dim=1)], dim=1)
    # the last point that is still within eps; from there on along its slope
    last = ((length <= eps).sum(dim=1, keepdim=True) - 1).clamp_min(0)
    rest = (eps - length.gather(1, last)) / slope.gather(1, last).clamp_min(1)
    s = (points.gather(1, last) - rest).clamp_min(0)
    return torch.minimum((away - s).clamp_min(0), room)
