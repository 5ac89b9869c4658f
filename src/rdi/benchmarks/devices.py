"""Exports as other runtimes run them, for the rows of deployment."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.exporting.runner import Runner, load
from rdi.exporting.single import INPUT, single_file
from rdi.exporting.write import export
from rdi.thresholds import ThresholdPolicy

ONNXRUNTIME, OPENVINO = "onnxruntime", "OpenVINO"
Stage = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
Graph = Callable[[np.ndarray], object]
logger = logging.getLogger("rdi")


@dataclass(frozen=True)
class Exported:
    """A network as other runtimes run it.

    runners: runtime -> (with its early exits, without them), of the runtimes that are installed.
    stages: ONNX files, in order. static: the file of the whole network without its early exits.
    classes: of the network.
    threads: that every runtime uses.
    """

    runners: Mapping[str, tuple[Runner, Runner]]
    stages: Sequence[bytes]
    static: bytes
    classes: int
    threads: int

    @classmethod
    def of(cls, net: MultiExitNet, policy: ThresholdPolicy, x: torch.Tensor) -> Exported | None:
        """Export a network, and the same without its early exits, and load both in every runtime that is installed.

        x: images_NCHW in [0, 1] on the CPU, of which the first is looked at.
        Returns None, with a line that says why, where the extra `deploy` is missing or a stage does not export.
        """
        image = (255 * x[:1]).to(torch.uint8)
        static = MultiExitNet([nn.Sequential(*net.stages)], [net.heads[-1]]).eval()
        with tempfile.TemporaryDirectory() as place:
            folders = (Path(place) / "adaptive", Path(place) / "static")
            try:
                export(net, policy, image, folders[0])
                export(static, ThresholdPolicy(policy.score, []), image, folders[1])
            except UserError as error:
                logger.warning("the rows of onnxruntime are left out: %s", error)
                return None
            threads = torch.get_num_threads()
            made = {ONNXRUNTIME: (Runner(folders[0], threads), Runner(folders[1], threads))}
            if importlib.util.find_spec("openvino") is not None:
                made[OPENVINO] = (_openvino(folders[0], threads), _openvino(folders[1], threads))
            policies = [runner.policy for runner in made[ONNXRUNTIME]]
            stages, (whole,) = (
                [(folder / stage["file"]).read_bytes() for stage in described["stages"]]
                for folder, described in zip(folders, policies, strict=True)
            )
        return cls(made, stages, whole, len(policies[0]["classes"]), threads)

    def graphs(self, policy: ThresholdPolicy) -> tuple[Graph, Graph]:
        """Return what answers one image by one graph of onnxruntime: with early exits, and without them."""
        static = ThresholdPolicy(policy.score, [])
        adaptive, plain = (
            load(single_file(stages, chosen, self.classes), self.threads)
            for stages, chosen in ((self.stages, policy), ([self.static], static))
        )
        return lambda image: adaptive.run(None, {INPUT: image}), lambda image: plain.run(None, {INPUT: image})


def _openvino(folder: Path, threads: int) -> Runner:
    """Load an export whose stages OpenVINO runs."""
    import openvino

    core = openvino.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}

    def stage(content: bytes) -> Stage:
        compiled: Any = core.compile_model(core.read_model(content), "CPU", settings)

        def run(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            found = compiled(features)
            *following, logits = (np.array(found[output]) for output in compiled.outputs)
            return (following or [features])[0], logits

        return run

    loaded = Runner(folder, threads)
    loaded.stages = [stage((folder / entry["file"]).read_bytes()) for entry in loaded.policy["stages"]]
    return loaded
