"""Rows of the training steps: images per second of every defense, against the textbook's step."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from rdi.attacks import Average, MaxAverage
from rdi.attacks.engine import Engine
from rdi.benchmarks import textbook
from rdi.benchmarks.attacks import Subject, comparisons
from rdi.benchmarks.timing import Times, Work, race, row
from rdi.data.augment import augment
from rdi.data.batches import to_float
from rdi.defenses import Adversarial, Defense, Fast, Standard
from rdi.emulation import precisions
from rdi.exits import MultiExitNet
from rdi.records import BenchRow
from rdi.training_settings import autocast

TARGETS = {("cpu", "max_avg, bf16"): 4.0, ("cuda", "max_avg, bf16"): 8.0}
PLAIN, FAST = "textbook step", "fast (max_avg)"


def rows(subject: Subject) -> list[BenchRow]:
    """Measure one row per defense and precision: seconds of the textbook's step / seconds of ours.

    fast is compared with the max-average step that it stands in for; its guard's look every 50 steps is left out.
    """
    device, samples = subject.x.device, len(subject.x)
    feeding = race({"feed": Feed(subject)}, repeats=10, device=device).median("feed")
    found = []
    for name in ("standard", "average", "max_avg", FAST):
        ours = {f"{name}, {precision}": Step(subject, name, precision) for precision in precisions(device)}
        times = race({PLAIN: plain_step(subject, name), **ours}, repeats=subject.repeats, device=device)
        for key in ours:
            share = feeding / times.median(key)
            target = TARGETS.get((device.type, key))
            found.append(paced("training", times, key, PLAIN, samples, target, data_and_augmentation_share=share))
    return found


def paced(
    group: str, times: Times, key: str, against: str, samples: int, target: float | None, **values: float
) -> BenchRow:
    """Make the row of a training step: its time against another one's, and the images per second of both."""
    paces = {"images_per_second": key, "baseline_images_per_second": against}
    values |= {name: samples / times.median(one) for name, one in paces.items()}
    return row(group, key, samples, against, times.ratio(against, key), target, **values)


def defense(subject: Subject, name: str, precision: str) -> Defense:
    """Return the defense called `name`, crafting in `precision`, with as many steps as the subject says."""
    if name == "standard":
        return Standard()
    kind = Average if name == "average" else MaxAverage
    engine = Engine(precision=precision)
    if name == FAST:
        return Fast(attack=kind(steps=max(2, subject.steps), **subject.ball), engine=engine, guard_every=None)
    return Adversarial(attack=kind(steps=subject.steps, keep="last", **subject.ball), engine=engine)


class Feed:
    """The work before the loss in every step: choose the images, augment them, make them floats."""

    def __init__(self, subject: Subject) -> None:
        self.images = (subject.x * 255).round().to(torch.uint8)
        self.generator = torch.Generator(subject.x.device).manual_seed(0)

    def __call__(self) -> torch.Tensor:
        """Return the next batch, x_NCHW, channels-last."""
        index = torch.randperm(len(self.images), generator=self.generator, device=self.images.device)
        images = augment(self.images[index], "crop_flip", self.generator)
        return to_float(images).to(memory_format=torch.channels_last)


class Step:
    """One training step as rdi.training makes it, on a copy of the network."""

    def __init__(self, subject: Subject, name: str, precision: str) -> None:
        self.model, self.optimizer = trainee(subject.model)
        self.model.to(memory_format=torch.channels_last)
        self.defense = defense(subject, name, precision)
        self.y, self.feed, self.precision = subject.y, Feed(subject), precision

    def __call__(self) -> None:
        """Augment, craft, two passes, update."""
        x = self.feed()
        with autocast(x.device, self.precision):
            loss, _ = self.defense.loss(self.model, x, self.y, self.feed.generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def plain_step(subject: Subject, name: str) -> Work:
    """Return the textbook's step on a copy of the network, with the same augmentation."""
    model, optimizer = trainee(subject.model)
    feed = Feed(subject)

    def step() -> None:
        x = feed().contiguous()
        comparison = {
            comparison.name: comparison for comparison in comparisons(replace(subject, model=model, x=x))
        }.get("max_avg" if name == FAST else name)
        craft = None if comparison is None else lambda: comparison.plain(subject.steps)
        textbook.training_step(model, optimizer, x, subject.y, craft)

    return step


def trainee(model: MultiExitNet) -> tuple[MultiExitNet, torch.optim.Optimizer]:
    """Return a copy to train, and its optimiser. The rate is zero: timing must not lead it astray."""
    own = copy.deepcopy(model).train()
    return own, torch.optim.SGD(own.parameters(), lr=0.0, momentum=0.9, weight_decay=5e-4)
