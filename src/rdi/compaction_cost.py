"""Measure the seconds of every stage by batch size, and plan where taking samples out of a batch pays."""

from __future__ import annotations

import itertools
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from rdi.exits.compact import close_up, staying
from rdi.exits.net import MultiExitNet
from rdi.thresholds.policy import Policy

REPEATS = 5
LINEAR_FROM = 3.0
"""Growth of the time for four times the batch from which on it is extrapolated linearly."""
HALF_LIFE = 64
"""Samples after which earlier estimates of the exit shares count half."""
MAX_BATCHES_BETWEEN_PLANS = 64
"""Batches between two updates of the exit shares, once that many were run; before that at each doubling."""
SHARE_CHANGE = 0.02
"""Change of an exit's share that makes the plans out of date."""


@dataclass(frozen=True)
class StageTimes:
    """Seconds at one batch size.

    parts: stage k with head k, E of them.
    decision: one exit decision, until the host knows who stays.
    gathers: moving all rows after exit k, E-1 of them.
    """

    parts: tuple[float, ...]
    decision: float
    gathers: tuple[float, ...]


def measure(
    model: MultiExitNet, policy: Policy, images: torch.Tensor, clock: Callable[[], float] = time.perf_counter
) -> StageTimes:
    """Measure the seconds of everything that a batch of the size of images_NCHW may pass through.

    Each is the smallest of a few repeats: whatever else the machine does only adds.

    model: in eval mode.
    policy: its decisions are timed too.
    images: of which only the number, shape, device and type matter.
    clock: returns seconds.
    """

    def now() -> float:
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return clock()

    measured = [_timed(model, policy, images, now) for _ in range(1 + REPEATS)][1:]
    return StageTimes(
        parts=tuple(min(times) for times in zip(*(timed.parts for timed in measured), strict=True)),
        decision=min(timed.decision for timed in measured),
        gathers=tuple(min(times) for times in zip(*(timed.gathers for timed in measured), strict=True)),
    )


def _timed(model: MultiExitNet, policy: Policy, images: torch.Tensor, now: Callable[[], float]) -> StageTimes:
    rows = torch.arange(len(images), device=images.device)
    features, outputs = images, []
    parts, decisions, gathers = [], [], []
    start = now()
    for k in range(model.exits):
        features, out = model.step(features, k)
        outputs.append(out)
        ran = now()
        parts.append(ran - start)
        start = ran
        if len(outputs) == model.exits:
            break
        logits = torch.stack(outputs, dim=1)
        staying(policy.leaves(logits))
        decided = now()
        features = close_up(features, rows, rows, len(rows))
        logits.index_select(0, rows)
        gathered = now()
        decisions.append(decided - start)
        gathers.append(gathered - decided)
        start = gathered
    return StageTimes(tuple(parts), sum(decisions) / max(1, len(decisions)), tuple(gathers))


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
    """Costs of running on and of compacting, in seconds, from measurements by batch size."""

    def __init__(self, measured: Mapping[int, StageTimes]) -> None:
        sizes = sorted(measured)
        by_size = [measured[size] for size in sizes]
        self.exits = len(by_size[0].parts)
        self._parts = [Curve(sizes, [timed.parts[k] for timed in by_size]) for k in range(self.exits)]
        self._gathers = [Curve(sizes, [timed.gathers[k] for timed in by_size]) for k in range(self.exits - 1)]
        self._decision = Curve(sizes, [timed.decision for timed in by_size])

    def run(self, start: int, end: int, samples: float) -> float:
        """Return the seconds of stages and heads start..end-1."""
        return sum(part(samples) for part in self._parts[start:end])

    def decision(self, samples: float) -> float:
        """Return the seconds of finding out which samples stay."""
        return self._decision(samples)

    def gather(self, k: int, samples: float) -> float:
        """Return the seconds of taking out the samples that left at exit k when so many others move."""
        return self._gathers[k](samples)

    def pays(self, k: int, samples: int, stay: int) -> bool:
        """Return whether the later stages save more than the gather costs if `stay` of `samples` go on from k."""
        rest = self.run(k + 1, self.exits, samples) - self.run(k + 1, self.exits, stay)
        return rest > self.gather(k, min(stay, samples - stay))


@dataclass(frozen=True)
class Plan:
    """The exits at which to find out who left, and take them out where that pays.

    decisions: bool for each exit but the last.
    seconds: expected.
    seconds_without: of the network without a decision.
    """

    decisions: tuple[bool, ...]
    seconds: float
    seconds_without: float


def cheapest(table: Table, samples: int, shares: Sequence[float]) -> Plan:
    """Return the plan of the least expected seconds.

    shares: of the samples that leave at each of the E exits.
    """
    exits = table.exits
    expected = [samples * sum(shares[k:]) for k in range(exits)]  # entering stage k when all before have left
    tails: dict[int, tuple[float, tuple[int, ...]]] = {}  # first stage -> (seconds to the end, exits to look at)
    for start in range(exits - 1, -1, -1):
        entering = expected[start]
        options: list[tuple[float, tuple[int, ...]]] = [(table.run(start, exits, entering), ())]
        for k in range(start, exits - 1):
            after, decisions = tails[k + 1]
            moving = min(expected[k + 1], entering - expected[k + 1])
            until = table.run(start, k + 1, entering) + table.decision(entering) + table.gather(k, moving)
            options.append((until + after, (k, *decisions)))
        tails[start] = min(options)
    seconds, chosen = tails[0]
    return Plan(tuple(k in chosen for k in range(exits - 1)), seconds, table.run(0, exits, samples))


class Planner:
    """Plans batches for one network and policy; learns the exit shares from the batches that were run.

    Measures on zeros, once per image shape, device, dtype and size (1, 4, 16, ... up to the batch at hand). Before the
    first batch every exit is taken to be equally frequent.
    """

    def __init__(self, model: MultiExitNet, policy: Policy) -> None:
        self.model = model
        self.policy = policy
        self.shares = [1 / model.exits] * model.exits
        self._seen: list[torch.Tensor] = []
        self._batches, self._due = 0, 1
        self._measured: dict[object, dict[int, StageTimes]] = {}
        self._plans: dict[tuple[object, int], tuple[Plan, Table]] = {}
        self._planned_for = list(self.shares)

    def plan(self, like: torch.Tensor, samples: int) -> tuple[Plan, Table]:
        """Return the plan, and the table that it is from, for a batch.

        like: images_NCHW of the shape, device and dtype of the batch.
        samples: images in the batch, at least 1.
        """
        if self._batches < self._due:
            return self._plan(like, samples)
        # reading the counts waits for the device and a new plan takes about as long as a stage on one image
        self._due = self._batches + min(self._batches, MAX_BATCHES_BETWEEN_PLANS)
        self._learn()
        if max(abs(new - old) for new, old in zip(self.shares, self._planned_for, strict=True)) > SHARE_CHANGE:
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
        """Keep where samples left, exits_N, on the device; they are counted at the next update of the shares."""
        self._batches += 1
        self._seen.append(exits_N.clone())  # the caller may write to his

    def _learn(self) -> None:
        if not self._seen:
            return
        counts = torch.cat(self._seen).bincount(minlength=self.model.exits).tolist()
        samples = sum(counts)
        self.shares = [
            (HALF_LIFE * share + new) / (HALF_LIFE + samples) for share, new in zip(self.shares, counts, strict=True)
        ]
        self._seen.clear()

    def _table(self, key: object, like: torch.Tensor, samples: int) -> Table:
        measured = self._measured.setdefault(key, {})
        for size in _sizes(samples):
            if size not in measured:
                if _proportional(measured, size // 4):
                    break
                images = like.new_zeros(size, *like.shape[1:])
                measured[size] = measure(self.model, self.policy, images)
        return Table(measured)


def _sizes(samples: int) -> list[int]:
    """Powers of four up to the batch at hand; small ones up to the next, for what lies between is no line there."""
    end = samples if samples > 16 else 4 * samples - 1
    return [size for size in (4**i for i in range(16)) if size <= max(1, end)]


def _proportional(measured: Mapping[int, StageTimes], size: int) -> bool:
    if size // 4 not in measured:
        return False
    return size not in measured or sum(measured[size].parts) >= LINEAR_FROM * sum(measured[size // 4].parts)
