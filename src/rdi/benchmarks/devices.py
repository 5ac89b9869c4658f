"""Exports as other runtimes run them, for the rows of deployment."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.exporting.runner import Runner
from rdi.exporting.write import export
from rdi.thresholds import ThresholdPolicy

ONNXRUNTIME, OPENVINO = "onnxruntime", "OpenVINO"
Stage = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
logger = logging.getLogger("rdi")


def runners(net: MultiExitNet, policy: ThresholdPolicy, x: torch.Tensor) -> dict[str, tuple[Runner, Runner]]:
    """Export a network, and the same without its early exits, and load both in every runtime that is installed.

    x: images_NCHW in [0, 1] on the CPU, of which the first is looked at.
    Returns runtime -> (adaptive, static); empty, with a line that says why, where the extra `deploy` is missing or a
    stage does not export.
    """
    image = (255 * x[:1]).to(torch.uint8)
    static = MultiExitNet([nn.Sequential(*net.stages)], [net.heads[-1]]).eval()
    made: dict[str, tuple[Runner, Runner]] = {}
    with tempfile.TemporaryDirectory() as place:
        folders = (Path(place) / "adaptive", Path(place) / "static")
        try:
            export(net, policy, image, folders[0])
            export(static, ThresholdPolicy(policy.score, []), image, folders[1])
        except UserError as error:
            logger.warning("the rows of onnxruntime are left out: %s", error)
            return {}
        threads = torch.get_num_threads()
        made[ONNXRUNTIME] = (Runner(folders[0], threads), Runner(folders[1], threads))
        if importlib.util.find_spec("openvino") is not None:
            made[OPENVINO] = (_openvino(folders[0], threads), _openvino(folders[1], threads))
    return made


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
