"""List the pictures of a folder: which files are read, in which order, and what is left out."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rdi.data.pictures import SUFFIXES
from rdi.errors import UserError

LAYOUT = "train/<class>/ and test/<class>/ (or val/<class>/), or <class>/ alone"
SPECIAL = {
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
"""Kinds of file that would block a reader for ever, or never end."""
OUTSIDE = "beside the class folders"
UNSEEN = {errno.ELOOP: "link in a circle", errno.ENOENT: "dangling link"}


@dataclass
class Listing:
    """Files and labels in an order that depends on names alone.

    files: paths below the root; text, as a million Path objects would fill a gigabyte.
    test: name of the folder of the official test part, "test" or "val".
    test_start: index of the first file of the official test part, None without one.
    left_out: what -> how many.
    lacking: classes without test images.
    """

    class_names: tuple[str, ...]
    files: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    test: str = "test"
    test_start: int | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    lacking: list[str] = field(default_factory=list)

    def notes(self, root: Path) -> list[str]:
        """Return what a user should know, a line each."""
        found = []
        if self.left_out:
            found.append(f"left out of {printable(root)}: {summary(self.left_out)}; read are {', '.join(SUFFIXES)}")
        if self.lacking:
            found.append(f"{printable(root / self.test)} has no images of {', '.join(map(printable, self.lacking))}")
        return found


def listing(root: Path) -> Listing:
    """List the picture files below `root`, in class folders below train/ and test/ (or val/), or without these two.

    Raises UserError for a folder that is not there or not readable, no images in a part or in a class of training,
    classes in one part only, and fewer than two.
    """
    if not os.path.isdir(root):
        raise UserError(f"no folder {printable(root)}: set data.root=DIR to the folder that holds train/<class>/*.jpg")
    test = "val" if os.path.isdir(root / "val") and not os.path.isdir(root / "test") else "test"
    official = os.path.isdir(root / "train") and os.path.isdir(root / test)
    parts = [root / "train", root / test] if official else [root]
    left_out: Counter[str] = Counter()
    if official:
        folders, pictures = _entries(root, Counter())
        left_out.update(f"folder {printable(name)}/" for name in folders if name not in ("train", test))
        left_out.update(OUTSIDE for _ in pictures)
    names, *other = (_classes(part, left_out) for part in parts)
    if other and (odd := sorted({*names} ^ {*other[0]})):
        lacking = printable(parts[odd[0] in names])
        raise UserError(f"{lacking} has no class {printable(odd[0])!r}: train and {test} must hold the same folders")
    found = Listing(names, left_out=left_out, test=test)
    for part in parts:
        begin = len(found.files)
        found.test_start = begin or None
        empty = []
        for label, name in enumerate(names):
            here: Counter[str] = Counter()
            folders, pictures = _entries(part / name, here)
            here.update("folder inside a class" for _ in folders)
            below = os.path.relpath(part / name, root)
            found.files += (f"{below}/{picture}" for picture in sorted(pictures, key=_natural))
            found.labels += [label] * len(pictures)
            left_out += here
            if not pictures:
                empty.append((name, here))
        if len(found.files) == begin:
            raise UserError(
                f"no images in {printable(part)}{_beside(left_out)}: expected {LAYOUT}, "
                f"in each class {', '.join(SUFFIXES)}"
            )
        if part == parts[0] and empty:
            name, here = empty[0]
            raise UserError(
                f"the class folder {printable(part / name)} has no images{_beside(here)}: put some there or remove it; "
                f"expected {LAYOUT}, in each class {', '.join(SUFFIXES)}"
            )
        if part != parts[0]:
            found.lacking = [name for name, _ in empty]
    if len(names) < 2:
        raise UserError(
            f"{printable(parts[0])} must hold at least two classes, one folder each, "
            f"got {', '.join(map(printable, names))}"
        )
    return found


def printable(name: object) -> str:
    """Return a path or name as it can be printed anywhere: control characters and bytes that are no text escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))


def summary(left_out: Counter[str]) -> str:
    """Describe what was left out, as `3 of .txt, 1 pipe`: the most frequent first."""
    return ", ".join(
        f"{count} {what}" for what, count in sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    )


def _beside(left_out: Counter[str]) -> str:
    return f" (but {summary(left_out)})" if left_out else ""


def _classes(part: Path, left_out: Counter[str]) -> tuple[str, ...]:
    """Names of the class folders, sorted; hidden ones are tools'."""
    here: Counter[str] = Counter()
    folders, pictures = _entries(part, here)
    left_out += here
    left_out.update(OUTSIDE for _ in pictures)
    for name in folders:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"the class folder {printable(part / name)} has a name that is not UTF-8: rename it"
            ) from None
    return tuple(sorted(folders))


def _entries(folder: Path, left_out: Counter[str]) -> tuple[list[str], list[str]]:
    """Names of the folders and of the pictures right below `folder`; what is neither is counted in `left_out`."""
    folders, pictures = [], []
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(f"the folder {printable(folder)} cannot be read ({error.strerror})") from error
    for name in names:
        suffix = os.path.splitext(name)[1].lower()
        try:
            kind = stat.S_IFMT(os.stat(folder / name).st_mode)
        except OSError as error:
            left_out[UNSEEN.get(error.errno or 0, "not accessible")] += 1
            continue
        if name.startswith("."):
            left_out["hidden"] += 1
        elif kind == stat.S_IFDIR:
            folders.append(name)
        elif kind in SPECIAL:
            left_out[SPECIAL[kind]] += 1
        elif suffix in SUFFIXES:
            pictures.append(name)
        else:
            left_out[f"of {printable(suffix)}" if suffix else "without an ending"] += 1
    return folders, pictures


def _natural(name: str) -> tuple[int, str]:
    """Sort 2.jpg before 10.jpg."""
    stem = os.path.splitext(name)[0]
    return (int(stem), name) if stem.isdecimal() else (-1, name)
