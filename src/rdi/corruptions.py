"""Common corruptions: images as noise, blur, weather and compression leave them, generated or read from files."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdi.checks import choice, integer
from rdi.confine import regular
from rdi.data.base import DataSet, Split
from rdi.errors import UserError, extra
from rdi.records import Plain
from rdi.seeds import derive, numpy_stream

PACKAGE = "imagecorruptions-imaug"
COMMON = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The 15 kinds of Hendrycks and Dietterich (ICLR 2019): noise, blur, weather, digital."""
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32
"""Least height and width in pixels of an image that the package corrupts."""


class Corruption(ABC):
    """Corruptions of some kinds at some severities; no attack: nobody chooses them, and they lie in no ball.

    kinds: of COMMON; None: all of them.
    severities: of 1 to 5; None: all.
    Raises UserError for others, and for none.
    """

    def __init__(self, kinds: Sequence[str] | None = None, severities: Sequence[int] | None = None) -> None:
        self.kinds = tuple(COMMON if kinds is None else dict.fromkeys(kinds))
        self.severities = tuple(SEVERITIES if severities is None else dict.fromkeys(severities))
        for kind in self.kinds:
            choice("corruption.kinds", kind, COMMON)
        for severity in self.severities:
            integer("corruption.severities", severity, 1, SEVERITIES[-1])
        if not self.kinds or not self.severities:
            raise UserError("corruption.kinds and corruption.severities must name one or more, or be null for all")

    @abstractmethod
    def check(self, data: DataSet, split: str) -> None:
        """Raise UserError where the images of a split cannot be corrupted."""

    @abstractmethod
    def source(self) -> dict[str, Plain]:
        """Return what the corrupted images come from, for records."""

    @abstractmethod
    def corrupt(self, data: DataSet, split: Split, kind: str, severity: int, seed: int) -> Split:
        """Corrupt the images of `split`, part of `data`.

        seed: an image is corrupted in one way for each seed, kind and severity, whatever others are.
        """


class Generated(Corruption):
    """Corruptions by the package imagecorruptions-imaug (Apache-2.0), with the constants of ImageNet-C.

    On images of 32 pixels these are stronger than those of the files called CIFAR-10-C.

    kinds, severities: as of Corruption.
    """

    def check(self, data: DataSet, split: str) -> None:
        """Raise UserError for images below 32 pixels, of other than 1 or 3 channels, and without the package."""
        channels, height, width = data.shape
        if min(height, width) < SMALLEST:
            raise UserError(
                f"corruptions are defined for images of {SMALLEST} pixels or more, those of {data.name} have "
                f"{height} x {width}: take a run on larger images"
            )
        if channels not in (1, 3):
            raise UserError(f"corruptions are of images of 1 or 3 channels, those of {data.name} have {channels}")
        _package()

    def source(self) -> dict[str, Plain]:
        """Return name and version of the package."""
        return {"source": f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"}

    def corrupt(self, data: DataSet, split: Split, kind: str, severity: int, seed: int) -> Split:
        """Corrupt the images of `split`, one by one, each by a stream of random numbers of its own."""
        pixels = split.images[:].permute(0, 2, 3, 1).cpu().numpy()
        made = np.empty_like(pixels)
        for row, index in enumerate(split.indices.tolist()):
            stream = derive(seed, "corruption", kind, severity, index) % 2**32
            # two of them do not draw from numpy's global generator
            own = {"seed": stream} if kind in ("glass_blur", "impulse_noise") else {}
            image = pixels[row] if pixels.shape[3] == 3 else pixels[row].repeat(3, axis=2)
            # it prints that it handles an exception
            with numpy_stream(stream), contextlib.redirect_stdout(io.StringIO()):
                made[row] = _package().corrupt(image, severity, kind, **own)[:, :, : pixels.shape[3]]
        return replace(split, images=torch.from_numpy(made).permute(0, 3, 1, 2).contiguous())


class Stored(Corruption):
    """Corrupted test images from files in the layout of CIFAR-10-C: KIND.npy and labels.npy.

    KIND.npy is uint8 of shape (5 N, height, width, channels): the N test images in their order, severity by severity;
    labels.npy holds their 5 N labels.

    folder: of the files. kinds, severities: as of Corruption.
    """

    def __init__(
        self, folder: str = "CIFAR-10-C", kinds: Sequence[str] | None = None, severities: Sequence[int] | None = None
    ) -> None:
        super().__init__(kinds, severities)
        self.folder = Path(folder)

    def within(self, places: Sequence[str]) -> Stored:
        """Return these corruptions with the folder looked for in `places`. Raises UserError where it is in none."""
        found = [path for place in places if (path := Path(place).expanduser() / self.folder).is_dir()]
        if not found:
            where = " or ".join(str(Path(place).expanduser() / self.folder) for place in places)
            raise UserError(f"there are no corrupted images at {where}: put the files there, or set corruption.folder")
        return Stored(str(found[0]), self.kinds, self.severities)

    def check(self, data: DataSet, split: str) -> None:
        """Raise UserError for files that are missing or not of these images, and for another split than test."""
        if split != "test":
            raise UserError(f"the files in {self.folder} are of test images: leave out split={split}")
        labels = _array(self.folder / "labels.npy")
        shape = (SEVERITIES[-1] * len(data.test), *(data.shape[place] for place in (1, 2, 0)))
        own = data.test.labels.cpu().numpy()[np.argsort(data.test.indices)]
        if labels.shape != shape[:1] or not np.array_equal(labels, np.tile(own, SEVERITIES[-1])):
            raise UserError(
                f"{self.folder}/labels.npy does not hold the labels of the {len(data.test):,} test images of "
                f"{data.name}, five times over: the files are of other images"
            )
        for kind in self.kinds:
            images = _array(self.folder / f"{kind}.npy")
            if images.dtype != np.uint8 or images.shape != shape:
                raise UserError(
                    f"{self.folder}/{kind}.npy must be uint8 of shape {shape}, and is {images.dtype} {images.shape}"
                )

    def source(self) -> dict[str, Plain]:
        """Return the name of the folder."""
        return {"source": f"files of {self.folder.name}"}

    def corrupt(self, data: DataSet, split: Split, kind: str, severity: int, seed: int) -> Split:
        """Read the corrupted images of `split`; chance has no part in it."""
        rows = np.searchsorted(np.sort(data.test.indices), split.indices) + (severity - 1) * len(data.test)
        images = np.ascontiguousarray(_array(self.folder / f"{kind}.npy")[rows].transpose(0, 3, 1, 2))
        return replace(split, images=torch.from_numpy(images))


def _array(file: Path) -> np.ndarray:
    try:
        # pages are read as they are needed; a pickle could run code
        found = np.load(regular(file), mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: put it there, or leave its kind out with corruption.kinds=[...]") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file} is no array of numbers that can be read ({error}): download it again") from error
    if not isinstance(found, np.ndarray):
        raise UserError(f"{file} holds several arrays, as numpy.savez writes them: write one with numpy.save")
    return found


def _package() -> Any:
    with extra("corruptions", f"corruptions are generated by {PACKAGE}, which is not installed"):
        import imagecorruptions
    return imagecorruptions
