"""Refuse a network that no memory holds, before any of it is allocated: its sizes may come from a run folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from rdi.errors import UserError
from rdi.memory import available_memory

BYTES = 4
"""Bytes of a float32."""
LARGEST = 2**34
"""Bytes; no multi-exit network comes near, whatever memory there is."""
WIDEST = 32
"""Numbers in the features behind one block for each number of an image; the published networks have up to 64."""
CREATORS = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}
"""Functions that layers create their weights and buffers with."""


class _Counting(TorchFunctionMode):
    """Adds up what is created while it is active, and refuses what goes beyond `limit` bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.total = limit, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in CREATORS:
            size = _size(args, options)
            self.total += BYTES * prod(size)
            if self.total > self.limit:
                raise UserError(
                    f"this network does not fit the memory: with a layer of {'x'.join(map(str, size))} numbers it "
                    f"takes {_gib(self.total)}, and {_gib(self.limit)} are left: lower the sizes in backbone and exits"
                )
        return func(*args, **options)


def _size(args: Sequence[Any], options: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape that a creator is asked for, given as a sequence or number by number."""
    if "size" in options:
        return tuple(options["size"])
    if args and isinstance(args[0], Sequence):
        return tuple(args[0])
    return tuple(one for one in args if isinstance(one, int))


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def room() -> int:
    """Return the bytes that a network may take: half of what is left, at most LARGEST."""
    left = available_memory()
    return LARGEST if left is None else min(left // 2, LARGEST)


@contextmanager
def bounded() -> Iterator[None]:
    """Raise UserError inside for layers that together take more memory than there is, before they are made."""
    with _Counting(room()):
        yield


def check_images(shape: Sequence[int]) -> None:
    """Raise UserError for images whose features no memory holds, one image at a time.

    shape: CHW.
    """
    if (needed := BYTES * WIDEST * prod(shape)) > (left := room()):
        raise UserError(
            f"images of {'x'.join(map(str, shape))} do not fit the memory: the features of one may take "
            f"{_gib(needed)}, and {_gib(left)} are left: take smaller ones"
        )
