"""Ranks that do not lead open the run that the leading one works on."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from rdi.ranks import Ranks, current
from rdi.runs.folder import Run


def assisted(run: Run) -> Ranks:
    """Have the other ranks open `run`, too. Raises UserError where one cannot."""
    ranks = current()
    ranks.call(assist, run.arguments)
    with ranks.agreed():
        return ranks


def assist(ranks: Ranks, stop: Callable[[], bool], arguments: dict[str, Any]) -> None:
    """Open the run of the leading rank; modules that it may name are those that this command trusts."""
    del stop
    with ranks.agreed():
        opened(arguments)


def opened(arguments: dict[str, Any]) -> Run:
    """Return the run of Run.arguments with network and data, loaded once for all that a rank does with it."""
    return _opened(**{**arguments, "trust": tuple(arguments["trust"])})


@lru_cache(maxsize=1)
def _opened(**arguments: Any) -> Run:
    return Run.open(**arguments).load()
