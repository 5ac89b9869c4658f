"""Records: frozen dataclasses <-> strict JSON, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError, ValidationInfo, model_validator
from pydantic.dataclasses import dataclass

from rdi import manifests
from rdi.errors import UserError
from rdi.storage import read_json, write_json
from rdi.trust import check_config, check_node, check_values

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Plain = bool | int | float | str | None


def _checked_config(config: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Check the config of a record that is read; one that is being made is the user's own."""
    if info.context is not None:
        with _said_of(info.context["file"]):
            check_config(config)
    return config


def _checked_rule(node: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Check the stored node of a rule as `_checked_config` does a config."""
    if info.context is not None:
        with _said_of(info.context["file"]):
            check_node(node, str(info.field_name), "threshold")
    return node


@contextmanager
def _said_of(file: Path) -> Iterator[None]:
    """Name the file in errors."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


Config = Annotated[dict[str, Any], AfterValidator(_checked_config)]
"""A resolved config. Whoever reads it from a record may build its nodes: they were checked (rdi.trust)."""
RuleNode = Annotated[dict[str, Any], AfterValidator(_checked_rule)]
"""The node of a threshold rule or of an exit policy; checked likewise."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Costs:
    """MACs per sample; see rdi.macs.Costs for the two rules."""

    macs: tuple[int, ...]
    macs_paper: tuple[int, ...]
    macs_plain: int
    macs_plain_paper: int


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataInfo:
    """The images that a run used. samples: images per split. fingerprint: sha256 of the whole source."""

    name: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    samples: dict[str, int]
    fingerprint: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Environment:
    """The machine and versions that made numbers. commit and dirty are None outside a git checkout."""

    versions: dict[str, str]
    device: str
    threads: int
    commit: str | None
    dirty: bool | None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Selection:
    """The choice of the checkpoint. score: mean over exits of the robust (else clean) calibration accuracy."""

    kept: str
    best_step: int
    best_score: float
    last_step: int
    last_score: float
    samples: int


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Manifest:
    """The record of a run, manifest.json: written when it begins, completed when it ends.

    command: "train" or "import".
    config: resolved; choices: config group -> choice.
    identity: hash of the options that determine what is trained.
    seed: of everything drawn at random.
    environment, data: machine and images.
    exits: E, the full network included. parameters: trainable numbers.
    costs: MACs per image; of a finished run with a Size, macs_paper counts non-zero weights only.
    inputs: file -> sha256 of what the run was made from.
    started, ended: UTC, ISO 8601. seconds: of the training. None while it runs, as selection and checkpoint_sha256.
    selection: how the weights were chosen.
    checkpoint_sha256: of the weights.
    widths: layer -> outputs that a compression left it; the network is that of the config, narrowed to these.
    splits_sha256: of the indices of all splits.
    """

    command: str
    config: Config
    choices: dict[str, str]
    identity: str
    seed: int
    environment: Environment
    data: DataInfo
    exits: int
    parameters: int
    costs: Costs
    inputs: dict[str, str]
    started: str
    ended: str | None
    seconds: float | None
    selection: Selection | None
    checkpoint_sha256: str | None
    widths: dict[str, int] = field(default_factory=dict)
    splits_sha256: str | None = None

    @model_validator(mode="after")
    def _agrees(self, info: ValidationInfo) -> Manifest:
        """Check that the parts agree (rdi.manifests), unless this process is making the manifest."""
        if info.context is not None:
            with _said_of(info.context["file"]):
                manifests.check(self)
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Size:
    """The size of a compressed network, in weights of convolutions and linear layers; see rdi.compression.measure.

    Counts: dense_weights of the network before compression, weights of this one (zeros included), nonzeros that are
    stored (of ATMC's factors, with them), nonzeros of the effective weights, the budget of stored ones.
    Bits: bits_dense of the network before compression; bits_published: values and dictionaries only; bits: positions
    of the non-zeros too. bits_outside: biases and BatchNorm, which none of these three includes.
    Fractions of the dense network: ratio, of weights; size_published and size, of bits.
    costs_dense: MACs of the network before compression.
    factors: non-zeros of ATMC's factors over all layers: "full", A or B, whichever has the shape of the weight;
        "square", the other; "sparse", C. {}: of other compressions.
    """

    dense_weights: int
    weights: int
    nonzeros: int
    nonzeros_effective: int
    budget: int | None
    bits_per_weight: int
    bits_dense: int
    bits_published: int
    bits: int
    bits_outside: int
    ratio: float
    size_published: float
    size: float
    costs_dense: Costs
    factors: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BankManifest:
    """The contents of a logits bank: every exit's logits of one split under one attack ("clean": none).

    engine: how the crafting copy differed from the network (rdi.attacks.engine.Engine); the logits are the network's
    own. linf: largest perturbation measured, pixel units. seconds: crafting and forward passes. sha256: of the file
    of arrays; None before there is one.
    """

    run: str
    split: str
    attack: str
    settings: dict[str, Plain]
    engine: dict[str, Plain]
    samples: int
    batch_size: int
    seed: int
    linf: float
    data: str
    fingerprint: str
    checkpoint_sha256: str
    environment: Environment
    seconds: float
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Expected:
    """95 % intervals for the means over `images` further images, from `samples` calibration images.

    MACs: of the policy on the images it was fitted on. Accuracy: cross-fitted, each of `folds` parts judged with
    thresholds of the others; 1: judged on the images it was fitted on.
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    mean_macs: float
    mean_macs_low: float
    mean_macs_high: float
    samples: int
    images: int
    folds: int


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Thresholds:
    """A fitted policy. rule: the config node it came from; values: E-1 thresholds in the unit of the score.

    policy: config node that builds the policy again; None in records from before there were others than thresholds.
    facts: what the rule says of the fit. expected: bank -> what calibration promises for the test split.
    attacked_sha256: calibration bank -> hash, of the attacked ones that were used.
    """

    name: str
    rule: RuleNode
    values: tuple[float, ...]
    split: str
    samples: int
    bank_sha256: str
    checkpoint_sha256: str
    policy: RuleNode | None = None
    facts: dict[str, Plain] = field(default_factory=dict)
    expected: dict[str, Expected] = field(default_factory=dict)
    attacked_sha256: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvalRecord:
    """One policy on one bank. Accuracies, shares and savings are fractions, MACs are means per sample.

    accuracy_low, accuracy_high: 95 % Wilson interval over the test samples. exit_accuracy: each exit alone on all
    samples. exit_share: share of samples that leave there. saving: against the plain backbone (honest rule);
    saving_paper: against the last exit (published rule). draws: of chance, over which everything is averaged.
    efficacy: area under the early-exit curve, in [0, 1] (rdi.evaluating.efficacy); None in older records.
    """

    run: str
    data: str
    split: str
    attack: str
    settings: dict[str, Plain]
    threshold: str
    values: tuple[float, ...]
    samples: int
    seed: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    exit_accuracy: tuple[float, ...]
    exit_share: tuple[float, ...]
    mean_macs: float
    mean_macs_paper: float
    saving: float
    saving_paper: float
    bank_sha256: str
    checkpoint_sha256: str
    draws: int = 1
    efficacy: float | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WorstRecord:
    """Per-sample worst case: correct only if the policy is right under every one of `attacks`, draw by draw.

    eps: of the L-infinity ball of all of them. attacks: names of the banks. others: those of them that were made for
    other thresholds than these. samples: images of each of them. fewer: banks of fewer images, which are left out;
    common_samples, common_accuracy: images that these hold too, and the accuracy under all of `attacks` and `fewer`
    on them, a fraction; None where no bank is left out, or no image is common.
    transfer: accuracy of exit j alone (column) on images made against exit i (row), fractions; None when not every
    exit was attacked by itself.
    """

    run: str
    data: str
    split: str
    eps: float
    attacks: tuple[str, ...]
    others: tuple[str, ...]
    threshold: str
    samples: int
    seed: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    checkpoint_sha256: str
    draws: int = 1
    fewer: tuple[str, ...] = ()
    common_samples: int | None = None
    common_accuracy: float | None = None
    transfer: tuple[tuple[float, ...], ...] | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BoundsManifest:
    """Bounds of every exit's logits on one split, over the L-infinity ball of eps around each image.

    linear: whether linear bounds were carried back where intervals left the answer open. seconds: of the passes.
    sha256: of the file of arrays; None before there is one.
    """

    run: str
    split: str
    eps: float
    linear: bool
    samples: int
    batch_size: int
    data: str
    fingerprint: str
    checkpoint_sha256: str
    environment: Environment
    seconds: float
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CertificateRecord:
    """Certificate of one policy: images on which no attack within eps (L-infinity) can make it wrong.

    accuracy: share of certified images, at most that under any attack; accuracy_low, accuracy_high: 95 % Wilson
    interval. exit_accuracy: share on which each exit alone is right for sure. exit_may: share of images that an
    attacker may make leave there; these sum to more than 1. mean_macs, max_macs: mean and maximum over images of the
    most that one of the ball may cost; saving: of the mean, against the plain backbone. bounds_sha256, linear: of and
    as in the BoundsManifest.
    """

    run: str
    data: str
    split: str
    eps: float
    threshold: str
    values: tuple[float, ...]
    samples: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    exit_accuracy: tuple[float, ...]
    exit_may: tuple[float, ...]
    mean_macs: float
    max_macs: int
    saving: float
    linear: bool
    bounds_sha256: str
    checkpoint_sha256: str


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
    samples: int
    seed: int
    threshold: str
    values: tuple[float, ...]
    settings: dict[str, Plain]
    checkpoint_sha256: str
    environment: Environment
    started: str
    seconds: float
    checks: tuple[Check, ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FrontRecord:
    """The front of the operating points of one or more runs, in the objectives that are listed.

    maximise: per objective. reference: the worst corner of the box, reference_rule: how it was chosen. hypervolume:
    what the points dominate of the box from `reference` to accuracy 1 and 0 MACs, a fraction; hypervolume_of: the
    same for each run alone. points, points_on_front: how many; by run in front_of. ratios: geometric exit shares.
    conditions: data, images and attacks of each run, in words. sha256: of points.csv.
    """

    runs: tuple[str, ...]
    objectives: tuple[str, ...]
    maximise: tuple[bool, ...]
    reference: tuple[float, ...]
    reference_rule: str
    hypervolume: float
    hypervolume_of: dict[str, float]
    points: int
    points_on_front: int
    front_of: dict[str, int]
    ratios: tuple[float, ...]
    conditions: tuple[str, ...]
    sha256: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GalleryRecord:
    """A few images of a split under one attack, kept to be looked at, with every exit's logits.

    judged: whether they are the very images of the bank; else they were crafted anew, from another random start.
    settings, engine, seed: as in BankManifest. linf: largest perturbation of these images, pixel units.
    """

    run: str
    split: str
    attack: str
    settings: dict[str, Plain]
    engine: dict[str, Plain]
    seed: int
    judged: bool
    samples: int
    linf: float
    fingerprint: str
    checkpoint_sha256: str
    environment: Environment


Record = TypeVar("Record")


_adapters: dict[type, TypeAdapter[Any]] = {}


def _adapter(kind: type) -> TypeAdapter[Any]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def to_dict(record: object) -> dict[str, Any]:
    """Plain dictionary of a record, ready for JSON."""
    result: dict[str, Any] = _adapter(type(record)).dump_python(record, mode="json")
    return result


def write(path: Path, record: object) -> None:
    """Write a record (or a plain dictionary) as JSON, atomically. NaN and infinity are ValueErrors.

    Raises UserError for text that `read` would refuse.
    """
    content = record if isinstance(record, dict) else to_dict(record)
    check_values(content, numbers=False)
    write_json(path, content)


def read(path: Path, kind: type[Record]) -> Record:
    """Read a record. Raises UserError for a missing or damaged file, unknown or missing keys and wrong types.

    And for one that holds what rdi never writes into one, code to be called first of all: see rdi.trust.
    """
    try:
        content = read_json(path)
        with _said_of(path):
            check_values(content)
        # as text again: strict validation takes a JSON list for a tuple, a Python list it does not
        record: Record = _adapter(kind).validate_json(json.dumps(content), strict=True, context={"file": path})
    except (ValidationError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged, not a valid {kind.__name__} ({_flaw(error)}): restore it, or delete what it belongs "
            "to and make that again"
        ) from error
    return record


def _flaw(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'file'}: {first['msg']}"
    return "nested too deeply"
