"""LogitsBank: the logits of every exit for every sample of a split under one attack. Made once, judged many times."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdi.errors import UserError, extra
from rdi.records import BankManifest, read, to_dict
from rdi.storage import json_bytes, read_arrays, sha256, write_arrays, write_bytes, write_folder
from rdi.threats import CLEAN as CLEAN
from rdi.thresholds.policy import Policy, checked_policy

logger = logging.getLogger("rdi")


@dataclass(frozen=True)
class LogitsBank:
    """Logits of all exits for the images of one split under one attack.

    logits: float32_NEC; large ones are mapped from their file, and read where they are looked at.
    labels: int64_N.
    indices: int64_N, position in the source.
    manifest: the attack, network and settings that they are of.
    skipped: int64_NE, MACs that gates left out up to each exit; None of a network without gates.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    indices: np.ndarray
    manifest: BankManifest
    skipped: torch.Tensor | None = None

    def beginning_with(self, indices: np.ndarray) -> LogitsBank:
        """Reorder the bank: these samples (all of them in it) first, then the rest in their order."""
        place = {int(index): row for row, index in enumerate(self.indices)}
        ahead = [place[int(index)] for index in indices]
        rows = np.array([*ahead, *np.setdiff1d(np.arange(len(self.indices)), ahead)], dtype=np.int64)
        skipped = None if self.skipped is None else self.skipped[rows]
        return replace(
            self, logits=self.logits[rows], labels=self.labels[rows], indices=self.indices[rows], skipped=skipped
        )

    def select(self, indices: np.ndarray) -> LogitsBank:
        """Return the bank of these samples alone (all of them in it), in this order."""
        found = self.beginning_with(indices)
        few = len(indices)
        skipped = None if found.skipped is None else found.skipped[:few]
        return replace(
            found,
            logits=found.logits[:few],
            labels=found.labels[:few],
            indices=found.indices[:few],
            skipped=skipped,
        )

    def columns(self, policy: Policy | None = None) -> dict[str, np.ndarray]:
        """Lay the bank out as columns, one row per image.

        sample: position in the source. label: the true class. attack: the bank's name. exit0, exit1, ...: class that
            each exit predicts. With a policy also exit, where the image leaves, predicted, its answer there, and
            correct.

        policy: of as many exits; of a randomised one the first draw is shown.
        Raises UserError for a policy of another number of exits.
        """
        found: dict[str, np.ndarray] = {
            "sample": self.indices,
            "label": self.labels.numpy(),
            "attack": np.full(len(self.labels), self.manifest.attack, dtype=object),
        }
        found |= {f"exit{k}": self.logits[:, k].argmax(dim=1).numpy() for k in range(self.logits.shape[1])}
        if policy is not None:
            fixed = checked_policy(policy, self.logits.shape[1]).with_draw(0)
            exits = fixed.choose(self.logits)
            predicted = fixed.predict(self.logits, exits)
            correct = predicted == self.labels
            found |= {"exit": exits.numpy(), "predicted": predicted.numpy(), "correct": correct.numpy()}
        return found

    def to_pandas(self, policy: Policy | None = None) -> Any:
        """Give `columns` as a pandas.DataFrame. Raises UserError where pandas is not installed."""
        with extra("pandas", "pandas is not installed", ", or take columns()"):
            import pandas
        return pandas.DataFrame(self.columns(policy))

    def save(self, folder: Path) -> None:
        """Write bank.npz and manifest.json; the folder appears complete or not at all, replacing an older one.

        Raises UserError for logits that are no numbers.
        """
        check_logits(self.logits, str(folder))
        arrays = {
            "logits": self.logits.numpy().astype(np.float32, copy=False),
            "labels": self.labels.numpy(),
            "indices": self.indices,
        }
        if self.skipped is not None:
            arrays["skipped"] = self.skipped.numpy()

        def describe(path: Path) -> None:
            manifest = replace(self.manifest, sha256=sha256(path.parent / "bank.npz"))
            write_bytes(path, json_bytes(to_dict(manifest)))

        write_folder(folder, {"bank.npz": lambda path: write_arrays(path, arrays), "manifest.json": describe})

    @staticmethod
    def load(folder: Path) -> LogitsBank:
        """Read a bank. Raises UserError when it is missing, damaged, or a copy of one of another name."""
        manifest = read_manifest(folder)
        file, remedy = folder / "bank.npz", f"delete {folder} and run `rdi attack` again"
        arrays = read_arrays(file, remedy)
        flaw = _flaw(arrays, manifest)
        if not flaw and manifest.sha256 not in (None, sha256(file)):
            flaw = "its sha256 is not that of its manifest"
        if flaw:
            raise UserError(f"{file} is damaged ({flaw}): {remedy}")
        return LogitsBank(
            torch.from_numpy(arrays["logits"]),
            torch.from_numpy(arrays["labels"]),
            arrays["indices"],
            manifest,
            torch.from_numpy(arrays["skipped"]) if "skipped" in arrays else None,
        )


def of_most_images(banks: Mapping[str, LogitsBank]) -> dict[str, LogitsBank]:
    """Return the banks that hold every image of the largest one, of these images in one order."""
    if not banks:
        return {}
    held = {name: set(bank.indices.tolist()) for name, bank in banks.items()}
    # of two as large ones, the one whose images more banks hold
    largest = max(held, key=lambda name: (len(held[name]), sum(held[name] <= other for other in held.values())))
    return common_images({name: bank for name, bank in banks.items() if held[largest] <= held[name]})


def common_images(banks: Mapping[str, LogitsBank]) -> dict[str, LogitsBank]:
    """Return the banks of the images that all of them hold, in one order; empty when there is none."""
    if len({bank.indices.tobytes() for bank in banks.values()}) < 2:
        return dict(banks)
    fewest = min(banks.values(), key=lambda bank: len(bank.indices))
    shared = functools.reduce(np.intersect1d, [bank.indices for bank in banks.values()])
    kept = fewest.indices[np.isin(fewest.indices, shared)]
    return {name: bank.select(kept) for name, bank in banks.items()} if len(kept) else {}


def read_manifest(folder: Path) -> BankManifest:
    """Read a bank's manifest. Raises UserError when it is damaged, or one of another name, copied or renamed."""
    if not (folder / "manifest.json").is_file():
        raise UserError(f"{folder} is damaged, it has no manifest.json: restore it, or delete it and attack again")
    manifest = read(folder / "manifest.json", BankManifest)
    if folder.name != (name := f"{manifest.split}-{manifest.attack}"):
        raise UserError(f"{folder} holds the bank {name}: rename it to that, or move it out of {folder.parent}")
    return manifest


def _flaw(arrays: Mapping[str, np.ndarray], manifest: BankManifest) -> str:
    """Say what is wrong with the arrays of a bank; nothing if they can be judged."""
    if set(arrays) - {"skipped"} != {"logits", "labels", "indices"}:
        return f"it holds {', '.join(sorted(arrays)) or 'nothing'}"
    logits, labels, indices = arrays["logits"], arrays["labels"], arrays["indices"]
    if (logits.dtype, labels.dtype) != (np.float32, np.int64) or indices.dtype.kind not in "iu":
        return f"types {logits.dtype}, {labels.dtype}, {indices.dtype}"
    if logits.ndim != 3 or labels.shape != (manifest.samples,) or indices.shape != (manifest.samples,):
        return f"shapes {logits.shape}, {labels.shape}, {indices.shape} for {manifest.samples} samples"
    if len(logits) != manifest.samples or 0 in logits.shape[1:]:
        return f"logits of shape {logits.shape} for {manifest.samples} samples"
    if not np.isfinite(logits.max(axis=2)).all():  # a single -inf is a class that the exit excludes
        return "logits are not finite"
    if len(labels) and not 0 <= labels.min() <= labels.max() < logits.shape[2]:
        return f"labels outside 0 to {logits.shape[2] - 1}"
    if len(indices) and indices.min() < 0:
        return "negative indices"
    skipped = arrays.get("skipped")
    if skipped is not None and (
        skipped.dtype != np.int64 or skipped.shape != logits.shape[:2] or skipped.min(initial=0) < 0
    ):
        return "skipped MACs that are no numbers >= 0 per image and exit"
    return ""


@dataclass(frozen=True)
class PartialBank:
    """Logits of the first samples of an interrupted attack.

    logits: float32_MEC.
    linf: largest perturbation so far, pixel units; length: the same in the norm of the attack.
    seconds: wall time so far.
    identity: hash of the inputs of the attack; a file of another one is ignored.
    rows: int64_R, attacked images among them that were recorded for the gallery.
    images: float32_RCHW, these images.
    skipped: int64_ME, MACs that gates left out; None of a network without gates.
    """

    logits: torch.Tensor
    linf: float
    length: float
    seconds: float
    identity: str
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    images: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 0), dtype=np.float32))
    skipped: torch.Tensor | None = None

    def save(self, path: Path) -> None:
        """Write, atomically."""
        arrays = {
            "logits": self.logits.numpy(),
            "linf": np.float64(self.linf),
            "length": np.float64(self.length),
            "seconds": np.float64(self.seconds),
            "identity": np.str_(self.identity),
            "rows": self.rows,
            "images": self.images,
        }
        if self.skipped is not None:
            arrays["skipped"] = self.skipped.numpy()
        write_arrays(path, {name: np.asarray(array) for name, array in arrays.items()})

    @staticmethod
    def load(path: Path, identity: str) -> PartialBank | None:
        """Read what lies at `path`; None if it is of another identity or not there, or damaged, which is logged."""
        arrays = read_partial(path, identity, "this attack begins again with its first image")
        wanted = {one.name for one in fields(PartialBank)} - {"skipped", "identity"}
        if arrays is None or set(arrays) - {"skipped"} != wanted:
            return None
        return PartialBank(
            torch.from_numpy(arrays["logits"]),
            float(arrays["linf"]),
            float(arrays["length"]),
            float(arrays["seconds"]),
            identity,
            arrays["rows"],
            arrays["images"],
            torch.from_numpy(arrays["skipped"]) if "skipped" in arrays else None,
        )


def read_partial(path: Path, identity: str, remedy: str) -> dict[str, np.ndarray] | None:
    """Read the arrays of an unfinished piece of work, without its `identity`.

    None where there is none, where its entry `identity` is another one, or where it is damaged, which is logged.
    """
    if not path.exists():
        return None
    try:
        arrays = read_arrays(path, remedy)
    except UserError as error:
        logger.warning("%s", error)
        return None
    return arrays if str(arrays.pop("identity", "")) == identity else None


def check_logits(logits_NEC: torch.Tensor, what: str) -> None:
    """Raise UserError, naming `what`, where an exit's logits give no probabilities: NaN, +inf, or all of them -inf.

    A single -inf is a class that the exit excludes.
    """
    largest = logits_NEC.amax(dim=2)  # NaN where one is
    if broken := int((~largest.isfinite()).any(dim=1).sum()):
        exits = (~largest.isfinite()).any(dim=0).nonzero()[:, 0].tolist()
        raise UserError(
            f"{what}: the logits of {broken} of {len(logits_NEC)} images are NaN or infinite (exits "
            f"{', '.join(map(str, exits))}), so nothing can be judged on them: the training diverged, or the network "
            "divides by zero; train again, for example with a smaller optim.lr"
        )


def joined_skipped(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Join what gates left out, batch by batch; None of a network without gates."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def bank_sha256(folder: Path) -> str:
    """Return the sha256 of the arrays of a bank."""
    try:
        return sha256(folder / "bank.npz")
    except FileNotFoundError:
        raise UserError(
            f"{folder}/bank.npz is missing: restore it, or delete {folder} and run `rdi attack` again"
        ) from None
