"""Failures that are the machine's and no bug, in one line each: disk, memory, file names, a missing home."""

from __future__ import annotations

import errno

from rdi.errors import UserError

REMEDIES = {
    errno.EFBIG: "files may not grow that large here (`ulimit -f`, or the file system): raise that, or choose another "
    "folder",
    errno.EMFILE: "raise the number of files that may be open (`ulimit -n`)",
    errno.ENFILE: "raise the number of files that may be open (`ulimit -n`)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "a folder lies where a file belongs: name a file, or move it away",
    errno.ENOTDIR: "a file lies where a folder belongs: name a folder, or move it away",
    errno.EEXIST: "a file lies where a folder belongs: name a folder, or move it away",
    errno.ENOENT: "it is gone, or was never there: restore it, or name another one",
    errno.ELOOP: "a link that leads to itself: remove it",
    errno.EACCES: "make it readable and writable, or choose another folder",
    errno.EPERM: "make it readable and writable, or choose another folder",
    errno.EROFS: "make it writable, or choose another folder",
    errno.EINVAL: "this is no place for such a file: choose another one",
}
"""Error of the operating system -> what to do about it; for all others the disk is full or broken."""
MAKE_ROOM = "make room or choose another folder, then run the same command again"
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "unable to allocate",
    "tried to allocate",
    "not enough memory",
    "bad_alloc",
    "could not create a primitive",
    "could not create a memory",
    "could not execute a primitive",
    "alloc_failed",
    "storage size calculation overflowed",
)
"""Messages of torch, its libraries, numpy and CUDA, in lower case, when memory is short."""
BATCH_SIZE = {
    "train": "optim.batch_size=...",
    "run": "optim.batch_size=... (training) or batch_size=... (attacks)",
    "evaluate": "number of images: `rdi attack` with samples=...",
    "pareto": "number of images: `rdi attack` with samples=...",
    "report": "number of images: `rdi attack` with samples=...",
}
"""Command -> the option that its use of memory hangs on; batch_size where it is not listed."""


def explained(error: BaseException, command: str) -> UserError | None:
    """Return the line for an exception that is no bug of ours; None for any other."""
    if (isinstance(error, MemoryError | RuntimeError) or _errno(error) == errno.ENOMEM) and memory_is_short(error):
        return UserError(
            f"out of memory ({_first_line(error)}): take a smaller {BATCH_SIZE.get(command, 'batch_size=...')}, or end "
            "what else uses the memory"
        )
    if isinstance(error, OSError) and error.errno and not isinstance(error, BrokenPipeError):
        return UserError(disk(error))
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # no OSError up to Python 3.12
        return UserError(f"cannot read or write {_first_line(error).rpartition('from ')[2]}: {REMEDIES[errno.ELOOP]}")
    if isinstance(error, ValueError) and "null byte" in str(error):
        return UserError("a file name with a null byte: choose another one")
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return UserError("~ stands for a home folder, and there is none (HOME is not set): write the whole path")
    return None


def memory_is_short(error: BaseException) -> bool:
    """Return whether an exception says that memory could not be had."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(phrase in text for phrase in OUT_OF_MEMORY)


def disk(error: OSError) -> str:
    """Say what the operating system refused, on which file, and what to do about it."""
    names = " -> ".join(repr(name)[1:-1] for name in (error.filename, error.filename2) if isinstance(name, str | bytes))
    place = f" {names}" if names else ""
    return f"cannot read or write{place}: {error.strerror}; {REMEDIES.get(error.errno or 0, MAKE_ROOM)}"


def _errno(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:200] if lines else type(error).__name__
