"""MultiExitNet: one tensor of logits for all exits, and public stages so that prefixes can be run alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from rdi.errors import UserError


class Normalise(nn.Module):
    """Subtract the mean and divide by the deviation per channel. Part of stage 0, so eps keeps its pixel unit.

    mean, std: one number per channel.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x_NCHW in [0, 1]."""
        return (x - self.mean) / self.std


class MultiExitNet(nn.Module):
    """E stages in a chain, one head on each. `forward(x_NCHW in [0, 1]) -> logits_NEC`.

    The last exit (E-1) is the full network.

    stages: stage k maps the features of stage k-1 (stage 0: the image) to its own.
    heads: head k maps the features of stage k to logits_NC.
    Raises UserError if there is not one head per stage.
    """

    def __init__(self, stages: Iterable[nn.Module], heads: Iterable[nn.Module]) -> None:
        super().__init__()
        try:
            self.stages, self.heads = nn.ModuleList(stages), nn.ModuleList(heads)
        except TypeError as error:
            raise UserError(f"stages and heads must each list modules: {error}") from error
        if len(self.stages) != len(self.heads) or not self.stages:
            raise UserError(
                f"a multi-exit net needs one head per stage: {len(self.stages)} stages, {len(self.heads)} heads"
            )

    def parts(self) -> dict[str, nn.Module]:
        """Return the modules that compute anything, by name, each to be read on its own."""
        named = {"stages": self.stages, "heads": self.heads}
        return {f"{name}.{k}": part for name, parts in named.items() for k, part in enumerate(parts)}

    @property
    def exits(self) -> int:
        """Number of exits E, the full network included."""
        return len(self.stages)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits_NEC of all exits for x_NCHW in [0, 1]."""
        return self.logits_at(x, range(self.exits))

    def logits_at(self, x: torch.Tensor, exits: Iterable[int]) -> torch.Tensor:
        """Compute logits_NKC of the K exits asked for, in ascending order; no stage behind the last of them runs."""
        wanted = sorted(set(exits))
        logits = []
        features = x
        for index in range(wanted[-1] + 1):
            features = self.stages[index](features)
            if index in wanted:
                logits.append(self.heads[index](features))
        return torch.stack(logits, dim=1)

    def step(self, features: torch.Tensor, exit: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the stage of an exit on the features before it, and its head: the features behind it, logits_NC."""
        features = self.stages[exit](features)
        return features, self.heads[exit](features)

    @property
    def gated(self) -> bool:
        """True where gates decide per image what is computed; not here."""
        return False

    def plain(self) -> MultiExitNet:
        """Return the network without gates, if it has some: it shares the modules. Here: itself."""
        return self

    def skipping(self, wanted: bool) -> None:
        """Leave out, where there is no graph, what gates skip, or compute it all the same. Here: there are none."""

    def judged(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute logits_NEC for x_NCHW, and the MACs that gates left out up to each exit, int64_NE; None: no gates."""
        return self(x), None

    def skipped(self, features: torch.Tensor, exit: int) -> torch.Tensor | None:
        """Return the MACs that gates left out up to an exit, int64_N; None of a network without gates.

        features: what the stage of that exit returned.
        """
        del features, exit
        return None

    def cost(self, features: torch.Tensor, exit: int) -> torch.Tensor | None:
        """Return the MACs that an image costs up to an exit, float_N with graph; None of a network without gates.

        As a share of what the last exit costs where all gates are open. features: what the stage of that exit returned.
        """
        del features, exit
        return None

    def nested(self, copies: torch.Tensor) -> torch.Tensor:
        """Compute logits_ENC of E copies of a batch, x_(E*N)CHW, copy k at exit k only.

        Every stage runs the copies that still need it: stage k those of exits k..E-1.
        """
        samples = len(copies) // self.exits
        logits = []
        features = copies
        for stage, head in zip(self.stages, self.heads, strict=True):
            features = stage(features)
            logits.append(head(features[:samples]))
            features = features[samples:]
        return torch.stack(logits)


def checked(model: object) -> MultiExitNet:
    """Return `model` if it is a multi-exit network. Raises UserError, which says how to make it one."""
    if not isinstance(model, MultiExitNet):
        raise UserError(
            f"the model is no MultiExitNet ({type(model).__name__}): if it returns the logits of its exits, give "
            "rdi.as_multi_exit(model, shape=(C, H, W))"
        )
    return model


def refuse_overridden(model: MultiExitNet, why: str) -> None:
    """Raise UserError for a subclass that goes its own way from the images to the logits. why: that cannot be."""
    for name in ("forward", "logits_at", "step", "judged"):
        if getattr(type(model), name) is not getattr(MultiExitNet, name):
            raise UserError(f"{type(model).__name__} has {name}() of its own, which {why}")


@contextmanager
def fitting(shape: Sequence[int]) -> Iterator[None]:
    """Run a network on images of `shape` CHW inside. Raises UserError where it does not take them."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        size = "x".join(map(str, shape))
        raise UserError(f"the network does not take images of {size} (CxHxW): {said}") from error


def check_place(model: nn.Module, x: torch.Tensor) -> None:
    """Raise UserError unless x is on the device of the model's parameters, and of their type."""
    check_like(next(model.parameters(), None), x)


def check_like(parameter: torch.Tensor | None, x: torch.Tensor) -> None:
    """Raise UserError unless x is on the device of a parameter, and of its type."""
    if parameter is not None and (x.device, x.dtype) != (parameter.device, parameter.dtype):
        raise UserError(
            f"x is {x.dtype} on {x.device}, the network {parameter.dtype} on {parameter.device}: "
            f"give x.to({str(parameter.device)!r}, {parameter.dtype})"
        )
