"""Run an attack over a split, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from rdi.attacks.base import Attack
from rdi.attacks.engine import DEFAULT_ENGINE, Engine
from rdi.banks import check_logits, joined_skipped
from rdi.checks import LINF
from rdi.data.base import Split
from rdi.data.batches import to_float
from rdi.data.streamed import fetch, slices
from rdi.exits.net import MultiExitNet
from rdi.ranks import ALONE, Ranks
from rdi.seeds import generator


@dataclass(frozen=True)
class Attacked:
    """N attacked images and how the network judges them.

    images: x_NCHW in [0, 1], on the device of the model.
    logits: float32_NEC on the CPU.
    linf: largest perturbation, pixel units.
    length: the same in the norm of the attack.
    seconds: wall time since the batch before.
    skipped: int64_NE on the CPU, MACs that gates left out up to each exit; None of a network without gates.
    """

    images: torch.Tensor
    logits: torch.Tensor
    linf: float
    length: float
    seconds: float
    skipped: torch.Tensor | None = None


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
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> Iterator[Attacked]:
    """Yield every batch of `split`, in order, under `attack` or clean for None, with the logits of all exits.

    Batch b draws from the random stream (seed, label, first sample), so a result depends on seed and batch size alone.

    model: its own logits are given; images are crafted on the engine's copy of it.
    split: on the model's device.
    seed, label: of the random stream.
    batch_size: images per batch.
    engine: options of the copy.
    first: image to begin at, the first of a batch.
    stop: asked before every batch; True ends the attack.
    ranks: take turns at the batches, and exhaust this with the same arguments; only the leading one is given them.
    Raises UserError for logits that are not finite.
    """
    model.eval()
    device = split.images.device
    fast = engine.copy(model).net
    layout = engine.memory_format

    def batch(begin: int) -> Attacked:
        linf = length = 0.0
        x, y = to_float(next(fetched)), split.labels[begin : begin + batch_size]
        if attack is not None:
            stream = generator(device, seed, "attack", label, begin)
            x_adv = attack(fast, x.to(memory_format=layout), y, stream).contiguous()
            linf = length = float((x_adv - x).abs().max())
            if attack.norm != LINF:
                length = float(attack.ball.length(x_adv - x).max())
            x = x_adv
        with torch.inference_mode():
            found, skipped = model.judged(x)
            logits = found.float().cpu()
        # images that are no numbers are the attack's fault, not the network's
        if bool(x.isfinite().all()):
            check_logits(logits, label)
        return Attacked(x, logits, linf, length, 0.0, None if skipped is None else skipped.cpu())

    begins = range(first, len(split), batch_size)
    mine = begins[ranks.rank :: ranks.count]  # as ranks take turns
    fetched = fetch(split.images, slices(len(split), mine, batch_size))
    quiet = True if ranks.rank else None
    began = time.perf_counter()
    bar = tqdm(total=len(split), initial=first, desc=label, unit="image", disable=quiet, dynamic_ncols=True)
    with bar, closing(fetched):
        for done in ranks.in_turn(begins, batch, stop):
            yield replace(done, seconds=time.perf_counter() - began)
            began = time.perf_counter()
            bar.update(len(done.logits))


def joined(batches: Iterable[Attacked]) -> Attacked:
    """Join the batches of a split."""
    parts = list(batches)
    return Attacked(
        torch.cat([part.images for part in parts]),
        torch.cat([part.logits for part in parts]),
        max(part.linf for part in parts),
        max(part.length for part in parts),
        sum(part.seconds for part in parts),
        joined_skipped([part.skipped for part in parts]),
    )
