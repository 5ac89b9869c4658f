"""The embedded data set: scikit-learn's 1,797 handwritten digits of 8x8, enlarged."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rdi.checks import integer
from rdi.data.base import Raw, Source, room_for
from rdi.data.identity import keys


class Digits(Source):
    """scikit-learn's load_digits (UCI, Alpaydin and Kaynak 1998), bilinear to size x size, one channel, 10 classes.

    size: side in pixels.
    """

    def __init__(self, *, size: int = 28, **settings: Any) -> None:
        super().__init__(**settings)
        self.size = integer("data.size", size, 8)

    def read(self) -> Raw:
        """Read the digits, which come with an installed package."""
        pixels, labels = _read()
        images = room_for((len(pixels), 1, self.size, self.size))
        originals = np.round(pixels * (255 / 16)).astype(np.uint8)
        for image, original in zip(images, originals, strict=True):
            enlarged = Image.fromarray(original).resize((self.size, self.size), Image.Resampling.BILINEAR)
            image[0] = np.asarray(enlarged)
        return Raw(
            images,
            labels,
            tuple(map(str, range(10))),
            test_start=None,
            originals=keys(originals[:, None]),
        )


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Read images (N, 8, 8) of levels 0 to 16, and labels (N,)."""
    spec = find_spec("sklearn")
    for place in (spec and spec.submodule_search_locations) or ():
        table = Path(place) / "datasets" / "data" / "digits.csv.gz"
        if table.is_file():  # scikit-learn itself takes a second to import
            rows = np.loadtxt(table, delimiter=",")
            return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target.astype(np.int64)
