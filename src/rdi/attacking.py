"""Run an attack over a split and keep every exit's logits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm import tqdm

from rdi.attacks.base import Attack
from rdi.attacks.engine import DEFAULT_ENGINE, Engine
from rdi.data.base import Split
from rdi.data.batches import to_float
from rdi.exits.net import MultiExitNet
from rdi.seeds import generator


@dataclass(frozen=True)
class Attacked:
    """logits_NEC float32 on the CPU; linf: largest perturbation in pixel units; seconds it took."""

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
    stop: Callable[[], bool] = lambda: False,
) -> Attacked | None:
    """Logits of all exits on `split` (on the model's device), under `attack` or clean for None.

    The images are crafted on the engine's copy of the model; the logits are always the model's own.
    Batch b draws from the stream (seed, label, first sample), so a result depends on seed and batch size alone.
    Returns None if `stop` said so between two batches.
    """
    model.eval()
    device = split.images.device
    fast = engine.copy(model).net
    layout = engine.memory_format
    began, logits, linf = time.perf_counter(), [], 0.0
    with tqdm(total=len(split), desc=label, unit="image", disable=None, dynamic_ncols=True) as bar:
        for begin in range(0, len(split), batch_size):
            if stop():
                return None
            part = slice(begin, begin + batch_size)
            x, y = to_float(split.images[part]), split.labels[part]
            if attack is not None:
                stream = generator(device, seed, "attack", label, begin)
                x_adv = attack(fast, x.to(memory_format=layout), y, stream).contiguous()
                linf = max(linf, float((x_adv - x).abs().max()))
                x = x_adv
            with torch.inference_mode():
                logits.append(model(x).float().cpu())
            bar.update(len(y))
    return Attacked(torch.cat(logits), linf, time.perf_counter() - began)
