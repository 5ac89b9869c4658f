"""Views of runs for a report: their records, each with the file that it was read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rdi.records import BankManifest, CertificateRecord, CorruptionRecord, EvalRecord, Manifest, Thresholds, WorstRecord
from rdi.report.page import Cell, GalleryImage
from rdi.threats import ThreatModel, caption, display_name


@dataclass(frozen=True)
class Source:
    """A file that figures come from.

    path: as the user would type it.
    href: from the page.
    sha256: of its bytes.
    """

    path: str
    href: str
    sha256: str

    def cell(self, text: str | None = None) -> Cell:
        """Return a link to the file, called by the beginning of its hash."""
        return Cell(text or self.sha256[:8], href=self.href, title=f"{self.path}, sha256 {self.sha256}")


@dataclass(frozen=True)
class Judged:
    """All evaluations of a run under one exit policy and one threat model, with the clean images.

    certificate: what holds for every image of the ball, where there is one.
    sources: attack ("worst" for the worst case, tables.CERTIFIED for the certificate) -> record.
    """

    thresholds: Thresholds
    records: Sequence[EvalRecord]
    worst: WorstRecord | None
    source: Source
    sources: Mapping[str, Source]
    threat: ThreatModel
    certificate: CertificateRecord | None = None


@dataclass(frozen=True)
class GalleryView:
    """Images of a run to look at: their true classes, and attack -> what became of each.

    recrafted: attacks whose images are not those of the bank.
    """

    classes: Sequence[str]
    images: Mapping[str, Sequence[GalleryImage | None]]
    recrafted: Sequence[str]


@dataclass(frozen=True)
class View:
    """One run as a report shows it.

    missing: in words.
    corrupted: of each policy that was judged on corrupted images, that of the training first.
    judged: the policy that the run was trained with first, of each policy the threat model of the front first.
    """

    name: str
    path: str
    manifest: Manifest
    source: Source
    judged: Sequence[Judged]
    banks: Mapping[str, tuple[BankManifest, Source]]
    gallery: GalleryView | None
    missing: Sequence[str] = ()
    corrupted: Sequence[tuple[CorruptionRecord, Source]] = ()

    def short(self, attack: str) -> str:
        """Return the name of an attack's bank without the policy that it aims at, where that is the first one."""
        settings = self.banks[attack][0].settings if attack in self.banks else None
        return display_name(attack, self.main.thresholds.name, settings)

    @property
    def main(self) -> Judged:
        """The evaluations that bars, pictures and the overview are of."""
        return self.judged[0]


def titled(title: str, view: View, alone: bool) -> str:
    """Return the title of a block, with the run's name before it where the report is on several."""
    return title if alone else f"{view.name}: {title[0].lower()}{title[1:]}"


def conditions(view: View, judged: Judged) -> str:
    """Name data, threat model, strength, sample counts and seed of the banks that were judged."""
    return caption(view.manifest, [view.banks[record.attack][0] for record in judged.records])


def every_threat(view: View) -> str:
    """Name the conditions of all threat models of the first policy, each by itself."""
    mine = [judged for judged in view.judged if judged.thresholds.name == view.main.thresholds.name]
    return "; ".join(conditions(view, judged) for judged in mine)
