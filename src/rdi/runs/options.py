"""The options of every command, typed: what its config holds, and what a stage is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MISSING: Any = "???"
"""Value of an option that must be given, as OmegaConf writes it."""


@dataclass
class Threat:
    """The threat model of a training and of its attacks.

    eps, step_size: radius of the ball and length of one step, pixel units, in `norm`.
    norm: "linf", "l2" or "l1".
    steps, test_steps: while training, while judging.
    """

    eps: float = MISSING
    norm: str = MISSING
    step_size: float = MISSING
    steps: int = MISSING
    test_steps: int = MISSING


@dataclass
class TestThreat:
    """The part of Threat that evaluation needs; None: as the run was trained."""

    eps: float | None = None
    step_size: float | None = None
    test_steps: int | None = None
    norm: str | None = None


@dataclass
class AttackThreat(TestThreat):
    """steps: of one attack, None = test_steps."""

    steps: int | None = None


@dataclass
class Trusting:
    """Options of every command. trust: modules of the user's whose classes a run folder may name, and so run."""

    trust: list[str] = field(default_factory=list)


@dataclass
class Machine(Trusting):
    """Options of the machine. device: auto, cpu, cuda, cuda:1, ...; threads: of the CPU, None = all."""

    device: str = "auto"
    threads: int | None = None


@dataclass
class Train(Machine):
    """Config of `rdi train`."""

    run: str | None = None
    sweep: str | None = None
    seed: int = 0
    start: str | None = None
    backbone: Any = MISSING
    exits: Any = MISSING
    attack: Any = MISSING
    defense: Any = MISSING
    compression: Any = MISSING
    gates: Any = MISSING
    threshold: Any = MISSING
    data: Any = MISSING
    optim: Any = MISSING
    tracking: Any = MISSING
    threat: Threat = field(default_factory=Threat)
    normalise: Any = None
    precision: str = "float32"
    channels_last: bool = False
    evaluations: int = 10
    calibration_samples: int = 1000
    keep: str = "best"
    batchnorm: str = "synchronised"
    recompute: bool = False
    ranks: int | None = None
    overwrite: bool = False


@dataclass
class Run(Train):
    """Config of `rdi run`."""

    suite: Any = MISSING
    split: str = "test"
    samples: int | None = None
    batch_size: int = 250
    engine: Any = MISSING
    stages: list[str] = field(default_factory=list)
    ratios: int = 41


@dataclass
class Crafting(Machine):
    """Options of commands that attack a finished run."""

    run: str = MISSING
    thresholds: str | None = None
    data: Any = None
    samples: int | None = None
    batch_size: int = MISSING
    engine: Any = MISSING
    seed: int | None = None


@dataclass
class Attack(Crafting):
    """Config of `rdi attack`."""

    split: str = "test"
    suite: Any = MISSING
    attack: Any = None
    corruption: Any = None
    threat: AttackThreat = field(default_factory=AttackThreat)
    tracking: Any = MISSING
    ranks: int | None = None
    overwrite: bool = False
    label: str | None = None


@dataclass
class Evaluate(Trusting):
    """Config of `rdi evaluate`."""

    run: str = MISSING
    sweep: str | None = None
    split: str = "test"
    threshold: Any = None
    thresholds: str | None = None
    tracking: Any = MISSING


@dataclass
class Health(Crafting):
    """Config of `rdi health`."""

    threat: TestThreat = field(default_factory=TestThreat)
    restarts: int = MISSING
    queries: int = MISSING
    draws: int = MISSING
    large_eps: float = MISSING
    quick: bool = False
    strict: bool = False


@dataclass
class Ball:
    """The threat model to compare runs under; eps None = the one that they were trained for, norm None = its norm."""

    eps: float | None = None
    norm: str | None = None


@dataclass
class Certify(Machine):
    """Config of `rdi certify`."""

    run: str = MISSING
    thresholds: str | None = None
    split: str = "test"
    samples: int | None = None
    batch_size: int = MISSING
    linear: bool = True
    threat: Ball = field(default_factory=Ball)
    data: Any = None
    ranks: int | None = None
    overwrite: bool = False


@dataclass
class Report(Trusting):
    """Config of `rdi report`."""

    runs: list[str] = MISSING
    name: str | None = None
    ratios: int = 41
    reference_macs: float | None = None
    threat: Ball = field(default_factory=Ball)


@dataclass
class Pareto(Report):
    """Config of `rdi pareto`."""

    tracking: Any = MISSING


@dataclass
class Table(Trusting):
    """Config of `rdi table`."""

    name: str = MISSING
    profile: str | None = None
    rows: list[str] | None = None
    seeds: list[int] = MISSING
    runs: str = MISSING
    options: list[str] = field(default_factory=list)


@dataclass
class List(Trusting):
    """Config of `rdi list`."""

    runs: list[str] = MISSING
    sort: str = "name"
    csv: bool = False


@dataclass
class Import(Machine):
    """Config of `rdi import`."""

    weights: str | None = None
    checkpoint: str | None = None
    run: str = MISSING
    seed: int = 0
    backbone: Any = MISSING
    exits: Any = MISSING
    threshold: Any = MISSING
    data: Any = MISSING
    optim: Any = None  # dropped, see conf/untrained.yaml
    threat: Threat = field(default_factory=Threat)
    normalise: Any = None
    overwrite: bool = False


@dataclass
class Export(Machine):
    """Config of `rdi export`."""

    run: str = MISSING
    format: str = "onnx"
    precision: str = "float32"
    single: bool = False
    thresholds: str | None = None
    attacked: int = 100
    out: str | None = None
    samples: int | None = None
    data: Any = None


@dataclass
class Bench(Machine):
    """Config of `rdi bench`."""

    run: str | None = None
    thresholds: str | None = None
    name: str = MISSING
    rows: list[str] = MISSING
    quick: bool = False
    backbone: Any = MISSING
    exits: Any = MISSING
    data: Any = MISSING
    optim: Any = None  # dropped, see conf/untrained.yaml
    threat: Threat = field(default_factory=Threat)
    shape: list[int] = MISSING
    classes: int = MISSING
    steps: int = MISSING
    batch_size: int = MISSING
    batch_sizes: list[int] = MISSING
    repeats: int = MISSING
    samples: int = MISSING
    seed: int = 0


SCHEMAS = {
    "train": Train,
    "run": Run,
    "attack": Attack,
    "evaluate": Evaluate,
    "health": Health,
    "pareto": Pareto,
    "table": Table,
    "report": Report,
    "list": List,
    "import": Import,
    "certify": Certify,
    "export": Export,
    "bench": Bench,
}
