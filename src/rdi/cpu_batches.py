"""Early exit for a batch on a CPU: stages and heads by torch, all that is decided and kept between them by numpy.

Between two stages some twenty operators run on a few numbers per image. Torch takes 10 to 50 microseconds for each,
numpy one to five.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from rdi.exits.compact import close_up
from rdi.exits.net import MultiExitNet
from rdi.thresholds.in_numpy import Decision


def leave_early(
    net: MultiExitNet,
    decide: Decision,
    x: torch.Tensor,
    decisions: Sequence[bool],
    pays: Callable[[int, int, int], bool],
) -> tuple[np.ndarray, np.ndarray, tuple[bool, ...]]:
    """Return the answers' logits_NC in float32, exits_N, and at which exits the batch was compacted.

    net: in eval mode, without gates; plain or compiled.
    x: float32 images_NCHW on the CPU, at least one. They are not written to.
    decisions: for every exit but the last, whether images that left may be taken out there.
    pays: of (exit, images in the batch, images that stay), whether taking them out saves time.
    """
    count, last = len(x), net.exits - 1
    features = x.detach()
    held = np.arange(count)  # of x, that the batch still holds
    running = np.ones(count, dtype=bool)  # of those, that have not left
    exits = np.full(count, last, dtype=np.int64)
    answers, outputs = np.empty(0), list[np.ndarray]()
    compacted = [False] * last
    for k in range(net.exits):
        features, out = net.step(features, k)
        outputs.append(out.float().numpy().copy())  # a network may keep its outputs in the features, whose rows move
        found, leaves = decide(outputs)
        if k == 0:
            answers = np.empty(found.shape, found.dtype)
        leaving = running if k == last else running & leaves
        answers[held[leaving]] = found[leaving]
        exits[held[leaving]] = k
        if k == last:
            break
        running = running & ~leaves
        if not decisions[k]:
            continue
        stay = np.flatnonzero(running)
        if len(stay) == 0:
            compacted[k] = True
            break
        if len(stay) < len(running) and pays(k, len(running), len(stay)):
            compacted[k] = True
            order = np.arange(len(stay))  # rows move to the places of those that left, as few as possible
            holes = np.flatnonzero(~running[: len(stay)])
            order[holes] = stay[len(stay) - len(holes) :]
            if features.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
                features = features.clone()  # a stage handed the caller's own images on
            features = close_up(features, torch.from_numpy(holes), torch.from_numpy(order[holes]), len(stay))
            held, outputs = held[order], [output[order] for output in outputs]
            running = np.ones(len(stay), dtype=bool)
    return answers, exits, tuple(compacted)
