"""Say things: progress on stderr and in the run folder's log.txt, mistakes as one line."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rdi.cli import _words
from rdi.errors import UserError
from rdi.report import terminal
from rdi.text import visible

logger = logging.getLogger("rdi")


class _Visible(logging.Formatter):
    """Lines in which nothing that a terminal acts upon is left: names in them may come from anybody's folder."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), lines=True)


class _Console(logging.Handler):
    """Lines on today's sys.stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        # wrapped where somebody reads along; what is piped keeps one line a message
        tqdm.write(terminal.fit(text, indent="  ") if sys.stderr.isatty() else text, file=sys.stderr)


class _LogFile(logging.FileHandler):
    """The log.txt of a run folder; a class of its own so that it can be found and closed."""

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is reported by what writes the results, not once a line by the log."""

    def close(self) -> None:
        """Close the file; a full disk is no reason to fail."""
        with contextlib.suppress(OSError):
            super().close()


def say(text: str) -> None:
    """Print what a command is asked for; long lines are wrapped."""
    print(terminal.fit(text))


def start() -> None:
    """Log to stderr from now on, and draw into files only. Safe to call twice."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook's, or one that is not installed, would fail on import
    if not logger.handlers:
        handler = _Console()
        handler.setFormatter(_Visible("%(message)s"))
        logger.addHandler(handler)
        # of several ranks one speaks
        logger.setLevel(logging.CRITICAL + 1 if os.environ.get("RANK", "0") != "0" else logging.INFO)
        logger.propagate = False


def log_to(path: Path) -> None:
    """From now to the end of the job, log to this file too. Safe to call twice, as the stages of one job do."""
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


EXTRAS = {
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/launcher/submitit_slurm": "slurm",
    "hydra/launcher/ray": "ray",
}
"""Choices that come with an extra of ours."""


def one_line(error: BaseException) -> str:
    """Say what is wrong and what to type next, out of an exception of ours, of Hydra's or of OmegaConf's."""
    return shortened(visible(_message(error)))


def _message(error: BaseException) -> str:
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    if missing := next((name for name in EXTRAS if f"Could not find '{name}'" in message), None):
        return f"{missing} is not installed: pip install 'rdi[{EXTRAS[missing]}]'"
    if "No match in the defaults list" in message:
        return (
            f"there is no {message.partition(chr(39))[2].partition(chr(39))[0]}=... here: a finished run knows its own"
        )
    typed = str(getattr(error, "override", None) or "").partition("=")[0]
    if typed and typed not in message:
        message = f"{typed} cannot be read: {message}"
    if "Available options" in str(error):
        start = next(i for i, line in enumerate(lines) if "Available options" in line)
        options = [line for line in lines[start + 1 :] if " " not in line]
        return f"{message.removeprefix('In ').split(': ', 1)[-1]}; choose one of {', '.join(options)}"
    cause = error.__cause__
    if cause is not None and str(cause).strip():
        reason = str(cause).strip().splitlines()[0]
        if "is not in struct" in reason or "not in '" in reason:
            option = message.partition("'")[2].partition("'")[0]
            inner = re.search(r"Key '([^']*)'", reason)
            if inner and inner[1] not in option.split("."):
                return f"{option} has no {inner[1]} here: write ++{option}=... to put a node of another kind there"
            return f"there is no option {option}; {_known(option, cause)}"
        message += f" ({reason})"
    if "could not be converted to" in message and "/255" in message:
        key, _, rest = message.partition("override ")[2].partition("=")
        message += f"; for n/255 write '{key}=${{px:{rest.partition('/')[0]}}}' on the command line"
    if "Missing mandatory value: " in message:
        key = message.rpartition("value: ")[2]
        return f"{key} is missing: give {key}=..."
    if "interpolation" in message.lower() and "UserError" not in message:
        message += "; write '${px:8}' for 8/255, or '${key}' for the value of another option"
    if "Ambiguous value" in message:
        message += "; add -m to run every value, or quote a list as 'key=[1,2]'"
    if message.startswith("LexerNoViableAltException: "):
        message = f"{message.partition(': ')[2]} cannot be read: it has a character that means something to Hydra"
    if "parsing override" in message or "expecting" in message or "cannot be read: it has" in message:
        message += "; options are key=value, in single quotes where the value has special characters"
    return message


def _known(option: str, cause: BaseException) -> str:
    """Hint with the options that there are beside the unknown one, as OmegaConf's exception tells them."""
    node: Any = getattr(cause, "parent_node", None)
    leaves = [] if node is None else list(_leaves(node._get_root()))
    group = option.rpartition(".")[0]
    known = sorted(leaf for leaf in leaves if leaf.rpartition(".")[0] == group)
    # what is Hydra's own is no option of the command, and is known by its node alone
    beside = [] if known or node is None or not group.startswith("hydra") else sorted(f"{group}.{key}" for key in node)
    return _words.unknown(option, known or beside, leaves)


def _leaves(node: Any, at: str = "") -> Iterator[str]:
    """Every option below a config, dotted; Hydra's own left out."""
    from omegaconf import DictConfig

    for key in node:
        if str(key).startswith("_") or (not at and key == "hydra"):
            continue
        value = node._get_node(key)
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_missing():
            yield from _leaves(value, f"{at}{key}.")
        yield f"{at}{key}"


def shortened(text: str) -> str:
    """`text` without the middle of words of more than 400 characters: what informs is the rest of the line."""

    def middle(found: re.Match[str]) -> str:
        word = found.group()
        return f"{word[:200]}...({len(word) - 300} more characters)...{word[-100:]}"

    return re.sub(r"\S{401,}", middle, text)
