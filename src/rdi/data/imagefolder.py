"""Anyone's own images: one folder per class, below train/ and test/ (or val/), or without these two."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np

from rdi.checks import text
from rdi.data.cached import Listed, PictureSource
from rdi.data.decoding import Files
from rdi.data.listing import listing


class ImageFolder(PictureSource):
    """Images in <root>/<folder>/train/<class>/ and .../test/<class>/ (ImageNet's val/<class>/ where there is no test/),
    or .../<class>/ (then `test` are held out).

    folder: below the root, that holds these.
    Raises UserError when there are no images, a class is missing in test, and as PictureSource does.
    """

    def __init__(self, *, folder: str = ".", **settings: Any) -> None:
        super().__init__(**settings)
        self.folder = text("data.folder", folder)
        self.place = self.root / self.folder

    def listed(self) -> Listed:
        """List the pictures of the folders."""
        found = listing(self.place)
        digest = hashlib.sha256()
        for name in found.files:
            status = os.stat(self.place / name)
            # the time of change too: a copy can be given the size and the time of writing of what it replaces
            stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
            digest.update(os.fsencode(f"{name} {stamp}\n"))
        return Listed(
            Files(self.place, found.files, self.size, self.mode, self.fit),
            np.asarray(found.labels, dtype=np.int64),
            found.class_names,
            found.test_start,
            tuple(found.notes(self.place)),
            digest.hexdigest(),
        )
