"""LogitsBank: the logits of every exit for every sample of a split under one attack. Made once, judged many times."""

from __future__ import annotations

import shutil
import tempfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from rdi.errors import UserError
from rdi.records import PARTIAL, BankManifest, atomic, read, sha256, write

CLEAN = "clean"
"""The bank of the images as they are."""


@dataclass(frozen=True)
class LogitsBank:
    """logits_NEC float32, labels_N int64, indices_N int64 (position in the source), and what made them."""

    logits: torch.Tensor
    labels: torch.Tensor
    indices: np.ndarray
    manifest: BankManifest

    def beginning_with(self, indices: np.ndarray) -> LogitsBank:
        """The same bank in another order: these samples (all of them in it) first, then the rest as they were."""
        place = {int(index): row for row, index in enumerate(self.indices)}
        ahead = [place[int(index)] for index in indices]
        rows = np.array([*ahead, *np.setdiff1d(np.arange(len(self.indices)), ahead)], dtype=np.int64)
        return replace(self, logits=self.logits[rows], labels=self.labels[rows], indices=self.indices[rows])

    def save(self, folder: Path) -> None:
        """Write bank.npz and manifest.json; the folder appears complete or not at all, replacing an older one."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=PARTIAL))
        try:
            partial.chmod(0o755)
            np.savez(
                partial / "bank.npz",
                logits=self.logits.numpy().astype(np.float32),
                labels=self.labels.numpy(),
                indices=self.indices,
            )
            write(partial / "manifest.json", self.manifest)
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    @staticmethod
    def load(folder: Path) -> LogitsBank:
        """Read a bank. Raises UserError when it is missing or damaged."""
        manifest = read(folder / "manifest.json", BankManifest)
        try:
            with np.load(folder / "bank.npz", allow_pickle=False) as arrays:
                logits, labels, indices = arrays["logits"], arrays["labels"], arrays["indices"]
            whole = logits.ndim == 3 and len(logits) == len(labels) == len(indices) == manifest.samples
        except (OSError, KeyError, ValueError, EOFError, BadZipFile, zlib.error) as error:
            raise UserError(damaged(folder)) from error
        if not whole:
            raise UserError(damaged(folder))
        check_logits(torch.from_numpy(logits), str(folder))
        return LogitsBank(torch.from_numpy(logits), torch.from_numpy(labels), indices, manifest)


@dataclass(frozen=True)
class HalfBank:
    """What an unfinished attack has come to: logits of the first samples. identity: of all that determines them."""

    logits: torch.Tensor
    linf: float
    seconds: float
    identity: str

    def save(self, path: Path) -> None:
        """Write, atomically."""
        arrays = {
            "logits": self.logits.numpy(),
            "linf": np.float64(self.linf),
            "seconds": np.float64(self.seconds),
            "identity": np.str_(self.identity),
        }
        atomic(path, lambda stream: np.savez(stream, **arrays))  # type: ignore[arg-type]

    @staticmethod
    def load(path: Path, identity: str) -> HalfBank | None:
        """What lies at `path` if it is of this identity; None if it is not, is damaged or missing."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = HalfBank(
                    torch.from_numpy(arrays["logits"]),
                    float(arrays["linf"]),
                    float(arrays["seconds"]),
                    str(arrays["identity"]),
                )
        except (OSError, KeyError, ValueError, EOFError, BadZipFile, zlib.error):
            return None
        return found if found.identity == identity else None


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


def damaged(folder: Path) -> str:
    """What to say of a bank that cannot be read."""
    return f"{folder}/bank.npz is missing or damaged: delete {folder} and run `rdi attack` again"


def bank_sha256(folder: Path) -> str:
    """sha256 of the arrays of a bank."""
    return sha256(folder / "bank.npz")
