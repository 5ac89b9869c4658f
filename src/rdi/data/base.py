"""Data sets: uint8 images of one shape, in memory or on disk, cut into SPLITS by stored indices."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

from rdi.checks import choice, integer, text
from rdi.data.augment import AUGMENTATIONS
from rdi.data.identity import keys
from rdi.data.streamed import Images, Streamed
from rdi.errors import UserError
from rdi.memory import available_memory
from rdi.seeds import generator

SPLITS = ("train", "calibration", "validation", "test")


@dataclass(frozen=True)
class Raw:
    """All images of a source.

    images: uint8_NCHW.
    labels: int64_N.
    class_names: C of them.
    test_start: images from here on are the official test set; None when the source has none.
    originals: uint64 keys_N (rdi.data.identity) of the images before they were resized, None if they were not.
    notes: lines for the user on what was read and what was left out.
    memory: whether the images are in memory, and why; None: nobody could ask.
    Raises UserError for what no network could be trained on.
    """

    images: np.ndarray | Streamed
    labels: np.ndarray
    class_names: tuple[str, ...]
    test_start: int | None
    originals: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    memory: str | None = None

    def __post_init__(self) -> None:
        """Raise UserError for what no network could be trained on."""
        count = len(self.images)
        held = self.images
        if isinstance(held, np.ndarray) and (held.ndim != 4 or held.dtype != np.uint8 or not held.size):
            raise UserError(f"images must be uint8 N x C x H x W, got {held.dtype} {held.shape}")
        if held.shape[1] > 4 and held.shape[3] in (1, 3, 4):
            raise UserError(f"images must be N x C x H x W, got {tuple(held.shape)}: move the channels before the rows")
        if self.labels.shape != (count,):
            raise UserError(f"there must be one label for each of {count} images, got {self.labels.shape}")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.class_names):
            raise UserError(f"labels must be in 0..{len(self.class_names) - 1}, got {low}..{high}")
        if len(self.class_names) < 2:
            raise UserError("all images are of one class, and there is nothing to tell apart: take two classes or more")
        if self.test_start is not None and not 0 < self.test_start < count:
            raise UserError(
                f"of {count} images the test part cannot begin at {self.test_start}: leave some to train on before it, "
                "and some to test on"
            )


@dataclass(frozen=True)
class Split:
    """Part of a data set.

    name: one of SPLITS.
    images: uint8_NCHW, a tensor, or Streamed ones that are decoded where they are indexed.
    labels: int64_N.
    indices: int64_N, position in the source.
    """

    name: str
    images: Images
    labels: torch.Tensor
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, samples: int | None) -> Split:
        """Draw a random sample of the split, always the same; a larger one begins with a smaller.

        samples: how many; all where there are no more, and for None. Not the first images: where a source is stored
        class by class, those are of one class.
        """
        if samples is None or integer("samples", samples, 1) >= len(self):
            return self
        order = torch.randperm(len(self), generator=generator("cpu", 0, "sample", self.name))[:samples]
        rows = order.to(self.images.device)
        images = self.images
        few = images.select(order.numpy()) if isinstance(images, Streamed) else images[rows]
        return Split(self.name, few, self.labels[rows], self.indices[order.numpy()])

    def to(self, device: torch.device) -> Split:
        """Return the split with images and labels on `device`; Streamed images are given there, one by one."""
        return Split(self.name, self.images.to(device), self.labels.to(device), self.indices)


@dataclass(frozen=True)
class DataSet:
    """Images and labels, split.

    name: label for records.
    train, calibration, validation, test: the splits.
    class_names: C of them.
    fingerprint: sha256 over all images and labels of the source.
    originals, notes, memory: as in Raw.
    """

    name: str
    train: Split
    calibration: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    fingerprint: str
    originals: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    memory: str | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """CHW of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    def split(self, name: str) -> Split:
        """Return the split called `name`. Raises UserError for another name, and for one without images."""
        found: Split = getattr(self, choice("split", name, SPLITS))
        if not len(found):
            raise UserError(f"there are no {name} images: train with data.{name}=N to hold so many out")
        return found

    def keys(self, name: str) -> np.ndarray:
        """Return uint64 keys_NK (rdi.data.identity) of the images of split `name`: as they are, and before resizing."""
        rows: Split = getattr(self, choice("split", name, SPLITS))
        found = [rows.images.keys() if isinstance(rows.images, Streamed) else keys(rows.images.numpy())]
        if self.originals is not None:
            found.append(self.originals[rows.indices])
        return np.stack(found, axis=1)

    def indices(self) -> dict[str, np.ndarray]:
        """Split name -> indices in the source, to store with a run."""
        return {name: getattr(self, name).indices for name in SPLITS}

    def samples(self) -> dict[str, int]:
        """Split name -> images in it, for those that have any."""
        return {name: len(rows) for name, rows in self.indices().items() if len(rows)}


class Source(ABC):
    """A source of images. Authors write `read`; `load` makes the splits.

    name: label for records.
    calibration: number of images held out for thresholds and model choice, never trained or tested on.
    validation: number held out likewise, for choosing between runs without the test images; 0: none.
    calibration_from: split that both are taken from, "train", or "test" for networks trained elsewhere that have seen
        all training images.
    test: number held out as test set where the source has no official one.
    split_seed: of the permutation.
    augment: augmentation of training batches, one of augment.AUGMENTATIONS.
    """

    def __init__(
        self,
        *,
        name: str,
        calibration: int,
        validation: int = 0,
        calibration_from: str = "train",
        test: int | None = None,
        split_seed: int = 0,
        augment: str = "none",
    ) -> None:
        self.name = text("data.name", name)
        self.calibration = integer("data.calibration", calibration, 1)
        self.validation = integer("data.validation", validation, 0)
        self.calibration_from = choice("data.calibration_from", calibration_from, ("train", "test"))
        self.test = None if test is None else integer("data.test", test, 1)
        self.split_seed = integer("data.split_seed", split_seed, 0)
        self.augment = choice("data.augment", augment, AUGMENTATIONS)

    @abstractmethod
    def read(self) -> Raw:
        """Read all images of the source. Raises UserError that says what to put where when they are missing."""

    def load(self, indices: dict[str, np.ndarray] | None = None, *, expected: str | None = None) -> DataSet:
        """Load the data set, with the given split `indices` or with those of the permutation `split_seed`.

        expected: fingerprint that the images must have.
        Raises UserError when they have another one, and when the source is too small for its splits.
        """
        raw = self.read()
        found = fingerprint(raw)
        if expected is not None and expected != found:
            raise UserError(
                f"the images of {self.name} differ from those that the run was made with (now {len(raw.labels)} of "
                f"{'x'.join(map(str, raw.images.shape[1:]))}, sha256 {found[:12]}, expected {expected[:12]}): "
                "set data.root=DIR or RDI_DATA=DIR to the folder that holds those, or choose another run=..."
            )
        if indices and max(int(rows.max(initial=-1)) for rows in indices.values()) >= len(raw.labels):
            raise UserError(
                f"the splits of {self.name} name images beyond the {len(raw.labels)} that there are: delete the run's "
                "splits.npz, and the next command makes it again"
            )
        none = np.zeros(0, dtype=np.int64)
        parts = self._permuted(raw) if indices is None else {"validation": none, **indices}
        splits = {
            name: Split(
                name,
                _some(raw.images, parts[name]),
                torch.from_numpy(raw.labels[parts[name]]),
                parts[name],
            )
            for name in SPLITS
        }
        return DataSet(
            self.name,
            **splits,
            class_names=raw.class_names,
            fingerprint=found,
            originals=raw.originals,
            notes=raw.notes,
            memory=raw.memory,
        )

    def _permuted(self, raw: Raw) -> dict[str, np.ndarray]:
        """Split name -> ascending indices; the official test images never move into train."""
        rng = np.random.Generator(np.random.PCG64(self.split_seed))
        if raw.test_start is None:
            order = rng.permutation(len(raw.labels))
            count = self.test or len(order) // 5
            test, train = order[:count], order[count:]
        elif self.test is not None:
            raise UserError(
                f"data.test={self.test} changes nothing, as data={self.name} has test images of its own: leave it out"
            )
        else:
            train = rng.permutation(raw.test_start)
            test = raw.test_start + rng.permutation(len(raw.labels) - raw.test_start)
        pool = train if self.calibration_from == "train" else test
        held = self.calibration + self.validation
        if held >= len(pool) or len(train) == 0 or len(test) == 0:
            lower = "data.calibration or data.validation" if self.validation else "data.calibration"
            raise UserError(
                f"data={self.name} has {len(pool)} images to hold {held} out of, and {len(train)} and "
                f"{len(test)} to train and test on: lower {lower}, or set data.test"
            )
        calibration, validation, rest = np.split(pool, [self.calibration, held])
        if self.calibration_from == "train":
            train = rest
        else:
            test = rest
        parts = {"train": train, "calibration": calibration, "validation": validation, "test": test}
        return {name: np.sort(rows) for name, rows in parts.items()}


def _some(images: np.ndarray | Streamed, rows: np.ndarray) -> Images:
    return images.select(rows) if isinstance(images, Streamed) else torch.from_numpy(images[rows])


def numbers_as_names(labels: np.ndarray, remedy: str) -> tuple[str, ...]:
    """Name the classes of labels_N by their numbers. Raises UserError, with the remedy, for a number without images."""
    found = np.unique(labels)
    if len(gaps := np.setdiff1d(np.arange(int(found[-1])), found)):
        raise UserError(f"the labels go up to {found[-1]}, and no image is of class {gaps[0]}: {remedy}")
    return tuple(map(str, found))


def room_for(shape: tuple[int, int, int, int], remedy: str = "take a smaller data.size") -> np.ndarray:
    """Allocate a uint8 array for all images_NCHW. Raises UserError, with the remedy, if memory is too small for it."""
    count, channels, height, width = shape
    needed, available = count * channels * height * width, available_memory()
    try:
        if available is None or needed <= available:
            return np.empty(shape, np.uint8)
    except (MemoryError, ValueError):  # more than the system gives, or than an array may have
        available = None
    left = "more than there is" if available is None else f"{available / 2**30:.1f} GiB are left"
    raise UserError(
        f"{count} images of {channels}x{height}x{width} need {needed / 2**30:,.1f} GiB of memory ({left}): {remedy}"
    )


def fingerprint(raw: Raw) -> str:
    """Return the sha256 over shape, images and labels."""
    if isinstance(raw.images, Streamed):
        return raw.images.index.fingerprint
    digest = hashlib.sha256(str(raw.images.shape).encode())
    digest.update(np.ascontiguousarray(raw.images).data)
    digest.update(np.ascontiguousarray(raw.labels).data)
    return digest.hexdigest()
