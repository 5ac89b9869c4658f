"""Images that stay on disk and are decoded, in worker processes, when they are asked for."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from rdi.data.decoding import Pictures, pixels
from rdi.data.identity import key
from rdi.data.pictures import UnreadableError
from rdi.data.workers import ahead
from rdi.errors import UserError

PIECE = 16
"""Images that a worker decodes in one go: of a batch all workers do some, and what waits in memory stays small."""


@dataclass(frozen=True)
class Index:
    """Facts that one pass over all pictures finds of them; 16 bytes a picture.

    shape: CHW of every image.
    fingerprint: sha256 over shape, all images and labels, as of images in memory.
    keys, originals: uint64_N (rdi.data.identity), as they are and before they were resized.
    several: how many files hold several pictures.
    """

    shape: tuple[int, int, int]
    fingerprint: str
    keys: np.ndarray
    originals: np.ndarray
    several: int


@dataclass(frozen=True)
class Request:
    """Images of one batch.

    rows: int64_N of them.
    crops: a seed for each, of a random-resized crop out of its file; None: the images themselves.
    """

    rows: torch.Tensor
    crops: Sequence[int] | None = None


class Streamed:
    """Images of a source, indexed as a uint8_NCHW tensor of them is; none is held.

    pictures: of the whole source.
    index: of them.
    rows: int64_N, those that these are; None: all.
    workers: processes that decode for `batches`.
    device: that images are given on.
    """

    def __init__(
        self,
        pictures: Pictures,
        index: Index,
        rows: np.ndarray | None = None,
        *,
        workers: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.pictures, self.index, self.workers = pictures, index, workers
        self.rows = np.arange(len(pictures)) if rows is None else rows
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """NCHW."""
        return torch.Size((len(self.rows), *self.index.shape))

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Decode some images, here; index: a slice, a list or a tensor of rows."""
        rows = self.rows[index.cpu().numpy() if isinstance(index, torch.Tensor) else index]
        return torch.from_numpy(_images([(int(row), None) for row in rows], self.pictures, self.index.shape)).to(
            self.device
        )

    def select(self, rows: np.ndarray) -> Streamed:
        """Return these images alone; rows: int64_M."""
        return Streamed(self.pictures, self.index, self.rows[rows], workers=self.workers, device=self.device)

    def to(self, device: torch.device) -> Streamed:
        """Return the same images, given on `device`."""
        return Streamed(self.pictures, self.index, self.rows, workers=self.workers, device=device)

    def keys(self) -> np.ndarray:
        """Return uint64 keys_N of the images."""
        return self.index.keys[self.rows]

    def batches(self, requests: Iterable[Request]) -> Iterator[torch.Tensor]:
        """Yield the uint8 images_NCHW of every request, in order, decoded ahead by the workers."""
        sizes: deque[int] = deque()

        def pieces() -> Iterator[list[tuple[int, int | None]]]:
            for request in requests:
                rows = self.rows[request.rows.numpy()].tolist()
                sizes.append(len(rows))
                crops: Sequence[int | None] = request.crops or [None] * len(rows)
                wanted = list(zip(rows, crops, strict=True))
                for begin in range(0, len(wanted), PIECE):
                    yield wanted[begin : begin + PIECE]

        waiting: list[np.ndarray] = []
        for images in ahead(partial(_images, pictures=self.pictures, shape=self.index.shape), pieces(), self.workers):
            waiting.append(images)
            if sum(map(len, waiting)) == sizes[0]:
                sizes.popleft()
                yield torch.from_numpy(np.concatenate(waiting)).to(self.device)
                waiting.clear()


def _images(wanted: Sequence[tuple[int, int | None]], pictures: Pictures, shape: Sequence[int]) -> np.ndarray:
    """Decode uint8 images_NCHW. wanted: position in the source and seed of a crop (see Pictures.image) of each."""
    found = np.empty((len(wanted), *shape), np.uint8)
    for place, (index, crop) in enumerate(wanted):
        found[place] = pictures.image(index, shape, crop)
    return found


Images = torch.Tensor | Streamed
"""uint8 images_NCHW, in memory or on disk."""


def fetch(images: Images, requests: Iterable[Request]) -> Generator[torch.Tensor, None, None]:
    """Yield the images of every request, in order, on the device of `images`.

    Raises UserError for crops of images in memory: what they are cut out of is not there.
    """
    if isinstance(images, Streamed):
        yield from images.batches(requests)
        return
    for request in requests:
        if request.crops is not None:
            raise UserError("data.augment=resized_crop crops picture files: take data=imagefolder, or another augment")
        yield images[request.rows.to(images.device)]


def slices(total: int, begins: Iterable[int], size: int) -> Iterator[Request]:
    """Yield requests for `size` images each, fewer at the end. begins: first image of each."""
    for begin in begins:
        yield Request(torch.arange(begin, min(begin + size, total)))


@dataclass(frozen=True)
class Seen:
    """One picture of the first pass: image_CHW and what Index says of it, or why it cannot be read."""

    image: np.ndarray | None
    key: int = 0
    original: int = 0
    frames: int = 1
    flaw: str = ""


def _see(indices: Sequence[int], pictures: Pictures) -> list[Seen]:
    found = []
    for index in indices:
        try:
            picture, frames = pictures.picture(index)
        except UnreadableError as error:
            found.append(Seen(None, flaw=str(error)))
            continue
        image = pictures.resized(picture)
        known = key(image)
        original = known if picture.size == image.shape[:0:-1] else key(pixels(picture))
        found.append(Seen(image, known, original, frames))
    return found


def seen(pictures: Pictures, workers: int, title: str) -> Iterator[Seen]:
    """Decode every picture once, in order, in worker processes and under a progress bar called `title`.

    Raises UserError once all were tried if some cannot be read, and for a picture of another size than the first.
    """
    count, first, flawed, flaw = len(pictures), None, 0, ""
    pieces = (range(begin, min(begin + PIECE, count)) for begin in range(0, count, PIECE))
    with tqdm(total=count, desc=title, unit="image", disable=None) as bar:
        index = 0
        for piece in ahead(partial(_see, pictures=pictures), pieces, workers):
            for one in piece:
                if one.image is None:
                    flaw = flaw or f"{pictures.name(index)} is not a readable image ({one.flaw})"
                    flawed += 1
                else:
                    first = first or one.image.shape
                    if one.image.shape != first:
                        _, height, width = one.image.shape
                        raise UserError(
                            f"{pictures.name(index)} is {width}x{height}, the first image {first[2]}x{first[1]}: set "
                            f"data.size=N to resize all to NxN"
                        )
                    yield one
                index += 1
            bar.update(len(piece))
    if flawed:
        more = f", nor are {flawed - 1} others of {count}" if flawed > 1 else ""
        raise UserError(f"{flaw}{more}: remove or replace what is not")


def indexed(pictures: Pictures, labels: np.ndarray, workers: int, title: str) -> Index:
    """Make the index of all pictures. labels: int64_N. Raises UserError as `seen` does."""
    digest, shape, several = None, (0, 0, 0), 0
    keys, originals = np.empty(len(pictures), np.uint64), np.empty(len(pictures), np.uint64)
    for index, one in enumerate(seen(pictures, workers, title)):
        assert one.image is not None
        if digest is None:
            shape = one.image.shape
            digest = hashlib.sha256(str((len(pictures), *shape)).encode())
        digest.update(np.ascontiguousarray(one.image).data)
        keys[index], originals[index] = one.key, one.original
        several += one.frames > 1
    assert digest is not None, "a listing refuses empty folders"
    digest.update(np.ascontiguousarray(labels).data)
    return Index(shape, digest.hexdigest(), keys, originals, several)
