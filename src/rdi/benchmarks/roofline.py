"""Rows of the roofline: where the time of one training step goes, beside the rates of arithmetic and of memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rdi.benchmarks.attacks import Subject
from rdi.benchmarks.machine import matrix_rate
from rdi.benchmarks.timing import race, row, synchronise
from rdi.benchmarks.training import Step
from rdi.emulation import precisions
from rdi.records import BenchRow

SHOWN = 12
"""Layers listed one by one, the slowest first."""
COPIED = 2**26
"""float32 numbers in the copy that measures memory: larger than any cache."""
KINDS = {
    "convolution_backward": "convolution, backward",
    "convolution": "convolution, forward",
    "batch_norm_backward": "BatchNorm, backward",
    "batch_norm": "BatchNorm, forward",
    "mm": "matrix product",
}
"""Part of an operator's name -> kind, the first that fits; everything else is element-wise, pooling or bookkeeping."""
OTHER = "element-wise and other"


@dataclass
class Spent:
    """Work of one kind of operator, or of one layer.

    seconds: of wall time.
    macs: multiply-adds.
    moved: bytes.
    """

    seconds: float = 0.0
    macs: int = 0
    moved: int = 0

    def add(self, seconds: float, macs: int, moved: int) -> None:
        """Add one call."""
        self.seconds += seconds
        self.macs += macs
        self.moved += moved


class Stopwatch(TorchDispatchMode):
    """Time every operator below autograd, forward and backward, by its kind and by its layer.

    device: waited for after every operator, so that what a GPU queues is charged to the operator that queued it.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.kinds: dict[str, Spent] = {}
        self.layers: dict[str, Spent] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator and charge it."""
        began = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        synchronise(self.device)
        seconds = time.perf_counter() - began
        name = func.overloadpacket.__name__
        kind = next((kind for part, kind in KINDS.items() if part in name), OTHER)
        macs, layer = _work(kind, args, result)
        moved = sum(
            one.numel() * one.element_size()
            for one in tree_leaves((args, kwargs, result))
            if isinstance(one, torch.Tensor)
        )
        self.kinds.setdefault(kind, Spent()).add(seconds, macs, moved)
        self.layers.setdefault(f"{kind}, {layer}" if layer else f"{kind}: {name}", Spent()).add(seconds, macs, moved)
        return result


def _work(kind: str, args: tuple[Any, ...], result: Any) -> tuple[int, str]:
    """Return the multiply-adds of one call, and its layer as `16 to 32, 3x3, at 32x32`; '' where it has no layer."""
    if kind.startswith("convolution"):
        backward = kind.endswith("backward")
        out = args[0] if backward else result
        images, weight = (args[1], args[2]) if backward else (args[0], args[1])
        # a gradient for the images costs as much as one for the weights
        passes = sum(args[-1][:2]) if backward else 1
        outputs, inputs, height, width = weight.shape
        return passes * out.numel() * inputs * height * width, (
            f"{inputs} to {outputs}, {height}x{width}, at {images.shape[2]}x{images.shape[3]}"
        )
    if kind.startswith("BatchNorm"):
        images = args[1] if kind.endswith("backward") else args[0]
        return 0, f"{images.shape[1]} channels" + "".join(f", at {n}x{n}" for n in images.shape[3:])
    if kind == KINDS["mm"]:
        left, right = args[-2:] if len(args) > 2 else args[:2]
        return left.numel() * right.shape[-1], ""
    return 0, ""


def copy_rate(device: torch.device, repeats: int) -> float:
    """Return the bytes per second, read and written, of the device's own copy of a large tensor."""
    source = torch.rand(COPIED if device.type == "cuda" else COPIED // 2, device=device)
    target = torch.empty_like(source)
    times = race({"copy": partial(target.copy_, source)}, repeats=max(3, repeats), device=device)
    return 2 * source.numel() * source.element_size() / times.median("copy")


def rows(subject: Subject, name: str = "average", precision: str | None = None) -> list[BenchRow]:
    """Return the whole training step, its kinds of operators, and its slowest layers.

    precision: None = bf16, where the device has it.
    The step is that of rows=[training] of the same name and precision. What Python and autograd take between operators
    is the difference between the whole step and its kinds.
    """
    device = subject.x.device
    precision = precision or precisions(device)[-1]
    step = Step(subject, name, precision)
    whole = race({"step": step}, repeats=subject.repeats, device=device).median("step")
    watch = Stopwatch(device)
    with watch:
        step()
    arithmetic = matrix_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32, subject.repeats)
    memory = copy_rate(device, subject.repeats)
    total = Spent()
    for spent in watch.kinds.values():
        total.add(spent.seconds, spent.macs, spent.moved)
    made = _rower(len(subject.x), total.seconds, arithmetic, memory)
    kinds = sorted(watch.kinds.items(), key=lambda item: -item[1].seconds)
    layers = sorted(watch.layers.items(), key=lambda item: -item[1].seconds)[:SHOWN]
    found = [made(f"{name}, {precision}: whole step", Spent(whole, total.macs, total.moved))]
    return [*found, *(made(f"all {key}", spent) for key, spent in kinds), *(made(key, spent) for key, spent in layers)]


def _rower(samples: int, total: float, arithmetic: float, memory: float) -> Callable[[str, Spent], BenchRow]:
    """Return what makes a row of what was spent. total: seconds of all operators; rates: per second, of the device."""

    def made(name: str, spent: Spent) -> BenchRow:
        return row(
            "roofline",
            name,
            samples,
            seconds=spent.seconds,
            share=spent.seconds / total,
            macs_per_second=spent.macs / spent.seconds,
            share_of_matrix_rate=spent.macs / spent.seconds / arithmetic,
            bytes_per_second=spent.moved / spent.seconds,
            share_of_copy_rate=spent.moved / spent.seconds / memory,
        )

    return made
