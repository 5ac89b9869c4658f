"""Take a network that returns the logits of all its exits, whoever wrote it, for a MultiExitNet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rdi.checks import image_shape, number
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet, Normalise

Outputs = str | int | Callable[[Any], Any] | None
"""Locates the exits in the output of a network: a key or index, a function that finds them, None = all of it."""

SUMS = 1e-4
"""Largest difference of the sum of probabilities from 1."""


class WholeNet(MultiExitNet):
    """A network that only runs as a whole, as a MultiExitNet: stage 0 is all of it, head k picks the logits of exit k.

    Every prefix costs the whole network, `nested` E times so much. Made by `as_multi_exit`.
    """

    def __init__(self, whole: Whole) -> None:
        later = [nn.Identity() for _ in range(whole.exits - 1)]
        super().__init__([whole, *later], [_Pick(k) for k in range(whole.exits)])

    @property
    def whole(self) -> Whole:
        """The network inside."""
        whole = self.stages[0]
        assert isinstance(whole, Whole), "the first stage is the network"
        return whole

    def parts(self) -> dict[str, nn.Module]:
        """Return the network inside: the rest picks and stacks."""
        return {"stages.0.module": self.whole.module}


class Whole(nn.Module):
    """x_NCHW in [0, 1] -> logits_NEC, by a module that returns them in another form.

    exits, classes: what every output must have; UserError where it has not.
    """

    def __init__(
        self, module: nn.Module, outputs: Outputs, normalise: nn.Module, exits: int = 0, classes: int = 0
    ) -> None:
        super().__init__()
        self.module, self.normalise = module, normalise
        self.outputs = outputs
        self.exits, self.classes = exits, classes

    def logits(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Compute logits_NC of every exit for x_NCHW in [0, 1]."""
        found = read(self.module(self.normalise(x)), self.outputs, x.shape[0])
        shapes = [tuple(one.shape[1:]) for one in found]
        if self.exits and shapes != [(self.classes,)] * self.exits:
            raise UserError(
                f"the network gave {len(found)} exits of {sorted({n for (n,) in shapes})} classes, and "
                f"{self.exits} of {self.classes} when it was looked at first: its outputs must not depend on the images"
            )
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits_NEC for x_NCHW in [0, 1]."""
        return torch.stack(self.logits(x), dim=1)


class ExitRange(nn.Module):
    """x_NCHW -> logits of exits first..last of a Whole: what these depend on, and nothing else, is in its graph."""

    def __init__(self, whole: Whole, first: int, last: int) -> None:
        super().__init__()
        self.whole, self.first, self.last = whole, first, last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits_NKC for x_NCHW in [0, 1]."""
        return torch.stack(self.whole.logits(x)[self.first : self.last + 1], dim=1)


class _Pick(nn.Module):
    def __init__(self, exit: int) -> None:
        super().__init__()
        self.exit = exit

    def forward(self, logits_NEC: torch.Tensor) -> torch.Tensor:
        return logits_NEC[:, self.exit]


def read(given: Any, outputs: Outputs, samples: int) -> list[torch.Tensor]:
    """Find logits_NC per exit in what a network returned for so many samples.

    Raises UserError for another form.

    Tensors (N, E, C) give E exits, tensors (N, C) one; lists, tuples and mappings are read in their order, however
    deeply they are nested.
    """
    if callable(outputs):
        given = outputs(given)
    elif outputs is not None:
        try:
            given = given[outputs]
        except (LookupError, TypeError) as error:
            there = list(given) if isinstance(given, Mapping) else type(given).__name__
            raise UserError(f"outputs={outputs!r} is not in what the network returns ({there})") from error
    found = [one for tensor in _leaves(given) for one in _exits(tensor, samples)]
    if not found:
        raise UserError("the network returns no exits: outputs=... says where they are in what it returns")
    return found


def _leaves(given: Any) -> list[torch.Tensor]:
    if isinstance(given, torch.Tensor):
        return [given]
    if isinstance(given, Mapping):
        given = list(given.values())
    if isinstance(given, list | tuple):
        return [leaf for one in given for leaf in _leaves(one)]
    raise UserError(
        f"the network returns a {type(given).__name__} where logits should be: give outputs=KEY, or a function that "
        "makes a list of logits of what it returns"
    )


def _exits(tensor: torch.Tensor, samples: int) -> Sequence[torch.Tensor]:
    if tensor.ndim in (2, 3) and tensor.shape[0] == samples and tensor.is_floating_point():
        return [tensor] if tensor.ndim == 2 else tensor.unbind(dim=1)
    hint = ""
    if tensor.ndim == 3 and tensor.shape[1] == samples:
        hint = ": for exits first, give outputs=lambda out: out.transpose(0, 1)"
    raise UserError(
        f"the network returns {tensor.dtype} of shape {tuple(tensor.shape)} for {samples} images, where logits (N, C) "
        f"or (N, exits, C) should be{hint or ': outputs=... says where they are in what it returns'}"
    )


def as_multi_exit(
    module: nn.Module,
    shape: Sequence[int],
    *,
    outputs: Outputs = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> MultiExitNet:
    """Wrap a network that returns the logits of its exits as a MultiExitNet, which everything in rdi accepts.

    module: in eval mode, images_NCHW -> a tensor (N, exits, C), a tensor (N, C), which is one exit, or lists, tuples
        and mappings of these, nested at will and read in their order; the full network last. It is put into eval mode
        and shared, not copied.
    shape: (C, H, W) of an image; the module is tried on a few images of it.
    outputs: a key or an index of the exits in what the module returns, or a function from that to a list of logits.
    mean, std: normalisation that the module expects, per channel; None: images in [0, 1].
    Raises UserError for other outputs: another shape, probabilities, NaN, exits of different classes, exits whose
        number depends on the batch.

    Where the blocks are at hand, MultiExitNet(stages, heads) is better: a prefix of it runs alone, so early exit saves
    time. MACs are counted as if this network stopped at its exits; those of an export are all of it.
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"as_multi_exit takes a torch.nn.Module, got {type(module).__name__}")
    size = image_shape(shape)
    whole = Whole(module.eval(), outputs, _normalise(module, size[0], mean, std))
    # two sizes: only one axis follows the number of images
    answers = [_outputs_on(whole, size, samples) for samples in (2, 3)]
    counts = [len(one) for one in answers]
    if counts[0] != counts[1]:
        raise UserError(
            f"the network gives {counts[0]} exits for 2 images and {counts[1]} for 3: it must give all of them, always"
        )
    classes = [one.shape[1] for one in answers[1]]
    if len(set(classes)) > 1:
        listed = ", ".join(f"exit {k}: {many}" for k, many in enumerate(classes))
        raise UserError(f"the exits disagree in the number of classes ({listed}): choose them with outputs=...")
    if classes[0] < 2:
        raise UserError(f"the exits have {classes[0]} class; logits of at least 2 classes are needed")
    for k, one in enumerate(answers[1]):
        if not bool(one.isfinite().all()):
            raise UserError(f"the logits of exit {k} are NaN or infinite on grey images")
        if bool((one >= 0).all()) and bool(((one.sum(dim=1) - 1).abs() < SUMS).all()):
            raise UserError(
                f"exit {k} returns probabilities, through which gradients vanish: take the softmax off, or give "
                "outputs=lambda out: [p.log() for p in out]"
            )
    whole.exits, whole.classes = counts[0], classes[0]
    return WholeNet(whole).eval()


def _normalise(
    module: nn.Module, channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> nn.Module:
    if mean is None and std is None:
        return nn.Identity()
    mean, std = [0.0] * channels if mean is None else mean, [1.0] * channels if std is None else std
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, list | tuple) or len(values) != channels:
            raise UserError(f"{name} must list {channels} numbers, one per channel, got {values}")
    mean = [number("mean", value, -math.inf, math.inf) for value in mean]
    std = [number("std", value, 0, math.inf, open_low=True) for value in std]
    like = next(module.parameters(), torch.zeros(1))
    return Normalise(mean, std).to(like.device, like.dtype)


@torch.no_grad()
def _outputs_on(whole: Whole, size: Sequence[int], samples: int) -> list[torch.Tensor]:
    like = next(whole.module.parameters(), torch.zeros(1))
    # no two images alike, none of one colour
    images = torch.linspace(0, 1, samples * size[0] * size[1] * size[2]).view(samples, *size)
    try:
        return whole.logits(images.to(like.device, like.dtype))
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"the network does not take images of {'x'.join(map(str, size))} (CxHxW): {said}") from error
