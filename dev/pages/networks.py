"""The networks under results/, each judged by the exit policy that it is deployed with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rdi.folders import RunFolder
from rdi.records import CertificateRecord, CorruptionRecord, EvalRecord, Manifest, Thresholds, WorstRecord, read
from rdi.report import tables, terminal
from rdi.threats import AT, CLEAN, WORST, ThreatModel, caption, display_name, in_order, trained, without_threat
from rdi.threats import threat as threat_of

DEMO = "demo"
"""The folder of the demonstration, whose network is not one of the results."""
ABOUT = "about.md"
"""Beside a manifest: the title of a network in the first line, then what a reader must know."""


@dataclass(frozen=True)
class Judged:
    """Attacks of one threat model. records: in the order of rows. worst: right under all of them, image by image."""

    records: Sequence[EvalRecord]
    worst: WorstRecord


@dataclass(frozen=True)
class Network:
    """The records of a run folder under one exit policy, on the test images.

    records: clean first, then the attacks of the run's own threat model, in the order of rows.
    worst: right under all of them, image by image.
    others: the same, without clean images, of every other threat model.
    corrupted: what the policy comes to on corrupted images; None where it was not judged on any.
    certificate: what no attack of the run's own threat model can undo; None where it was not bounded.
    """

    folder: Path
    manifest: Manifest
    thresholds: Thresholds
    records: Sequence[EvalRecord]
    worst: WorstRecord
    others: Mapping[ThreatModel, Judged] = field(default_factory=dict)
    corrupted: CorruptionRecord | None = None
    certificate: CertificateRecord | None = None

    @staticmethod
    def open(folder: Path, policy: str) -> Network:
        """Read the records of a folder under the thresholds called `policy`."""
        begin = f"{policy}__test-"
        manifest = read(folder / "manifest.json", Manifest)
        own = trained(manifest)
        paths = {path.stem.removeprefix(begin): path for path in folder.glob(f"evals/{begin}*.json")}
        records = {name: read(path, EvalRecord) for name, path in paths.items() if name.partition(AT)[0] != WORST}
        ordered = [records[name] for name in in_order(records, policy)]
        made = {threat for one in ordered if (threat := threat_of(one.settings)) is not None}
        others = {
            threat: Judged(
                [one for one in ordered if threat_of(one.settings) == threat],
                read(paths[f"{WORST}{AT}{threat.word}"], WorstRecord),
            )
            for threat in sorted(made - {own})
        }
        corrupted = folder / "corruptions" / f"{policy}__test.json"
        certified = folder / "certificates" / f"{policy}__test.json"
        return Network(
            folder,
            manifest,
            read(folder / "thresholds" / f"{policy}.json", Thresholds),
            [one for one in ordered if threat_of(one.settings) in (None, own)],
            read(paths[WORST], WorstRecord),
            others,
            read(corrupted, CorruptionRecord) if corrupted.is_file() else None,
            read(certified, CertificateRecord) if certified.is_file() else None,
        )

    @property
    def accuracy(self) -> Mapping[str, float]:
        """Attack -> accuracy, a fraction."""
        return {
            display_name(record.attack, self.thresholds.name, record.settings): record.accuracy
            for record in self.records
        }

    @property
    def origin(self) -> str:
        """Say where the weights are from: released, trained here, or plain (trained here without exits)."""
        if self.manifest.command == "import":
            return "released"
        return "trained here" if self.manifest.exits > 1 else "plain, trained here"

    @property
    def title(self) -> str:
        """The first line of about.md, else what the manifest says."""
        about = self.folder / ABOUT
        if about.is_file():
            return about.read_text().splitlines()[0]
        choices = self.manifest.choices
        exits = "without exits" if self.manifest.exits == 1 else f"exits {choices['exits']}"
        return f"{self.folder.name}: {self.manifest.backbone}, {exits}, {self.origin}"

    @property
    def note(self) -> str:
        """Return what follows the title in about.md; empty where there is none."""
        about = self.folder / ABOUT
        return about.read_text().partition("\n")[2].strip() if about.is_file() else ""

    def record(self, attack: str) -> EvalRecord:
        """Return the record of an attack. Raises ValueError where there is none."""
        found = self.find(attack)
        if found is None:
            raise ValueError(f"{self.folder}: no record of {attack} under {self.thresholds.name}")
        return found

    def find(self, attack: str) -> EvalRecord | None:
        """Return the record of an attack, None where there is none."""
        return next(
            (one for one in self.records if display_name(one.attack, self.thresholds.name, one.settings) == attack),
            None,
        )

    def conditions(self) -> str:
        """Say what the records are of, and how they were judged."""
        return (
            f"{caption(self.manifest, self.records)}; exit policy {self.thresholds.name}, fitted on "
            f"{self.thresholds.samples:,} {self.thresholds.split} images"
        )

    def check(self) -> None:
        """Raise ValueError when records of attacks are missing that the worst case counts, or the reverse."""
        for one in (Judged(self.records, self.worst), *self.others.values()):
            attacks = {record.attack for record in one.records if record.attack != CLEAN}
            if lost := {*one.worst.attacks, *one.worst.fewer} ^ attacks:
                raise ValueError(f"{self.folder}: the worst case and the records differ in {', '.join(sorted(lost))}")

    def table(self, style: str = "github") -> str:
        """Render every attack, the worst case and the certificate. Raises ValueError as `check`."""
        self.check()
        headers, rows = tables.evaluation_rows(self.records, self.worst, self.certificate)
        return (
            terminal.table(headers, rows, cut=tables.PAPER) if style == "simple" else tables.text(headers, rows, style)
        )


FURTHER = ("threat", "attack", "steps", "images", "seed", "accuracy %", "95 % CI", "MACs (M)", "saved %")


def further(network: Network) -> list[list[str]]:
    """Return a row of FURTHER for every attack of other threat models, their worst cases, and corrupted images."""
    rows = []
    for threat, judged in network.others.items():
        name, policy = str(threat), network.thresholds.name
        for one in judged.records:
            attack = display_name(without_threat(one.attack), policy, one.settings)
            steps = next((f"{one.settings[key]} {key}" for key in ("steps", "queries") if key in one.settings), "-")
            cost = [f"{one.mean_macs / 1e6:.2f}", tables.percent(one.saving)]
            rows.append([name, attack, steps.removesuffix(" steps"), *_judged(one), *cost])
        rows.append([name, tables.worst_name(judged.worst), "", *_judged(judged.worst), "", ""])
    if (common := network.corrupted) is not None:
        kinds = f"mean of {len(common.kinds)} kinds at severity {', '.join(map(str, common.severities))}"
        cost = [f"{common.mean_macs / 1e6:.2f}", tables.percent(common.saving)]
        rows.append(["common corruptions, no attack", kinds, "", *_judged(common), *cost])
    return rows


def _judged(record: EvalRecord | WorstRecord | CorruptionRecord) -> list[str]:
    """The columns from images to the interval."""
    interval = f"{tables.percent(record.accuracy_low)}-{tables.percent(record.accuracy_high)}"
    return [str(record.samples), str(record.seed), tables.percent(record.accuracy), interval]


def networks(results: Path) -> list[Network]:
    """Read every run folder directly below results/ but the demonstration: released ones first, then by name.

    Raises UserError as `RunFolder.deployed`, so that none is left out.
    """
    folders = sorted(path.parent for path in results.glob("*/manifest.json") if path.parent.name != DEMO)
    found = [Network.open(folder, RunFolder(folder).deployed()) for folder in folders]
    return sorted(found, key=lambda one: (one.origin != "released", one.manifest.data.name, one.folder.name))
