"""Rows of the attacks: time against textbook loops and against torchattacks, share of the machine, peak memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from rdi import macs
from rdi.attacks import Attack, Average, MainExit, MaxAverage, SingleExit
from rdi.attacks.engine import PRECISIONS, Engine
from rdi.benchmarks import textbook
from rdi.benchmarks.machine import matrix_rate, peak_memory
from rdi.benchmarks.timing import Spread, Times, race, row
from rdi.emulation import precisions
from rdi.exits import MultiExitNet
from rdi.records import BenchRow

PLAIN, TORCHATTACKS = "textbook loop", "torchattacks PGD, float32"
ENGINES = {
    "float32": Engine(fold=False),
    "float32, folded": Engine(),
    "bf16, folded": Engine(precision="bf16"),
}
TARGETS = {
    ("cpu", "max_avg", "float32, folded"): 2.0,
    ("cpu", "max_avg", "bf16, folded"): 4.5,
    ("cpu", TORCHATTACKS, "float32, folded"): 1.3,
    ("cpu", TORCHATTACKS, "bf16, folded"): 2.5,
    ("cuda", "max_avg", "float32, folded"): 6.0,
    ("cuda", "max_avg", "bf16, folded"): 10.0,
    ("cuda", TORCHATTACKS, "float32, folded"): 2.0,
    ("cuda", TORCHATTACKS, "bf16, folded"): 4.0,
}
"""The least ratios that the project has set itself."""


def engines(device: torch.device) -> dict[str, Engine]:
    """Return the ENGINES that are worth measuring on `device`."""
    return {name: engine for name, engine in ENGINES.items() if engine.precision in precisions(device)}


@dataclass(frozen=True)
class Subject:
    """Network and images under attack: model in eval mode, x_NCHW in [0, 1], labels y_N, all on one device; repeats."""

    model: MultiExitNet
    x: torch.Tensor
    y: torch.Tensor
    eps: float
    step_size: float
    steps: int
    repeats: int

    @property
    def ball(self) -> dict[str, Any]:
        """eps and step_size, pixel units."""
        return {"eps": self.eps, "step_size": self.step_size}

    def starts(self, count: int) -> list[torch.Tensor]:
        """Return the random starts that an attack with a fresh generator draws too."""
        generator = torch.Generator(self.x.device).manual_seed(0)
        return [textbook.noise(self.x, self.eps, generator) for _ in range(count)]


@dataclass(frozen=True)
class Comparison:
    """An attack, ours and the textbook's, as functions of the number of steps.

    forward: what a step runs, MACs.
    """

    name: str
    ours: Callable[[int], Attack]
    plain: Callable[[int], torch.Tensor]
    forward: int


def comparisons(subject: Subject) -> list[Comparison]:
    """Return the attacks on the first exit, the last one, their mean, and max-average; each keeps its last iterate."""
    model, x, y, ball = subject.model, subject.x, subject.y, subject.ball
    costs, last = macs.count(model, tuple(x.shape[1:])), model.exits - 1

    def plain(loss: textbook.Loss) -> Callable[[int], torch.Tensor]:
        return lambda steps: textbook.pgd(model, x, y, loss, subject.starts(1)[0], steps=steps, **ball)

    def plain_max_average(steps: int) -> torch.Tensor:
        return textbook.max_average(model, x, y, subject.starts(model.exits), steps=steps, **ball)

    def ours(kind: Callable[..., Attack], **options: object) -> Callable[[int], Attack]:
        return partial(last_iterate, kind, {**ball, **options})

    return [
        Comparison("single, first exit", ours(SingleExit, exit=0), plain(textbook.exit_loss(0)), costs.macs_paper[0]),
        Comparison("main", ours(MainExit), plain(textbook.exit_loss(last)), costs.macs_paper[last]),
        Comparison("average", ours(Average), plain(textbook.mean_loss), costs.macs[last]),
        Comparison("max_avg", ours(MaxAverage), plain_max_average, sum(costs.macs_paper)),
    ]


def last_iterate(kind: Callable[..., Attack], options: dict[str, object], steps: int) -> Attack:
    """Return an attack that, like the textbook, keeps its last iterate."""
    return kind(steps=steps, keep="last", **options)


class Crafter:
    """Runs one attack on one engine's copy and keeps the images."""

    def __init__(self, subject: Subject, engine: Engine, attack: Callable[[int], Attack]) -> None:
        self.net = engine.copy(subject.model).net
        self.x, self.y = subject.x.to(memory_format=engine.memory_format), subject.y
        self.attack = attack

    def __call__(self, steps: int) -> torch.Tensor:
        """Craft with `steps` steps."""
        self.images = self.attack(steps)(self.net, self.x, self.y)
        return self.images


def against_textbook(subject: Subject) -> list[BenchRow]:
    """Measure one row per attack and engine: textbook seconds / ours."""
    device = subject.x.device
    best = {name: matrix_rate(device, PRECISIONS[name], subject.repeats) for name in precisions(device)}
    rows = []
    for comparison in comparisons(subject):
        fast = {name: Crafter(subject, engine, comparison.ours) for name, engine in engines(device).items()}
        times = _race({PLAIN: comparison.plain, **fast}, subject)
        expected = comparison.plain(1)
        subject.model.zero_grad(set_to_none=True)
        for name, engine in engines(device).items():
            # the gradient with respect to the image costs as much as the forward pass
            rate = 2 * comparison.forward * subject.steps * len(subject.x) / times.median(name)
            rows.append(
                row(
                    "attacks",
                    f"{comparison.name}, {name}",
                    len(subject.x),
                    PLAIN,
                    times.ratio(PLAIN, name),
                    TARGETS.get((device.type, comparison.name, name)),
                    baseline_seconds=times.median(PLAIN),
                    seconds=times.median(name),
                    share_of_matrix_rate=rate / best[engine.precision],
                    pixels_equal_after_one_step=float((fast[name](1) == expected).double().mean()),
                )
            )
    return rows


def against_torchattacks(subject: Subject) -> list[BenchRow]:
    """Measure PGD on the mean of exits at equal steps: torchattacks' seconds / ours.

    Raises ImportError where torchattacks is missing.
    """
    import torchattacks

    theirs = _ExitsLast(subject.model)
    labels = subject.y[:, None].expand(-1, subject.model.exits)

    def pgd(steps: int) -> torch.Tensor:
        attack = torchattacks.PGD(theirs, eps=subject.eps, alpha=subject.step_size, steps=steps)
        images: torch.Tensor = attack(subject.x, labels)
        return images

    ours = next(comparison for comparison in comparisons(subject) if comparison.name == "average").ours
    measured = engines(subject.x.device)
    times = _race(
        {TORCHATTACKS: pgd, **{name: Crafter(subject, engine, ours) for name, engine in measured.items()}}, subject
    )
    return [
        row(
            "attacks",
            f"average, {name}",
            len(subject.x),
            TORCHATTACKS,
            times.ratio(TORCHATTACKS, name),
            TARGETS.get((subject.x.device.type, TORCHATTACKS, name)),
            baseline_seconds=times.median(TORCHATTACKS),
            seconds=times.median(name),
        )
        for name in measured
    ]


class _ExitsLast(nn.Module):
    """Logits as N C E, so that torchattacks' cross-entropy is the mean over samples and exits."""

    def __init__(self, model: MultiExitNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(x).transpose(1, 2)
        return logits


def memory(subject: Subject) -> list[BenchRow]:
    """Measure the peak memory of one nested step against one exit's attack at a time, unbounded and max_images=2N."""
    engine, samples = ENGINES["float32, folded"], len(subject.x)

    def crafter(kind: Callable[..., Attack], **options: object) -> Crafter:
        return Crafter(subject, engine, partial(last_iterate, kind, {**subject.ball, **options}))

    one_by_one = [crafter(SingleExit, exit=k) for k in range(subject.model.exits)]

    def sequence() -> None:
        for one in one_by_one:
            one(1)

    device = subject.x.device
    baseline = peak_memory(sequence, device)
    rows = []
    for name, bound in (("nested, no bound", None), (f"nested, max_images={2 * samples}", 2 * samples)):
        nested = crafter(MaxAverage, max_images=bound)
        nested(1)
        peak = peak_memory(partial(nested, 1), device)
        if baseline and peak:
            rows.append(
                row(
                    "memory",
                    name,
                    samples,
                    "one exit's attack at a time",
                    Spread(peak / baseline),
                    peak_mib=peak / 2**20,
                    baseline_peak_mib=baseline / 2**20,
                )
            )
    return rows


def _race(work: dict[str, Callable[[int], torch.Tensor]], subject: Subject) -> Times:
    return race(
        {name: partial(one, subject.steps) for name, one in work.items()},
        warm_up={name: partial(one, 1) for name, one in work.items()},
        repeats=subject.repeats,
        device=subject.x.device,
    )
