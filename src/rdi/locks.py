"""Locks on folders: one process works in a folder, and notices when it goes away meanwhile."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rdi import signals
from rdi.confine import refuse_links
from rdi.errors import UserError

LOCK = ".lock"
"""Name of the lock file in a folder that a process holds."""

_held: dict[Path, tuple[int, int]] = {}
"""Folders that this process holds -> device and inode, to notice when one is deleted or moved away meanwhile."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep every other process out of `folder`. It is made if need be, and goes again if it stays empty.

    The operating system frees the lock when its process ends, however it ends.

    Raises UserError when another process holds it, or the folder or its lock cannot be made.
    """
    refuse_links(folder)
    path = folder / LOCK
    place = folder.absolute()
    lock = FileLock(path, timeout=0)
    made: list[Path] = []
    try:
        with signals.deferred():
            made += _make(folder)
            _acquire(lock, folder)
            status = folder.stat()
            _held[place] = (status.st_dev, status.st_ino)
            _sign(path)
        try:
            yield
        except (UserError, OSError) as error:
            refuse_if_gone(folder, str(error))
            raise
        refuse_if_gone(folder, "")
    finally:
        with signals.deferred():
            if lock.is_locked:
                _held.pop(place, None)
                # while it is held: whoever waits for this very file finds that it is gone and makes another one
                with contextlib.suppress(OSError):
                    path.unlink()
                lock.release()
            _remove(made)


def _acquire(lock: FileLock, folder: Path) -> None:
    path = folder / LOCK
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{folder} is in use by {_holder(path)}: wait until it ends, or choose another folder"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write in {folder}: {error.strerror} ({path}); choose another folder or make this one writable"
        ) from error


def _sign(path: Path) -> None:
    """Say in the lock file whose it is, for the message to others; a full disk has no room for it."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, "wb") as stream:
            stream.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def _holder(path: Path) -> str:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, "rb") as stream:
            text = stream.read(200).decode(errors="replace").strip()
    except OSError:
        text = ""
    return text if text.isprintable() and text else "another process"


def _make(folder: Path) -> list[Path]:
    """Make the folder and its parents; those that were not there, innermost first."""
    missing: list[Path] = []
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove(missing)
        raise UserError(
            f"cannot make the folder {folder}: {error.strerror} ({error.filename}); choose another one"
        ) from error
    return missing


def _remove(made: list[Path]) -> None:
    for path in made:
        try:
            path.rmdir()
        except OSError:  # not empty: it is in use
            break


def refuse_if_gone(folder: Path, consequence: str) -> None:
    """Raise UserError if this process holds the folder and another one, or none, is in its place now."""
    held = _held.get(folder.absolute())
    if held is None:
        return
    try:
        status = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        status = None
    if status is None or (status.st_dev, status.st_ino) != held:
        why = f" ({consequence})" if consequence and "was deleted, moved" not in consequence else ""
        raise UserError(
            f"{folder} was deleted, moved or replaced while this command worked in it, and nothing more is written "
            f"there{why}: move it back, or start again with the same command"
        )
