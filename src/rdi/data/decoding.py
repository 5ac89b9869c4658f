"""The picture files of a source, one by one: decoded whole, or as a random-resized crop."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from rdi.data.listing import printable
from rdi.data.pictures import UnreadableError, decode
from rdi.deprecations import hidden
from rdi.errors import UserError

FITS = ("squash", "crop")


class Pictures(ABC):
    """The pictures of a source, in its order. Picklable, and small for any number: worker processes have a copy.

    size: side to resize to, or None.
    mode: "RGB" or "L" (grey).
    fit: how a picture that is not square is resized, "squash", or "crop" (the largest square in its middle).
    """

    def __init__(self, size: int | None, mode: str, fit: str = "squash") -> None:
        self.size, self.mode, self.fit = size, mode, fit

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """Return what a message calls a picture."""

    @abstractmethod
    def content(self, index: int) -> Path | bytes:
        """Return the file of a picture, or what is in it. Raises UnreadableError."""

    @property
    def channels(self) -> int:
        """Channels of every picture."""
        return 1 if self.mode == "L" else 3

    def picture(self, index: int) -> tuple[Image.Image, int]:
        """Decode a picture as it is; return it and the number of pictures in its file. Raises UnreadableError."""
        return decode(self.content(index), self.mode)

    def resized(self, picture: Image.Image) -> np.ndarray:
        """Return the uint8 image_CHW of a picture, in the size that all have."""
        if self.size is not None and picture.size != (self.size, self.size):
            to = (self.size, self.size)
            if self.fit == "crop":
                picture = ImageOps.fit(picture, to, Image.Resampling.BILINEAR)
            else:
                picture = picture.resize(to, Image.Resampling.BILINEAR)
        return pixels(picture)

    def image(self, index: int, shape: Sequence[int], crop: int | None) -> np.ndarray:
        """Return one uint8 image_CHW. Raises UserError where it is not what it was.

        shape: CHW that it must have.
        crop: seed of a random-resized crop out of the file, turned at random, instead of the whole picture.
        """
        try:
            picture, _ = self.picture(index)
        except (UnreadableError, OSError) as error:
            raise UserError(f"{self.name(index)} was a readable image and is none now ({error})") from None
        if crop is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(crop)
                picture = _cropping(shape[1], shape[2])(picture)
        found = pixels(picture) if crop is not None else self.resized(picture)
        if found.shape != tuple(shape):
            raise UserError(f"{self.name(index)} is {found.shape[2]}x{found.shape[1]} now, and had another size before")
        return found


class Files(Pictures):
    """Picture files below a folder. names: their paths below it."""

    def __init__(self, root: Path, names: Sequence[str], size: int | None, mode: str, fit: str = "squash") -> None:
        super().__init__(size, mode, fit)
        self.root = root
        # bytes of an array: no objects whose counts a worker process would touch, and so copy
        self._names = np.array([os.fsencode(name) for name in names])

    def __len__(self) -> int:
        return len(self._names)

    def content(self, index: int) -> Path:
        """Return the path of a picture."""
        return self.root / os.fsdecode(bytes(self._names[index]))

    def name(self, index: int) -> str:
        """Return the path of a picture, printable."""
        return printable(self.content(index))


def pixels(picture: Image.Image) -> np.ndarray:
    """Return the uint8 image_CHW of a picture."""
    found = np.asarray(picture)
    return found[None] if found.ndim == 2 else found.transpose(2, 0, 1)


@cache
def _cropping(height: int, width: int) -> Any:
    """Return ImageNet's usual transform: 8 to 100 % of the area, sides from 3:4 to 4:3, half of them mirrored."""
    with hidden():
        from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop((height, width)), v2.RandomHorizontalFlip()])
