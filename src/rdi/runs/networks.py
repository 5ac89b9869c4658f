"""Networks: fresh from a resolved config, or with the weights of a run folder that stores one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from rdi import macs, sizing
from rdi.backbones.base import Backbone
from rdi.checks import instance, number
from rdi.compression import keep_channels
from rdi.compression.chains import chains, width
from rdi.config import build
from rdi.errors import UserError
from rdi.exits import MultiExitNet, normalised
from rdi.exits.attach import Attach
from rdi.folders import RunFolder
from rdi.gates import NoGates
from rdi.records import Manifest
from rdi.runs.identity import UNGATED, identity
from rdi.runs.weights import load_weights
from rdi.seeds import derive
from rdi.storage import sha256


def model(config: dict[str, Any], shape: Sequence[int], classes: int, seed: int) -> MultiExitNet:
    """Backbone + exits (+ normalisation, + gates) of a config, as `fresh` makes them."""
    backbone = partial(build, config["backbone"], "backbone")
    net = fresh(backbone, build(config["exits"], "exits"), shape, classes, seed)
    if config.get("normalise"):
        net = normalised(net, *_statistics(config["normalise"], shape[0]))
    return with_gates(net, gates_of(config), shape, seed)


def with_gates(net: MultiExitNet, gates: NoGates, shape: Sequence[int], seed: int) -> MultiExitNet:
    """Put `gates` with fresh weights on `net`; torch's default generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "gates"))
        return gates.attach(net, shape)


def gates_of(config: dict[str, Any]) -> NoGates:
    """Build the gates that a config asks for; those from before there was a choice have none."""
    found: NoGates = build(config.get("gates") or UNGATED, "gates")
    return found


def fresh(
    backbone: Callable[..., Backbone], exits: Attach, shape: Sequence[int], classes: int, seed: int
) -> MultiExitNet:
    """Backbone + exits with fresh weights; torch's default generator is left as it was.

    Raises UserError for a network that the memory does not hold, before it is allocated.
    """
    sizing.check_images(shape)
    with sizing.bounded(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "weights"))
        made = backbone(shape=list(shape), classes=classes)
        plain = instance("what a backbone's function returns", made, Backbone, "rdi.backbones.smallcnn makes it")
        if plain.classes != classes:
            raise UserError(f"this backbone is for {plain.classes} classes, and the images are of {classes}")
        return exits(plain)


def _statistics(node: Any, channels: int) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel out of the option `normalise`. Raises UserError for anything else."""
    if not isinstance(node, dict) or set(node) != {"mean", "std"}:
        raise UserError(f"normalise must be null or {{mean: [...], std: [...]}}, got {node}")
    for key, values in node.items():
        if not isinstance(values, list) or len(values) != channels:
            raise UserError(f"normalise.{key} must list {channels} numbers, one per channel, got {values}")
    mean = [number("normalise.mean", value, -math.inf, math.inf) for value in node["mean"]]
    return mean, [number("normalise.std", value, 0, math.inf, open_low=True) for value in node["std"]]


def checked(folder: RunFolder, manifest: Manifest, device: torch.device) -> MultiExitNet:
    """Build the network of a run (eval mode, on `device`).

    Raises UserError when the manifest says of itself or of the network what is not so.
    """
    check_identity(folder, manifest)
    net = network(folder, manifest, device)
    costs = macs.count(net, manifest.data.shape)
    said = manifest.costs
    found = {
        "exits": (manifest.exits, net.exits),
        "parameters": (manifest.parameters, sum(parameter.numel() for parameter in net.parameters())),
        "costs.macs": (said.macs, costs.macs),
        "costs.macs_plain": (said.macs_plain, costs.macs_plain),
    }
    if not folder.size.is_file():  # of a compressed one the published rule counts non-zero weights only
        found["costs.macs_paper"] = (said.macs_paper, costs.macs_paper)
        found["costs.macs_plain_paper"] = (said.macs_plain_paper, costs.macs_plain_paper)
    for key, (stored, counted) in found.items():
        if stored != counted:
            raise UserError(
                f"{folder.manifest} is damaged: it says {key} {stored}, the network has {counted}; restore it or "
                "train again"
            )
    return net


def check_identity(folder: RunFolder, manifest: Manifest) -> None:
    """Raise UserError for a manifest whose identity or seed is not that of its own config."""
    try:
        same = manifest.identity == identity(manifest.config) and manifest.seed == manifest.config["seed"]
    except (LookupError, TypeError, AttributeError):
        same = False
    if not same:
        raise UserError(
            f"{folder.manifest} is damaged: its identity is not that of its config; restore it, or train again with "
            "overwrite=true"
        )


def network(folder: RunFolder, manifest: Manifest, device: torch.device) -> MultiExitNet:
    """Load the network (eval mode, on `device`) that the manifest describes, with the run's checkpoint.

    Raises UserError when the checkpoint is not the one that the manifest names.
    """
    net = model(manifest.config, manifest.data.shape, len(manifest.data.class_names), manifest.seed)
    narrow(net, manifest.widths)
    load_weights(folder.checkpoint, net)
    if sha256(folder.checkpoint) != manifest.checkpoint_sha256:
        raise UserError(f"{folder.checkpoint} is not the file that the run ended with: restore it or train again")
    return net.to(device).eval()


def narrow(net: MultiExitNet, widths: dict[str, int]) -> None:
    """Make `net`, in place, as narrow as a manifest says; which channels stay is left to the weights loaded next.

    Raises UserError for widths of another network.
    """
    if not widths:
        return
    known = {chain.producer: width(net, chain) for chain in chains(net)}
    for name, left in widths.items():
        if not 1 <= left <= known.get(name, 0):
            raise UserError(
                f"widths.{name} of the manifest is {left}, and this network has {known.get(name, 'no')} channels to "
                "narrow there: restore the manifest or train again"
            )
    keep_channels(net, {name: torch.arange(left) for name, left in widths.items()})
