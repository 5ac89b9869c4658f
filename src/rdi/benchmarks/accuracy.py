"""Rows of the attacks' strength: what the deployed policy keeps under ours and under the textbook's attack."""

from __future__ import annotations

import torch
from tqdm import tqdm

from rdi.attacking import attack_split, joined
from rdi.attacks import MaxAverage
from rdi.attacks.engine import Engine
from rdi.benchmarks import textbook
from rdi.benchmarks.attacks import PLAIN, engines
from rdi.benchmarks.timing import row
from rdi.data.base import Split
from rdi.data.batches import to_float
from rdi.evaluating import judge
from rdi.exits import MultiExitNet
from rdi.records import BenchRow
from rdi.seeds import generator
from rdi.thresholds import Policy

ALLOWED = {"float32": 0.002, "float32, folded": 0.002, "bf16, folded": 0.005}
"""Engine -> largest allowed difference in robust accuracy, a fraction."""
LABEL = "max_avg"


def rows(
    model: MultiExitNet, policy: Policy, split: Split, ball: dict[str, float], steps: int, batch_size: int
) -> list[BenchRow]:
    """Measure the robust accuracy under max-average, last iterate, from the same random starts: one row per engine."""
    plain = judge(_textbook(model, split, ball, steps, batch_size), split.labels.cpu(), policy).correct
    found = []
    for name, engine in engines(next(model.parameters()).device).items():
        ours = judge(_ours(model, split, ball, steps, batch_size, engine), split.labels.cpu(), policy).correct
        found.append(
            row(
                "accuracy",
                f"{LABEL}, {name}",
                batch_size,
                PLAIN,
                samples=len(split),
                robust_accuracy=float(ours.double().mean()),
                baseline_robust_accuracy=float(plain.double().mean()),
                allowed_difference=ALLOWED[name],
                only_ours_fools=float((plain & ~ours).sum()),
                only_baseline_fools=float((ours & ~plain).sum()),
            )
        )
    return found


def _ours(
    model: MultiExitNet, split: Split, ball: dict[str, float], steps: int, batch_size: int, engine: Engine
) -> torch.Tensor:
    attack = MaxAverage(steps=steps, keep="last", **ball)  # type: ignore[arg-type]
    batches = attack_split(model, split, attack, seed=0, batch_size=batch_size, label=LABEL, engine=engine)
    return joined(batches).logits


def _textbook(model: MultiExitNet, split: Split, ball: dict[str, float], steps: int, batch_size: int) -> torch.Tensor:
    logits = []
    for begin in tqdm(range(0, len(split), batch_size), desc=PLAIN, unit="batch", disable=None):
        x, y = to_float(split.images[begin : begin + batch_size]), split.labels[begin : begin + batch_size]
        stream = generator(x.device, 0, "attack", LABEL, begin)
        starts = [textbook.noise(x, ball["eps"], stream) for _ in range(model.exits)]
        x_adv = textbook.max_average(model, x, y, starts, steps=steps, **ball)
        with torch.inference_mode():
            logits.append(model(x_adv).float().cpu())
    model.zero_grad(set_to_none=True)
    return torch.cat(logits)
