"""Gallery: a few attacked images of a run, kept to be looked at, with the logits that the network gave them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rdi.errors import UserError
from rdi.records import GalleryRecord, read, write
from rdi.storage import read_arrays, write_arrays


@dataclass(frozen=True)
class Gallery:
    """float32 images_NCHW in [0, 1] as they were judged, logits_NEC, labels_N, indices_N in the source."""

    images: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    record: GalleryRecord

    def save(self, path: Path) -> None:
        """Write the record to `path` and the arrays beside it; the record comes last and so marks both as whole."""
        path.unlink(missing_ok=True)
        arrays = {"images": self.images, "logits": self.logits, "labels": self.labels, "indices": self.indices}
        write_arrays(path.with_suffix(".npz"), arrays, compress=True)
        write(path, self.record)

    @staticmethod
    def load(path: Path) -> Gallery:
        """Read what `save` wrote to `path`. Raises UserError when it is missing or damaged."""
        record = read(path, GalleryRecord)
        file = path.with_suffix(".npz")
        remedy = f"delete {path} and run the `rdi attack` of its bank again, which makes both"
        arrays = read_arrays(file, remedy)
        images, logits = arrays.get("images", _NOTHING), arrays.get("logits", _NOTHING)
        if (
            set(arrays) != {"images", "logits", "labels", "indices"}
            or (images.ndim, logits.ndim) != (4, 3)
            or {array.shape[:1] for array in arrays.values()} != {(record.samples,)}
            or not (np.isfinite(logits).all() and images.min(initial=0) >= 0 and images.max(initial=0) <= 1)
        ):
            raise UserError(f"{file} is missing or damaged: {remedy}")
        return Gallery(record=record, **arrays)


_NOTHING = np.empty(0)
