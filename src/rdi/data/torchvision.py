"""MNIST, FashionMNIST, CIFAR-10, CIFAR-100 and SVHN through torchvision: found on disk, else downloaded."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from rdi.data.base import Raw, Source
from rdi.errors import UserError

# torchvision's class -> what its folder is called below the root, for the message when it is missing
FOLDERS = {
    "MNIST": "MNIST/raw/train-images-idx3-ubyte (and its three siblings)",
    "FashionMNIST": "FashionMNIST/raw/train-images-idx3-ubyte (and its three siblings)",
    "CIFAR10": "cifar-10-batches-py/",
    "CIFAR100": "cifar-100-python/",
    "SVHN": "train_32x32.mat and test_32x32.mat",
}


class Torchvision(Source):
    """One of torchvision's data sets. dataset: a key of FOLDERS. root: folder that torchvision's loader looks in.

    download: fetch it when it is not there. Raises UserError that names the files when neither works.
    """

    def __init__(self, *, dataset: str, root: str, download: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        if dataset not in FOLDERS:
            raise UserError(f"data.dataset must be one of {', '.join(FOLDERS)}; got {dataset!r}")
        self.dataset, self.root, self.download = dataset, Path(root).expanduser(), download

    def read(self) -> Raw:
        """See Source."""
        parts = [self._part(train=True), self._part(train=False)]
        images = [_nchw(np.asarray(part.data), self.dataset) for part in parts]
        labels = [np.asarray(part.labels if self.dataset == "SVHN" else part.targets) for part in parts]
        names = getattr(parts[0], "classes", None) or [str(k) for k in range(10)]
        return Raw(np.concatenate(images), np.concatenate(labels).astype(np.int64), tuple(names), len(labels[0]))

    def _part(self, *, train: bool) -> Any:
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
        from torchvision import datasets

        loader = getattr(datasets, self.dataset)
        which = {"split": "train" if train else "test"} if self.dataset == "SVHN" else {"train": train}
        try:
            return loader(self.root, download=False, **which)
        except (RuntimeError, FileNotFoundError) as missing:
            if not self.download:
                raise UserError(self._where()) from missing
        try:
            return loader(self.root, download=True, **which)
        except Exception as error:
            for folder in (self.root / self.dataset / "raw", self.root / self.dataset, self.root):
                with contextlib.suppress(OSError):  # made for the download, unless there is something in it
                    folder.rmdir()
            reason = str(error).splitlines()[0].rstrip(":") if str(error) else type(error).__name__
            raise UserError(f"{self._where()} (the download failed: {reason})") from error

    def _where(self) -> str:
        return (
            f"{self.dataset} is not in {self.root}: put {FOLDERS[self.dataset]} there, "
            "or set data.root=DIR or RDI_DATA=DIR to where it is"
        )


def _nchw(images: np.ndarray, dataset: str) -> np.ndarray:
    if images.ndim == 3:
        return images[:, None]
    return images if dataset == "SVHN" else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
