"""Settings of a training, apart from its loss and schedule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from rdi.checks import choice, flag, integer
from rdi.emulation import say_if_emulated
from rdi.shared_layers import BATCHNORM

PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a training, apart from its loss and schedule.

    seed: of all streams.
    precision: "float32" or "bf16" (autocast).
    channels_last: memory format of model and images.
    augment: one of data.augment.AUGMENTATIONS.
    evaluations: how often, evenly spaced, the calibration split is judged and the state saved.
    calibration_samples: on how many of its images.
    keep: which weights become the checkpoint, "best" (by Selection.best_score) or "last".
    batchnorm: where processes share a batch, "synchronised" or "local", see shared_layers.shared.
    recompute: activations of the network's blocks are computed again in the backward pass, see recomputing.
    Raises UserError for values out of range.
    """

    seed: int
    precision: str = "float32"
    channels_last: bool = False
    augment: str = "none"
    evaluations: int = 10
    calibration_samples: int = 1000
    keep: str = "best"
    batchnorm: str = "synchronised"
    recompute: bool = False

    def __post_init__(self) -> None:
        integer("seed", self.seed, 0)
        choice("precision", self.precision, PRECISIONS)
        choice("keep", self.keep, ("best", "last"))
        choice("batchnorm", self.batchnorm, BATCHNORM)
        flag("channels_last", self.channels_last)
        flag("recompute", self.recompute)
        integer("evaluations", self.evaluations, 1)
        integer("calibration_samples", self.calibration_samples, 1)


def layout(settings: Settings) -> torch.memory_format:
    """Return the memory format of model and images."""
    return torch.channels_last if settings.channels_last else torch.contiguous_format


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Autocast to bf16 where asked for; nothing for float32."""
    if precision == "bf16":
        say_if_emulated(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield
