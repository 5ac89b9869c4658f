"""Named random streams: every use of randomness has its own generator, so that adding one does not shift the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *names: object) -> int:
    """Derive a 63-bit seed for the stream `names` of a run with `seed`; stable across machines and versions."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(device: torch.device | str, seed: int, *names: object) -> torch.Generator:
    """Return a torch.Generator on `device` at the start of the stream `names`."""
    return torch.Generator(device).manual_seed(derive(seed, *names))


@contextmanager
def numpy_stream(seed: int) -> Iterator[None]:
    """Let numpy's global generator start at `seed` inside, for packages that draw from it; it is restored."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)


class PartGenerator(torch.Generator):
    """A generator of a process that has some rows of a batch: see `drawn`."""

    rows = slice(0, 0)
    total = 0

    def begin(self, seed: int, rows: slice, total: int) -> PartGenerator:
        """Start at `seed`; rows: of this process, out of `total`. Return the generator."""
        self.manual_seed(seed)
        self.rows, self.total = rows, total
        return self

    @classmethod
    def of(cls, whole: torch.Generator, total: int, rows: slice) -> PartGenerator:
        """Return one for some of the rows of `whole`, which draws for `total` rows, from where `whole` stands."""
        first = 0
        if isinstance(whole, PartGenerator):
            first, total = whole.rows.start, whole.total
        part = cls(whole.device).begin(whole.initial_seed(), slice(first + rows.start, first + rows.stop), total)
        part.set_state(whole.get_state())
        return part


def drawn(
    draw: Callable[[Sequence[int]], torch.Tensor], shape: Sequence[int], generator: torch.Generator
) -> torch.Tensor:
    """Draw for the images of a batch, so that what an image gets does not depend on how many processes share it.

    draw: shape -> tensor, by `generator`. shape: of the images here, N first. With a PartGenerator the whole batch is
    drawn for, and the rows of this process are kept; not where N is another number than it has rows.
    """
    if isinstance(generator, PartGenerator) and shape[0] == generator.rows.stop - generator.rows.start:
        return draw((generator.total, *shape[1:]))[generator.rows]
    return draw(tuple(shape))


def uniform(shape: Sequence[int], generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Uniform noise in [0, 1) for the images of a batch, contiguous; see `drawn`."""

    def draw(whole: Sequence[int]) -> torch.Tensor:
        return torch.rand(*whole, generator=generator, device=device, dtype=dtype)

    return drawn(draw, shape, generator)
