"""Progress on stderr and in the run folder's log.txt."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from pathlib import Path

from tqdm import tqdm

from rdi.report import terminal
from rdi.text import visible

logger = logging.getLogger("rdi")


class _Visible(logging.Formatter):
    """Lines in which nothing that a terminal acts upon is left: names in them may come from anybody's folder."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), lines=True)


class Console(logging.Handler):
    """Lines on today's sys.stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; wrapped where somebody reads along, what is piped keeps one line a message."""
        text = self.format(record)
        tqdm.write(terminal.fit(text, indent="  ") if sys.stderr.isatty() else text, file=sys.stderr)


class _LogFile(logging.FileHandler):
    """The log.txt of a run folder; a class of its own so that it can be found and closed."""

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is reported by what writes the results, not once a line by the log."""

    def close(self) -> None:
        """Close the file; a full disk is no reason to fail."""
        with contextlib.suppress(OSError):
            super().close()


def start() -> None:
    """Log to stderr from now on, and draw into files only. Safe to call twice."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook's, or one that is not installed, would fail on import
    if "RANK" in os.environ:  # torch's sockets log a stack trace of every try; what became of them is said in one line
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    if not logger.handlers:
        handler = Console()
        handler.setFormatter(_Visible("%(message)s"))
        logger.addHandler(handler)
        # of several ranks one speaks
        logger.setLevel(logging.CRITICAL + 1 if os.environ.get("RANK", "0") != "0" else logging.INFO)
        logger.propagate = False


def log_to(path: Path) -> None:
    """Log to this file too, until close_log_files. Safe to call twice, as the stages of one job do."""
    here = str(path.resolve())
    if any(isinstance(handler, _LogFile) and handler.baseFilename == here for handler in logger.handlers):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(here)
    handler.setFormatter(_Visible("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)


def log_quietly(text: str) -> None:
    """Write to the log files alone, for what reaches stderr in another way."""
    for handler in logger.handlers:
        if isinstance(handler, _LogFile):
            handler.emit(logger.makeRecord(logger.name, logging.ERROR, "", 0, text, (), None))


def log_traceback() -> None:
    """Write the traceback of the exception that is being handled to the log files."""
    log_quietly(traceback.format_exc().rstrip())


def close_log_files() -> None:
    """End what log_to began."""
    for handler in list(logger.handlers):
        if isinstance(handler, _LogFile):
            logger.removeHandler(handler)
            handler.close()
