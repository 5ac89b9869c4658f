"""Write an export: stage files, policy.json, parity.json, examples, a runner and a README, in one folder."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdi import macs, storage
from rdi.attacks.base import crafting
from rdi.checks import choice, directory, flag, instance
from rdi.data.streamed import Images, Streamed
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.exits.net import checked, fitting, refuse_overridden
from rdi.exporting import parity, readme, runner
from rdi.exporting.policies import decision_of
from rdi.exporting.precision import PRECISIONS, converted
from rdi.exporting.single import FILE as SINGLE
from rdi.exporting.single import single_file
from rdi.exporting.stages import FORMATS, OPSET, export_stages, require
from rdi.text import visible
from rdi.thresholds import Policy
from rdi.thresholds.policy import checked_policy

OWN = re.compile(
    r"stage_\d+\.(onnx|pt2)|network\.onnx|(policy|parity)\.json|runner\.py|examples\.npz|README\.md|__pycache__"
)
"""Names of what an export holds; importing its runner adds the last."""
EXAMPLES = 16
"""Images that are stored with their answers: what `python runner.py` compares, and test vectors for other languages."""


def export(
    model: MultiExitNet,
    policy: Policy,
    images: Images,
    folder: str | Path,
    *,
    format: str = "onnx",
    precision: str = "float32",
    calibration: torch.Tensor | None = None,
    single: bool = False,
    judge: Callable[[runner.Runner, dict[str, Any]], Mapping[str, Any]] | None = None,
    class_names: Sequence[str] = (),
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a network and its exit policy as files for a device; a folder that is there is replaced.

    model: a MultiExitNet, on any device; exported in eval mode and left as it is.
    policy: thresholds on entropy, confidence or margin, patience, or ensembles and agreements of them.
    images: uint8_NCHW to compare network and export on, at least one, in memory or streamed; the first few become the
        examples.
    folder: to write; it must be new, empty or an export.
    format: "onnx" (one file per stage, for onnxruntime) or "torch" (the same by torch.export).
    precision: "float32"; "bf16" (weights) or "int8" (weights and features), which are other networks: onnx only.
    calibration: uint8_NCHW that the ranges of "int8" are taken from.
    single: write also network.onnx, all stages and decisions in one graph for one image at a time; onnx only.
    judge: given the loaded export and the content of parity.json, adds what it finds to that content as "judged".
    class_names: one per class; default their numbers.
    origin: plain values that say what the network is, kept in policy.json.
    Returns the content of parity.json.
    Raises UserError for a policy or a stage that cannot be exported, without the extra `deploy`, and for a folder in
        which something else lies.
    """
    folder = directory("folder", str(folder) if isinstance(folder, Path) else folder)
    refuse_foreign(folder)
    flag("single", single)
    if checked(model).gated:
        raise UserError(
            "a network with gates cannot be exported: its files are static graphs; export one with gates=none"
        )
    refuse_overridden(
        model, "files of stages and heads would leave out: export MultiExitNet(model.stages, model.heads)"
    )
    checked_policy(policy, model.exits)
    if calibration is not None:
        instance("calibration", calibration, torch.Tensor, "torch.from_numpy(array)")
    if (dtype := next(model.parameters()).dtype) != torch.float32:
        raise UserError(f"a network in {dtype} cannot be exported: give one in float32, as model.float()")
    origin = _plain(origin)
    if not isinstance(images, Streamed):
        instance("images", images, torch.Tensor, "torch.from_numpy(array)")
        if images.ndim != 4 or not len(images) or images.dtype != torch.uint8:
            raise UserError(
                f"images must be uint8 (N, C, H, W), at least one, got {images.dtype} {tuple(images.shape)}"
            )
    examples = images[:EXAMPLES]
    decision, combine = decision_of(policy)
    choice("precision", precision, PRECISIONS)
    if format != "onnx" and (precision != "float32" or single):
        asked = "single=true" if precision == "float32" else f"precision={precision}"
        raise UserError(f"{asked} is made with format=onnx only, got format={format}")
    if format == "onnx":
        require("onnxruntime")
    shape = tuple(images.shape[1:])
    if calibration is not None and (calibration.dtype != torch.uint8 or calibration.shape[1:] != images.shape[1:]):
        raise UserError(
            f"calibration must be uint8 images of the size of the others, got {calibration.dtype} "
            f"{tuple(calibration.shape)}: give grey levels, not floats"
        )
    with torch.no_grad(), crafting(model), fitting(shape):
        classes = model(examples[:1].to(next(model.parameters()).device) / 255).shape[2]
    if isinstance(class_names, str) or len(class_names) not in (0, classes):
        raise UserError(f"class_names must list a name for each of {classes} classes, got {class_names!r}")
    costs = macs.executed(model, shape).macs
    stages = list(export_stages(model, shape, format))
    if format == "onnx":
        ranges = examples[:0] if calibration is None else calibration
        stages = converted(stages, precision, ranges.cpu().numpy().astype(np.float32) / np.float32(255))
    files = {f"stage_{k}.{FORMATS[format]}": content for k, content in enumerate(stages)}
    content = {
        "format": "rdi-export",
        "version": runner.VERSION,
        "stage_format": {"name": format, "opset": OPSET} if format == "onnx" else {"name": format},
        "precision": precision,
        "image": {
            "shape": list(shape),
            "range": [0.0, 1.0],
            "uint8": "divided by 255",
            "normalisation": "none to be done: it is part of stage 0, where the network has one",
        },
        "classes": list(class_names) or [str(n) for n in range(classes)],
        "stages": [
            {
                "file": name,
                "sha256": hashlib.sha256(data).hexdigest(),
                "bytes": len(data),
                "macs": cost - before,
            }
            for (name, data), cost, before in zip(files.items(), costs, (0, *costs[:-1]), strict=True)
        ],
        "decision": decision,
        "combine": combine,
        "origin": {**origin, "rdi": version("rdi"), "torch": torch.__version__},
    }
    if single:
        whole = single_file(stages, policy, classes)
        files[SINGLE] = whole
        content["single"] = {
            "file": SINGLE,
            "batch": 1,
            "bytes": len(whole),
            "sha256": hashlib.sha256(whole).hexdigest(),
        }
    files["policy.json"] = storage.json_bytes(content)
    files["runner.py"] = Path(runner.__file__).read_bytes()
    with tempfile.TemporaryDirectory() as scratch:  # compared before it appears: half an export is none
        for name, data in files.items():
            (Path(scratch) / name).write_bytes(data)
        try:
            ran = runner.Runner(scratch, trust=True)
        except runner.ExportError as error:
            raise UserError(
                "nothing is exported: the runner does not take a number of this exit policy; weights of an ensemble "
                "may be 1e-30 to 2**62"
            ) from error
        try:
            with crafting(model):
                found = parity.compare(model, policy, ran, images)
                if judge is not None:
                    found["judged"] = dict(judge(ran, found))
                if single:
                    found["single"] = parity.compare_single(whole, ran, examples.cpu().numpy())
                files["examples.npz"] = _examples(model, policy, examples, ran if precision != "float32" else None)
        except runner.ExportError as error:
            reason = str(error).removeprefix(f"{scratch}: ").removesuffix(": export again")
            raise UserError(
                f"nothing is exported: {reason}; where a layer takes a size as a plain number, as by len(x), its file "
                "holds that number for ever: take it from x.shape"
            ) from error
    found = {"precision": precision, **found}
    files["parity.json"] = storage.json_bytes(found)
    files["README.md"] = readme.page(content, found).encode()
    storage.write_folder(folder, files)
    return found


def _plain(origin: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what policy.json can hold of the origin. Raises UserError."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps({} if origin is None else dict(origin), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"origin must be plain values by name, as {{'run': 'runs/a'}}: {error}") from None
    return plain


def refuse_foreign(folder: Path) -> None:
    """Raise UserError where something lies that is no export: it would be lost."""
    if not folder.exists():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise UserError(f"{folder} exists and is no folder: choose another one with out=...")
    names = {path.name for path in folder.iterdir()}
    if names and "policy.json" not in names:
        raise UserError(f"{folder} exists and is no export: choose another folder with out=...")
    if foreign := sorted(name for name in names if not OWN.fullmatch(name)):
        raise UserError(
            f"{folder} holds {visible(foreign[0])}, which no export has and which would be lost: move it away, or "
            "choose another folder with out=..."
        )


@torch.no_grad()
def _examples(model: MultiExitNet, policy: Policy, images: torch.Tensor, ran: runner.Runner | None) -> bytes:
    """Images with the logits, labels and exits of the network that was exported, or of the export itself if `ran`."""
    if ran is None:
        logits = model(images.to(next(model.parameters()).device) / 255).float()
    else:
        logits = torch.from_numpy(ran.logits(images.cpu().numpy()))
    exits = policy.choose(logits)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=images.cpu().numpy(),
        logits=logits.cpu().numpy(),
        labels=policy.predict(logits, exits).cpu().numpy(),
        exits=exits.cpu().numpy(),
    )
    return buffer.getvalue()
