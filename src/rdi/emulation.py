"""Processors without bfloat16: torch emulates it there, and nothing else says why all takes so long."""

from __future__ import annotations

import logging
import platform
from functools import cache

import torch

SLOW = ("DEFAULT", "NO AVX", "AVX2")
"""Vector instructions, as torch calls them, of x86 processors whose bfloat16 torch emulates number by number."""

logger = logging.getLogger("rdi")


def emulated(device: torch.device) -> bool:
    """Return whether `device` is a processor on which bfloat16 is many times slower than float32."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return device.type == "cpu" and x86 and torch.backends.cpu.get_cpu_capability() in SLOW


def precisions(device: torch.device) -> tuple[str, ...]:
    """Return the precisions that are worth measuring on `device`: without bf16 where it is emulated."""
    return ("float32",) if emulated(device) else ("float32", "bf16")


def say_if_emulated(device: torch.device) -> None:
    """Warn, once in a process, that bf16 is slower than float32 on `device`, where it is."""
    if emulated(device):
        _say()


@cache
def _say() -> None:
    logger.warning(
        "this processor has no bf16 instructions: precision=bf16 is emulated, 9 to 60 times slower than float32"
    )
