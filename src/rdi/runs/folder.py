"""Run: what a run folder holds, opened once and handed on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rdi.banks import LogitsBank
from rdi.data.base import DataSet
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.folders import RunFolder
from rdi.logs import log_to
from rdi.records import EvalRecord, Manifest, Thresholds, WorstRecord, read
from rdi.runs import datasets, devices, networks, policies, stored
from rdi.threats import CLEAN
from rdi.thresholds import Policy
from rdi.trust import trusted


class Run:
    """A run: its network, data, exit policies, banks and records, each read when it is first asked for.

    path: the run folder.
    device: of the network; "auto" (CUDA where there is one), "cpu", "cuda", ...
    threads: of the CPU; None leaves them as they are.
    trust: modules whose classes and functions the run may name, for one that was made with attacks, backbones or
        exits of your own; a run folder can make nothing else run.
    data_root: folder of the images; None looks in RDI_DATA and where the run found them.

    Raises UserError where no run is; each attribute raises it for what is missing, unfinished or damaged.
    """

    def __init__(
        self,
        path: str | Path,
        device: str = "auto",
        *,
        threads: int | None = None,
        trust: Sequence[str] = (),
        data_root: str | None = None,
    ) -> None:
        self.folder = RunFolder(path)
        self.opened = False  # its manifest is read, and is that of a finished run
        self.data_root = data_root
        self._device, self._threads, self._trust = device, threads, trust
        with trusted(trust):
            if not self.folder.started():
                self.folder.read_finished()  # which says what is here instead

    @classmethod
    def open(
        cls,
        path: str | Path,
        device: str = "auto",
        *,
        threads: int | None = None,
        trust: Sequence[str] = (),
        data_root: str | None = None,
    ) -> Run:
        """Open a run that is finished, and read its manifest. Raises UserError for any other."""
        run = cls(path, device, threads=threads, trust=trust, data_root=data_root)
        with trusted(trust):
            run.manifest = run.folder.read_finished()
            networks.check_identity(run.folder, run.manifest)
        run.opened = True
        return run

    @classmethod
    def of(
        cls, folder: RunFolder, manifest: Manifest, network: MultiExitNet, data: DataSet, device: torch.device
    ) -> Run:
        """Make a Run of what is in hand, while the run is being made; nothing is read again."""
        run = cls(folder.path)
        run.manifest, run.network, run.data, run.device = manifest, network, data, device
        run.opened = True
        return run

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments with which another process opens the same run."""
        return {
            "path": self.path,
            "device": self._device,
            "threads": self._threads,
            "trust": self._trust,
            "data_root": self.data_root,
        }

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other processes off the folder (RunFolder.hold); from now on log into it too."""
        with self.folder.hold():
            log_to(self.folder.log)
            yield

    def load(self) -> Run:
        """Load network and data now, so that what is damaged is said before work begins; return the run itself."""
        _ = self.network, self.data
        return self

    @property
    def path(self) -> Path:
        """Return the run folder's path, as it was given."""
        return self.folder.path

    @property
    def finished(self) -> bool:
        """Say whether training (or import) came to its end."""
        return self.folder.finished()

    @cached_property
    def manifest(self) -> Manifest:
        """Read what the run is: its config, seed, data, costs and environment."""
        with trusted(self._trust):
            return read(self.folder.manifest, Manifest)

    @cached_property
    def device(self) -> torch.device:
        """Select the device that was asked for. Raises UserError where it is not there."""
        return devices.select(self._device, self._threads)

    @cached_property
    def network(self) -> MultiExitNet:
        """Load the trained network in eval mode, on the device. Raises UserError for an unfinished or damaged run."""
        with trusted(self._trust):
            if not self.finished:
                self.folder.read_finished()
            return networks.checked(self.folder, self.manifest, self.device)

    @cached_property
    def data(self) -> DataSet:
        """Load the images, split as the run split them, on the CPU. Raises UserError for other images."""
        with trusted(self._trust):
            return datasets.run_data(self.folder, self.manifest, self.data_root)

    @property
    def thresholds(self) -> dict[str, Thresholds]:
        """Read every exit policy that was fitted on this run: name -> values, facts and what they came from."""
        with trusted(self._trust):
            return {name: policies.read_thresholds(self.folder, name) for name in policies.names(self.folder)}

    def policy(self, name: str | None = None) -> Policy:
        """Build the exit policy `name`; None: the one that the run was trained with. Raises UserError if missing."""
        with trusted(self._trust):
            return policies.load_policy(self.folder, name or self.manifest.choices["threshold"], self.manifest)

    def bank(self, name: str, split: str = "test") -> LogitsBank:
        """Load the logits of every exit on a split under the attack `name` ("clean": none).

        Raises UserError for a bank that is missing, damaged, or was made with other weights.
        """
        there = self.folder.banks(split)
        if name not in there:
            raise UserError(
                f"{self.path} has no bank {name!r} of {split} images (there are: {', '.join(there) or 'none'}): make "
                f"one with `rdi attack run={self.path}`"
            )
        bank = LogitsBank.load(there[name])
        if bank.manifest.checkpoint_sha256 != self.manifest.checkpoint_sha256:
            option = "" if split == "test" or name == CLEAN else f" split={split}"
            raise UserError(
                f"{there[name]} is of other weights: delete it and run `rdi attack run={self.path}{option}` again"
            )
        return bank

    def banks(self, split: str = "test") -> dict[str, LogitsBank]:
        """Load every bank of a split: name -> bank, clean images first. Raises UserError as `bank` does."""
        return {name: self.bank(name, split) for name in self.folder.banks(split)}

    def records(self, threshold: str | None = None, split: str = "test") -> dict[str, EvalRecord]:
        """Read what `rdi evaluate` stored of each bank: name -> accuracies and costs under a policy, clean first.

        threshold: name of the policy; None: the one that the run was trained with. Raises UserError where there is
        nothing.
        """
        name = threshold or self.manifest.choices["threshold"]
        found = stored.evaluations(self.folder, name, split)
        if not found:
            raise UserError(
                f"{self.path} was not judged by the thresholds {name!r} on {split} images: run "
                f"`rdi evaluate run={self.path}` first"
            )
        return found

    def worst_cases(self, threshold: str | None = None, split: str = "test") -> list[WorstRecord]:
        """Read the worst case over attacks, one per threat model, the run's own first; arguments as of `records`."""
        self.records(threshold, split)
        return stored.worst_cases(self.folder, self.manifest, threshold or self.manifest.choices["threshold"], split)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"
