"""Handle SIGINT, SIGTERM and SIGHUP: save where work can be saved, unwind the process elsewhere, say one line."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger("rdi")
NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
STATUS = 130
"""Exit status of a command that a signal ended."""
PATIENCE = 3.0
"""Seconds after a signal from which it is said what the process waits for."""
_signals: list[int] = []
_late: list[list[str]] = []
"""Words that `interrupts` holds back inside each `deferred`, innermost last."""


class StopFlag:
    """Set by the first signal; the second ends the process at once."""

    def __init__(self) -> None:
        self.stopped = False

    def __call__(self) -> bool:
        """Return whether a signal came."""
        return self.stopped or signalled()


def signalled() -> bool:
    """Return whether a signal came since `forget`, even if the KeyboardInterrupt was lost in somebody's `finally`."""
    return bool(_signals)


def reset() -> None:
    """Begin anew: no signal came."""
    _signals.clear()


@contextmanager
def stop_on_signals(*, patient: bool = False) -> Iterator[StopFlag]:
    """Set the flag inside, instead of ending the process. A no-op outside the main thread.

    Work that goes on for PATIENCE after a signal is told of in a line of the log.

    patient: further signals change nothing, for processes that a terminal and whoever started them signal at once.
    """
    flag = StopFlag()
    previous: dict[int, Any] = {}
    more = "" if patient else "; another signal ends at once and loses what is not saved"
    notice = threading.Timer(PATIENCE, logger.warning, [f"stopping after this step or batch{more}"])
    notice.daemon = True

    def handle(number: int, frame: object) -> None:
        if not flag.stopped:
            notice.start()
        flag.stopped = True
        _signals.append(number)
        if not patient:
            signal.signal(number, previous.get(number, signal.SIG_DFL))

    try:
        with _handled(handle, previous):
            yield flag
    finally:
        notice.cancel()


@contextmanager
def interrupts() -> Iterator[None]:
    """Make every signal a KeyboardInterrupt inside: locks are given back and no job outlives this process.

    A no-op outside the main thread.
    """

    def interrupt(number: int, frame: object) -> None:
        _signals.append(number)
        word = "interrupted" if number == signal.SIGINT else "terminated"
        said = f"{word}; the same command starts again"
        if not _late:
            raise KeyboardInterrupt(said)
        _late[-1].append(said)

    with _handled(interrupt, {}):
        yield


@contextmanager
def deferred() -> Iterator[None]:
    """Let the KeyboardInterrupt of `interrupts` wait for the end of the block: for what must not be half-done."""
    _late.append([])
    try:
        yield
    finally:
        said = _late.pop()
        if said and _late:
            _late[-1] += said  # a block around this one must not be left half-done either
        elif said:
            raise KeyboardInterrupt(said[0])


@contextmanager
def exits(command: str, *, for_good: bool = False) -> Iterator[None]:
    """End the process at once inside, with one line: for the time before anything is locked, started or written.

    An exception would have to find its way out of half-done imports and of libraries that lose it.

    for_good: also after the block, until everything is done that libraries do at exit; what then still comes is
        ignored, for Python takes the handlers away and frees its modules, and a command that has done its work would
        look killed. A no-op outside the main thread.
    """

    def leave(number: int, frame: object) -> None:
        os.write(2, f"{command}: interrupted; the same command starts again\n".encode())
        os._exit(STATUS)

    def unraisable(problem: Any) -> None:
        if not signalled():
            hook(problem)

    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    if for_good:
        atexit.register(_ignore)  # first, and so called last
    try:
        with _handled(leave, {}, restore=not for_good):
            yield
    finally:
        sys.unraisablehook = hook


def _ignore() -> None:
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _handled(
    handler: Callable[[int, object], None], previous: dict[int, Any], *, restore: bool = True
) -> Iterator[None]:
    """Handle NUMBERS by `handler` inside; the handlers before are put into `previous`. nohup's SIGHUP stays ignored."""
    try:
        for number in NUMBERS:
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)
    except ValueError:
        previous.clear()
    try:
        yield
    finally:
        for restored, old in previous.items() if restore else ():
            signal.signal(restored, signal.SIG_DFL if old is None else old)
