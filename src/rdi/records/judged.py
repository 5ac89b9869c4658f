"""Records of how a network is judged: exit policies, accuracies and costs, certificates, fronts."""

from __future__ import annotations

from dataclasses import field

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from rdi.checks import LINF
from rdi.records.files import STRICT, Amount, Count, Fraction, Norm, Plain, RuleNode, Saving, Settings, Several


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Expected:
    """95 % intervals for the means over `images` further images, from `samples` calibration images.

    MACs: of the policy on the images it was fitted on. Accuracy: cross-fitted, each of `folds` parts judged with
    thresholds of the others; 1: judged on the images it was fitted on.
    """

    accuracy: Fraction
    accuracy_low: Fraction
    accuracy_high: Fraction
    mean_macs: Amount
    mean_macs_low: Amount
    mean_macs_high: Amount
    samples: Several
    images: Several
    folds: Several


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
    samples: Several
    bank_sha256: str
    checkpoint_sha256: str
    policy: RuleNode | None = None
    facts: dict[str, Plain] = field(default_factory=dict)
    expected: dict[str, Expected] = field(default_factory=dict)
    attacked_sha256: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Judged:
    """Shared fields of what a policy comes to on a split. Accuracies and savings are fractions.

    run, data, split, threshold: names of the run, the data set, the split and the exit policy.
    samples: number of images.
    accuracy_low, accuracy_high: 95 % Wilson interval over them.
    checkpoint_sha256: of the weights.
    """

    run: str
    data: str
    split: str
    threshold: str
    samples: Several
    accuracy: Fraction
    accuracy_low: Fraction
    accuracy_high: Fraction
    checkpoint_sha256: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvalRecord(Judged):
    """One policy on one bank. MACs are means per sample.

    attack, settings, seed: of the bank.
    values: thresholds of the policy.
    exit_accuracy: each exit alone on all samples.
    exit_share: share of samples that leave there.
    saving: against the plain backbone (every head on the way); saving_paper: against the last exit (published rule).
    draws: of chance, over which everything is averaged.
    efficacy: area under the early-exit curve, in [0, 1] (rdi.evaluating.efficacy); None in older records.
    """

    attack: str
    settings: Settings
    values: tuple[float, ...]
    seed: int
    exit_accuracy: tuple[Fraction, ...]
    exit_share: tuple[Fraction, ...]
    mean_macs: Amount
    mean_macs_paper: Amount
    saving: Saving
    saving_paper: Saving
    bank_sha256: str
    draws: Several = 1
    efficacy: Fraction | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WorstRecord(Judged):
    """Per-sample worst case: correct only if the policy is right under every one of `attacks`, draw by draw.

    eps, norm: of the ball of all of them.
    attacks: names of the banks; others: those of them that were made for other thresholds than these.
    seed, draws: as in EvalRecord.
    fewer: banks of fewer images, which are left out.
    common_samples, common_accuracy: images that these hold too, and the accuracy under all of `attacks` and `fewer`
        on them; None where no bank is left out, or no image is common.
    transfer: accuracy of exit j alone (column) on images made against exit i (row); None when not every exit was
        attacked by itself.
    """

    eps: Amount
    attacks: tuple[str, ...]
    others: tuple[str, ...]
    seed: int
    draws: Several = 1
    norm: Norm = LINF
    fewer: tuple[str, ...] = ()
    common_samples: Several | None = None
    common_accuracy: Fraction | None = None
    transfer: tuple[tuple[Fraction, ...], ...] | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CertificateRecord(Judged):
    """Certificate of one policy: images on which no attack within the ball can make it wrong.

    eps, norm: of the ball, as in the BoundsManifest.

    accuracy: share of certified images, at most that under any attack.
    values: thresholds of the policy.
    exit_accuracy: share on which each exit alone is right for sure.
    exit_may: share of images that an attacker may make leave there; these sum to more than 1.
    mean_macs, max_macs: mean and maximum over images of the most that one of the ball may cost.
    saving: of the mean, against the plain backbone.
    bounds_sha256, linear: of and as in the BoundsManifest.
    """

    eps: Amount
    values: tuple[float, ...]
    exit_accuracy: tuple[Fraction, ...]
    exit_may: tuple[Fraction, ...]
    mean_macs: Amount
    max_macs: Count
    saving: Saving
    linear: bool
    bounds_sha256: str
    norm: Norm = LINF


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CorruptionRecord(Judged):
    """One policy on corrupted images: means over kinds, severities and images.

    accuracy: mean corruption accuracy.
    values: thresholds of the policy. seed, draws: as in EvalRecord.
    source: what the images come from.
    kinds, severities: of the corruptions; accuracies and mean_macs_of hold a value for each kind (row) and severity
        (column).
    exit_share, mean_macs, saving: as in EvalRecord.
    banks_sha256: of the banks, by name.
    """

    values: tuple[float, ...]
    seed: int
    source: str
    kinds: tuple[str, ...]
    severities: tuple[Several, ...]
    accuracies: tuple[tuple[Fraction, ...], ...]
    mean_macs_of: tuple[tuple[Amount, ...], ...]
    exit_share: tuple[Fraction, ...]
    mean_macs: Amount
    saving: Saving
    banks_sha256: dict[str, str]
    draws: Several

    @model_validator(mode="after")
    def _is_a_table(self) -> CorruptionRecord:
        """Check that there is a figure for every kind and severity."""
        for name, table in (("accuracies", self.accuracies), ("mean_macs_of", self.mean_macs_of)):
            if not table or [len(row) for row in table] != [len(self.severities)] * len(self.kinds):
                raise ValueError(f"{name} is no table of {len(self.kinds)} kinds and {len(self.severities)} severities")
        return self


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
