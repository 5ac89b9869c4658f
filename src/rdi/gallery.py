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
        if {name: (array.dtype, array.ndim) for name, array in arrays.items()} != KINDS or not _whole(arrays, record):
            raise UserError(f"{file} is missing or damaged: {remedy}")
        return Gallery(record=record, **arrays)


KINDS = {
    "images": (np.float32, 4),
    "logits": (np.float32, 3),
    "labels": (np.int64, 1),
    "indices": (np.int64, 1),
}
"""Array -> type and number of axes."""


def _whole(arrays: dict[str, np.ndarray], record: GalleryRecord) -> bool:
    """Return whether the arrays are of as many samples as the record, in their ranges."""
    images, logits, labels = (arrays[name] for name in ("images", "logits", "labels"))
    return (
        {len(array) for array in arrays.values()} == {record.samples}
        and 0 not in logits.shape[1:]
        and bool(np.isfinite(logits.max(axis=2)).all())  # a single -inf is a class that the exit excludes
        and images.min(initial=0) >= 0
        and images.max(initial=0) <= 1
        and labels.min(initial=0) >= 0
    )
