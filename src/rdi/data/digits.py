"""The embedded data set: scikit-learn's 1,797 handwritten digits of 8x8, enlarged."""

from __future__ import annotations

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
        from sklearn.datasets import load_digits  # heavy, and no other data set needs it

        digits = load_digits()
        images = room_for((len(digits.images), 1, self.size, self.size))
        originals = np.round(digits.images * (255 / 16)).astype(np.uint8)
        for image, original in zip(images, originals, strict=True):
            enlarged = Image.fromarray(original).resize((self.size, self.size), Image.Resampling.BILINEAR)
            image[0] = np.asarray(enlarged)
        return Raw(
            images,
            digits.target.astype(np.int64),
            tuple(str(name) for name in digits.target_names),
            test_start=None,
            originals=keys(originals[:, None]),
        )
