"""The row of the threshold sweep: how long many operating points take, from stored logits."""

from __future__ import annotations

import numpy as np
import torch

from rdi.benchmarks import timing
from rdi.curves import budgeted, fitted
from rdi.records import BenchRow, Costs
from rdi.threats import CLEAN
from rdi.thresholds import Bank, Entropy

SAMPLES, CLASSES = 10_000, 10


def row(exits: int, points: int, repeats: int, attacks: int) -> BenchRow:
    """Measure the seconds of `points` operating points over 10,000 clean samples and as many under each attack."""
    generator = torch.Generator().manual_seed(0)
    clean, *attacked = (3 * torch.randn(SAMPLES, exits, CLASSES, generator=generator) for _ in range(1 + attacks))
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    cost = tuple(range(1, exits + 1))
    costs = Costs(macs=cost, macs_paper=cost, macs_plain=exits, macs_plain_paper=exits)
    ratios = np.logspace(-1.2, 1.2, points)

    banks = {CLEAN: Bank(clean, labels), **{f"attack{k}": Bank(one, labels) for k, one in enumerate(attacked)}}

    def work() -> None:
        budgeted(fitted(clean[: SAMPLES // 2], Entropy(), ratios), banks, costs)

    times = timing.race({"sweep": work}, repeats=repeats, device=torch.device("cpu"))
    return timing.row(
        "thresholds",
        f"{points} operating points, {SAMPLES} samples, {exits} exits, clean and {attacks} attacks",
        None,
        seconds=times.median("sweep"),
        most_seconds=max(times.seconds["sweep"]),
    )
