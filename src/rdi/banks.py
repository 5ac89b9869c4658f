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
from rdi.threats import CLEAN as CLEAN


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

    def only(self, indices: np.ndarray) -> LogitsBank:
        """The bank of these samples alone (all of them in it), in this order."""
        found = self.beginning_with(indices)
        few = len(indices)
        return replace(found, logits=found.logits[:few], labels=found.labels[:few], indices=found.indices[:few])

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


def damaged(folder: Path) -> str:
    """What to say of a bank that cannot be read."""
    return f"{folder}/bank.npz is missing or damaged: delete {folder} and run `rdi attack` again"


def bank_sha256(folder: Path) -> str:
    """sha256 of the arrays of a bank."""
    return sha256(folder / "bank.npz")
