"""Banks of exits that get better with depth, for rules that choose thresholds."""

import torch

from rdi.records import Costs
from rdi.thresholds import Bank, Calibration

MACS = (10, 25, 60)

COSTS = Costs(macs=MACS, macs_paper=MACS, macs_plain=50, macs_plain_paper=50)


def graded(samples=400, exits=3, classes=4, seed=0, skill=(1.0, 1.6, 2.2), noise=1.0):
    """Logits of exits that get better with depth, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (samples,), generator=generator)
    logits = noise * torch.randn(samples, exits, classes, generator=generator)
    ease = torch.rand(samples, 1, 1, generator=generator)
    truth = torch.nn.functional.one_hot(labels, classes).float()[:, None]
    return Bank(logits + 2 * ease * torch.tensor(skill)[:exits, None] * truth, labels)


def calibration(samples=400, seed=0, attacked=0):
    clean = graded(samples, seed=seed)
    worse = {
        f"attack{k}": Bank(graded(samples, seed=seed + 10 + k, skill=(0.3, 0.9, 1.2)).logits, clean.labels)
        for k in range(attacked)
    }
    worse = {
        name: Bank(0.6 * clean.logits + 0.8 * bank.logits - 0.5 * clean.logits.flip(2), clean.labels)
        for name, bank in worse.items()
    }
    return Calibration(clean.logits, clean.labels, COSTS, worse)
