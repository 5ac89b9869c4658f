"""One process at a time in a folder: a lock file that the operating system frees when its process ends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rdi.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Inside, no other process gets hold of `folder`. It is made if need be, and goes again if it stays empty.

    Raises UserError when another process holds it or it cannot be made. Without lock support (Windows, some network
    file systems) nothing is locked.
    """
    made = _make(folder)
    lock = _Lock(folder)
    try:
        lock.take()
        yield
    finally:
        lock.give_back()
        _remove(made)


class _Lock:
    """The locked file of a folder. handle: its file descriptor, None while it is not held or where there are no locks.

    An object, so that a signal between the locking and the work still finds what is to be given back.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / NAME
        self.handle: int | None = None

    def take(self) -> None:
        """Raises UserError when another process holds it or it cannot be made."""
        if fcntl is None:
            return
        while True:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise UserError(
                    f"cannot write in {self.folder}: {error.strerror}; choose another folder or make this one writable"
                ) from error
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
                os.close(handle)
                raise UserError(
                    f"{self.folder} is in use by {holder}: wait until it ends, or choose another folder"
                ) from None
            except OSError:
                os.close(handle)
                self.path.unlink(missing_ok=True)
                return
            try:
                same = os.stat(self.path).st_ino == os.fstat(handle).st_ino
            except FileNotFoundError:
                same = False
            if same:
                break
            os.close(handle)  # its holder has just removed it: take the next one
        self.handle = handle
        with contextlib.suppress(OSError):  # a full disk has room for no name
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def give_back(self) -> None:
        """Remove the file and free it, if it is held."""
        if self.handle is not None:
            self.path.unlink(missing_ok=True)
            os.close(self.handle)


def _make(folder: Path) -> list[Path]:
    """Make the folder and its parents; those that were not there, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
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
