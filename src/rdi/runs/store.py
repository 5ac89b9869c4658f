"""Keep a training in its run folder: its state, the weights so far, and a line of figures per evaluation."""

from __future__ import annotations

import io
import json
import logging
import math
from pathlib import Path
from typing import Any

import torch

from rdi.compression.base import Parts
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.folders import RunFolder
from rdi.runs import compressed, weights
from rdi.storage import read_sealed, write_bytes, write_sealed
from rdi.training import Store, postfix

logger = logging.getLogger("rdi")


def _step(line: str) -> float:
    """Step of a line of train.jsonl; infinite, so that it is dropped, for one that is damaged."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class MemoryStore(Store):
    """A store that keeps the weights alone, in memory: a training that is stopped begins again.

    weights: "best" and "last" -> state dict.
    """

    def __init__(self) -> None:
        self.weights: dict[str, dict[str, torch.Tensor]] = {}

    def save_weights(self, which: str, model: MultiExitNet, parts: Parts) -> None:
        """Copy the weights."""
        self.weights[which] = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def log(self, line: dict[str, Any], step: int) -> None:
        """Say the figures."""
        _say(line, step)


def _say(line: dict[str, Any], step: int) -> None:
    """Echo a line that holds figures of held-out images; the others are of the ends of epochs."""
    if any(name.startswith("calibration_") for name in line):
        logger.info("step %d  epoch %.1f  %.0f s  %s", step, line["epoch"], line["seconds"], postfix(line))


class ReadStore(Store):
    """The store of a process that goes on from a run folder's state, where another process writes."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def load_state(self, device: torch.device) -> dict[str, Any] | None:
        """Read the saved state. Raises UserError for a damaged file."""
        if not self.folder.resume.is_file():
            return None
        remedy = "delete it to start this run from its first step"
        content = io.BytesIO(read_sealed(self.folder.resume, remedy))
        try:
            state: dict[str, Any] = torch.load(content, map_location=device, weights_only=True)
        except Exception as error:
            raise UserError(f"{self.folder.resume} cannot be read: {remedy}") from error
        if state["best_step"] > 0:
            for path in (self.folder.best, self.folder.last):
                weights.read_tensors(path, compressed.REMEDY.format(self.folder.resume))
        logger.info("going on at step %d", state["step"])
        return state


class FolderStore(ReadStore):
    """A store in a run folder, echoing every line to the log and to the tracker."""

    def __init__(self, folder: RunFolder, track: Any) -> None:
        super().__init__(folder)
        self.track = track

    def seconds(self) -> float:
        """Return how long the training took until its last line, in all the processes that went on with it."""
        return float(json.loads(self.folder.progress.read_text().splitlines()[-1])["seconds"])

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the saved state, atomically."""
        # through memory: on a full disk torch's own writer hides the reason
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_sealed(self.folder.resume, buffer.getvalue())

    def save_weights(self, which: str, model: MultiExitNet, parts: Parts) -> None:
        """Replace a weights file, atomically."""
        path: Path = getattr(self.folder, which)
        weights.save_weights(path, model)
        if parts:
            weights.save_tensors(compressed.factors(path), parts)

    def log(self, line: dict[str, Any], step: int) -> None:
        """Write a line of figures to train.jsonl, in place of those of this step and of later ones."""
        old = self.folder.progress.read_text().splitlines() if self.folder.progress.is_file() else []
        kept = [text for text in old if _step(text) < step]
        text = "\n".join([*kept, json.dumps(line, allow_nan=False)]) + "\n"
        write_bytes(self.folder.progress, text.encode())
        _say(line, step)
        self.track(line, step)
