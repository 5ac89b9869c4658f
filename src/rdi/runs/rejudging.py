"""Judge an export in another precision, on clean images and under the run's attacks.

These have to be crafted again: a bank keeps logits and no images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import numpy as np

import rdi.attacks
from rdi.attacking import attack_split, joined
from rdi.attacks.base import Attack
from rdi.attacks.engine import Engine
from rdi.banks import LogitsBank
from rdi.data.base import Split
from rdi.exporting.runner import Runner
from rdi.records import BankManifest, Plain
from rdi.runs import stored
from rdi.runs.folder import Run
from rdi.threats import threat, trained
from rdi.thresholds import Policy

SAME = 1e-3
"""Logits of the network that differ by no more are of the same image, up to rounding."""
TRANSFER = (
    "transfer: the images were crafted on the network in float32; attacks that know the exported network were not run, "
    "and may leave fewer right"
)
CERTIFIED = "none: bounds hold for the network in float32 alone, and were not made of the exported one"


def rejudged(run: Run, policy: Policy, runner: Runner, clean: dict[str, Any], split: Split, count: int) -> dict:
    """Return what parity.json says of an export that is another network.

    clean: of rdi.exporting.parity.compare, on `split`.
    count: test images, at most, that the run's attacks are crafted on again; as many as banks hold where that is less.
    Accuracies are fractions; those `of_the_network` are of the network in float32 on the same images, under the same
    policy.
    """
    truth = split.labels.numpy()

    def accuracy(labels: list[int]) -> float:
        return float(np.mean(np.array(labels) == truth))

    worst: dict[str, Any] = {"images": 0, "accuracy": None, "of_the_network": None, "attacks": {}, "left_out": []}
    ours, theirs = [], []
    attacked = {name: made for name, made in stored.manifests(run.folder).items() if threat(made.settings) is not None}
    banks = {name: made for name, made in attacked.items() if threat(made.settings) == trained(run.manifest)}
    worst["left_out"] += [name for name in attacked if name not in banks]
    images = run.data.test.sample(min([count, *(made.samples for made in banks.values())]))
    for name, made in banks.items():
        attack = rebuilt(made.settings, policy)
        if attack is None:
            worst["left_out"].append(name)
            continue
        found, right = _attacked(run, policy, runner, images, attack, name, made)
        worst["attacks"][name] = found
        theirs.append(right[0])
        ours.append(right[1])
    if ours:
        worst |= {
            "images": len(images),
            "accuracy": float(np.all(ours, axis=0).mean()),
            "of_the_network": float(np.all(theirs, axis=0).mean()),
            "says": TRANSFER,
        }
    return {
        "clean": {
            "images": len(split),
            "accuracy": accuracy(clean["labels"]),
            "of_the_network": accuracy(clean["network"]["labels"]),
            "mean_macs": float(runner.macs[clean["exits"]].mean()),
        },
        "worst_case": worst,
        "certified": {"accuracy": None, "says": CERTIFIED},
    }


def _attacked(
    run: Run, policy: Policy, runner: Runner, images: Split, attack: Attack, name: str, made: BankManifest
) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray]]:
    """Craft one attack again -> (its figures, (right_N of the network, right_N of the export))."""
    engine = Engine(**made.engine)  # type: ignore[arg-type]
    split, seed, size = images.to(run.device), made.seed, made.batch_size
    crafted = joined(attack_split(run.network, split, attack, seed=seed, batch_size=size, label=name, engine=engine))
    bank: LogitsBank = run.bank(name).select(images.indices)
    exits = policy.choose(crafted.logits)
    truth = images.labels.numpy()
    theirs = policy.predict(crafted.logits, exits).numpy() == truth
    ours = runner(crafted.images.float().cpu().clamp(0, 1).numpy()).labels == truth
    figures = {
        "accuracy": float(ours.mean()),
        "of_the_network": float(theirs.mean()),
        "images_of_the_bank": bool((crafted.logits - bank.logits).abs().max() <= SAME),
    }
    return figures, (theirs, ours)


def rebuilt(settings: Mapping[str, Plain], policy: Policy) -> Attack | None:
    """Return the attack of a bank with these settings, aimed at `policy`; None where it cannot be told from them.

    What is returned has the identity that the bank names.
    """
    kind = getattr(rdi.attacks, str(settings.get("attack")), None)
    if not (isinstance(kind, type) and issubclass(kind, Attack)):
        return None
    given: dict[str, Any] = {}
    for entry in fields(kind):
        value = settings.get(entry.name)
        text = isinstance(entry.default, str) or entry.default is MISSING
        if entry.init and entry.name != "policy" and value is not None and (text or not isinstance(value, str)):
            given[entry.name] = value
    try:
        attack: Attack = kind(**given).for_policy(policy)
    except (TypeError, ValueError):  # a part of it is an object of its own, which no plain value describes
        return None
    return attack if attack.identity() == dict(settings) else None
