"""The torch device that the user asks for, refused early where it is not there."""

from __future__ import annotations

import os

import torch

from rdi.errors import UserError
from rdi.memory import keep_freed_memory
from rdi.ranks import Ranks, current


def select(name: str, threads: int | None = None) -> torch.device:
    """Return the torch device for `name` ("auto": CUDA where there is one), and set the CPU's threads.

    Of several ranks each has a GPU of its own, or without threads an equal part of the cores.
    Raises UserError when it does not exist.
    """
    ranks = current()
    if threads is not None:
        if threads < 1:
            raise UserError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    elif ranks.local_count > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks.local_count))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not ranks.alone and name.startswith("cuda"):
        name = _own_gpu(name, ranks)
    try:
        chosen = torch.device(name)
        if chosen.type == "cpu":
            keep_freed_memory()
        torch.ones(1, device=chosen).item()  # of "meta", nothing can be had
        torch.Generator(chosen)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise UserError(
            f"device={name} is not here ({str(error).splitlines()[0]}); use device=auto or device=cpu"
        ) from error
    return chosen


def _own_gpu(name: str, ranks: Ranks) -> str:
    """The GPU of this rank. Raises UserError where each cannot have one."""
    if name != "cuda":
        raise UserError(f"device={name} is one GPU, and {ranks.count} ranks take one each: use device=cuda")
    if torch.cuda.is_available() and ranks.local_count > (there := torch.cuda.device_count()):
        raise UserError(
            f"{ranks.local_count} ranks need a GPU each, and there are {there} here: lower ranks, or use device=cpu"
        )
    return f"cuda:{ranks.local_rank}"
