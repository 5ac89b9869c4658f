"""Picture files as a source: decoded once and kept in a cache, or indexed once and decoded when they are asked for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from PIL import Image

from rdi.checks import choice, directory, integer
from rdi.data.augment import RESIZED_CROP
from rdi.data.base import Raw, Source, room_for
from rdi.data.decoding import FITS, Pictures
from rdi.data.listing import printable
from rdi.data.streamed import PIECE, Index, Streamed, indexed, seen
from rdi.data.workers import default_workers
from rdi.errors import UserError
from rdi.memory import available_memory
from rdi.storage import write_stream

Decoded = tuple[np.ndarray, np.ndarray, int]
"""uint8 images_NCHW, uint64 originals_N (see Raw), and how many files hold several pictures."""
MEMORY = ("auto", "resident", "stream")
VERSION = 1
"""Version of the decoding; raise it with every change that may give other pixels."""
STREAM = "take a smaller data.size, or data.memory=stream"
FEW = 256
"""Pictures that are decoded in this process: others would take longer to start."""


@dataclass(frozen=True)
class Listed:
    """The pictures of a source, before any is decoded.

    labels, class_names, test_start, notes: as in Raw. stamp: of all files; another one where one of them changed.
    """

    pictures: Pictures
    labels: np.ndarray
    class_names: tuple[str, ...]
    test_start: int | None
    notes: tuple[str, ...]
    stamp: str


class PictureSource(Source):
    """A source of pictures in files. Authors write `listed`.

    root: folder of the files.
    size: side to resize to in pixels, or None when all images have one size already.
    mode: "RGB" or "L" (grey). Pictures are turned as their EXIF orientation says.
    fit: how pictures that are not square are resized, "squash", or "crop" (the largest square in the middle).
    memory: "resident" holds all images, "stream" decodes them when they are asked for; "auto" holds them where they
        fit. What is trained and judged is the same, bit by bit.
    workers: processes that decode, 0 = none; None: one a core, at most 8.
    Raises UserError when a file cannot be decoded, sizes differ, or the images are to be held and do not fit.
    """

    def __init__(
        self,
        *,
        root: str,
        size: int | None = None,
        mode: str = "RGB",
        fit: str = "squash",
        memory: str = "auto",
        workers: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.root = self.place = directory("data.root", root)
        self.size = None if size is None else integer("data.size", size, 1)
        self.mode = choice("data.mode", mode, ("RGB", "L"))
        self.fit = choice("data.fit", fit, FITS)
        self.memory = choice("data.memory", memory, MEMORY)
        self.workers = None if workers is None else integer("data.workers", workers, 0, 1024)
        self._processes = default_workers() if self.workers is None else self.workers
        if self.augment == RESIZED_CROP and memory == "resident":
            raise UserError("data.augment=resized_crop cuts crops out of the files: set data.memory=stream")

    @abstractmethod
    def listed(self) -> Listed:
        """List the pictures. Raises UserError that says what is missing."""

    def read(self) -> Raw:
        """Read the images from the user's cache folder, or decode them into it; or only index them."""
        found = self.listed()
        stream, why = self._streams(found.pictures)
        images, originals, several = self._streamed(found) if stream else self._held(found)
        notes = list(found.notes)
        if several:
            notes.append(f"of {several} files in {printable(self.place)} that hold several pictures the first is taken")
        return Raw(images, found.labels, found.class_names, found.test_start, originals, tuple(notes), why)

    def _streams(self, pictures: Pictures) -> tuple[bool, str]:
        """Return whether images are streamed, and the line that says why."""
        side = (self.size, self.size) if self.size is not None else self._first(pictures)
        each = pictures.channels * side[0] * side[1]
        needed, free = len(pictures) * each, available_memory()
        # the splits are copies, made while the source is still held
        fits = free is None or 2 * needed <= free
        stream = self.memory == "stream" or self.augment == RESIZED_CROP
        # where a few images do not fit either, those who ask for all are told so
        stream |= self.memory == "auto" and not fits and PIECE * each <= (free or 0)
        left = "" if free is None else f", {free / 2**30:.1f} GiB are free"
        if self.memory != "auto":
            left = f", data.memory={self.memory}"
        elif self.augment == RESIZED_CROP:
            left = ", random-resized crops are cut out of the files"
        if stream:
            room_for((PIECE, pictures.channels, side[1], side[0]))
        how = f"decoded when they are needed, by {self._processes} processes" if stream else "held in memory"
        line = f"{len(pictures):,} images of {pictures.channels}x{side[1]}x{side[0]} are {how}"
        return stream, f"{line} ({needed / 2**30:,.2f} GiB{left})"

    def _first(self, pictures: Pictures) -> tuple[int, int]:
        """Return width and height of the first picture that can be read; of the others the decoder complains."""
        with contextlib.suppress(Exception):
            width, height = pictures.picture(0)[0].size
            return width, height
        return 1, 1

    def _held(self, found: Listed) -> Decoded:
        cache, identity = self._cache(found.stamp, ".npz")
        stored = load_entries(cache, identity)
        if stored is not None:
            return stored["images"], stored["originals"], int(stored["several"])
        images, originals, several = self._decode(found.pictures)
        save_entries(cache, identity=identity, images=images, originals=originals, several=several)
        return images, originals, several

    def _streamed(self, found: Listed) -> tuple[Streamed, np.ndarray, int]:
        cache, identity = self._cache(found.stamp, "-index.npz")
        stored = load_entries(cache, identity)
        if stored is not None:
            channels, height, width = stored["shape"].tolist()
            keys, originals = stored["keys"], stored["originals"]
            index = Index(
                (channels, height, width), str(stored["fingerprint"]), keys, originals, int(stored["several"])
            )
        else:
            title = f"indexing {printable(self.place)}"
            index = indexed(found.pictures, found.labels, self._workers(found.pictures), title)
            save_entries(cache, identity=identity, **vars(index))
        return Streamed(found.pictures, index, workers=self._processes), index.originals, index.several

    def _cache(self, stamp: str, ending: str) -> tuple[Path, str]:
        """Return where what was decoded lies, and what it must say that it was made from."""
        fit = "" if self.fit == "squash" else f" {self.fit}"
        where = hashlib.sha256(os.fsencode(f"{self.place.resolve()} {self.size} {self.mode}{fit}")).hexdigest()[:32]
        identity = {"made": VERSION, "pillow": Image.__version__, "files": stamp}
        return Path(platformdirs.user_cache_dir("rdi")) / "images" / f"{where}{ending}", json.dumps(identity)

    def _workers(self, pictures: Pictures) -> int:
        return self._processes if len(pictures) > FEW else 0

    def _decode(self, pictures: Pictures) -> Decoded:
        images: np.ndarray | None = None
        if self.size is not None:  # before the first is resized to what memory cannot hold
            images = room_for((len(pictures), pictures.channels, self.size, self.size), STREAM)
        originals, several = np.empty(len(pictures), np.uint64), 0
        title = f"decoding {printable(self.place)}"
        for index, one in enumerate(seen(pictures, self._workers(pictures), title)):
            assert one.image is not None
            if images is None:
                images = room_for((len(pictures), *one.image.shape), STREAM)
            images[index], originals[index] = one.image, one.original
            several += one.frames > 1
        assert images is not None, "the listing refuses empty folders"
        return images, originals, several


def load_entries(cache: Path, identity: str) -> dict[str, np.ndarray] | None:
    """Load a cache, if it was made from the same files and is whole: zip keeps a checksum of every entry."""
    try:
        with np.load(cache, allow_pickle=False) as stored:
            if str(stored["identity"]) == identity:
                return {name: stored[name] for name in stored.files}
    except Exception:  # of a damaged file zipfile, zlib and numpy raise what they run into; it is made again
        pass
    return None


def save_entries(cache: Path, **entries: Any) -> None:
    """Write the cache, or do without it where the folder cannot be written."""
    with contextlib.suppress(UserError, OSError):
        # straight to the file: in memory there may be no room for a second copy of the images
        write_stream(cache, lambda stream: np.savez(stream, **entries))
