"""Measure the seconds of every stage by batch size, and plan where taking samples out of a batch pays."""

from __future__ import annotations

import itertools
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from rdi.exits.compact import close_up, staying, take
from rdi.exits.net import MultiExitNet
from rdi.thresholds.policy import Policy

REPEATS = 5
PROPORTIONAL = 3.0
"""Four times the batch in this many times the seconds: from there on, time is taken to grow on a line."""
MEMORY = 64
"""Samples after which what was known about the exit shares counts half."""
RARELY = 64
"""Batches between two looks at what was seen, once that many were run; before that at each doubling."""
MOVED = 0.02
"""Change of an exit's share that makes the plans out of date."""


@dataclass(frozen=True)
class Lap:
    """Seconds at one batch size.

    parts: stage k with head k, E of them.
    look: one exit decision, until the host knows who stays.
    gathers: moving all rows after exit k, E-1 of them.
    """

    parts: tuple[float, ...]
    look: float
    gathers: tuple[float, ...]


def measure(
    model: MultiExitNet, policy: Policy, images: torch.Tensor, clock: Callable[[], float] = time.perf_counter
) -> Lap:
    """Measure the seconds of everything that a batch of the size of images_NCHW may pass through.

    Each is the smallest of a few repeats: whatever else the machine does only adds.
    """

    def now() -> float:
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return clock()

    laps = [_lap(model, policy, images, now) for _ in range(1 + REPEATS)][1:]
    return Lap(
        parts=tuple(min(times) for times in zip(*(lap.parts for lap in laps), strict=True)),
        look=min(lap.look for lap in laps),
        gathers=tuple(min(times) for times in zip(*(lap.gathers for lap in laps), strict=True)),
    )


def _lap(model: MultiExitNet, policy: Policy, images: torch.Tensor, now: Callable[[], float]) -> Lap:
    rows = torch.arange(len(images), device=images.device)
    features, seen = images, []
    parts, looks, gathers = [], [], []
    start = now()
    for stage, head in zip(model.stages, model.heads, strict=True):
        features = stage(features)
        seen.append(head(features))
        ran = now()
        parts.append(ran - start)
        start = ran
        if len(seen) == model.exits:
            break
        logits = torch.stack(seen, dim=1)
        staying([policy.leaves(logits)])
        looked = now()
        features = close_up(features, rows, rows, len(rows))
        take(logits, rows)
        gathered = now()
        looks.append(looked - start)
        gathers.append(gathered - looked)
        start = gathered
    return Lap(tuple(parts), sum(looks) / max(1, len(looks)), tuple(gathers))


class Curve:
    """Seconds by batch size: piecewise linear through (0, 0) and the measurements, extrapolated.

    Made non-decreasing, since a drop is timing noise.
    """

    def __init__(self, sizes: Sequence[int], seconds: Sequence[float]) -> None:
        self.sizes = (0, *sizes)
        self.seconds = (0.0, *itertools.accumulate(seconds, max))

    def __call__(self, samples: float) -> float:
        """Return the seconds for so many samples; a fraction is an expected number."""
        end = min(max(1, bisect_left(self.sizes, samples)), len(self.sizes) - 1)
        (low, high), (before, after) = self.sizes[end - 1 : end + 1], self.seconds[end - 1 : end + 1]
        return before + (after - before) * (samples - low) / (high - low)


class Table:
    """Costs of running on and of compacting, in seconds, from laps by batch size."""

    def __init__(self, laps: Mapping[int, Lap]) -> None:
        sizes = sorted(laps)
        by_size = [laps[size] for size in sizes]
        self.exits = len(by_size[0].parts)
        self._parts = [Curve(sizes, [lap.parts[k] for lap in by_size]) for k in range(self.exits)]
        self._gathers = [Curve(sizes, [lap.gathers[k] for lap in by_size]) for k in range(self.exits - 1)]
        self._look = Curve(sizes, [lap.look for lap in by_size])

    def run(self, start: int, end: int, samples: float) -> float:
        """Return the seconds of stages and heads start..end-1."""
        return sum(part(samples) for part in self._parts[start:end])

    def look(self, samples: float) -> float:
        """Return the seconds of finding out which samples stay."""
        return self._look(samples)

    def gather(self, k: int, samples: float) -> float:
        """Return the seconds of taking out the samples that left at exit k when so many others move."""
        return self._gathers[k](samples)

    def pays(self, k: int, samples: int, stay: int) -> bool:
        """Return whether the later stages save more than the gather costs if `stay` of `samples` go on from k."""
        rest = self.run(k + 1, self.exits, samples) - self.run(k + 1, self.exits, stay)
        return rest > self.gather(k, min(stay, samples - stay))


@dataclass(frozen=True)
class Plan:
    """At which exits (of E-1) to look who left.

    seconds: expected.
    whole: those of the network without a look.
    """

    looks: tuple[bool, ...]
    seconds: float
    whole: float


def cheapest(table: Table, samples: int, shares: Sequence[float]) -> Plan:
    """Return the plan of the least expected seconds.

    shares: of the samples that leave at each of the E exits.
    """
    exits = table.exits
    expected = [samples * sum(shares[k:]) for k in range(exits)]  # entering stage k when all before have left
    tails: dict[int, tuple[float, tuple[int, ...]]] = {}  # first stage -> (seconds to the end, exits to look at)
    for start in range(exits - 1, -1, -1):
        entering = expected[start]
        ways: list[tuple[float, tuple[int, ...]]] = [(table.run(start, exits, entering), ())]
        for k in range(start, exits - 1):
            after, looks = tails[k + 1]
            moving = min(expected[k + 1], entering - expected[k + 1])
            here = table.run(start, k + 1, entering) + table.look(entering) + table.gather(k, moving)
            ways.append((here + after, (k, *looks)))
        tails[start] = min(ways)
    seconds, chosen = tails[0]
    return Plan(tuple(k in chosen for k in range(exits - 1)), seconds, table.run(0, exits, samples))


class Planner:
    """Plans batches for one network and policy; learns the exit shares from the batches that were run.

    Measures on zeros, once per image shape, device, dtype and size (1, 4, 16, ... up to the batch at hand).
    Before the first batch every exit is taken to be equally frequent.
    """

    def __init__(self, model: MultiExitNet, policy: Policy) -> None:
        self.model = model
        self.policy = policy
        self.shares = [1 / model.exits] * model.exits
        self._counts: torch.Tensor | None = None
        self._batches, self._due = 0, 1
        self._laps: dict[object, dict[int, Lap]] = {}
        self._plans: dict[tuple[object, int], tuple[Plan, Table]] = {}
        self._planned_for = list(self.shares)

    def plan(self, like: torch.Tensor, samples: int) -> tuple[Plan, Table]:
        """Plan for so many images (at least 1) of the shape, device and dtype of like_NCHW, and its table."""
        if self._batches < self._due:
            return self._plan(like, samples)
        # reading the counts waits for the device and a new plan takes about as long as a stage on one image
        self._due = self._batches + min(self._batches, RARELY)
        self._learn()
        if max(abs(new - old) for new, old in zip(self.shares, self._planned_for, strict=True)) > MOVED:
            self._plans.clear()
            self._planned_for = list(self.shares)
        return self._plan(like, samples)

    def _plan(self, like: torch.Tensor, samples: int) -> tuple[Plan, Table]:
        key = (like.shape[1:], like.device, like.dtype)
        if (key, samples) not in self._plans:
            table = self._table(key, like, samples)
            self._plans[key, samples] = cheapest(table, samples, self.shares), table
        return self._plans[key, samples]

    def observe(self, exits_N: torch.Tensor) -> None:
        """Count where samples left, on the device; read now and then, see RARELY."""
        self._batches += 1
        if self._counts is None:
            self._counts = exits_N.new_zeros(self.model.exits)
        self._counts.index_add_(0, exits_N, torch.ones_like(exits_N))

    def _learn(self) -> None:
        if self._counts is None:
            return
        counts = self._counts.tolist()
        samples = sum(counts)
        self.shares = [
            (MEMORY * share + new) / (MEMORY + samples) for share, new in zip(self.shares, counts, strict=True)
        ]
        self._counts = None

    def _table(self, key: object, like: torch.Tensor, samples: int) -> Table:
        laps = self._laps.setdefault(key, {})
        for size in _sizes(samples):
            if size not in laps:
                if _proportional(laps, size // 4):
                    break
                images = like.new_zeros(size, *like.shape[1:])
                laps[size] = measure(self.model, self.policy, images)
        return Table(laps)


def _sizes(samples: int) -> list[int]:
    """Powers of four up to the batch at hand; small ones up to the next, for what lies between is no line there."""
    end = samples if samples > 16 else 4 * samples - 1
    return [size for size in (4**i for i in range(16)) if size <= max(1, end)]


def _proportional(laps: Mapping[int, Lap], size: int) -> bool:
    if size // 4 not in laps:
        return False
    return size not in laps or sum(laps[size].parts) >= PROPORTIONAL * sum(laps[size // 4].parts)
