"""Anyone's own images: one folder per class, below train/ and test/ or without these two. Decoded once, then cached."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from rdi.checks import choice, integer
from rdi.data.base import Raw, Source
from rdi.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp")


class ImageFolder(Source):
    """Images in <root>/<folder>/train/<class>/ and .../test/<class>/, or .../<class>/ (then `test` are held out).

    size: side to resize to in pixels, or None when all images have one size already. mode: "RGB" or "L" (grey).
    Raises UserError when there are no images, a class is missing in test, or sizes differ.
    """

    def __init__(
        self, *, root: str, folder: str = ".", size: int | None = None, mode: str = "RGB", **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.root = Path(root).expanduser() / folder
        self.size = None if size is None else integer("data.size", size, 1)
        self.mode = choice("data.mode", mode, ("RGB", "L"))

    def read(self) -> Raw:
        """See Source. The decoded images are kept in the user's cache folder; later starts read them from there."""
        files, labels, names, test_start = self._list()
        cache = self._cache_file(files)
        if cache.is_file():
            images = np.load(cache, allow_pickle=False)
        else:
            images = self._decode(files)
            _save(cache, images)
        return Raw(images, np.asarray(labels, dtype=np.int64), names, test_start)

    def _list(self) -> tuple[list[Path], list[int], tuple[str, ...], int | None]:
        if not self.root.is_dir():
            raise UserError(f"no folder {self.root}: set data.root=DIR to the folder that holds train/<class>/*.jpg")
        official = (self.root / "train").is_dir() and (self.root / "test").is_dir()
        parts = [self.root / "train", self.root / "test"] if official else [self.root]
        names = _classes(parts[0])
        if official and (other := sorted(set(names) ^ set(_classes(parts[1])))):
            lacking = parts[other[0] in names]
            raise UserError(f"{lacking} has no class {other[0]!r}: train and test must hold the same folders")
        files: list[Path] = []
        labels: list[int] = []
        starts = []
        for part in parts:
            starts.append(len(files))
            for label, name in enumerate(names):
                found = sorted((p for p in (part / name).glob("*") if p.suffix.lower() in SUFFIXES), key=_natural)
                files += found
                labels += [label] * len(found)
            if len(files) == starts[-1]:
                raise UserError(f"no images in {part}: expected {part}/<class>/*.jpg (or {', '.join(SUFFIXES[1:])})")
        if len(names) < 2:
            raise UserError(f"{parts[0]} must hold at least two classes, one folder each, got {', '.join(names)}")
        return files, labels, names, starts[1] if official else None

    def _cache_file(self, files: list[Path]) -> Path:
        digest = hashlib.sha256(f"{self.root.resolve()} {self.size} {self.mode}".encode())
        for file in files:
            status = file.stat()
            digest.update(f"{file.relative_to(self.root)} {status.st_size} {status.st_mtime_ns}\n".encode())
        return Path(platformdirs.user_cache_dir("rdi")) / "images" / f"{digest.hexdigest()[:32]}.npy"

    def _decode(self, files: list[Path]) -> np.ndarray:
        images: np.ndarray | None = None
        for index, file in enumerate(tqdm(files, desc=f"decoding {self.root}", unit="image", disable=None)):
            try:
                with Image.open(file) as opened:
                    picture = opened.convert(self.mode)
            except (UnidentifiedImageError, OSError) as error:
                raise UserError(f"{file} is not a readable image: remove or replace it") from error
            if self.size is not None and picture.size != (self.size, self.size):
                picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR)
            pixels = np.asarray(picture)
            pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
            if images is None:
                images = np.empty((len(files), *pixels.shape), np.uint8)
            if pixels.shape != images.shape[1:]:
                raise UserError(
                    f"{file} is {picture.size[0]}x{picture.size[1]}, the first image "
                    f"{images.shape[3]}x{images.shape[2]}: set data.size=N to resize all to NxN"
                )
            images[index] = pixels
        assert images is not None, "the listing refuses empty folders"
        return images


def _classes(part: Path) -> tuple[str, ...]:
    """Names of the class folders, sorted; hidden ones are tools'."""
    return tuple(sorted(entry.name for entry in part.iterdir() if entry.is_dir() and not entry.name.startswith(".")))


def _natural(path: Path) -> tuple[int, str]:
    """Sort 2.jpg before 10.jpg."""
    return (int(path.stem), path.name) if path.stem.isdecimal() else (-1, path.name)


def _save(cache: Path, images: np.ndarray) -> None:
    """Write the cache, or do without it where the folder cannot be written."""
    partial = cache.with_suffix(f".{os.getpid()}.partial")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            np.save(stream, images)
        partial.replace(cache)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
