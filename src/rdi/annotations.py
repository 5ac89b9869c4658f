"""Plain values against the annotations of what they are passed to: what a constructor takes without a word, too."""

from __future__ import annotations

import collections.abc
import inspect
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from rdi.errors import UserError

WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
SEQUENCES = (list, tuple, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
MAPPINGS = (dict, Mapping, collections.abc.MutableMapping)


def check_types(options: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], at: str) -> None:
    """Raise UserError for an option, called `at`.NAME, whose value the annotation of its parameter rules out.

    options: plain values, lists and nodes as configs hold them. Annotations that say nothing are passed over.
    """
    for name, value in options.items():
        hint = parameters[name].annotation
        if not fits(value, hint):
            raise UserError(f"{at}.{name} must be {words(hint)}, got {_shown(value)}")


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value of a config may be what `hint` says; a node (a mapping with a `_target_`) is any class."""
    if hint in (Any, object, inspect.Parameter.empty) or isinstance(hint, str | TypeVar):
        return True
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if hint in (None, type(None)):
        return value is None
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    if (origin or hint) in SEQUENCES:
        kinds = [one for one in inner if one is not Ellipsis]
        fixed = (origin or hint) is tuple and Ellipsis not in inner and bool(kinds)
        if not isinstance(value, list) or (fixed and len(value) != len(kinds)):
            return False
        return all(fits(item, kinds[index] if fixed else kinds[0]) for index, item in enumerate(value) if kinds)
    if (origin or hint) in MAPPINGS:
        return isinstance(value, Mapping) and "_target_" not in value
    return isinstance(value, Mapping) and "_target_" in value


def takes_list(hint: Any) -> bool:
    """Return whether an annotation allows a list."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(takes_list(one) for one in inner)
    return (origin or hint) in SEQUENCES


def is_one(value: Any, hint: Any) -> bool:
    """Return whether an object may be what `hint` says; for a protocol or Callable, whether it is callable."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(is_one(value, one) for one in inner)
    kind: Any = origin or hint
    if kind is collections.abc.Callable:
        return callable(value)
    if not inspect.isclass(kind):
        return True  # a name that could not be looked up says nothing
    if "__call__" in vars(kind):
        return callable(value)
    return getattr(kind, "_is_protocol", False) or isinstance(value, kind)


def words(hint: Any) -> str:
    """Return an annotation in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(words(one) for one in inner))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if hint in WORDS or hint is None:
        return WORDS[type(None) if hint is None else hint]
    if (origin or hint) in SEQUENCES:
        kinds = [one for one in inner if one is not Ellipsis]
        return f"a list, each item {words(kinds[0])}" if kinds else "a list"
    if (origin or hint) in MAPPINGS:
        return "a mapping"
    return "a node with a _target_"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
