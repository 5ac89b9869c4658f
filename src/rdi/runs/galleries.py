"""Keep a few of the attacked images, to be looked at in the report: caught as they are judged, at no cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rdi.attacking import Attacked
from rdi.banks import LogitsBank
from rdi.data.base import Split
from rdi.data.batches import to_float
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.gallery import Gallery
from rdi.records import Environment, GalleryRecord

IMAGES = 8
"""Number of images kept, always the same ones of a test split."""
SPLIT = "test"


class ImageRecorder:
    """Picks rows out of the batches that it is shown one after the other. first: row that the first batch begins at."""

    def __init__(self, rows: Sequence[int], first: int = 0) -> None:
        self.rows, self._next = list(rows), first
        self._found: dict[int, torch.Tensor] = {}

    def __call__(self, x: torch.Tensor) -> None:
        """x_NCHW of the next batch."""
        for row in self.rows:
            if self._next <= row < self._next + len(x):
                self._found[row] = x[row - self._next].detach().float().cpu()
        self._next += len(x)

    def recorded(self) -> tuple[np.ndarray, np.ndarray]:
        """Return rows_R and images_RCHW of what was seen so far, to be stored with half a bank."""
        found = sorted(self._found)
        if not found:
            return np.zeros(0, dtype=np.int64), np.zeros((0, 0, 0, 0), dtype=np.float32)
        return np.array(found), torch.stack([self._found[row] for row in found]).numpy()

    def recall(self, rows: np.ndarray, images: np.ndarray) -> None:
        """Take back what `caught` returned."""
        self._found |= {int(row): torch.from_numpy(image) for row, image in zip(rows, images, strict=True)}

    def images(self) -> torch.Tensor | None:
        """Return the images x_RCHW of all rows, in their order; None when some are missing."""
        if not self.rows or set(self._found) != set(self.rows):
            return None
        return torch.stack([self._found[row] for row in self.rows])


def rows(split: Split, whole: Split) -> list[int]:
    """Return the rows of `split`, a sample of `whole`, with the gallery's images: the beginning of every sample."""
    place = {int(index): row for row, index in enumerate(split.indices)}
    wanted = whole.sample(min(IMAGES, len(whole))).indices
    return [place[int(index)] for index in wanted if int(index) in place]


def keep(
    folder: RunFolder,
    bank: LogitsBank,
    split: Split,
    seen: ImageRecorder,
    craft: Callable[[Split], Attacked | None],
    environment: Callable[[], Environment],
) -> None:
    """Store the images of the gallery with the run, unless those of this very bank are there.

    seen: what was caught while the bank was made. Where that is not all of them (an older bank, or one that was
    made in two goes), craft(split) attacks them anew, None: not now; environment: of that.
    """
    made = bank.manifest
    path = folder.gallery(made.split, made.attack)
    indices = bank.indices[seen.rows]
    record = GalleryRecord(
        run=made.run,
        split=made.split,
        attack=made.attack,
        settings=made.settings,
        engine=made.engine,
        seed=made.seed,
        judged=True,
        samples=len(seen.rows),
        linf=0.0,
        fingerprint=made.fingerprint,
        checkpoint_sha256=made.checkpoint_sha256,
        environment=made.environment,
    )
    images, logits = seen.images(), bank.logits[seen.rows]
    if images is None:
        if not seen.rows or _there(path, record, indices):
            return
        few = Split(split.name, split.images[seen.rows], split.labels[seen.rows], split.indices[seen.rows])
        crafted = craft(few)
        if crafted is None:
            return
        images, logits = crafted.images.detach().float().cpu(), crafted.logits
        record = replace(record, judged=False, environment=environment())
    clean = to_float(split.images[seen.rows].cpu())
    record = replace(record, linf=float((images - clean).abs().max()))
    Gallery(images.numpy(), logits.numpy(), bank.labels[seen.rows].numpy(), indices, record).save(path)


def _there(path: Path, record: GalleryRecord, indices: np.ndarray) -> bool:
    """Return whether the gallery at `path` is of the same attack, weights and images."""
    if not path.is_file():
        return False
    try:
        found = Gallery.load(path)
    except UserError:  # nothing is lost with pictures: they are made again
        return False
    same = replace(record, judged=found.record.judged, linf=found.record.linf, environment=found.record.environment)
    return found.record == same and np.array_equal(found.indices, indices)
