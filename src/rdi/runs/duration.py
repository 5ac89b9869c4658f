"""Estimate the seconds of a training and its attacks on this machine, from a few batches; nothing is cached."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rdi.attacks.base import Attack
from rdi.config import build
from rdi.data import DataSet
from rdi.runs import devices, networks
from rdi.thresholds import Entropy, ThresholdPolicy
from rdi.training_settings import autocast

IMAGES = 16
"""Attacked at once to time one step of an attack."""
STEPS = 2
"""Training steps that are timed, after one that is not."""


@dataclass(frozen=True)
class Duration:
    """Expected duration of a job.

    steps: of the training; 0 where it is done.
    training: seconds of them, without evaluations and the checks of a guard.
    attacks: seconds of those of the suite that are not done, on the images of the test split that it is given.
    """

    steps: int
    training: float
    attacks: float

    @property
    def total(self) -> float:
        """Seconds of both."""
        return self.training + self.attacks


def expected(config: dict[str, Any], data: DataSet, *, trained: bool = False, made: Set[str] = frozenset()) -> Duration:
    """Time one batch of the training and one step of every attack of a job, and multiply.

    config: resolved, of `rdi run`; data: what it names, for shapes and numbers of images.
    trained: the training is done, and only the attacks are timed.
    made: names of banks that are there, whose attacks are not timed.
    """
    device = devices.select(config["device"], config["threads"])
    net = networks.model(config, data.shape, data.classes, config["seed"]).to(device)
    steps = 0 if trained else build(config["optim"], "optim").steps(len(data.train))
    images = min(len(data.test), config["samples"] or len(data.test))
    training = steps * _training_step(config, net, data, device) if steps else 0.0
    return Duration(steps, training, images * _attacks(config, net, data, device, made))


def _training_step(config: dict[str, Any], net: Any, data: DataSet, device: torch.device) -> float:
    """Seconds of one training step."""
    defense, recipe = build(config["defense"], "defense"), build(config["optim"], "optim")
    stream = torch.Generator(device).manual_seed(0)
    layout = torch.channels_last if config["channels_last"] else torch.contiguous_format
    x, y = _batch(data, recipe.batch_size, device)
    x = x.to(memory_format=layout)
    net.to(memory_format=layout).train()
    optimizer = recipe.build_optimizer(net.parameters())

    def step(times: int) -> None:
        for _ in range(times):
            once()

    def once() -> None:
        with autocast(device, config["precision"]):
            loss, _ = defense.loss(net, x, y, stream)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    step(1)
    return _seconds(partial(step, STEPS), device) / STEPS


def _attacks(config: dict[str, Any], net: Any, data: DataSet, device: torch.device, made: Set[str]) -> float:
    """Seconds of the attacks of the suite but `made` on one image that no exit releases early."""
    policy = ThresholdPolicy(Entropy(), [math.log(data.classes) / 2] * (net.exits - 1))  # unsure, as fresh weights are
    engine = build(config["engine"], "engine")
    x, y = _batch(data, IMAGES, device)
    attacks: dict[str, Attack] = {name: build(node, f"suite.{name}") for name, node in config["suite"].items()}
    seconds = 0.0
    fast = engine.copy(net.eval()).net
    for name, attack in attacks.items():
        for suffix, one in attack.per_exit(net.exits).items():
            if name + suffix in made:
                continue
            brief = one.brief().for_policy(policy)
            many = getattr(one, "steps", 1) / getattr(brief, "steps", 1)
            seconds += many * _seconds(partial(brief.craft, fast, x, y, torch.Generator(device)), device)
    return seconds / IMAGES


def _batch(data: DataSet, count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of the training split, repeated where there are too few."""
    rows = torch.arange(count) % len(data.train)
    return data.train.images[rows].to(device) / 255, data.train.labels[rows].to(device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
