"""Tar shards as webdataset lays them out: <key>.jpg and <key>.cls side by side, read at any place, in any order.

By Python's tarfile: webdataset itself reads a shard from its beginning, in its order, which no training that goes on in
the middle of an epoch, and no sample of a split, could use.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rdi.checks import text
from rdi.confine import regular
from rdi.data.base import numbers_as_names
from rdi.data.cached import Listed, PictureSource, load_entries, save_entries
from rdi.data.decoding import Pictures
from rdi.data.listing import printable, summary
from rdi.data.pictures import SUFFIXES, UnreadableError
from rdi.errors import UserError

RANGE = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")
MOST_SHARDS, MOST_CLASSES = 10**6, 10**6
CLASSES = "classes.txt"
LABEL = ".cls"


class Members(Pictures):
    """Pictures in tar files. shards: the files; shard, offset, length: int64_N, where each picture's bytes lie."""

    def __init__(
        self, shards: Sequence[Path], shard: np.ndarray, offset: np.ndarray, length: np.ndarray, *settings: Any
    ) -> None:
        super().__init__(*settings)
        self.shards, self.shard, self.offset, self.length = list(shards), shard, offset, length

    def __len__(self) -> int:
        return len(self.shard)

    def content(self, index: int) -> bytes:
        """Return the bytes of a picture. Raises UnreadableError where the shard ends before."""
        with self.shards[self.shard[index]].open("rb") as stream:
            stream.seek(self.offset[index])
            found = stream.read(self.length[index])
        if len(found) < self.length[index]:
            raise UnreadableError("its shard ends before")
        return found

    def name(self, index: int) -> str:
        """Return shard and place of a picture."""
        return f"the picture at byte {self.offset[index]} of {printable(self.shards[self.shard[index]])}"


class Shards(PictureSource):
    """Images in tar files below `root`, in webdataset's layout; each has its class as a number in a .cls file.

    train_shards: name of the training shards, as train-{000000..000146}.tar.
    test_shards: likewise of the official test set; None: there is none (then `test` are held out).
    A file classes.txt below root names the classes, a line each; without it they are called by their numbers.
    Raises UserError for shards that are missing, or are no tar files, pictures without a class, and as PictureSource
        does.
    """

    def __init__(self, *, train_shards: str, test_shards: str | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.train_shards = text("data.train_shards", train_shards)
        self.test_shards = None if test_shards is None else text("data.test_shards", test_shards)

    def listed(self) -> Listed:
        """List the pictures of the shards."""
        patterns = [self.train_shards, *([] if self.test_shards is None else [self.test_shards])]
        parts = [self._shards(pattern) for pattern in patterns]
        shards = [shard for part in parts for shard in part]
        places = [{shard.resolve() for shard in part} for part in parts]
        if both := places[0] & places[-1] if len(parts) > 1 else set():
            raise UserError(
                f"{printable(min(both))} is among data.train_shards and data.test_shards: a network would be tested on "
                "what it was trained on"
            )
        if missing := [shard for shard in shards if not shard.is_file()]:
            more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
            raise UserError(
                f"{len(missing)} of {len(shards)} shards are missing, {printable(missing[0])}{more}: fetch them, or "
                "set data.root, data.train_shards and data.test_shards to those that there are"
            )
        digest = hashlib.sha256()
        for shard in shards:
            status = shard.stat()
            stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
            digest.update(os.fsencode(f"{shard.relative_to(self.root)} {stamp}\n"))
        stamp = digest.hexdigest()
        cache, identity = self._cache(stamp, "-members.npz")
        found = load_entries(cache, identity)
        if found is None:
            title = f"listing {printable(self.root)}"
            left_out: Counter[str] = Counter()
            tables = [
                _members(shard, k, left_out)
                for k, shard in enumerate(tqdm(shards, desc=title, unit="shard", disable=None))
            ]
            found = dict(zip(("shard", "offset", "length", "label"), np.concatenate(tables, axis=1), strict=True))
            found["left_out"] = np.array(summary(left_out))
            save_entries(cache, identity=identity, **found)
        labels, where = found["label"], found["shard"]
        start = int((where < len(parts[0])).sum())
        if start == 0 or (len(parts) > 1 and start == len(where)):
            beside = f" (but {found['left_out']})" if str(found["left_out"]) else ""
            raise UserError(
                f"no pictures in the shards {printable(self.root / patterns[start > 0])}{beside}: expected are "
                f"<key>{SUFFIXES[0]} or another of {', '.join(SUFFIXES[1:])}, and <key>{LABEL}"
            )
        pictures = Members(shards, where, found["offset"], found["length"], self.size, self.mode, self.fit)
        count = int(labels.max()) + 1
        names = self._classes(labels)
        notes = []
        if left := str(found["left_out"]):
            notes.append(f"left out of {printable(self.root)}: {left}; read are {', '.join(SUFFIXES)}")
        if len(names) > count:
            notes.append(f"{CLASSES} names {len(names)} classes, and no picture is of class {count} or above")
        return Listed(pictures, labels, names, start if len(parts) > 1 else None, tuple(notes), stamp)

    def _shards(self, pattern: str) -> list[Path]:
        """Return the files that a name with a range of numbers means; one without is one file."""
        ranges = RANGE.findall(pattern)
        if not ranges:
            return [self.root / pattern]
        if len(ranges) > 1 or int(ranges[0][0]) > int(ranges[0][1]):
            raise UserError(f"{pattern} must have one range of numbers, the smaller first, as train-{{000..146}}.tar")
        ((first, last),) = ranges
        if int(last) - int(first) >= MOST_SHARDS:
            raise UserError(f"{pattern} means {int(last) - int(first) + 1:,} files: give the range that there is")
        numbers = range(int(first), int(last) + 1)
        return [self.root / RANGE.sub(str(number).zfill(len(first)), pattern) for number in numbers]

    def _classes(self, labels: np.ndarray) -> tuple[str, ...]:
        file, count = self.root / CLASSES, int(labels.max()) + 1
        if not os.path.lexists(file):
            return numbers_as_names(labels, f"number the classes from 0 without a gap, or name all in {CLASSES}")
        try:
            names = tuple(regular(file).read_text("utf-8").split("\n"))
        except UnicodeDecodeError:
            raise UserError(f"{printable(file)} is not UTF-8: write it so, or remove it") from None
        names = tuple(name.strip() for name in names if name.strip())
        if len(names) < count:
            raise UserError(
                f"{printable(file)} names {len(names)} classes, and the shards have class {count - 1}: name all of them"
            )
        return names


def _members(path: Path, number: int, left_out: Counter[str]) -> np.ndarray:
    """Return shard, offset, length and label of every picture of a shard, int64, shape 4N.

    left_out: counts what is neither a picture nor a class. Nothing is unpacked, whatever members are called.
    """
    pictures: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    reached = 0
    try:
        with tarfile.open(path, "r:") as archive, path.open("rb") as stream:
            for member in archive:
                if member.size < 0 or member.offset_data <= reached:
                    raise ValueError("its members overlap")
                reached = member.offset_data
                folder, _, file = member.name.rpartition("/")
                key, dot, ending = file.partition(".")
                if not member.isreg() or not key:
                    left_out["links, devices and folders" if key else "hidden"] += not member.isdir()
                elif f".{ending.lower()}" in SUFFIXES:
                    if f"{folder}/{key}" in pictures:
                        raise ValueError(f"it holds {key} twice")
                    pictures[f"{folder}/{key}"] = member.offset_data, member.size
                elif f".{ending.lower()}" == LABEL:
                    if f"{folder}/{key}" in labels:
                        raise ValueError(f"it holds two classes of {key}")
                    stream.seek(member.offset_data)
                    labels[f"{folder}/{key}"] = _class(stream.read(min(member.size, 20)))
                else:
                    left_out[f"of {printable(dot + ending)[:20]}" if dot else "without an ending"] += 1
            # tarfile takes a header that cannot be read, and the end of a file that was cut, for the end of the archive
            stream.seek(archive.offset)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(f"damaged or cut at byte {archive.offset}")
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        reason = printable(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise UserError(f"{printable(path)} is no shard that can be read ({reason[:200]}): fetch it again") from error
    if lacking := next((key for key in pictures if labels.get(key, -1) < 0), None):
        name = printable(lacking.lstrip("/"))
        raise UserError(
            f"{printable(path)}: the picture {name} has no class: put its number beside it, as {name}{LABEL}"
        )
    rows = [(number, offset, length, labels[key]) for key, (offset, length) in pictures.items()]
    return np.array(rows, np.int64).reshape(-1, 4).T


def _class(content: bytes) -> int:
    """Return the number in a .cls file. Raises ValueError for anything else."""
    word = content.strip()
    if not word.isdigit() or int(word) >= MOST_CLASSES:
        raise ValueError(f"a .cls file holds {word.decode(errors='replace')!r}, no class below {MOST_CLASSES:,}")
    return int(word)
