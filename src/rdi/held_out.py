"""Judge a network on held-out images while it is trained, and warn of catastrophic overfitting."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from rdi.data.base import Split
from rdi.data.batches import to_float
from rdi.data.streamed import fetch, slices
from rdi.defenses.base import Defense
from rdi.errors import Interrupted
from rdi.exits.net import MultiExitNet
from rdi.ranks import ALONE, Ranks
from rdi.seeds import generator
from rdi.training_settings import Settings, autocast, layout

logger = logging.getLogger("rdi")
OVERFITTED = 0.15
"""One-step minus multi-step accuracy from which an exit counts as overfitted to the one step."""


@torch.no_grad()
def calibrate(
    model: MultiExitNet,
    defense: Defense,
    split: Split,
    settings: Settings,
    batch_size: int,
    ranks: Ranks = ALONE,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, list[float]] | None:
    """Measure accuracy per exit on `split`, in [0, 1]: clean, under the defense's attack and its one step, if any.

    The mode of the network is kept. ranks: take turns at the batches, and all return the same.
    stop: asked before every batch.

    None when logits are not finite: such weights have no accuracy.
    Raises Interrupted, on every rank, when `stop` said so on any.
    """
    device = split.images.device
    hits: dict[str, torch.Tensor] = {}
    finite = torch.ones((), dtype=torch.bool, device=device)
    mode = model.training
    model.eval()
    begins = range(ranks.rank * batch_size, len(split), ranks.count * batch_size)
    stopped = False
    for begin, images in zip(begins, fetch(split.images, slices(len(split), begins, batch_size)), strict=True):
        if stopped := stop():
            break
        x = to_float(images).to(memory_format=layout(settings))
        y = split.labels[begin : begin + batch_size]
        versions = {"clean_accuracy": x}
        if defense.attack is not None:
            with autocast(device, settings.precision):
                stream = generator(device, settings.seed, "calibrate", begin)
                versions["robust_accuracy"] = defense.craft(defense.attack, model, x, y, stream)
                stream = generator(device, settings.seed, "one step", begin)
                if (one_step := defense.one_step(model, x, y, stream)) is not None:
                    versions["one_step_accuracy"] = one_step
        for name, version in versions.items():
            logits = defense.answers(model(version))
            finite &= logits.isfinite().all()
            count = (logits.argmax(dim=2) == y[:, None]).sum(dim=0)
            hits[name] = hits.get(name, torch.zeros_like(count)) + count
    model.train(mode)
    if ranks.any(stopped):
        raise Interrupted("stopped while the held-out images are judged")
    counts = {name: count.double().cpu() for name, count in hits.items()}
    total: dict[str, torch.Tensor] = {}
    for fine, here in ranks.collect((bool(finite), counts)):
        if not fine:
            return None
        for name, count in here.items():
            total[name] = total.get(name, torch.zeros_like(count)) + count
    return {name: (count / len(split)).tolist() for name, count in total.items()}


def warn_of_overfitting(accuracy: dict[str, list[float]], step: int) -> None:
    """Warn of exits that withstand the one step they are trained on and not the many steps of the attack."""
    one, many = accuracy.get("one_step_accuracy"), accuracy.get("robust_accuracy")
    if one is None or many is None:
        return
    if fallen := [k for k, (easy, hard) in enumerate(zip(one, many, strict=True)) if easy - hard > OVERFITTED]:
        logger.warning(
            "step %d: exits %s withstand one step on %s %% of the held-out images and the attack on %s %%: "
            "catastrophic overfitting. Train with defense=fast, whose guard mends it, or a smaller "
            "defense.crafting.step",
            step,
            "/".join(map(str, fallen)),
            "/".join(f"{100 * one[k]:.0f}" for k in fallen),
            "/".join(f"{100 * many[k]:.0f}" for k in fallen),
        )
