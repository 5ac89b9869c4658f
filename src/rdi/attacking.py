"""Run an attack over a split, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from rdi.attacks.base import Attack
from rdi.attacks.engine import DEFAULT_ENGINE, Engine
from rdi.banks import check_logits
from rdi.data.base import Split
from rdi.data.batches import to_float
from rdi.exits.net import MultiExitNet
from rdi.seeds import generator


@dataclass(frozen=True)
class Attacked:
    """N attacked images and how the network judges them.

    images: x_NCHW in [0, 1], on the device of the model.
    logits: float32_NEC on the CPU.
    linf: largest perturbation, pixel units.
    seconds: wall time that it took.
    """

    images: torch.Tensor
    logits: torch.Tensor
    linf: float
    seconds: float


def attack_split(
    model: MultiExitNet,
    split: Split,
    attack: Attack | None,
    *,
    seed: int,
    batch_size: int,
    label: str,
    engine: Engine = DEFAULT_ENGINE,
    first: int = 0,
) -> Iterator[Attacked]:
    """Attack `split` (on the model's device) and yield every batch with the logits of all exits, clean for None.

    The images are crafted on the engine's copy of the model; the logits are always the model's own.
    Batch b draws from the stream (seed, label, first sample), so a result depends on seed and batch size alone.
    first: image to begin at, the first of a batch. Raises UserError for logits that are no numbers.
    """
    model.eval()
    device = split.images.device
    fast = engine.copy(model).net
    layout = engine.memory_format
    with tqdm(total=len(split), initial=first, desc=label, unit="image", disable=None, dynamic_ncols=True) as bar:
        for begin in range(first, len(split), batch_size):
            began = time.perf_counter()
            part = slice(begin, begin + batch_size)
            x, y = to_float(split.images[part]), split.labels[part]
            linf = 0.0
            if attack is not None:
                stream = generator(device, seed, "attack", label, begin)
                x_adv = attack(fast, x.to(memory_format=layout), y, stream).contiguous()
                linf = float((x_adv - x).abs().max())
                x = x_adv
            with torch.inference_mode():
                logits = model(x).float().cpu()
            # images that are no numbers are the attack's fault, not the network's
            if bool(x.isfinite().all()):
                check_logits(logits, label)
            yield Attacked(x, logits, linf, time.perf_counter() - began)
            bar.update(len(y))


def joined(batches: Iterable[Attacked]) -> Attacked:
    """Join the batches of a split."""
    parts = list(batches)
    return Attacked(
        torch.cat([part.images for part in parts]),
        torch.cat([part.logits for part in parts]),
        max(part.linf for part in parts),
        sum(part.seconds for part in parts),
    )
