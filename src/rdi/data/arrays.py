"""Images and labels out of one file of numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from rdi.checks import directory, text
from rdi.data.base import Raw, Source, numbers_as_names
from rdi.errors import UserError
from rdi.storage import read_arrays


class ArrayFile(Source):
    """Arrays as numpy.savez(FILE, images=..., labels=...) writes them.

    root, file: where they are. images: uint8, (N, C, H, W). labels: whole numbers from 0, (N,). Both may be followed by
        class_names: text, (C,), and test_start: number of the first official test image.
    Raises UserError for a file that is missing, damaged, or holds something else.
    """

    def __init__(self, *, root: str, file: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.root = directory("data.root", root)
        self.file = text("data.file", file)

    def read(self) -> Raw:
        """Read the arrays; nothing pickled is ever loaded."""
        path = self.root / self.file
        found = read_arrays(path, "give a file that numpy.savez(FILE, images=..., labels=...) wrote")
        if missing := {"images", "labels"} - set(found):
            raise UserError(
                f"{path} has no array {min(missing)!r}: numpy.savez(FILE, images=..., labels=...) writes one"
            )
        labels = found["labels"]
        if not labels.size:
            raise UserError(f"{path} holds no labels: give it one for each image")
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise UserError(f"labels of {path} must be whole numbers, one per image, got {labels.dtype} {labels.shape}")
        if int(labels.min()) < 0:
            raise UserError(f"labels of {path} must be whole numbers from 0, the smallest is {labels.min()}")
        if "class_names" in found:
            given = found["class_names"]
            if given.ndim != 1 or given.dtype.kind not in "US":
                raise UserError(f"class_names of {path} must be texts, one per class, got {given.dtype} {given.shape}")
            names = tuple(map(str, given))
        else:
            names = numbers_as_names(labels, "number the classes from 0 without a gap, or give class_names=... as well")
        start = found.get("test_start")
        if start is not None and (start.shape != () or start.dtype.kind not in "iu"):
            raise UserError(f"test_start of {path} must be one whole number, got {start.dtype} {start.shape}")
        test_start = None if start is None else int(start)
        return Raw(np.ascontiguousarray(found["images"]), labels.astype(np.int64), names, test_start)
