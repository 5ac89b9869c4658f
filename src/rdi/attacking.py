"""Run an attack over a split and keep every exit's logits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm import tqdm

from rdi.attacks.base import Attack
from rdi.attacks.engine import DEFAULT_ENGINE, Engine
from rdi.banks import check_logits
from rdi.data.base import Split
from rdi.data.batches import to_float
from rdi.exits.net import MultiExitNet
from rdi.ranks import ALONE, Ranks
from rdi.seeds import generator

KEEP_SECONDS = 20.0
"""Seconds of work, beyond the batch at hand, that are lost at most when the process is killed."""


@dataclass(frozen=True)
class Attacked:
    """Result of an attack on a split.

    logits: float32_NEC, on the CPU.
    linf: largest perturbation, pixel units.
    seconds: wall time.
    """

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
    begun: Attacked | None = None,
    keep: Callable[[Attacked], None] = lambda done: None,
    stop: Callable[[], bool] = lambda: False,
    see: Callable[[torch.Tensor], None] | None = None,
    ranks: Ranks = ALONE,
) -> Attacked | None:
    """Compute the logits of all exits on `split`, under `attack` or clean for None.

    Batch b draws from the random stream (seed, label, first sample), so a result depends on seed and batch size alone.

    model: its own logits are returned; images are crafted on the engine's copy of it.
    split: on the model's device.
    seed, label: of the random stream.
    batch_size: images per batch.
    engine: options of the copy.
    begun: whole batches that an earlier call with the same arguments computed.
    keep: called with all that is done, every KEEP_SECONDS and before a stop.
    stop: asked between batches; True ends the attack.
    see: called with the attacked x_NCHW of every batch, in order.
    ranks: take turns at the batches, and call this with the same arguments but for keep and see, which only the
        leading one calls; the result is the same however many they are.
    Returns None if stopped, and on ranks that do not lead.
    Raises UserError for logits that are not finite.
    """
    model.eval()
    device = split.images.device
    fast = engine.copy(model).net
    layout = engine.memory_format
    logits, linf, spent = ([begun.logits], begun.linf, begun.seconds) if begun else ([], 0.0, 0.0)
    first = len(begun.logits) if begun else 0
    began = kept = time.perf_counter()

    def done() -> Attacked:
        return Attacked(torch.cat(logits), linf, spent + time.perf_counter() - began)

    def batch(begin: int) -> tuple[torch.Tensor, float, torch.Tensor | None]:
        part, farthest = slice(begin, begin + batch_size), 0.0
        x, y = to_float(split.images[part]), split.labels[part]
        if attack is not None:
            stream = generator(device, seed, "attack", label, begin)
            x_adv = attack(fast, x.to(memory_format=layout), y, stream).contiguous()
            farthest = float((x_adv - x).abs().max())
            x = x_adv
        with torch.inference_mode():
            found = model(x).float().cpu()
        # images that are no numbers are the attack's fault, not the network's
        if bool(x.isfinite().all()):
            check_logits(found, label)
        return found, farthest, None if see is None else x

    seen = first
    quiet = True if ranks.rank else None
    with tqdm(total=len(split), initial=first, desc=label, unit="image", disable=quiet, dynamic_ncols=True) as bar:
        for found, farthest, x in ranks.in_turn(range(first, len(split), batch_size), batch, stop):
            if logits and time.perf_counter() - kept > KEEP_SECONDS:
                keep(done())
                kept = time.perf_counter()
            logits.append(found)
            linf, seen = max(linf, farthest), seen + len(found)
            if see is not None and x is not None:
                see(x)
            bar.update(len(found))
    if seen < len(split):
        if logits:
            keep(done())
        return None
    return done()
