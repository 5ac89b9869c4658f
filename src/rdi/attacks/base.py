"""The contract of every attack: what goes in, what comes out, and what is left as it was found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from rdi.attacks.engine import is_copy
from rdi.attacks.fast_copies import crafting_network
from rdi.attacks.norms import Ball
from rdi.checks import LINF, NORMS, choice, distance, flag, instance
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet, check_place, checked
from rdi.thresholds.policy import Policy

Plain = bool | int | float | str | None
SMALL = 2**16
"""Numbers in an array up to which numpy finds the smallest and the largest sooner than torch."""


def added(default: Plain) -> Any:
    """Return a dataclass field that `identity` leaves out at its default.

    A field that was added to an attack later is made so: the identity of older banks stays the same.
    """
    return field(default=default, metadata={"added": True})


@dataclass(kw_only=True)
class Attack(ABC):
    """An attack on a multi-exit network. Authors write `run`; calling the object does the rest.

    eps: radius of the ball in pixel units: in [0, 1] in L-infinity, where 1 leaves only the pixel range as a bound; at
        least 0 in other norms.
    norm: of the ball, "linf", "l2" or "l1" (rdi.attacks.Ball).
    Raises UserError for values out of range.
    """

    eps: float
    norm: str = added(LINF)

    def __post_init__(self) -> None:
        choice("attack.norm", self.norm, tuple(NORMS))
        self.eps = distance("attack.eps", self.eps, self.norm)

    @property
    def ball(self) -> Ball:
        """The ball around each image that the attack stays in."""
        return Ball(self.eps, self.norm)

    def __call__(
        self,
        model: MultiExitNet,
        x: torch.Tensor,
        y: torch.Tensor,
        generator: torch.Generator | None = None,
        *,
        fast: bool = True,
    ) -> torch.Tensor:
        """Craft x_adv_NCHW in [0, 1] at most eps from x, in the norm of the ball.

        model: crafted on in eval mode with frozen parameters; training mode, BatchNorm statistics, `requires_grad` and
            `.grad` are as they were afterwards.
        x: images_NCHW in [0, 1], on the model's device and of its type.
        y: labels_N, int64.
        generator: of random starts, on x's device; None: a fresh one with seed 0.
        fast: craft on a copy made for speed (BatchNorm folded, channels-last, float32), kept with the model and brought
            up to its present weights at every call; False: on the model itself.
        Raises UserError for inputs outside the contract.
        """
        checked(model)
        check_batch(x, y)
        if not is_copy(model):  # a copy takes float32 whatever its own type
            check_place(model, x)
        if torch.is_inference_mode_enabled():
            raise UserError("attacks follow gradients, and torch.inference_mode() has none: call them outside of it")
        if unable := self.unable():
            raise UserError(unable)
        if generator is None:
            generator = torch.Generator(x.device).manual_seed(0)
        instance("generator", generator, torch.Generator, "torch.Generator(x.device).manual_seed(0)")
        if not flag("fast", fast):
            return self.craft(model, x, y, generator)
        with crafting(model):
            net, layout = crafting_network(model, x)
        x_adv = self.craft(net, x.to(memory_format=layout), y, generator)
        return x_adv.contiguous() if x.is_contiguous() else x_adv

    def craft(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Craft as calling the attack does, without the check of x and y, which would wait for the device."""
        # a caller that judges accuracies may well be inside no_grad
        with torch.enable_grad(), crafting(model):
            try:
                x_adv = self.run(model, x.detach(), y, generator).detach()
            except IndexError as error:
                if "out of bounds" not in str(error):
                    raise
                raise UserError(f"y holds the label {int(y.max())}, and the network has no such class") from error
            return self.ball.project(x_adv, x)

    @abstractmethod
    def run(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Craft x_adv_NCHW. The model is frozen and in eval mode; the result is projected by the caller."""

    def per_exit(self, exits: int) -> dict[str, Attack]:
        """Return the attacks that a suite runs for this entry, name suffix -> attack.

        exits: number of exits of the network.
        """
        del exits
        return {"": self}

    def for_policy(self, policy: Policy) -> Attack:
        """Return the same attack aimed at the deployed `policy`; itself for those that only know the network."""
        del policy
        return self

    def unable(self) -> str | None:
        """Say why the attack cannot search its ball; None where it can."""
        return None

    def label(self, name: str) -> str:
        """Return the name of the attack's banks, when the config calls it `name`."""
        return name

    def brief(self) -> Attack:
        """Return the attack with the fewest steps, for a dry run before a long one."""
        return self

    def identity(self) -> dict[str, Plain]:
        """Return name and plain settings of the attack, for records; fields made by `added` only where they differ."""
        values = {entry: getattr(self, entry.name) for entry in fields(self)}
        settings = {
            entry.name: _plain(value)
            for entry, value in values.items()
            if not (entry.metadata.get("added") and value == entry.default)
        }
        return {"attack": type(self).__name__, **settings}


def _plain(value: object) -> Plain:
    return value if isinstance(value, bool | int | float | str | type(None)) else repr(value)


def check_batch(x: torch.Tensor, y: torch.Tensor) -> None:
    """Raise UserError unless x is x_NCHW, floating point, in [0, 1] and y holds one integer label per image."""
    check_images(x)
    if not isinstance(y, torch.Tensor):
        raise UserError(f"y must be a tensor of {x.shape[0]} int64 labels, got {type(y).__name__}")
    if y.shape != x.shape[:1] or y.dtype != torch.long:
        raise UserError(f"y must be {x.shape[0]} int64 labels, got {y.dtype} of shape {tuple(y.shape)}")
    if len(y) and int(y.min()) < 0:
        raise UserError(f"y must be labels from 0, the smallest is {int(y.min())}")


def check_images(x: torch.Tensor) -> None:
    """Raise UserError unless x is x_NCHW, floating point, in [0, 1]."""
    if not isinstance(x, torch.Tensor) or x.ndim != 4 or not x.is_floating_point():
        given = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
        hint = ": give x.float() / 255" if isinstance(x, torch.Tensor) and x.dtype == torch.uint8 else ""
        raise UserError(f"x must be a float tensor of shape NCHW, got {given}{hint}")
    low, high = _range(x)
    if not (low >= 0 and high <= 1):
        raise UserError(f"x must lie in [0, 1], got values from {low:g} to {high:g}")


def _range(x: torch.Tensor) -> tuple[float, float]:
    """The smallest and the largest value; NaN where there is one."""
    if not x.numel():
        return 0.0, 0.0
    if x.numel() <= SMALL and x.device.type == "cpu" and x.dtype == torch.float32:  # numpy's operators cost less
        values = x.detach().numpy()
        return float(values.min()), float(values.max())
    low, high = torch.aminmax(x)
    return float(low), float(high)


@contextmanager
def crafting(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode with frozen parameters; both are restored afterwards.

    model: any module.
    """
    modes = [(module, module.training) for module in model.modules()]
    frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode
