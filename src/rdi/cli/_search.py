"""The space of a search out of overrides with several values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override

from rdi.errors import UserError
from rdi.searching import Choices, Interval


def split(overrides: Sequence[Override]) -> tuple[dict[str, Choices | Interval], list[str]]:
    """The space that the overrides with several values span, and the others as they were typed.

    The last of several overrides of one option counts. Raises UserError for an empty range.
    """
    space: dict[str, Choices | Interval] = {}
    fixed: dict[str, str] = {}
    for override in overrides:
        key = override.get_key_element()
        space.pop(key, None)
        fixed.pop(key, None)
        if override.is_sweep_override():
            space[key] = values(override)
        else:
            fixed[key] = str(override.input_line)
    return space, list(fixed.values())


def values(override: Override) -> Choices | Interval:
    """Return what an override lets an option be: interval(low,high), range(low,high,step), or a list of choices."""
    sweep: Any = override.value()
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None, "the grammar asks for both ends"
        assert sweep.end is not None, "the grammar asks for both ends"
        whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
        return Interval(sweep.start, sweep.end, log="log" in sweep.tags, whole=whole)
    if override.is_range_sweep():
        numbers: list[Any] = list(override.sweep_iterator())
        if not numbers:
            raise UserError(f"{override.input_line} is empty")
        whole = all(isinstance(one, int) for one in numbers)
        return Interval(numbers[0], numbers[-1], step=sweep.step, log="log" in sweep.tags, whole=whole)
    return Choices(tuple(override.sweep_string_iterator()))
