"""Work ahead in processes: torch's DataLoader, for a function of one key instead of a data set."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from rdi.errors import UserError

K = TypeVar("K")
V = TypeVar("V")
MOST = 8
"""Processes that decode where nobody says how many; more of them wait for the disk."""


def default_workers() -> int:
    """Return how many processes decode: the cores of each rank on this machine, at most MOST."""
    cores = len(os.sched_getaffinity(0)) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return max(1, min(MOST, cores))


class _Mapped(Dataset[Any], Generic[K, V]):
    def __init__(self, function: Callable[[Sequence[K]], V]) -> None:
        self.function = function

    def __getitems__(self, keys: Sequence[K]) -> V | UserError:
        try:
            return self.function(keys)
        except UserError as error:  # as a value: DataLoader would put a traceback into its text
            return error


def ahead(function: Callable[[Sequence[K]], V], pieces: Iterable[Sequence[K]], workers: int) -> Iterator[V]:
    """Yield function(piece) of every piece, in order; worker processes are two pieces ahead each.

    function: picklable, as are its values. workers: 0 works them out here, as each is asked for.
    Raises UserError as the function does, and for a worker that was killed.
    """
    if not workers:
        yield from map(function, pieces)
        return
    loader: DataLoader[Any] = DataLoader(
        _Mapped(function),
        batch_sampler=pieces,  # type: ignore[arg-type]  # any iterable of keys
        collate_fn=_same,
        num_workers=workers,
        worker_init_fn=_begin,
        generator=torch.Generator(),  # else the loader draws from the generator that feeds dropout
    )
    with closing(_values(loader)) as values:
        yield from values


def _values(loader: DataLoader[Any]) -> Generator[Any, None, None]:
    try:
        for value in loader:
            if isinstance(value, UserError):
                raise value
            yield value
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process that decodes images was killed; was the memory full? The same command goes on; data.workers=1 "
            "needs least"
        ) from error


def _same(value: V) -> V:
    return value


def _begin(worker: int) -> None:
    """Leave signals to the process that started this one: it ends its workers, and they end when it is gone."""
    del worker
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
