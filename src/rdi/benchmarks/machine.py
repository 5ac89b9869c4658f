"""Measure what the machine can do at best, and how much memory a piece of work takes."""

from __future__ import annotations

import ctypes
import sys
from functools import partial
from pathlib import Path

import torch

from rdi.benchmarks.timing import Work, race, synchronise

SIDE = {"cpu": 2048, "cuda": 8192}
ENOUGH = 0.05
"""Seconds of one product from which a larger one would tell nothing new."""


def matrix_rate(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Multiply-adds per second of the device's own product of two square matrices.

    The matrices start small and grow up to SIDE while one product is short: a processor without bf16 arithmetic takes
    minutes for the large ones.
    """
    largest = SIDE.get(device.type, 2048)
    side = min(256, largest)
    while True:
        a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
        times = race({"product": partial(torch.matmul, a, b)}, repeats=1, device=device)
        if side >= largest or times.median("product") > ENOUGH:
            break
        side = min(2 * side, largest)
    times = race({"product": partial(torch.matmul, a, b)}, repeats=max(5, repeats), device=device)
    return side**3 / times.median("product")


def peak_memory(work: Work, device: torch.device) -> int | None:
    """Measure the bytes that `work` needs at its peak beyond what is in use before; None where it cannot be told.

    CUDA: torch's allocator. CPU: resident memory of the process, from Linux's /proc.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not sys.platform.startswith("linux"):
        return None
    try:
        # give back what earlier work left in the allocator, then start the kernel's high-water mark anew
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
    except (OSError, AttributeError):
        return None
    work()
    return _resident("VmHWM") - before


def _resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"the kernel does not tell {key}")
