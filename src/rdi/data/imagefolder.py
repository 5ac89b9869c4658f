"""Anyone's own images: one folder per class, below train/ and test/ or without these two. Decoded once, then cached."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from PIL import Image
from tqdm import tqdm

from rdi.checks import choice, directory, integer, text
from rdi.data.base import Raw, Source, room_for
from rdi.data.identity import key
from rdi.data.listing import Listing, listing, printable
from rdi.data.pictures import UnreadableError, decode
from rdi.errors import UserError
from rdi.storage import write_stream

Decoded = tuple[np.ndarray, np.ndarray, int]
"""uint8 images_NCHW, uint64 originals_N (see Raw), and how many files hold several pictures."""


class ImageFolder(Source):
    """Images in <root>/<folder>/train/<class>/ and .../test/<class>/, or .../<class>/ (then `test` are held out).

    root, folder: where the images are.
    size: side to resize to in pixels, or None when all images have one size already.
    mode: "RGB" or "L" (grey). Pictures are turned as their EXIF orientation says.
    Raises UserError when there are no images, a class is missing in test, a file cannot be decoded, sizes differ, or
        the images do not fit into memory.
    """

    def __init__(
        self, *, root: str, folder: str = ".", size: int | None = None, mode: str = "RGB", **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.root, self.folder = directory("data.root", root), text("data.folder", folder)
        self.place = self.root / self.folder
        self.size = None if size is None else integer("data.size", size, 1)
        self.mode = choice("data.mode", mode, ("RGB", "L"))

    def read(self) -> Raw:
        """Read the images from the user's cache folder, or decode them into it."""
        found = listing(self.place)
        notes = found.notes(self.place)
        cache, identity = self._cache(found)
        decoded = _load(cache, identity)
        if decoded is None:
            decoded = self._decode(found.files)
            _save(cache, identity, decoded)
        images, originals, several = decoded
        if several:
            notes.append(f"of {several} files in {printable(self.place)} that hold several pictures the first is taken")
        labels = np.asarray(found.labels, dtype=np.int64)
        return Raw(images, labels, found.class_names, found.test_start, originals, tuple(notes))

    def _cache(self, found: Listing) -> tuple[Path, str]:
        """Return where the decoded images lie, and what they must say that they were made from."""
        where = hashlib.sha256(os.fsencode(f"{self.place.resolve()} {self.size} {self.mode}")).hexdigest()[:32]
        digest = hashlib.sha256()
        for file in found.files:
            status = file.stat()
            # the time of change too: a copy can be given the size and the time of writing of what it replaces
            stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
            digest.update(os.fsencode(f"{file.relative_to(self.place)} {stamp}\n"))
        identity = {"made": VERSION, "pillow": Image.__version__, "files": digest.hexdigest()}
        return Path(platformdirs.user_cache_dir("rdi")) / "images" / f"{where}.npz", json.dumps(identity)

    def _decode(self, files: list[Path]) -> Decoded:
        images: np.ndarray | None = None
        originals = np.empty(len(files), np.uint64)
        several = 0
        failed: list[tuple[Path, UnreadableError]] = []
        for index, file in enumerate(tqdm(files, desc=f"decoding {printable(self.place)}", unit="image", disable=None)):
            try:
                picture, frames = decode(file, self.mode)
            except UnreadableError as error:
                failed.append((file, error))
                continue
            several += frames > 1
            originals[index] = key(_pixels(picture))
            width, height = picture.size if self.size is None else (self.size, self.size)
            if images is None:
                images = room_for((len(files), 1 if self.mode == "L" else 3, height, width))
            if (height, width) != images.shape[2:]:
                raise UserError(
                    f"{printable(file)} is {width}x{height}, the first image "
                    f"{images.shape[3]}x{images.shape[2]}: set data.size=N to resize all to NxN"
                )
            if picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            images[index] = _pixels(picture)
        if failed:
            (file, why), others = failed[0], len(failed) - 1
            more = f", nor are {others} others of {len(files)}" if others else ""
            raise UserError(f"{printable(file)} is not a readable image ({why}){more}: remove or replace what is not")
        assert images is not None, "the listing refuses empty folders"
        return images, originals, several


VERSION = 1
"""Version of the decoding; raise it with every change that may give other pixels."""


def _pixels(picture: Image.Image) -> np.ndarray:
    """uint8 image_CHW."""
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _load(cache: Path, identity: str) -> Decoded | None:
    """Load the cache, if it was made from the same files and is whole: zip keeps a checksum of every entry."""
    try:
        with np.load(cache, allow_pickle=False) as stored:
            if str(stored["identity"]) == identity:
                return stored["images"], stored["originals"], int(stored["several"])
    except Exception:  # of a damaged file zipfile, zlib and numpy raise what they run into; it is made again
        pass
    return None


def _save(cache: Path, identity: str, decoded: Decoded) -> None:
    """Write the cache, or do without it where the folder cannot be written."""
    images, originals, several = decoded
    with contextlib.suppress(UserError, OSError):
        # straight to the file: in memory there may be no room for a second copy of the images
        write_stream(
            cache,
            lambda stream: np.savez(stream, identity=identity, images=images, originals=originals, several=several),
        )
