"""Transfer: images crafted on another network, the surrogate, and only judged by this one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from rdi.attacks.base import Attack, Plain
from rdi.checks import LINF
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet


@dataclass(frozen=True)
class Surrogate:
    """A network to craft on.

    net: in eval mode.
    name: of its run, for records.
    checkpoint_sha256: of its weights, for records.
    shape: (C, H, W) of its images.
    """

    net: MultiExitNet
    name: str
    checkpoint_sha256: str
    shape: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Surrogate({self.name}, {self.checkpoint_sha256})"


@dataclass(kw_only=True)
class Transfer(Attack):
    """Another attack, run on a surrogate network; the attacked network is only judged.

    The classical surrogate is a static network (exits=none) of the same backbone: Croce et al. (ICML 2022) ask an
    adaptive defense to withstand what fools its static base. eps and norm are the inner attack's.

    surrogate: the network to craft on.
    inner: any attack.
    Raises UserError when images or classes are not those of the network.
    """

    eps: float = field(init=False)
    norm: str = field(init=False)
    surrogate: Surrogate
    inner: Attack

    def __post_init__(self) -> None:
        self.eps, self.norm = self.inner.eps, self.inner.norm
        super().__post_init__()

    def brief(self) -> Attack:
        """Return the transfer of the shortest inner attack."""
        return replace(self, inner=self.inner.brief())

    def unable(self) -> str | None:
        """Say why the inner attack cannot search its ball."""
        return self.inner.unable()

    def per_exit(self, exits: int) -> dict[str, Attack]:
        """Return one transfer per attack of the inner one on the surrogate, whose exits count."""
        found = self.inner.per_exit(self.surrogate.net.exits)
        return {suffix: replace(self, inner=one) for suffix, one in found.items()}

    def identity(self) -> dict[str, Plain]:
        """Return name and settings; those of the inner attack are called inner.NAME."""
        inner = {f"inner.{name}": value for name, value in self.inner.identity().items()}
        named = {"surrogate": self.surrogate.name, "surrogate_sha256": self.surrogate.checkpoint_sha256}
        ball: dict[str, Plain] = {"eps": self.eps} if self.norm == LINF else {"eps": self.eps, "norm": self.norm}
        return {"attack": type(self).__name__, **ball, **named, **inner}

    def run(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Craft x_adv_NCHW on the surrogate."""
        net, name = self.surrogate.net.to(x.device), self.surrogate.name
        if x.shape[1:] != self.surrogate.shape:
            here, there = ("x".join(map(str, shape)) for shape in (x.shape[1:], self.surrogate.shape))
            raise UserError(f"the surrogate {name} is for images of {there}, these are {here} (CxHxW)")
        with torch.no_grad():
            ours, theirs = (one.eval().logits_at(x[:1], [0]).shape[2] for one in (model, net))
        if ours != theirs:
            raise UserError(f"the surrogate {name} has {theirs} classes, this network has {ours}")
        return self.inner.craft(net, x, y, generator)
