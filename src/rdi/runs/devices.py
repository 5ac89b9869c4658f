"""The torch device that the user asks for, refused early where it is not there."""

from __future__ import annotations

import torch

from rdi.errors import UserError
from rdi.memory import keep_freed_memory


def select(name: str, threads: int | None = None) -> torch.device:
    """The torch device for `name` ("auto": CUDA where there is one), with the CPU's threads set.

    Raises UserError when it does not exist.
    """
    if threads is not None:
        if threads < 1:
            raise UserError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        if chosen.type == "cpu":
            keep_freed_memory()
        torch.ones(1, device=chosen).item()  # of "meta", nothing can be had
        torch.Generator(chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"device={name} is not here ({str(error).splitlines()[0]}); use device=auto or device=cpu"
        ) from error
    return chosen
