"""Large arrays of a .npz file that are used where they lie: mapped into memory, not read.

Such a file is a zip archive as any other, whose uncompressed entries begin where an array may.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Literal
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np

MAPPED = 64 * 2**20
"""Bytes from which an array is mapped."""
ALIGNED = 64
"""Bytes of which the place of a mapped array is a multiple, as in any file that numpy makes of an array."""
HEADER = 30
"""Bytes of a zip entry's header before its name."""


def large(array: np.ndarray) -> bool:
    """Return whether an array is worth mapping."""
    return array.nbytes >= MAPPED


def write(stream: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a .npz file whose entries `read` can map, array by array."""
    with ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            entry = ZipInfo(f"{name}.npy")
            # before the array: the header, the name, and 20 bytes for sizes of 64 bits
            entry.extra = _padding(stream.tell() + HEADER + len(entry.filename) + 20)
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read(path: Path) -> dict[str, np.ndarray]:
    """Map the large arrays of a .npz file whose headers were checked; what is written to them stays in memory."""
    found: dict[str, np.ndarray] = {}
    with ZipFile(path) as archive, path.open("rb") as stream:
        for entry in archive.infolist():
            if entry.compress_type != ZIP_STORED or entry.file_size < MAPPED:
                continue
            stream.seek(entry.header_offset + HEADER - 4)
            name, extra = np.frombuffer(stream.read(4), "<u2").tolist()
            place = entry.header_offset + HEADER + name + extra
            if place % ALIGNED:  # written by numpy: no array may begin there
                continue
            stream.seek(place)
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(stream)
            order: Literal["F", "C"] = "F" if fortran else "C"
            found[entry.filename.removesuffix(".npy")] = np.memmap(path, dtype, "c", stream.tell(), shape, order)
    return found


def _padding(place: int) -> bytes:
    """Return an extra field after which `place` is a multiple of ALIGNED, of the kind that Android's zipalign adds."""
    length = -(place + 4) % ALIGNED
    return struct.pack("<HH", 0xD935, length) + bytes(length)
