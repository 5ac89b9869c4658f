"""Operating points of runs, kept from one command to the next.

`rdi pareto` computes them from the banks of every run, and keeps them in the user's cache folder under a hash of all
that they depend on: this program's sources, the options, and inode, size and times of every file of the run that is
read. Where one of these differs they are computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import stat
import time
import weakref
import zlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs

from rdi.runs.finished import code

logger = logging.getLogger("rdi")
READ = ("manifest.json", "done", "banks", "bounds", "corrupted")
"""Files and folders of a run that operating points are computed from."""
DAY = 86400
DAYS = 30
"""Days after which an answer is dropped that was not asked for."""
SETTLED = 0.1
"""Seconds after which the time of a file tells a change from the one before."""
WAIT = 10
"""Seconds to wait for another process that writes."""


class PointsIndex:
    """Answers about runs, in one SQLite file. Where none can be written, they are kept as long as this object.

    folder: of the file; None: the user's cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        place = Path(platformdirs.user_cache_dir("rdi")) if folder is None else folder
        self._passing = _tables(sqlite3.connect("", check_same_thread=False))  # a nameless file, gone when it is closed
        self._kept = _open(place / "points.sqlite")
        self._made_by = [code(), version("torch"), version("numpy")]
        weakref.finalize(self, _close, self._passing, self._kept)

    def ask(self, run: Path, question: Any, work: Callable[[], tuple[Any, bool]]) -> str:
        """Return the key of the answer to a question about a run; `work` is called where none is known.

        question: what the answer depends on beside the files of the run; JSON.
        work: returns the answer, JSON, and whether it depends on nothing else. Its warnings are repeated whenever the
            question is asked.
        """
        before = state(run)
        key = hashlib.sha256(json.dumps([self._made_by, str(run), question, before]).encode()).hexdigest()
        if before is not None and (found := self._stored(key)) is not None:
            for line in found["said"]:
                logger.warning("%s", line)
            return key
        with _warnings() as said:
            answer, alone = work()
        content = zlib.compress(json.dumps({"said": said, "answer": answer}).encode(), 1)
        kept = self._kept if alone and before is not None and state(run) == before else None
        if kept is None or not _save(kept, key, content):
            _save(self._passing, key, content)
        return key

    def answer(self, key: str) -> Any:
        """Return the answer under a key that `ask` returned."""
        found = self._stored(key)
        if found is None:
            raise RuntimeError("an answer of this process is gone")
        return found["answer"]

    def _stored(self, key: str) -> Any:
        for one in (self._kept, self._passing):
            if one is not None:
                with contextlib.suppress(sqlite3.Error, zlib.error, ValueError):
                    row = one.execute("SELECT content, used FROM answers WHERE key = ?", (key,)).fetchone()
                    if row is not None:
                        found = json.loads(zlib.decompress(row[0]))
                        if row[1] < _now() - DAY:
                            one.execute("UPDATE answers SET used = ? WHERE key = ?", (_now(), key))
                            one.commit()
                        return found
        return None


def state(run: Path) -> list[Any] | None:
    """Return inode, size and times of all files that operating points are computed from.

    None where these would not tell every change: of links, whose targets change unseen, and of a file that was written
    less than SETTLED seconds ago.
    """
    found: list[Any] = []
    places = [run / name for name in READ]
    newest = 0
    while places:
        path = places.pop()
        try:
            one = path.lstat()
            if stat.S_ISDIR(one.st_mode):
                places += sorted(path / name for name in os.listdir(path) if not name.startswith("."))
                continue
        except FileNotFoundError:
            continue
        except OSError:
            return None  # whoever reads it says why
        if stat.S_ISREG(one.st_mode):
            name = path.relative_to(run).as_posix()
            found.append([name, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns])
            newest = max(newest, one.st_ctime_ns)
        else:
            return None
    return found if time.time_ns() - newest > SETTLED * 1e9 else None


def _open(path: Path) -> sqlite3.Connection | None:
    """The file of answers, made again where it is damaged; None where there can be none."""
    for _ in range(2):
        made = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            made = sqlite3.connect(path, timeout=WAIT, check_same_thread=False)
            _tables(made).execute("DELETE FROM answers WHERE used < ?", (_now() - DAYS * DAY,))
            made.commit()
            return made
        except (sqlite3.OperationalError, OSError):  # locked, read-only, or no room
            _close(made)
            return None
        except sqlite3.DatabaseError:
            _close(made)
            with contextlib.suppress(OSError):
                path.unlink()
    return None


def _close(*connections: sqlite3.Connection | None) -> None:
    for one in filter(None, connections):
        one.close()


def _now() -> int:
    return int(time.time())


def _tables(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.execute("PRAGMA synchronous = OFF")  # what a power cut takes is worked out again
    connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, used INTEGER, content BLOB)")
    connection.execute("CREATE INDEX IF NOT EXISTS by_use ON answers (used)")
    return connection


def _save(where: sqlite3.Connection, key: str, content: bytes) -> bool:
    """Store an answer; whether that was possible."""
    try:
        where.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, _now(), content))
        where.commit()
    except sqlite3.Error:
        return False
    return True


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect the warnings that are logged inside."""
    said: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Collect(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
