"""What SIGINT and SIGTERM do: set a flag where work can be saved, and unwind the process everywhere else."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StopFlag:
    """Set by the first SIGINT or SIGTERM; the second ends the process at once."""

    def __init__(self) -> None:
        self.stopped = False

    def __call__(self) -> bool:
        """Whether a signal came."""
        return self.stopped


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Inside, SIGINT and SIGTERM set the flag instead of ending the process. A no-op outside the main thread."""
    flag = StopFlag()
    previous: dict[int, Any] = {}

    def handle(number: int, frame: object) -> None:
        flag.stopped = True
        signal.signal(number, previous.get(number, signal.SIG_DFL))

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handle)
    except ValueError:
        previous = {}
    try:
        yield flag
    finally:
        for restored, handler in previous.items():
            signal.signal(restored, handler)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Inside, SIGTERM is a KeyboardInterrupt: locks are given back and no job outlives this process.

    A no-op outside the main thread.
    """

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt("terminated; the same command starts again")

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
