"""Let a run folder make us do nothing but what rdi itself writes into one; others' code runs on request only."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from rdi.config import KINDS, canonical, kind_of
from rdi.errors import UserError
from rdi.text import is_visible, visible

GROUPS = (
    *("attack", "backbone", "compression", "data", "defense", "engine", "exits", "gates", "optim", "threshold"),
    "tracking",
)
"""Options of a config that hold a node of the kind that they are called by."""
SUITE = "suite"
"""The option that holds attacks by name."""
NO_PLUGINS = sys.stdlib_module_names | {"hydra", "numpy", "omegaconf", "rdi", "scipy", "torch", "torchvision"}
"""Packages that nobody's own attack or defense lies in: no message tells the user to trust them."""
LARGEST = 2**64
"""No whole number of a record is larger; seeds of 64 bits are not."""
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class _Granted:
    """modules: whose classes and functions may be built; targets: single ones that the user named in this command."""

    modules: frozenset[str] = frozenset()
    targets: frozenset[str] = frozenset()


_NOTHING = _Granted()
_granted: ContextVar[_Granted] = ContextVar("granted", default=_NOTHING)


@contextmanager
def trusted(modules: Iterable[str] = (), config: Any = None) -> Iterator[None]:
    """Let records name classes and functions of these modules of the user's, in this thread, until the end.

    config: the composed config of a command; what it names itself may stand in records too.
    Raises UserError for anything but names of modules.
    """
    names = [modules] if isinstance(modules, str) else list(modules)
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"trust must list modules, as in trust=[my_attacks]; got {visible(repr(name))}")
    before = _granted.get()
    token = _granted.set(
        _Granted(before.modules | {*names}, before.targets | {*targets(config)}),
    )
    try:
        yield
    finally:
        _granted.reset(token)


def targets(tree: Any) -> Iterator[str]:
    """Yield every `_target_` in a config."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if key == "_target_" and isinstance(value, str):
                yield value
            else:
                yield from targets(value)
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from targets(item)


def check_values(content: Any, at: str = "", *, numbers: bool = True) -> None:
    """Refuse what no record of ours holds: text that a terminal acts upon, NaN, infinity, numbers beyond 64 bits.

    content: of a JSON file.
    at: where it stands.
    numbers: False to look at text alone.
    Raises UserError.
    """
    if isinstance(content, dict):
        for key, value in content.items():
            if not is_visible(key):
                raise UserError(f"{at or 'it'} has the key '{visible(key)}', with control characters")
            check_values(value, f"{at}.{key}" if at else key, numbers=numbers)
    elif isinstance(content, list):
        for index, item in enumerate(content):
            check_values(item, f"{at}[{index}]", numbers=numbers)
    elif isinstance(content, str):
        if not is_visible(content):
            raise UserError(f"{at} is '{visible(content)[:200]}', with control characters")
    elif not numbers:
        return
    elif isinstance(content, float):
        if not math.isfinite(content):
            raise UserError(f"{at} is {content}")
    elif isinstance(content, int) and abs(content) >= LARGEST:
        raise UserError(f"{at} has more than 64 bits")


def check_config(config: Mapping[str, Any]) -> None:
    """Check the config that a record holds: nodes where the groups are and of their kinds, no nodes elsewhere.

    Nothing is imported for that but modules that the user trusts.

    Raises UserError.
    """
    for key, value in config.items():
        if key in GROUPS:
            check_node(value, key, key, optional=True)
        elif key == SUITE and isinstance(value, Mapping):
            for name, node in value.items():
                check_node(node, f"{SUITE}.{name}", "attack", optional=True)
        else:
            _check(value, key, ())


def check_node(node: Any, at: str, kind: str, *, optional: bool = False) -> None:
    """Check a node of a record, at every depth: it builds something of `kind`, and that of what may lie in it.

    at: where it stands.
    optional: None will do.
    Raises UserError.
    """
    if node is None and optional:
        return
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(f"{at} names nothing that could be built (it has no _target_)")
    _check(node, at, (kind,))


def _check(tree: Any, at: str, kinds: tuple[str, ...] | None) -> None:
    """kinds: of the nodes that may stand here; None: any, below what the user trusts."""
    if isinstance(tree, Mapping):
        inside = kinds
        if "_target_" in tree:
            inside = _check_target(tree, at, kinds)
        for key, value in tree.items():
            if not isinstance(key, str) or (key.startswith("_") and key not in ("_target_", "_partial_")):
                raise UserError(f"{at} has the key {visible(str(key))}, which no run of rdi has")
            if "_target_" not in tree and key == "_partial_":
                raise UserError(f"{at} has the key _partial_ and no _target_")
            if key not in ("_target_", "_partial_"):
                _check(value, f"{at}.{key}", inside)
    elif isinstance(tree, list):
        for index, item in enumerate(tree):
            _check(item, f"{at}[{index}]", kinds)
    elif isinstance(tree, str) and ("${" in tree or tree == "???"):
        raise UserError(f"{at} is '{visible(tree)[:200]}': records hold values, no interpolations")


def _check_target(node: Mapping[str, Any], at: str, kinds: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Check what a node names -> the kinds of nodes that may stand in it."""
    target, partial = node["_target_"], node.get("_partial_", False)
    if not isinstance(target, str):
        raise UserError(f"{at}._target_ is no name")
    name = canonical(target)
    kind = kind_of(name)
    if kind is None:
        _check_foreign(target, at)
        if not isinstance(partial, bool):
            raise UserError(f"{at}._partial_ is neither true nor false")
        return None
    if name != target or (kinds is not None and kind not in kinds):
        expected = "no node at all" if not kinds else f"a node of the kind {' or '.join(kinds or ())}"
        raise UserError(f"{at} names {visible(target)}, where rdi writes {expected}")
    if partial is not KINDS[kind].partial:
        raise UserError(f"{at}: {target} with _partial_={visible(str(partial))}, which no run of rdi has")
    return KINDS[kind].inside


def _check_foreign(target: str, at: str) -> None:
    """Raise UserError unless the user trusts what is not ours."""
    granted = _granted.get()
    if target in granted.targets:
        return
    if not _NAME.fullmatch(target) or "__" in target:
        raise UserError(f"{at} names '{visible(target)[:200]}', which is no name of a class or function")
    module = next((one for one in granted.modules if target.startswith(f"{one}.")), None)
    if module is None and target.partition(".")[0] in NO_PLUGINS:
        raise UserError(f"{at} names {target}, which no run of rdi has and which would run as code: it was not called")
    if module is None:
        raise UserError(
            f"{at} names {target}, which is not part of rdi and would run as code: if it is yours, or you trust "
            f"whoever made it, add trust=[{target.rpartition('.')[0] or target}]"
        )
    if not _defined_in(module, target):
        raise UserError(f"{at} names {target}, which is no class or function of the module {module} that you trust")


def _defined_in(module: str, target: str) -> bool:
    """Return whether `target` is a class or function that is written in `module`, or in a module of that package."""
    words = target.split(".")
    for end in range(len(words) - 1, 0, -1):
        place = ".".join(words[:end])
        if place != module and not place.startswith(f"{module}."):
            break
        try:
            found: Any = importlib.import_module(place)
        except ModuleNotFoundError:
            continue
        for word in words[end:]:
            found = getattr(found, word, None)
            if inspect.ismodule(found):
                return False
        home = getattr(found, "__module__", None)
        return (inspect.isclass(found) or inspect.isroutine(found)) and (
            home == module or str(home).startswith(f"{module}.")
        )
    raise UserError(f"trust={module}: there is no such module here; put it where Python finds it (PYTHONPATH)")
