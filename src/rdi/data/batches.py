"""Batches as pure functions of (seed, step), so that a resumed training gets the batches of an uninterrupted one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from rdi.data.augment import RESIZED_CROP
from rdi.data.streamed import Request
from rdi.seeds import derive, generator


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 to float32 in [0, 1].

    images: NCHW in 0..255.
    """
    return images.float().div_(255)


class Shuffled:
    """An endless stream of batches of indices: every epoch is a fresh permutation, batches run on across its end.

    samples: number of training images.
    batch_size: indices per batch.
    seed: of the permutations.
    """

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self._epochs: dict[int, torch.Tensor] = {}

    def indices(self, step: int) -> torch.Tensor:
        """Return indices_N of the batch of 0-based `step`, N = batch_size, on the CPU."""
        begin = step * self.batch_size
        pieces, taken = [], 0
        while taken < self.batch_size:
            epoch, offset = divmod(begin + taken, self.samples)
            piece = self._permutation(epoch)[offset : offset + self.batch_size - taken]
            pieces.append(piece)
            taken += len(piece)
        return torch.cat(pieces)

    def epochs(self, step: int) -> list[int]:
        """Return the 0-based epoch of each of the N images of a batch."""
        begin = step * self.batch_size
        return [(begin + row) // self.samples for row in range(self.batch_size)]

    def requests(
        self, steps: Iterable[int], rows: slice, augment: str, indices: np.ndarray, stream: str = "crop"
    ) -> Iterator[Request]:
        """Yield what to fetch for the batches of `steps`.

        rows: those of each batch that this process has.
        augment: crops of resized_crop are drawn by seed, epoch and image alone.
        indices: int64_N, position in the source of each training image.
        stream: name of the random stream of crops.
        """
        for step in steps:
            index = self.indices(step)[rows]
            crops = None
            if augment == RESIZED_CROP:
                images = zip(self.epochs(step)[rows], indices[index.numpy()].tolist(), strict=True)
                crops = [derive(self.seed, stream, epoch, image) for epoch, image in images]
            yield Request(index, crops)

    def _permutation(self, epoch: int) -> torch.Tensor:
        if epoch not in self._epochs:
            # the next batches are fetched while those of the epoch before are trained on
            self._epochs = {k: v for k, v in self._epochs.items() if abs(k - epoch) == 1}
            self._epochs[epoch] = torch.randperm(self.samples, generator=generator("cpu", self.seed, "shuffle", epoch))
        return self._epochs[epoch]
