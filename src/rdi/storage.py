"""The one home of reading and writing: files that are whole or not there, checksums that are read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np

from rdi import mapped
from rdi.confine import check_archive, read_record, regular
from rdi.errors import UserError
from rdi.failures import MAKE_ROOM, REMEDIES
from rdi.locks import refuse_if_gone

PARTIAL = ".partial"
"""Ending of the names of half-written files and folders; they begin with a dot."""
CHECKSUM = "checksum"
"""Entry of a JSON file or of an array file that holds the hash of all its other entries."""


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with regular(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Replace a file by `content`, atomically; folders are made as needed and the umask decides who may read it.

    Raises UserError when the disk refuses, or when a folder that this process holds is not there any more.
    """
    write_stream(path, lambda stream: stream.write(content))


def write_stream(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Replace a file by what `fill` writes to the stream that it is given, atomically; as write_bytes."""
    with _refusals(path):
        _make_parent(path)
        partial = path.parent / f".{secrets.token_hex(8)}{PARTIAL}"
        try:
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with os.fdopen(handle, "wb") as stream:
                fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


def write_folder(folder: Path, contents: Mapping[str, bytes | Callable[[Path], object]]) -> None:
    """Replace a folder by one with these files; it appears complete or not at all. Raises UserError as write_bytes.

    contents: name -> content, or a function that writes the file, called with its path after those before it.
    """
    with _refusals(folder):
        _make_parent(folder)
        partial, old = (folder.parent / f".{secrets.token_hex(8)}{PARTIAL}" for _ in range(2))
        try:
            partial.mkdir()
            for name, content in contents.items():
                write_bytes(partial / name, content) if isinstance(content, bytes) else content(partial / name)
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
        finally:
            for left in (partial, old):
                shutil.rmtree(left, ignore_errors=True)


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Return `content` as the JSON file that write_json writes. Raises ValueError for NaN and infinity."""
    plain = {key: value for key, value in content.items() if key != CHECKSUM}
    return (json.dumps({**plain, CHECKSUM: _json_digest(plain)}, indent=1, allow_nan=False) + "\n").encode()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON with its checksum, atomically. Raises ValueError for NaN and infinity."""
    write_bytes(path, json_bytes(content))


def read_json(path: Path, remedy: str = "restore it, or delete what it belongs to and make that again") -> Any:
    """Read what write_json wrote, without the checksum.

    A file without a checksum, or whose checksum is null, was written by hand and is taken as it is.

    Raises UserError for a file that is missing, no JSON, or not what its checksum says.
    """
    try:
        content = json.loads(read_record(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} does not exist") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged, not JSON ({str(error).splitlines()[0]}): {remedy}") from error
    if not isinstance(content, dict):
        return content
    checksum = content.pop(CHECKSUM, None)
    if checksum is not None and checksum != _json_digest(content):
        raise UserError(
            f"{path} is damaged or was edited (its checksum differs): {remedy}; after an edit on purpose set its "
            f"{CHECKSUM!r} to null"
        )
    return content


def _json_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the sha256 of names, types, shapes and values of arrays; the order does not matter."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        whole = np.ascontiguousarray(array)
        digest.update(whole.reshape(-1).view(np.uint8).data if mapped.large(whole) else whole.tobytes())
    return digest.hexdigest()


def arrays_bytes(arrays: Mapping[str, np.ndarray], *, compress: bool = False) -> bytes:
    """Return arrays as the .npz file that write_arrays writes."""
    buffer = io.BytesIO()
    plain = {name: np.asarray(array) for name, array in arrays.items()}
    save = np.savez_compressed if compress else np.savez
    # first: no flipped bit of the archive's table of contents can hide it and leave the others
    save(buffer, **{CHECKSUM: np.array(arrays_digest(plain)), **plain})  # type: ignore[arg-type]
    return buffer.getvalue()


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compress: bool = False) -> None:
    """Write arrays as .npz with their checksum, atomically; large ones without a copy, for read_arrays to map."""
    if compress or not any(map(mapped.large, arrays.values())):
        write_bytes(path, arrays_bytes(arrays, compress=compress))
    else:
        checked = {CHECKSUM: np.array(arrays_digest(arrays)), **arrays}
        write_stream(path, lambda stream: mapped.write(stream, checked))


def read_arrays(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """Read all arrays of a .npz file, without the checksum. Nothing pickled is ever loaded.

    Large ones are mapped: read where they are looked at, and what is changed in them changes in memory alone.

    remedy: what the user should do about a damaged file.
    Raises UserError for a file that is missing, damaged, or not what its checksum says.
    """
    try:
        check_archive(path)
        on_disk = mapped.read(path)
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: on_disk[name] if name in on_disk else stored[name] for name in stored.files}
        checksum = arrays.pop(CHECKSUM, None)
        whole = checksum is None or str(checksum) == arrays_digest(arrays)
    # what a flipped bit in a zip archive or in an array's header makes numpy raise is no short list
    except (OSError, LookupError, ValueError, TypeError, SyntaxError, EOFError, MemoryError, RuntimeError) as error:
        raise UserError(f"{path} is missing or damaged: {remedy}") from error
    except (BadZipFile, zlib.error, NotImplementedError, AttributeError) as error:
        raise UserError(f"{path} is missing or damaged: {remedy}") from error
    if not whole:
        raise UserError(f"{path} is missing or damaged: {remedy}")
    return arrays


_SEAL = b"\nsha256 "


def write_sealed(path: Path, content: bytes) -> None:
    """Write bytes with their sha256 as a last line behind them, atomically."""
    write_bytes(path, content + _SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n")


def read_sealed(path: Path, remedy: str) -> bytes:
    """Read what write_sealed wrote, without the last line. Raises UserError when the hash differs or is missing."""
    whole = regular(path).read_bytes()
    content, _, seal = whole.rpartition(_SEAL)
    if seal != hashlib.sha256(content).hexdigest().encode() + b"\n":
        raise UserError(f"{path} is damaged (its checksum differs): {remedy}")
    return content


def _make_parent(path: Path) -> None:
    """Make the folder that `path` lies in, but never again one that this process holds and that is gone."""
    for folder in path.absolute().parents:
        refuse_if_gone(folder, f"{path.name} is not written")
    path.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn what the operating system has against writing `path` into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; {REMEDIES.get(error.errno or 0, MAKE_ROOM)}"
        ) from error
