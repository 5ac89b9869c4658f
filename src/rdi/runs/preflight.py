"""A dry run on a few images before a long one: what cannot work is found in a second, not after hours."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch

from rdi import macs
from rdi.attacks.base import Attack
from rdi.checks import choice, integer
from rdi.data import DataSet, augment, to_float
from rdi.data.augment import AUGMENTATIONS, RESIZED_CROP
from rdi.data.base import Split
from rdi.defenses import Boosted, Carried, Defense
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.gates import NoGates
from rdi.memory import available_memory
from rdi.optim import Recipe
from rdi.ranks import whole_batch
from rdi.recomputing import price
from rdi.storage import json_bytes
from rdi.thresholds import Calibration, Policy, Rule
from rdi.training_settings import Settings, autocast, layout

logger = logging.getLogger("rdi")
IMAGES = 4


def training(
    net: MultiExitNet,
    defense: Defense,
    recipe: Recipe,
    settings: Settings,
    data: DataSet,
    device: torch.device,
    ranks: int = 1,
    gates: NoGates | None = None,
) -> None:
    """Make one loss and one backward pass on a copy of `net`, and the images that held-out ones are judged by.

    gates: how those of `net` are trained; None: it has none.
    ranks: processes that will share every batch.
    Raises UserError for options that do not fit the network: numbers of weights or exits.
    """
    recipe.steps(len(data.train))
    choice("augment", settings.augment, AUGMENTATIONS)
    if isinstance(getattr(defense, "crafting", None), Carried):
        _carried(settings, data, device)
    if recipe.batch_size < ranks:
        raise UserError(f"optim.batch_size={recipe.batch_size} images cannot be shared by {ranks} ranks: lower ranks")
    if recipe.batch_size // ranks < recipe.accumulate:
        raise UserError(
            f"optim.batch_size={recipe.batch_size} images of {ranks} ranks cannot be computed in {recipe.accumulate} "
            "parts: lower optim.accumulate"
        )
    together = recipe.batch_size if settings.batchnorm == "synchronised" else recipe.batch_size // ranks
    together //= recipe.accumulate
    with _probe(net, device) as probe:
        stream = torch.Generator(device).manual_seed(0)
        images, y = _batch(data.train, min(IMAGES, together), device)
        x = to_float(augment(images, settings.augment, stream)).to(memory_format=layout(settings))
        brief = copy.copy(defense)
        if brief.attack is not None:
            brief.attack = brief.attack.brief()
        probe.to(memory_format=layout(settings)).train()
        try:
            recipe.build_optimizer(probe.parameters())
        except (TypeError, ValueError) as error:
            raise UserError(f"optim.optimizer refuses its options: {error}") from error
        try:
            with autocast(device, settings.precision), (gates or NoGates()).step(probe, 1.0) as cost:
                if isinstance(brief, Boosted) and brief.frozen:
                    _first_round(brief, probe, x, y, stream)
                loss, _ = cost.added(*brief.loss(probe, x, y, stream), whole_batch(len(x)))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"optim.batch_size={recipe.batch_size} is too small for this network's BatchNorm: take at least "
                f"{2 * recipe.batch_size // together}"
            ) from error
        loss.backward()
        brief.after_backward()
        if brief.attack is not None:  # judges held-out images, for the first time hours later
            brief.craft(brief.attack, probe, x, y, stream)
        if settings.recompute:
            with autocast(device, settings.precision):
                logger.info("recompute=true: %s", price(probe, x))


def _first_round(
    defense: Boosted, probe: MultiExitNet, x: torch.Tensor, y: torch.Tensor, stream: torch.Generator
) -> None:
    """Make the loss of the first round, whose network has one exit. Raises UserError for an attack on another."""
    defense.begin(probe.exits)
    try:
        defense.loss(probe, x, y, stream)
    except UserError as error:
        raise UserError(f"defense.frozen=true trains the first exit alone, and {error}") from error
    defense.begin(1)
    defense.load_state({})


def _carried(settings: Settings, data: DataSet, device: torch.device) -> None:
    """Raise UserError where perturbations cannot follow the images, or do not fit the memory."""
    if settings.augment == RESIZED_CROP:
        raise UserError("defense=carried moves perturbations by whole pixels: set data.augment=crop_flip, crop or none")
    needed, left = 2 * len(data.train) * prod(data.shape), available_memory() if device.type == "cpu" else None
    if left is not None and needed > left:
        raise UserError(
            f"defense=carried keeps two bytes for every number of a training image, {needed / 2**30:,.1f} GiB, and "
            f"{left / 2**30:,.1f} GiB of memory are left: choose another defense, as paired"
        )


def thresholds(net: MultiExitNet, rule: Rule, data: DataSet, device: torch.device) -> Policy:
    """Make one fit on the logits of a few images.

    Raises UserError when `rule` does not suit the network, or may fail once the network is trained.
    """
    costs = macs.count(net, data.shape, warn=False)
    rule.check(net.exits, costs)
    if not rule.always_fits:
        raise UserError(
            "these thresholds need attacked images, or may not exist, so a run cannot end with them: leave out "
            "threshold=... here, and give it to `rdi evaluate run=...` afterwards"
        )
    with _probe(net, device) as probe, torch.no_grad():
        images, y = _batch(data.calibration, IMAGES, device)
        calibration = Calibration(probe(to_float(images)).float().cpu(), y.cpu(), costs)
        policy = rule.fit(calibration)
        recordable("threshold", {"policy": policy.describe(), "facts": rule.facts(calibration, policy)})
        return policy


def recordable(what: str, content: Mapping[str, Any]) -> None:
    """Raise UserError, naming `what`, for values that no record can hold: found before there is work to lose."""
    try:
        json_bytes(content)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"these options of {what} come to values that no record can hold ({error}): give finite, plain ones"
        ) from error


def suite(net: MultiExitNet, attacks: dict[str, Attack], split: Split, *, samples: int | None, batch_size: int) -> None:
    """Make one step of every attack on a copy of `net`, on its device. Raises UserError for what does not fit it."""
    integer("batch_size", batch_size, 1)
    split.sample(samples)
    device = next(net.parameters()).device
    x, y = _batch(split, IMAGES, device)
    with _probe(net, device) as probe:
        for attack in attacks.values():
            for one in attack.per_exit(net.exits).values():
                recordable("attack", one.identity())
                one.brief()(probe, to_float(x), y)


def _batch(split: Split, count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return split.images[:count].to(device), split.labels[:count].to(device)


@contextmanager
def _probe(net: MultiExitNet, device: torch.device) -> Iterator[MultiExitNet]:
    """A copy to spoil; torch's default generators, which dropout draws from, are as before afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield copy.deepcopy(net).to(device).eval()
