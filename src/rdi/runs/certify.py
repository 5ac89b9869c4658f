"""Certificates of a run: bounds of its logits over a ball, made once, and what each policy is certified for."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from rdi import signals
from rdi.banks import LogitsBank
from rdi.certificates import BoundedNetwork, Bounds, Certificates, certify_each
from rdi.certificates import certify as certify_policy
from rdi.certificates.policies import check
from rdi.certificates.store import SIDES, PartialBounds, StoredBounds
from rdi.checks import choice, integer
from rdi.data.base import Split
from rdi.data.batches import to_float
from rdi.errors import Interrupted, UserError
from rdi.folders import RunFolder
from rdi.health import Claim, Trial
from rdi.ranks import ALONE, Ranks
from rdi.records import BoundsManifest, CertificateRecord, Thresholds, write
from rdi.runs import policies, provenance
from rdi.runs.assistance import assisted, opened
from rdi.runs.crafting import KEEP_SECONDS
from rdi.runs.folder import Run
from rdi.runs.options import Certify
from rdi.threats import ThreatModel, asked, trained
from rdi.threats import threat as threat_of
from rdi.thresholds import Policy, ThresholdPolicy

logger = logging.getLogger("rdi")


@dataclass(frozen=True, kw_only=True)
class Making:
    """Options of making bounds.

    batch_size: images per batch.
    linear: linear bounds too, as of BoundedNetwork.bounds.
    overwrite: replace bounds that were made with other options.
    """

    batch_size: int = 250
    linear: bool = True
    overwrite: bool = False


def certify_run(run: Run, options: Certify) -> CertificateRecord:
    """Bound the logits of some images of a split over the threat model, and certify an exit policy by them.

    Raises UserError, before the first image, for a policy that cannot be bounded, for a network with a layer without
    a bound, and for values out of range.
    """
    own = trained(run.manifest)
    threat = asked(options.threat.eps, options.threat.norm, own) or own
    how = Making(
        batch_size=integer("batch_size", options.batch_size, 1), linear=options.linear, overwrite=options.overwrite
    )
    name = options.thresholds or run.manifest.choices["threshold"]
    check(run.policy(name))
    images = run.data.split(choice("split", options.split, ("test", "validation"))).sample(options.samples)
    ranks = assisted(run)
    with signals.stop_on_signals(patient=not ranks.alone) as stop:
        make_bounds(run, images, threat, how, stop, ranks)
    return judge(run, policies.read_thresholds(run.folder, name), threat, options.split)


def take_turns(
    ranks: Ranks,
    stop: Callable[[], bool],
    arguments: dict[str, Any],
    split: str,
    samples: int,
    threat: ThreatModel,
    how: Making,
    begun: int,
) -> None:
    """Take turns at the batches that the leading rank bounds. samples: of the split; begun: done before."""
    run = opened(arguments)
    images = run.data.split(split).sample(samples)
    for _ in _batches(run, images, threat, how, begun, stop, ranks):
        pass


def make_bounds(
    run: Run,
    split: Split,
    threat: ThreatModel,
    how: Making,
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> StoredBounds:
    """Bound the logits of `split` and store that, unless it is there already; go on with what was interrupted.

    Raises UserError when there are bounds that were made in another way, unless `how` says to replace them, and
    Interrupted when `stop` said so.
    """
    folder, weights = run.folder, run.manifest.checkpoint_sha256
    assert weights is not None, "bounds name the weights they are of"
    own = trained(run.manifest)
    path = folder.bounds(split.name, None if threat == own else threat)
    identity = json.dumps(
        [threat.eps, asdict(how) | {"overwrite": None}, split.indices.tolist(), weights, run.device.type]
    )
    if path.is_file() and not how.overwrite:
        stored = StoredBounds.load(path)
        made = stored.manifest
        if (made.linear, made.checkpoint_sha256, ThreatModel(made.eps, made.norm)) == (
            how.linear,
            weights,
            threat,
        ) and np.array_equal(stored.indices, split.indices):
            logger.info("%s: bounds on %s for %s are there already", folder.path, split.name, threat)
            return stored
        raise UserError(
            f"{path} was made in another way or of other images (samples {made.samples}, linear {made.linear}): "
            "replace it with overwrite=true"
        )
    half = path.with_suffix(".begun.npz")
    begun = None if how.overwrite else PartialBounds.load(half, identity)
    ranks.call(take_turns, run.arguments, split.name, len(split), threat, how, len(begun.bounds.low) if begun else 0)
    found = _bound(run, split, threat, how, begun, lambda part: PartialBounds(*part, identity).save(half), stop, ranks)
    bounds, seconds = found
    manifest = BoundsManifest(
        run=folder.name,
        split=split.name,
        eps=threat.eps,
        norm=threat.norm,
        linear=how.linear,
        samples=len(split),
        batch_size=how.batch_size,
        data=run.data.name,
        fingerprint=run.data.fingerprint,
        checkpoint_sha256=weights,
        environment=provenance.environment(run.device),
        seconds=seconds,
    )
    done = StoredBounds(bounds, split.labels.cpu(), split.indices, manifest)
    done.save(path)
    half.unlink(missing_ok=True)
    shares = bounds.wins().double().mean(dim=0)
    logger.info(
        "%s: bounds of %d %s images for %s, exits that are right for sure %s %%, %.1f s",
        folder.path,
        len(split),
        split.name,
        threat,
        "/".join(f"{100 * float(share):.1f}" for share in shares),
        seconds,
    )
    return done


def _bound(
    run: Run,
    split: Split,
    threat: ThreatModel,
    how: Making,
    begun: PartialBounds | None,
    keep: Callable[[tuple[Bounds, float]], None],
    stop: Callable[[], bool],
    ranks: Ranks,
) -> tuple[Bounds, float]:
    """Bounds of the split on the CPU, and the seconds that they took."""
    parts, spent = ([begun.bounds], begun.seconds) if begun else ([], 0.0)
    first = len(begun.bounds.low) if begun else 0
    if first:
        logger.info("%s: certifying goes on after %d of %d images", run.folder.path, first, len(split))
    began = kept = time.perf_counter()

    def done() -> tuple[Bounds, float]:
        joined = Bounds(*(torch.cat([getattr(part, side) for part in parts]) for side in SIDES))
        return joined, spent + time.perf_counter() - began

    for part in _batches(run, split, threat, how, first, stop, ranks):
        if parts and time.perf_counter() - kept > KEEP_SECONDS:
            keep(done())
            kept = time.perf_counter()
        parts.append(part)
    if sum(len(part.low) for part in parts) < len(split):
        if parts:
            keep(done())
        raise Interrupted("stopped while certifying; what is done is kept, the same command goes on with the rest")
    return done()


def _batches(
    run: Run, split: Split, threat: ThreatModel, how: Making, first: int, stop: Callable[[], bool], ranks: Ranks
) -> Iterator[Bounds]:
    """Bounds of one batch after the other on the CPU, from the image `first` on; ranks take turns."""
    bounded, here = BoundedNetwork(run.network.eval()), split.to(run.device)

    def batch(begin: int) -> Bounds:
        part = slice(begin, begin + how.batch_size)
        x, y = to_float(here.images[part]), here.labels[part]
        # the ball of another norm lies in the L-infinity ball of its radius
        found = bounded.bounds(x, y, min(threat.eps, 1.0), linear=how.linear)
        return Bounds(*(getattr(found, side).cpu() for side in SIDES))

    yield from ranks.in_turn(range(first, len(split), how.batch_size), batch, stop)


def certificates(folder: RunFolder, thresholds: Thresholds, stored: StoredBounds) -> Certificates:
    """Certify a policy image by image.

    thresholds: of the policy. stored: bounds of images of the run. Raises UserError for bounds of other weights.
    """
    _same_weights(folder, stored, thresholds.checkpoint_sha256)
    return certify_policy(policies.policy(thresholds), stored.bounds, stored.labels)


def _same_weights(folder: RunFolder, stored: StoredBounds, weights: str | None) -> None:
    if stored.manifest.checkpoint_sha256 != weights:
        raise UserError(
            f"the bounds of {folder.path} are of other weights than the run: run `rdi certify run={folder.path} "
            "overwrite=true`"
        )


def certify_points(run: Run, policies: Sequence[ThresholdPolicy], threat: ThreatModel) -> list[Certificates]:
    """Certify policies that differ in their thresholds alone, on the test images that there are bounds of.

    Returns an empty list where the run has none for `threat`, and where the score has no known bounds, which is logged.
    Raises UserError for bounds of other weights.
    """
    own = trained(run.manifest)
    if threat not in run.folder.bounded("test", own):
        return []
    stored = StoredBounds.load(run.folder.bounds("test", None if threat == own else threat))
    _same_weights(run.folder, stored, run.manifest.checkpoint_sha256)
    try:
        check(policies[0])
    except UserError as error:
        logger.info("%s: %s", run.path, error)
        return []
    return list(certify_each(policies, stored.bounds, stored.labels))


def judge(run: Run, thresholds: Thresholds, threat: ThreatModel, split: str = "test") -> CertificateRecord:
    """Certify a policy by stored bounds, and store the record with the run."""
    found = judged(run, thresholds, threat, split)
    write(run.folder.certificate(found.threshold, split, None if threat == trained(run.manifest) else threat), found)
    return found


def judged(run: Run, thresholds: Thresholds, threat: ThreatModel, split: str = "test") -> CertificateRecord:
    """Certify a policy by stored bounds."""
    manifest = run.manifest
    stored = StoredBounds.load(run.folder.bounds(split, None if threat == trained(manifest) else threat))
    found = certificates(run.folder, thresholds, stored)
    return CertificateRecord(
        run=run.folder.name,
        data=manifest.data.name,
        split=split,
        eps=stored.manifest.eps,
        norm=stored.manifest.norm,
        threshold=thresholds.name,
        values=thresholds.values,
        samples=stored.manifest.samples,
        max_macs=int(found.costs(manifest.costs.macs).max()),
        linear=stored.manifest.linear,
        bounds_sha256=stored.manifest.sha256 or "",
        checkpoint_sha256=stored.manifest.checkpoint_sha256,
        **found.figures(stored.bounds.wins(), manifest.costs),
    )


def certified(run: Run, policy: Policy) -> tuple[list[Claim], list[Trial]]:
    """Return the certificates of a policy on the test images, and the attacks on them that the run holds.

    None for a policy that cannot be certified, which is logged. Raises UserError for bounds of other weights.
    """
    folder, own, weights = run.folder, trained(run.manifest), run.manifest.checkpoint_sha256
    threats = folder.bounded("test", own)
    try:
        check(policy)
    except UserError as error:
        if threats:
            logger.info("%s: %s", run.path, error)
        return [], []
    claims = []
    for threat in threats:
        stored = StoredBounds.load(folder.bounds("test", None if threat == own else threat))
        _same_weights(folder, stored, weights)
        found = certify_policy(policy, stored.bounds, stored.labels)
        claims.append(Claim(stored.manifest.eps, stored.indices, found.right, stored.bounds))
    trials = []
    for name, path in folder.banks("test").items() if claims else ():
        bank = LogitsBank.load(path)
        ball = threat_of(bank.manifest.settings)
        if bank.manifest.checkpoint_sha256 == weights:
            eps = 0.0 if ball is None else ball.eps
            trials.append(Trial(name, eps, bank.manifest.linf, bank.indices, bank.labels, bank.logits))
    return claims, trials


def judge_all(run: Run, thresholds: Thresholds, split: str = "test") -> dict[ThreatModel, CertificateRecord]:
    """Certify a policy under every threat model that there are bounds for; a policy without certificate is logged."""
    found = {}
    for threat in run.folder.bounded(split, trained(run.manifest)):
        try:
            found[threat] = judge(run, thresholds, threat, split)
        except UserError as error:
            logger.info("%s: %s", run.path, error)
    return found
