"""Keep reading and writing within a folder that somebody else may have made."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import numpy as np

from rdi.errors import UserError
from rdi.text import visible

LARGEST_RECORD = 16 * 2**20
"""Bytes of a JSON file; those of a sweep of a thousand runs have a tenth of it."""
LARGEST_RATIO = 1100
"""Most bytes that deflate can make of one byte."""
LARGEST_UNPACKED = 2**30
"""Bytes of the arrays of one compressed file; galleries have a few million."""


def refuse_links(folder: Path) -> None:
    """Raise UserError for anything below `folder` that a write would go through to somewhere else, or wait at.

    Links out of the folder, pipes, sockets and devices, and a lock or log with a second name. Links within the folder
    (wandb makes some) may stay.
    """
    try:
        root = folder.resolve(strict=True)
    except OSError:
        return
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            try:
                status = path.lstat()
            except OSError:
                continue
            shown = visible(str(path))
            if stat.S_ISLNK(status.st_mode):
                target = path.resolve()
                if target != root and root not in target.parents:
                    raise UserError(
                        f"{shown} is a link out of its folder (to {visible(str(target))}), and nothing is written "
                        "through one: put a copy in its place, or remove it"
                    )
            elif not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
                raise UserError(f"{shown} is a pipe, a socket or a device, which no folder of rdi has: remove it")
            elif status.st_nlink > 1 and stat.S_ISREG(status.st_mode) and name in (".lock", "log.txt"):
                raise UserError(f"{shown} has a second name elsewhere (a hard link): put a copy in its place")


def regular(path: Path) -> Path:
    """Return `path` if it is a file or nothing. Raises UserError for a folder, a pipe or a device."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file: remove it, and make again what it belongs to")
    return path


def read_record(path: Path) -> bytes:
    """Return the content of a JSON file.

    Raises UserError for what is no file, or too large to be a record.
    Raises FileNotFoundError when there is nothing.
    """
    size = regular(path).stat().st_size
    if size > LARGEST_RECORD:
        raise UserError(
            f"{path} is damaged: {size / 2**20:.0f} MiB is larger than any record (at most "
            f"{LARGEST_RECORD // 2**20} MiB)"
        )
    return path.read_bytes()


def check_archive(path: Path) -> None:
    """Check the headers of a .npz file before anything is allocated for what they announce.

    Raises ValueError for arrays of objects, and for arrays that are not as large as the file says or than it can hold;
    OSError for what is no file; BadZipFile.
    """
    if not path.is_file():
        raise OSError(f"{path} is no file")
    size = path.stat().st_size
    with ZipFile(path) as archive:
        members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if any(member.file_size > LARGEST_RATIO * (member.compress_size + 1) for member in members) or unpacked > max(
            size, LARGEST_UNPACKED
        ):
            raise ValueError("it unpacks to more than it can hold")
        for member in members:
            _check_header(archive, member)


def _check_header(archive: ZipFile, member: ZipInfo) -> None:
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        if dtype.hasobject:
            raise ValueError("it holds objects")
        announced = dtype.itemsize
        for length in shape:
            announced *= int(length)
        if announced < 0 or stream.tell() + announced != member.file_size:
            raise ValueError("an array is not as large as its header says")
