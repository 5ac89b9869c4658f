"""Records of what was made: runs, sizes, banks, bounds, galleries."""

from __future__ import annotations

from dataclasses import field

from pydantic import ValidationInfo, model_validator
from pydantic.dataclasses import dataclass

from rdi import manifests
from rdi.checks import LINF
from rdi.records.files import STRICT, Amount, Config, Count, Fraction, Norm, Plain, Settings, Several, said_of


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Costs:
    """MACs per sample; convolutions and matrix products count, element-wise operators are free.

    macs: one per exit, all that a sequential run executes to leave there: stages and every head on the way. With
        gates: what an image costs whose gates are all open, the gates included.
    macs_paper: one per exit, by the published rule: stages and this exit's own head, convolutions only.
    macs_plain: the backbone without early exits and gates, against which a saving is measured.
    macs_plain_paper: the same, convolutions only; equals the last entry of macs_paper.
    """

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
    best_step: Count
    best_score: Fraction
    last_step: Count
    last_score: Fraction
    samples: Count


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
    seconds: Amount | None
    selection: Selection | None
    checkpoint_sha256: str | None
    widths: dict[str, int] = field(default_factory=dict)
    splits_sha256: str | None = None

    @property
    def backbone(self) -> str:
        """The choice of backbone; of one that a library builds by name, the name as well, as `timm resnet18`."""
        name = self.config["backbone"].get("name")
        known = isinstance(name, str) and name.isidentifier()
        return f"{self.choices['backbone']} {name}" if known else self.choices["backbone"]

    @model_validator(mode="after")
    def _agrees(self, info: ValidationInfo) -> Manifest:
        """Check that the parts agree (rdi.manifests), unless this process is making the manifest."""
        if info.context is not None:
            with said_of(info.context["file"]):
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
class OfSplit:
    """Shared fields of what a network makes of a split.

    run, split: names.
    samples: number of images.
    fingerprint: of the data's source.
    checkpoint_sha256: of the weights.
    environment: of the machine that made it.
    """

    run: str
    split: str
    samples: Count
    fingerprint: str
    checkpoint_sha256: str
    environment: Environment


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Arrays(OfSplit):
    """Shared fields of what has a file of arrays beside it.

    batch_size: images at once.
    data: name of the data set.
    seconds: that it took.
    sha256: of the file of arrays; None before there is one.
    """

    batch_size: Several
    data: str
    seconds: Amount
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BankManifest(Arrays):
    """The contents of a logits bank: every exit's logits of one split under one attack ("clean": none).

    attack, settings: name of the attack, and its options.
    engine: how the crafting copy differed from the network (rdi.attacks.engine.Engine); the logits are the network's
        own.
    seed: of everything drawn at random.
    linf: largest perturbation measured, pixel units.
    length: the same in the norm of the attack, where that is another one.
    """

    attack: str
    settings: Settings
    engine: dict[str, Plain]
    seed: int
    linf: Amount
    length: Amount | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BoundsManifest(Arrays):
    """Bounds of every exit's logits on one split, over the ball of eps around each image.

    eps, norm: of the ball, pixel units; bounds are over the L-infinity ball of that radius, which holds every other.
    linear: whether linear bounds were carried back where intervals left the answer open.
    """

    eps: Amount
    linear: bool
    norm: Norm = LINF


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GalleryRecord(OfSplit):
    """A few images of a split under one attack, kept to be looked at, with every exit's logits.

    attack, settings, engine, seed: as in BankManifest.
    judged: whether they are the very images of the bank; else they were crafted anew, from another random start.
    linf: largest perturbation of these images, pixel units.
    """

    attack: str
    settings: Settings
    engine: dict[str, Plain]
    seed: int
    judged: bool
    linf: Amount
