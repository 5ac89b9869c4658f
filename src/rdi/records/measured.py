"""Records of measurements: benchmarks and checks of the evaluation."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from rdi.records.files import STRICT, Amount, Config, Plain, Several
from rdi.records.made import Environment


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BenchRow:
    """One measurement of `rdi bench`. ratio: as its group defines it, median over rounds; low, high: its extremes.

    target: what the project wants the ratio to reach. values: further figures, medians, units in their names.
    """

    group: str
    name: str
    against: str | None
    batch_size: int | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    target: float | None
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BenchRecord:
    """All that one `rdi bench` measured. config: resolved; repeats: rounds per comparison."""

    environment: Environment
    started: str
    seconds: float
    config: Config
    choices: dict[str, str]
    shape: tuple[int, int, int]
    exits: int
    parameters: int
    repeats: int
    rows: tuple[BenchRow, ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Check:
    """One line of `rdi health`. figure: what was measured, in words; meaning: what it says when it is red."""

    name: str
    passed: bool
    figure: str
    meaning: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HealthRecord:
    """All that one `rdi health` found. values: the thresholds; settings: of the attacks and the engine."""

    run: str
    data: str
    split: str
    samples: Several
    seed: int
    threshold: str
    values: tuple[float, ...]
    settings: dict[str, Plain]
    checkpoint_sha256: str
    environment: Environment
    started: str
    seconds: Amount
    checks: tuple[Check, ...]
