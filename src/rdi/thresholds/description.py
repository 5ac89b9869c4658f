"""Objects as config nodes: what a record keeps of a policy, and builds it from again."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any


def described(value: Any) -> Any:
    """A plain value as it is; a sequence as a list; an object as `_target_` and the arguments of its constructor.

    An object must keep every constructor argument in an attribute of the same name.
    """
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, Sequence):
        return [described(item) for item in value]
    kind = type(value)
    # the public name: records outlive the files of this package
    module = "rdi.thresholds" if kind.__module__.startswith("rdi.thresholds.") else kind.__module__
    arguments = {name: described(getattr(value, name)) for name in inspect.signature(kind).parameters}
    return {"_target_": f"{module}.{kind.__qualname__}", **arguments}
