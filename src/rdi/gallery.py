"""Gallery: a few attacked images of a run, kept to be looked at, with the logits that the network gave them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from rdi.errors import UserError
from rdi.records import GalleryRecord, atomic, read, write


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
        atomic(path.with_suffix(".npz"), lambda stream: np.savez_compressed(stream, **arrays))  # type: ignore[arg-type]
        write(path, self.record)

    @staticmethod
    def load(path: Path) -> Gallery:
        """Read what `save` wrote to `path`. Raises UserError when it is missing or damaged."""
        record = read(path, GalleryRecord)
        file = path.with_suffix(".npz")
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in ("images", "logits", "labels", "indices")}
            found = Gallery(record=record, **arrays)
            lengths = {len(part) for part in (found.images, found.logits, found.labels, found.indices)}
            whole = found.images.ndim == 4 and found.logits.ndim == 3 and lengths == {record.samples}
        except (OSError, KeyError, ValueError, EOFError, BadZipFile, zlib.error) as error:
            raise UserError(damaged(path)) from error
        if not whole:
            raise UserError(damaged(path))
        return found


def damaged(path: Path) -> str:
    """What to say of a gallery that cannot be read."""
    return (
        f"{path.with_suffix('.npz')} is missing or damaged: delete {path} and run the `rdi attack` of its bank again, "
        "which makes both"
    )
