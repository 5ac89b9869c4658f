"""Print what a command is asked for, and mistakes as one line."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, TypeVar

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


def one_line(error: BaseException) -> str:
    """Say what is wrong and what to type next, out of an exception of ours, of Hydra's or of OmegaConf's."""
    return hints.shortened(visible(hints.message(error, _known)))


def _known(option: str, cause: BaseException) -> str:
    """Hint with the options that there are beside the unknown one, as OmegaConf's exception tells them."""
    node: Any = getattr(cause, "parent_node", None)
    leaves = [] if node is None else list(_leaves(node._get_root()))
    # what is Hydra's own is no option of the command, and is known by its node alone
    own = [] if node is None or not option.startswith("hydra.") else [node._get_full_key(key) for key in node]
    return hints.unknown(option, sorted(own) or hints.beside(option, leaves), leaves)


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
