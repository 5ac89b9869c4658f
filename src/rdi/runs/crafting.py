"""Create, resume or reuse a logits bank of a run, with a few of its images."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdi.attacking import Attacked, attack_split, joined
from rdi.attacks.base import Attack
from rdi.attacks.engine import Engine
from rdi.banks import LogitsBank, PartialBank, joined_skipped, read_manifest
from rdi.checks import LINF
from rdi.data.base import Split
from rdi.errors import Interrupted, UserError
from rdi.ranks import ALONE, Ranks
from rdi.records import BankManifest, Plain
from rdi.runs import galleries, provenance
from rdi.runs.assistance import opened
from rdi.runs.folder import Run

logger = logging.getLogger("rdi")
KEEP_SECONDS = 20.0
"""Seconds of work, beyond the batch at hand, that are lost at most when the process is killed."""


@dataclass(frozen=True, kw_only=True)
class Crafting:
    """Settings of crafting banks.

    overwrite: replace those made in another way instead of refusing; clean ones only where they are of other weights
    or images. label: the user's part of their names.
    """

    seed: int
    batch_size: int
    engine: Engine
    overwrite: bool = False
    label: str | None = None


def take_turns(
    ranks: Ranks,
    stop: Callable[[], bool],
    arguments: dict[str, Any],
    split: str,
    samples: int,
    attack: Attack | None,
    how: Crafting,
    label: str,
    first: int,
) -> None:
    """Take turns at the batches of a bank that the leading rank makes. samples: of the split; first: as there."""
    run = opened(arguments)
    for _ in _batches(run, run.data.split(split).sample(samples), attack, how, label, first, stop, ranks):
        raise AssertionError("only the leading rank is given batches")


def make_bank(
    run: Run,
    split: Split,
    name: str,
    attack: Attack | None,
    how: Crafting,
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> LogitsBank:
    """Attack `split` and store the bank, unless the same one is there already; go on with one that was interrupted.

    Raises UserError when there is a bank that was made in another way, unless `how` says to replace it.
    """
    weights = run.manifest.checkpoint_sha256
    assert weights is not None, "a bank names the weights it was made with: judge a network after its run has them"
    folder, path = run.folder, run.folder.bank(split.name, name)
    # clean logits depend neither on chance nor on how attacks compute
    settings = {} if attack is None else attack.identity()
    engine: dict[str, Plain] = {} if attack is None else asdict(how.engine)
    identity = json.dumps(
        [settings, engine, how.seed, how.batch_size, split.indices.tolist(), weights, run.device.type]
    )
    half = folder.partial_bank(split.name, name)
    old = None if attack is not None and how.overwrite else _stored(path, how.overwrite)
    if old is not None:
        if _alike(old.manifest, attack, how, weights) and np.array_equal(old.indices, split.indices):
            logger.info("%s: %s on %s is there already", folder.path, name, split.name)
            seen = galleries.ImageRecorder(_gallery_rows(run, split))
            if left := PartialBank.load(half, identity):  # killed before its images were kept
                seen.recall(left.rows, left.images)
            keep_images(run, split, attack, how, old, seen, stop)
            half.unlink(missing_ok=True)
            return old
        if not how.overwrite:
            raise _refusal(path, old.manifest, len(split), settings, engine, how, weights)
    begun = None if how.overwrite else PartialBank.load(half, identity)
    logits, skipped = ([begun.logits], [begun.skipped]) if begun else ([], [])
    linf, length, seconds = (begun.linf, begun.length, begun.seconds) if begun else (0.0, 0.0, 0.0)
    count = len(begun.logits) if begun else 0
    seen = galleries.ImageRecorder(_gallery_rows(run, split), count)
    if begun:
        logger.info("%s: %s goes on after %d of %d images", folder.path, name, count, len(split))
        seen.recall(begun.rows, begun.images)

    def keep() -> None:
        left = joined_skipped(skipped)
        PartialBank(torch.cat(logits), linf, length, seconds, identity, *seen.recorded(), left).save(half)

    ranks.call(take_turns, run.arguments, split.name, len(split), attack, how, name, count)
    kept, wait = time.perf_counter(), KEEP_SECONDS
    for done in _batches(run, split, attack, how, name, count, stop, ranks):
        seen(done.images)
        logits.append(done.logits)
        skipped.append(done.skipped)
        linf, length = max(linf, done.linf), max(length, done.length)
        seconds, count = seconds + done.seconds, count + len(done.logits)
        if count < len(split) and (begun_keeping := time.perf_counter()) - kept > wait:
            keep()
            kept = time.perf_counter()
            # of a bank of gigabytes less is kept, or most of the time would go into it
            wait = max(KEEP_SECONDS, 10 * (kept - begun_keeping))
    if count < len(split):
        if logits:
            keep()
        raise Interrupted(f"stopped during {name}; what is done is kept, the same command goes on with the rest")
    bank = LogitsBank(
        torch.cat(logits),
        split.labels,
        split.indices,
        BankManifest(
            run=folder.name,
            split=split.name,
            attack=name,
            settings=settings,
            engine=engine,
            samples=len(split),
            batch_size=how.batch_size,
            seed=how.seed,
            linf=linf,
            length=None if attack is None or attack.norm == LINF else length,
            data=run.data.name,
            fingerprint=run.data.fingerprint,
            checkpoint_sha256=weights,
            environment=provenance.environment(run.device),
            seconds=seconds,
        ),
        joined_skipped(skipped),
    )
    if seen.rows:
        keep()
    bank.save(path)
    keep_images(run, split, attack, how, bank, seen, stop)
    half.unlink(missing_ok=True)
    logger.info(
        "%s: %s on %d %s images, accuracy per exit %s %%, %.1f s",
        folder.path,
        name,
        len(split),
        split.name,
        "/".join(f"{100 * hit:.1f}" for hit in accuracies(bank)),
        seconds,
    )
    return bank


def accuracies(bank: LogitsBank) -> list[float]:
    """Accuracy of each exit alone, fractions."""
    hits: list[float] = (bank.logits.argmax(dim=2) == bank.labels[:, None]).double().mean(dim=0).tolist()
    return hits


def refuse_other(run: Run, split: Split, name: str, attack: Attack, how: Crafting) -> None:
    """Raise UserError where the bank of an attack is there, made in another way, and `how` does not replace it."""
    path, weights = run.folder.bank(split.name, name), run.manifest.checkpoint_sha256 or ""
    if how.overwrite or not path.is_dir():
        return
    stored = read_manifest(path)
    if stored.samples != len(split) or not _alike(stored, attack, how, weights):
        raise _refusal(path, stored, len(split), attack.identity(), asdict(how.engine), how, weights)


def _alike(stored: BankManifest, attack: Attack | None, how: Crafting, weights: str) -> bool:
    """Return whether a bank was made as `attack` would make it now, whatever its images are."""
    if stored.settings != ({} if attack is None else attack.identity()) or stored.checkpoint_sha256 != weights:
        return False
    made = (stored.seed, stored.batch_size, stored.engine)
    return attack is None or made == (how.seed, how.batch_size, asdict(how.engine))


def _refusal(
    path: Path,
    stored: BankManifest,
    samples: int,
    settings: Mapping[str, Plain],
    engine: Mapping[str, Plain],
    how: Crafting,
    weights: str,
) -> UserError:
    wanted = {"samples": samples, "batch_size": how.batch_size, "seed": how.seed, **settings}
    return UserError(
        f"{path} was made with other settings ({_differing(stored, wanted, engine, weights)}): replace it with "
        "overwrite=true, or keep both with label=NAME for this one"
    )


def _differing(stored: BankManifest, wanted: Mapping[str, Plain], engine: Mapping[str, Plain], weights: str) -> str:
    """What sets a stored bank apart from the one that is wanted: each option with both of its values."""
    old: dict[str, Plain] = {key: getattr(stored, key) for key in ("samples", "batch_size", "seed")} | stored.settings
    pairs = [(key, old.get(key), wanted.get(key)) for key in dict.fromkeys([*old, *wanted])]
    pairs += [(f"engine.{key}", stored.engine.get(key), value) for key, value in engine.items()]
    parts = [f"{key} {was!r}, not {now!r}" for key, was, now in pairs if was != now]
    if stored.checkpoint_sha256 != weights:
        parts.append("of other weights")
    return "; ".join(parts) or "of other images"


def _stored(path: Path, replaced: bool) -> LogitsBank | None:
    """The bank at `path`, None where there is none, or none that can be read and it is to be replaced anyway."""
    if not path.is_dir():
        return None
    try:
        return LogitsBank.load(path)
    except UserError:
        if replaced:
            return None
        raise


def keep_images(
    run: Run,
    split: Split,
    attack: Attack | None,
    how: Crafting,
    bank: LogitsBank,
    seen: galleries.ImageRecorder,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Keep the few images of `bank` that the report shows; those not `seen` are crafted anew."""

    def craft(few: Split) -> Attacked | None:
        return None if stop() else joined(_batches(run, few, attack, how, bank.manifest.attack))

    galleries.keep(run.folder, bank, split, seen, craft, lambda: provenance.environment(run.device))


def _batches(
    run: Run,
    split: Split,
    attack: Attack | None,
    how: Crafting,
    label: str,
    first: int = 0,
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> Iterator[Attacked]:
    """attack_split with what the run and `how` say."""
    images = split.to(run.device)
    options = {"seed": how.seed, "batch_size": how.batch_size, "first": first}
    return attack_split(run.network, images, attack, label=label, engine=how.engine, stop=stop, ranks=ranks, **options)


def _gallery_rows(run: Run, split: Split) -> list[int]:
    """Rows of `split` that the gallery shows; none but of the test split."""
    return galleries.rows(split, run.data.test) if split.name == run.data.test.name else []
