"""Wall-clock comparison: all contestants in turn, again and again, so that a busy machine hits all of them alike."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from rdi.benchmarks import energy
from rdi.records import BenchRow

Work = Callable[[], object]
Answer = Callable[[torch.Tensor], object]
PART = 32
"""Images after which it is the next contestant's turn: some milliseconds, in which caches are its own again."""


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of some repeats; None: nobody repeated it."""

    median: float
    low: float | None = None
    high: float | None = None


def row(
    group: str,
    name: str,
    size: int | None,
    against: str | None = None,
    ratio: Spread | None = None,
    target: float | None = None,
    **values: float,
) -> BenchRow:
    """Make the row of a measurement.

    size: images in a batch.
    against: what it is compared with; ratio: to that, None: nothing is divided.
    values: further figures.
    """
    found = (None, None, None) if ratio is None else (ratio.median, ratio.low, ratio.high)
    return BenchRow(
        group=group,
        name=name,
        against=against,
        batch_size=size,
        ratio=found[0],
        ratio_low=found[1],
        ratio_high=found[2],
        target=target,
        values=values,
    )


@dataclass(frozen=True)
class Times:
    """Seconds of every contestant, one entry per round.

    joules: of the processor packages, of all that ran on them; None where the machine does not show them.
    """

    seconds: dict[str, tuple[float, ...]]
    joules: dict[str, tuple[float | None, ...]] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """Return how often every contestant ran."""
        return len(next(iter(self.seconds.values())))

    def median(self, name: str) -> float:
        """Return the median seconds of `name`."""
        return statistics.median(self.seconds[name])

    def energy(self, name: str) -> float | None:
        """Return the median joules of `name`; None where the machine shows none."""
        found = [value for value in self.joules.get(name, ()) if value is not None]
        return statistics.median(found) if found else None

    def ratio(self, baseline: str, name: str) -> Spread:
        """Return the seconds of `baseline` / seconds of `name`, taken round by round."""
        ratios = [a / b for a, b in zip(self.seconds[baseline], self.seconds[name], strict=True)]
        return Spread(statistics.median(ratios), min(ratios), max(ratios))


def race(
    contestants: Mapping[str, Work | Sequence[Work]],
    *,
    repeats: int,
    device: torch.device,
    warm_up: Mapping[str, Work] | None = None,
    at_least: float = 0.0,
) -> Times:
    """Run every contestant once per round, `repeats` rounds and on until all rounds took `at_least` seconds.

    Each turn begins one contestant later, so that nobody always follows the same one.

    contestants: name -> its work, whole or in parts that are run in turns as well, so that a machine that is busy for
        part of a round is so for all of them.
    warm_up: what to run before, untimed; default the contestants themselves.
    """
    divided = {name: [work] if callable(work) else list(work) for name, work in contestants.items()}
    for work in warm_up.values() if warm_up is not None else itertools.chain(*divided.values()):
        work()
    seconds: dict[str, list[float]] = {name: [] for name in divided}
    used: dict[str, list[float | None]] = {name: [] for name in divided}
    start = time.perf_counter()
    order = deque(divided.items())
    while len(next(iter(seconds.values()))) < repeats or time.perf_counter() - start < at_least:
        for name in divided:
            seconds[name].append(0.0)
            used[name].append(0.0)
        for turn in range(max(map(len, divided.values()))):
            for name, works in order:
                if turn >= len(works):
                    continue
                synchronise(device)
                before = energy.microjoules()
                began = time.perf_counter()
                works[turn]()
                synchronise(device)
                seconds[name][-1] += time.perf_counter() - began
                more, so_far = energy.joules(before, energy.microjoules()), used[name][-1]
                used[name][-1] = None if more is None or so_far is None else so_far + more
            order.rotate(-1)
    return Times(
        {name: tuple(values) for name, values in seconds.items()},
        {name: tuple(values) for name, values in used.items()},
    )


def parts(answer: Answer, batches: Sequence[torch.Tensor]) -> list[Work]:
    """Return work that answers the batches one after the other, in parts of PART images or more."""
    size = max(1, PART // len(batches[0]))

    def work(some: Sequence[torch.Tensor]) -> None:
        for batch in some:
            answer(batch)

    return [partial(work, batches[start : start + size]) for start in range(0, len(batches), size)]


def synchronise(device: torch.device) -> None:
    """Wait for all that was queued on `device`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
