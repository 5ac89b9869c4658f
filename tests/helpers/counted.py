"""A data set whose images know their own number."""

import numpy as np

from rdi.data import Raw, Source


class Counted(Source):
    """`count` images whose first pixel is their own index; an official test part from `test_start` on."""

    def __init__(self, count=100, test_start=80, **settings):
        super().__init__(name="counted", **{"calibration": 20, **settings})
        self.count, self.test_start = count, test_start

    def read(self):
        images = np.zeros((self.count, 1, 4, 4), np.uint8)
        images[:, 0, 0, 0] = np.arange(self.count)
        return Raw(images, np.arange(self.count, dtype=np.int64) % 3, ("a", "b", "c"), self.test_start)
