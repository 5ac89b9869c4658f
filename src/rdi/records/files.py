"""Frozen dataclasses <-> strict JSON, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError, ValidationInfo

from rdi.errors import UserError
from rdi.storage import read_json, write_json
from rdi.trust import check_config, check_node, check_values

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Plain = bool | int | float | str | None


def _checked_config(config: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Check the config of a record that is read; one that is being made is the user's own."""
    if info.context is not None:
        with said_of(info.context["file"]):
            check_config(config)
    return config


def _checked_rule(node: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Check the stored node of a rule as `_checked_config` does a config."""
    if info.context is not None:
        with said_of(info.context["file"]):
            check_node(node, str(info.field_name), "threshold")
    return node


@contextmanager
def said_of(file: Path) -> Iterator[None]:
    """Inside, name the file in errors."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


Config = Annotated[dict[str, Any], AfterValidator(_checked_config)]
"""A resolved config. Whoever reads it from a record may build its nodes: they were checked (rdi.trust)."""
RuleNode = Annotated[dict[str, Any], AfterValidator(_checked_rule)]
"""The node of a threshold rule or of an exit policy; checked likewise."""


Record = TypeVar("Record")


_adapters: dict[type, TypeAdapter[Any]] = {}


def adapter(kind: type) -> TypeAdapter[Any]:
    """Return what reads and writes records of a kind."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def to_dict(record: object) -> dict[str, Any]:
    """Plain dictionary of a record, ready for JSON."""
    result: dict[str, Any] = adapter(type(record)).dump_python(record, mode="json")
    return result


def write(path: Path, record: object) -> None:
    """Write a record (or a plain dictionary) as JSON, atomically. NaN and infinity are ValueErrors.

    Raises UserError for text that `read` would refuse.
    """
    content = record if isinstance(record, dict) else to_dict(record)
    check_values(content, numbers=False)
    write_json(path, content)


def read(path: Path, kind: type[Record]) -> Record:
    """Read a record. Raises UserError for a missing or damaged file, unknown or missing keys and wrong types.

    And for one that holds what rdi never writes into one, code to be called first of all: see rdi.trust.
    """
    try:
        content = read_json(path)
        with said_of(path):
            check_values(content)
        # as text again: strict validation takes a JSON list for a tuple, a Python list it does not
        record: Record = adapter(kind).validate_json(json.dumps(content), strict=True, context={"file": path})
    except (ValidationError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged, not a valid {kind.__name__} ({_flaw(error)}): restore it, or delete what it belongs "
            "to and make that again"
        ) from error
    return record


def _flaw(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'file'}: {first['msg']}"
    return "nested too deeply"
