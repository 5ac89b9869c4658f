"""Read the banks' manifests of a run folder, and the records that judging them left."""

from __future__ import annotations

from pathlib import Path

from rdi.banks import read_manifest
from rdi.folders import RunFolder
from rdi.records import BankManifest, EvalRecord, Manifest, WorstRecord, read
from rdi.threats import ThreatModel, threat, trained


def manifests(folder: RunFolder, split: str = "test") -> dict[str, BankManifest]:
    """Read the manifests of the banks of a split, in the order of rows."""
    return {name: read_manifest(path) for name, path in folder.banks(split).items()}


def evaluations(folder: RunFolder, threshold: str, split: str) -> dict[str, EvalRecord]:
    """Bank -> record of the thresholds on it, in the order of rows, of those that were judged."""
    files = {name: folder.evaluation(threshold, split, name) for name in folder.banks(split)}
    return {name: read(path, EvalRecord) for name, path in files.items() if path.is_file()}


def worst_cases(folder: RunFolder, manifest: Manifest, threshold: str, split: str) -> list[WorstRecord]:
    """Worst case of each threat model, the run's own first, then by size, of those that were judged."""
    own = trained(manifest)
    found = {one for bank in manifests(folder, split).values() if (one := threat(bank.settings)) is not None}
    files = [worst_file(folder, manifest, threshold, split, one) for one in sorted(found, key=lambda x: (x != own, x))]
    return [read(path, WorstRecord) for path in files if path.is_file()]


def worst_file(folder: RunFolder, manifest: Manifest, threshold: str, split: str, other: ThreatModel) -> Path:
    """Return where the worst case under a threat model is stored; that of the run's own has the plain name."""
    return folder.worst(threshold, split, None if other == trained(manifest) else other)
