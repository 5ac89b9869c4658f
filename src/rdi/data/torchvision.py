"""MNIST, FashionMNIST, CIFAR-10, CIFAR-100 and SVHN through torchvision: found on disk, else downloaded."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from rdi.checks import choice, directory
from rdi.data.base import Raw, Source
from rdi.deprecations import hidden
from rdi.errors import UserError

# torchvision's class -> what its folder is called below the root, for the message when it is missing
FOLDERS = {
    "MNIST": "MNIST/raw/train-images-idx3-ubyte (and its three siblings)",
    "FashionMNIST": "FashionMNIST/raw/train-images-idx3-ubyte (and its three siblings)",
    "CIFAR10": "cifar-10-batches-py/",
    "CIFAR100": "cifar-100-python/",
    "SVHN": "train_32x32.mat and test_32x32.mat",
}

UNCHECKED = ("MNIST", "FashionMNIST")
"""Those that torchvision reads without looking at a checksum."""


class Torchvision(Source):
    """One of torchvision's data sets.

    dataset: a key of FOLDERS.
    root: folder that torchvision's loader looks in.
    download: fetch it when it is not there.
    Raises UserError that names the files when neither works.
    """

    def __init__(self, *, dataset: str, root: str, download: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.dataset = choice("data.dataset", dataset, tuple(FOLDERS))
        if not isinstance(download, bool):
            raise UserError(f"data.download must be true or false, got {download!r}")
        self.root, self.download = directory("data.root", root), download

    def read(self) -> Raw:
        """Read the images through torchvision."""
        parts = [self._part(train=True), self._part(train=False)]
        images = [_nchw(np.asarray(part.data), self.dataset) for part in parts]
        labels = [np.asarray(part.labels if self.dataset == "SVHN" else part.targets) for part in parts]
        if (counts := [len(part) for part in images]) != [len(part) for part in labels]:
            raise UserError(self._damaged(f"{counts} images, {[len(part) for part in labels]} labels"))
        names = getattr(parts[0], "classes", None) or [str(k) for k in range(10)]
        try:
            return Raw(np.concatenate(images), np.concatenate(labels).astype(np.int64), tuple(names), len(labels[0]))
        except (UserError, ValueError) as error:  # ValueError: images of two sizes
            raise UserError(self._damaged(_reason(error))) from error

    def _part(self, *, train: bool) -> Any:
        with hidden():
            from torchvision import datasets

        loader = getattr(datasets, self.dataset)
        which = {"split": "train" if train else "test"} if self.dataset == "SVHN" else {"train": train}
        there = all(file.is_file() for file in self._files(loader))
        try:
            return loader(self.root, download=False, **which)
        except Exception as error:  # of damaged files torchvision asserts, indexes and converts whatever there is
            # it downloads again what its checksums refuse; of MNIST it checks none
            if there and (not self.download or self.dataset in UNCHECKED):
                raise UserError(self._damaged(_reason(error))) from error
            if not self.download:
                raise UserError(self._location()) from error
        places = (self.root / self.dataset / "raw", self.root / self.dataset, self.root)
        missing = [folder for folder in places if not os.path.lexists(folder)]
        try:
            return loader(self.root, download=True, **which)
        except Exception as error:
            for folder in missing:
                with contextlib.suppress(OSError):  # made for the download, unless there is something in it
                    folder.rmdir()
            failed = f"the download failed: {_reason(error)}"
            raise UserError(self._damaged(failed) if there else f"{self._location()} ({failed})") from error

    def _files(self, loader: Any) -> list[Path]:
        """The files that torchvision's class reads."""
        if self.dataset == "SVHN":
            return [self.root / loader.split_list[split][1] for split in ("train", "test")]
        if self.dataset in UNCHECKED:
            return [self.root / self.dataset / "raw" / Path(url).stem for url, _ in loader.resources]
        return [self.root / loader.base_folder / name for name, _ in (*loader.train_list, *loader.test_list)]

    def _location(self) -> str:
        return (
            f"{self.dataset} is not in {self.root}: put {FOLDERS[self.dataset]} there, "
            "or set data.root=DIR or RDI_DATA=DIR to where it is"
        )

    def _damaged(self, reason: str) -> str:
        return (
            f"the files of {self.dataset} in {self.root} are damaged or no {self.dataset} ({reason}): put "
            f"{FOLDERS[self.dataset]} there again, or set data.root=DIR or RDI_DATA=DIR to where they are whole"
        )


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0].rstrip(":") if lines else type(error).__name__


def _nchw(images: np.ndarray, dataset: str) -> np.ndarray:
    if images.ndim == 3:
        return images[:, None]
    return images if dataset == "SVHN" else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
