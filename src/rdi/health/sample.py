"""Check that the sample can answer: two passes of it agree, and it holds enough images for a verdict."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from rdi.binomial import at_least
from rdi.health.evaluation import Evaluation
from rdi.health.paired import LEVEL
from rdi.records import Check

ROUNDING = 1e-6
"""Difference between two passes, as a share of a layer's largest output, that a parallel sum may make."""
COMPARISONS = 4
"""The most that one check shares its LEVEL among."""
POWER = 0.9
FAULT = 0.05
"""Share of the images that a fault shows on, which a good sample reveals with the probability POWER."""
HALF = 0.5


@torch.inference_mode()
def repeatable(evaluation: Evaluation) -> Check:
    """Pass every batch twice: no layer may answer differently. The first one that does is named."""
    clean = evaluation.clean
    found: dict[str, float] = {}
    for x in evaluation.batches(clean):
        first, second = outputs(evaluation.net, x), outputs(evaluation.net, x)
        for (name, before), (_, after) in zip(first, second, strict=True):
            scale = float(before.abs().max())
            change = float((after - before).abs().max()) / scale if scale > 0 else float(after.abs().max())
            if not change <= ROUNDING:  # also for NaN
                found[name] = max(found.get(name, 0.0), change)
                break
    said = [f"{name} by {100 * change:.2g} % of its largest output" for name, change in found.items()]
    return Check(
        name="passes agree",
        passed=not said,
        figure=f"two passes of the same images differ from {', '.join(said)}"
        if said
        else f"every layer answered twice the same on {len(clean)} images",
        meaning="A layer is random in eval mode: attacks climb one network and another one is judged. Make it "
        "deterministic, or attack its expectation.",
    )


def outputs(net: nn.Module, x: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Return name and output of every module, in the order in which they end: a random one before what it feeds."""
    found: list[tuple[str, torch.Tensor]] = []

    def keep(name: str) -> Any:
        def hook(module: nn.Module, given: Any, out: Any) -> None:
            if isinstance(out, torch.Tensor) and out.numel():
                found.append((f"{name} ({type(module).__name__})", out.double().cpu()))

        return hook

    handles = [module.register_forward_hook(keep(name or "the network")) for name, module in net.named_modules()]
    try:
        net(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def enough(evaluation: Evaluation) -> Check:
    """Say how rare a fault this sample can reveal, and how many images a rare one needs.

    The tests of the checks count images that were right and are lost: at LEVEL / COMPARISONS a sign test needs
    `needed` of them, all on one side, whatever the sample.
    """
    needed = math.floor(math.log(LEVEL / COMPARISONS, 0.5)) + 1
    right = int(evaluation.under(None).right.sum())
    share = max(right, 1) / len(evaluation.split)  # wrong from the start, an image can reveal nothing
    revealed = smallest_share(right, needed)
    few, many = (math.ceil(images(one, needed) / share) for one in (HALF, FAULT))
    passed = revealed is not None and revealed <= HALF
    shown = (
        f"a fault that shows on {100 * revealed:.0f} % of them or more" if revealed is not None else "no fault at all"
    )
    total = len(evaluation.split)
    ask = f"samples={many} for one on {100 * FAULT:.0f} %"
    return Check(
        name="enough images",
        passed=passed,
        figure=f"{right} of {total} images can be lost: they reveal {shown} (chance {100 * POWER:.0f} %); "
        + (ask if passed else f"give samples={few} at least, {ask}")
        if right < images(FAULT, needed)
        else f"{right} of {total} images can be lost: they reveal a fault that shows on {100 * FAULT:.0f} %",
        meaning="With so few images a green line says little: a fault would have to show on most of them.",
    )


def images(share: float, needed: int) -> int:
    """Return the number of images of which `needed` show a fault, with the probability POWER.

    share: of all images that show the fault, in (0, 1].
    needed: images that must show it.
    """
    count = needed
    while at_least(needed, count, share) < POWER:
        count += 1
    return count


def smallest_share(count: int, needed: int) -> float | None:
    """Return the smallest share, in percent steps, that so many images reveal with the probability POWER.

    count: images.
    needed: images that must show the fault.
    Returns None where there is no such share.
    """
    shares = (percent / 100 for percent in range(1, 101))
    return next((share for share in shares if at_least(needed, count, share) >= POWER), None)
