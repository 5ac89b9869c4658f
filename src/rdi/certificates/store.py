"""Bounds of a split on disk: an array file with a record beside it, and the state of an interrupted pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from rdi.banks import read_partial
from rdi.certificates.bounds import Bounds
from rdi.errors import UserError
from rdi.records import BoundsManifest, read, write
from rdi.storage import read_arrays, sha256, write_arrays

REMEDY = "delete it and run `rdi certify` again"
SIDES = ("low", "high", "below", "above")


@dataclass(frozen=True)
class StoredBounds:
    """Bounds of N images of a split, as files.

    bounds: of every exit.
    labels: int64_N.
    indices: int64_N, position in the source.
    manifest: the images, network and settings that they are of.
    """

    bounds: Bounds
    labels: torch.Tensor
    indices: np.ndarray
    manifest: BoundsManifest

    def save(self, path: Path) -> None:
        """Write the arrays beside the record `path`, then the record."""
        arrays = {side: getattr(self.bounds, side).numpy() for side in SIDES}
        file = path.with_suffix(".npz")
        write_arrays(file, {**arrays, "labels": self.labels.numpy(), "indices": self.indices})
        write(path, replace(self.manifest, sha256=sha256(file)))

    @staticmethod
    def load(path: Path) -> StoredBounds:
        """Read the record `path` and its arrays. Raises UserError for damaged ones."""
        manifest, file = read(path, BoundsManifest), path.with_suffix(".npz")
        arrays = read_arrays(file, f"delete {path} and {file.name}, and run `rdi certify` again")
        shapes = {arrays[side].shape for side in SIDES} if {*SIDES, "labels", "indices"} == set(arrays) else set()
        n = manifest.samples
        sound = (
            len(shapes) == 1
            and len(shape := next(iter(shapes))) == 3
            and shape[0] == n
            and 0 not in shape
            and all(arrays[side].dtype == np.float32 and np.isfinite(arrays[side]).all() for side in SIDES)
            and all(arrays[key].shape == (n,) and arrays[key].dtype == np.int64 for key in ("labels", "indices"))
            and arrays["labels"].min() >= 0
            and arrays["labels"].max() < shape[2]
            and (arrays["low"] <= arrays["high"]).all()
            and (arrays["below"] <= arrays["above"]).all()
            and manifest.sha256 == sha256(file)
        )
        if not sound:
            raise UserError(f"{file} is damaged, or not that of {path}: {REMEDY}")
        bounds = Bounds(*(torch.from_numpy(arrays[side]) for side in SIDES))
        return StoredBounds(bounds, torch.from_numpy(arrays["labels"]), arrays["indices"], manifest)


@dataclass(frozen=True)
class PartialBounds:
    """Bounds of the first images of a split, from an interrupted pass.

    bounds: of every exit.
    seconds: wall time spent.
    identity: hash of everything that determines the bounds.
    """

    bounds: Bounds
    seconds: float
    identity: str

    def save(self, path: Path) -> None:
        """Write, atomically."""
        arrays = {side: getattr(self.bounds, side).numpy() for side in SIDES}
        write_arrays(path, {**arrays, "seconds": np.float64(self.seconds), "identity": np.asarray(self.identity)})  # type: ignore[dict-item]

    @staticmethod
    def load(path: Path, identity: str) -> PartialBounds | None:
        """Read what lies at `path`; None if it is of another identity, not there, or damaged, which is logged."""
        arrays = read_partial(path, identity, "this certificate begins again with its first image")
        if arrays is None or set(arrays) != {*SIDES, "seconds"}:
            return None
        bounds = Bounds(*(torch.from_numpy(arrays[side]) for side in SIDES))
        return PartialBounds(bounds, float(arrays["seconds"]), identity)
