"""Print what a command is asked for, and mistakes as one line."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

from rdi.errors import UserError
from rdi.report import hints, terminal
from rdi.text import visible

Returned = TypeVar("Returned")


def say(text: str) -> None:
    """Print what a command is asked for; long lines are wrapped."""
    print(terminal.fit(text))


def say_all(texts: Generator[str, None, Returned]) -> Returned:
    """Print what a stage says, as it says it, and return what the stage returns."""
    while True:
        try:
            text = next(texts)
        except StopIteration as end:
            returned: Returned = end.value
            return returned
        say(text)


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
    return hints.unknown(option, known or beside, leaves)


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
