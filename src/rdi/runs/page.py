"""One page on one or more finished, attacked and evaluated runs, that opens without a network."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch

from rdi import records, storage
from rdi.banks import CLEAN, bank_sha256
from rdi.checks import LINF
from rdi.errors import UserError
from rdi.gallery import Gallery
from rdi.records import BankManifest, CertificateRecord, CorruptionRecord, EvalRecord, WorstRecord
from rdi.report import comparison, images, provenance
from rdi.report.page import GalleryImage, Section, render
from rdi.report.tables import CERTIFIED
from rdi.report.views import GalleryView, Judged, Source, View
from rdi.runs import certify, corruptions, policies
from rdi.runs.evaluate import judge, stored_thresholds
from rdi.runs.folder import Run
from rdi.runs.front import Front, labels
from rdi.runs.galleries import SPLIT as SHOWN
from rdi.runs.provenance import environment
from rdi.threats import WORST, ThreatModel, trained
from rdi.threats import threat as threat_of

Judgement = EvalRecord | WorstRecord | CertificateRecord | CorruptionRecord
FILES = ("points.csv", "front.csv", "curves.csv", "sources.json", "summary.json")


def read(runs: Sequence[Run], found: Front) -> list[View]:
    """Read all that the page says of the runs, the threat model of the front first.

    Raises UserError for a run that was not evaluated as it is now.
    """
    return [view(run, name, found.out, found.threat) for run, name in zip(runs, labels(runs), strict=True)]


def write(found: Front, views: list[View], first: Sequence[Section] = ()) -> str:
    """Write index.html; where it is, in words. first: sections above those of the runs."""
    files = {name: source(found.out / name, found.out) for name in FILES}
    return save(
        found.out,
        comparison.lead(views),
        [*first, *comparison.sections(views, found.record, found.points, found.curve_points, files)],
    )


def save(out: Path, lead: str, sections: Sequence[Section]) -> str:
    """Write index.html of these sections in the folder `out`; where it is, in words."""
    here = environment(torch.device("cpu"))
    made = (
        f"Made by rdi {here.versions.get('rdi', '')}, commit {provenance.commit(here)}, from the records listed above."
    )
    page = render(out.name, lead, sections, made)
    path = out / "index.html"
    storage.write_bytes(path, page)
    return f"report:  {path} ({len(page) / 1e6:.1f} MB, opens without a network)"


def source(path: Path, out: Path) -> Source:
    """Return a file as the page in the folder `out` names it."""
    return Source(str(path), quote(os.path.relpath(path, out).replace(os.sep, "/")), storage.sha256(path))


def view(run: Run, name: str, out: Path, threat: ThreatModel) -> View:
    """Return one run, from its records; `threat` before others."""
    folder, manifest = run.folder, run.manifest
    banks = {
        attack: (records.read(path / "manifest.json", BankManifest), source(path / "manifest.json", out))
        for attack, path in folder.banks("test").items()
    }
    names = sorted({path.name.rpartition("__test-")[0] for path in folder.path.glob("evals/*__test-*.json")})
    names.sort(key=lambda threshold: threshold != manifest.choices["threshold"])
    if not names:
        raise UserError(f"{folder.path} was not evaluated: run `rdi evaluate run={folder.path}` first")
    judged = [one for threshold in names for one in _judged(run, threshold, banks, out, threat)]
    done = {(one.thresholds.name, record.attack) for one in judged for record in one.records}
    missing = [
        f"{name}: {', '.join(left)} attacked but not judged by the policy {threshold}; "
        f"rdi evaluate run={folder.path} thresholds={threshold} does."
        for threshold in names
        if (left := [attack for attack in banks if (threshold, attack) not in done])
    ]
    return View(
        name=name,
        path=str(folder.path),
        manifest=manifest,
        source=source(folder.manifest, out),
        judged=judged,
        banks=banks,
        gallery=gallery_view(run, judged, list(banks)),
        missing=missing,
        corrupted=[one for threshold in names for one in _corrupted(run, threshold, out)],
    )


def _corrupted(run: Run, threshold: str, out: Path) -> list[tuple[CorruptionRecord, Source]]:
    """Read what a policy comes to on corrupted images. Raises UserError when that is of other banks than there are."""
    path = run.folder.corruptions(threshold, "test")
    if not path.is_file():
        return []
    record, banks = records.read(path, CorruptionRecord), run.folder.corrupted("test")
    again = f"run `rdi evaluate run={run.path} thresholds={threshold}` again"
    if any(name not in banks or bank_sha256(banks[name]) != made for name, made in record.banks_sha256.items()):
        raise UserError(f"{path} is of other corrupted images than there are now: {again}")
    if (expected := corruptions.judged(run, stored_thresholds(run, threshold))) is None:
        raise UserError(f"{path} is of corrupted images, and there are none: {again}, or delete it")
    _same(path, record, expected, again)
    return [(record, source(path, out))]


def _judged(
    run: Run, threshold: str, banks: Mapping[str, tuple[BankManifest, Source]], out: Path, first: ThreatModel
) -> list[Judged]:
    """The evaluations under one policy, one entry per threat model, `first` before others.

    Raises UserError when they are of other banks than there are now.
    """
    folder = run.folder
    again = f"run `rdi evaluate run={folder.path} thresholds={threshold}` again"
    found: dict[str, EvalRecord] = {}
    sources: dict[str, Source] = {}
    for attack in banks:
        path = folder.evaluation(threshold, "test", attack)
        if not path.is_file():
            continue
        found[attack], sources[attack] = records.read(path, EvalRecord), source(path, out)
        if found[attack].bank_sha256 != bank_sha256(folder.bank("test", attack)):
            raise UserError(f"{path} is of other images than {folder.bank('test', attack)}: {again}")
    if not found:
        raise UserError(f"{folder.path} has evaluations without banks: run `rdi attack run={folder.path}` first")
    own = trained(run.manifest)
    path = folder.thresholds(threshold)
    # before its records: of other weights they differ, and judging again by the same would not mend them
    thresholds, origin = stored_thresholds(run, threshold), source(path, out)
    made = {attack: threat_of(record.settings) for attack, record in found.items()}
    again_judged = {one.threat: one for one in judge(run, thresholds, only=found)}
    for record in (record for one in again_judged.values() for record in one.records):
        _same(folder.evaluation(threshold, "test", record.attack), found[record.attack], record, again)
    entries = []
    for threat in sorted({one for one in made.values() if one is not None}, key=lambda one: (one != first, one)):
        mine = [record for attack, record in found.items() if made[attack] in (None, threat)]
        worst_path = folder.worst(threshold, "test", None if threat == own else threat)
        worst = records.read(worst_path, WorstRecord) if worst_path.is_file() else None
        if worst is not None and (gone := sorted({*worst.attacks, *worst.fewer} - {*found})):
            raise UserError(f"{worst_path} counts {gone[0]}, whose bank or record is gone: {again}")
        if (expected := again_judged[threat].worst) is not None:
            if worst is None:
                raise UserError(f"{worst_path} is missing: {again}")
            _same(worst_path, worst, expected, again)
        extra = {} if worst is None else {WORST: source(worst_path, out)}
        certificate, path = None, folder.certificate(threshold, "test", None if threat == own else threat)
        if path.is_file():
            certificate, extra[CERTIFIED] = records.read(path, CertificateRecord), source(path, out)
            if certificate.checkpoint_sha256 != thresholds.checkpoint_sha256 or certificate.values != thresholds.values:
                raise UserError(f"{path} is of other weights or thresholds: {again}")
            _same(path, certificate, certify.judged(run, thresholds, threat), again)
        entries.append(Judged(thresholds, mine, worst, origin, {**sources, **extra}, threat, certificate))
    return entries or [Judged(thresholds, list(found.values()), None, origin, sources, own)]


def _same(path: Path, stored: Judgement, judged: Judgement, again: str) -> None:
    """Raise UserError unless a stored record is what its banks or bounds say when they are judged now.

    Two images may fall on the other side of a threshold: another processor rounds in another way.
    """
    slack = 2 / max(1, judged.samples)

    def close(left: object, right: object) -> bool:
        if isinstance(left, float) and isinstance(right, int | float):
            return math.isclose(left, right, rel_tol=slack, abs_tol=slack)
        if isinstance(left, list) and isinstance(right, list):
            return len(left) == len(right) and all(map(close, left, right))
        return left == right

    expected, of = records.to_dict(judged), "bounds" if isinstance(judged, CertificateRecord) else "banks"
    for key, value in records.to_dict(stored).items():
        # a run folder may be renamed or copied; its records keep the name that they were made under
        if key != "run" and not close(value, expected[key]):
            raise UserError(f"{path} is damaged or old: it says {key} {value}, its {of} say {expected[key]}; {again}")


def gallery_view(run: Run, judged: Sequence[Judged], banks: list[str]) -> GalleryView | None:
    """Return the images kept with a run, judged by the first policy; None when there are no clean ones.

    Raises UserError for images or logits that are not of the run's network.
    """
    folder, data = run.folder, run.manifest.data
    classes = data.class_names
    thresholds = judged[0].thresholds
    kept = {attack: folder.gallery(SHOWN, attack) for attack in banks}
    done = {record.attack for one in judged if one.thresholds is thresholds for record in one.records}
    galleries = {name: Gallery.load(path) for name, path in kept.items() if path.is_file() and name in done}
    for name, gallery in galleries.items():
        shapes = gallery.images.shape[1:], gallery.logits.shape[1:]
        if shapes != (data.shape, (run.manifest.exits, len(classes))) or gallery.labels.max(initial=0) >= len(classes):
            raise UserError(f"{kept[name]} is not of this network: delete it and run `rdi attack run={run.path}` again")
    clean = galleries.get(CLEAN)
    if clean is None:
        return None
    policy = policies.policy(thresholds)
    place = {int(index): row for row, index in enumerate(clean.indices)}
    rows = {}
    for name, gallery in galleries.items():
        logits = torch.from_numpy(gallery.logits)
        exits = policy.with_draw(0).choose(logits)
        answers = policy.predict(logits, exits)
        ball = threat_of(gallery.record.settings)
        # in other norms than L-infinity no pixel comes near eps
        most = (ball.eps if ball and ball.norm == LINF else 0.0) or gallery.record.linf or 1.0
        found: list[GalleryImage | None] = [None] * len(clean.indices)
        for row, index in enumerate(gallery.indices.tolist()):
            if (column := place.get(index)) is None:
                continue
            changed = None
            if name != CLEAN:
                changed = images.png(images.difference(gallery.images[row], clean.images[column], most))
            answer = int(answers[row])
            found[column] = GalleryImage(
                image=images.png(gallery.images[row]),
                difference=changed,
                answer=classes[answer],
                exit=int(exits[row]),
                right=answer == int(gallery.labels[row]),
            )
        rows[name] = found
    return GalleryView(
        classes=[classes[int(label)] for label in np.asarray(clean.labels)],
        images=rows,
        recrafted=[name for name, gallery in galleries.items() if not gallery.record.judged],
    )
