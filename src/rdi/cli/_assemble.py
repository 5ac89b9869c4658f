"""Build models, data and thresholds from a resolved config or from a run folder that stores one."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from rdi.checks import number
from rdi.cli import _edge
from rdi.compression import keep_channels
from rdi.config import build
from rdi.confine import check_archive, regular
from rdi.data.base import SPLITS, DataSet, Source
from rdi.errors import UserError
from rdi.exits import MultiExitNet, normalised
from rdi.folders import RunFolder
from rdi.records import DataInfo, Manifest, Thresholds, read
from rdi.seeds import derive
from rdi.storage import sha256, write_bytes
from rdi.thresholds import Policy, ThresholdPolicy
from rdi.trust import trusted


def model(config: dict[str, Any], shape: Sequence[int], classes: int, seed: int) -> MultiExitNet:
    """Backbone + exits (+ normalisation) with fresh weights; torch's default generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "weights"))
        backbone = build(config["backbone"], "backbone", shape=list(shape), classes=classes)
        net: MultiExitNet = build(config["exits"], "exits")(backbone)
    if config.get("normalise"):
        net = normalised(net, *_statistics(config["normalise"], shape[0]))
    return net


def _statistics(node: Any, channels: int) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel out of the option `normalise`. Raises UserError for anything else."""
    if not isinstance(node, dict) or set(node) != {"mean", "std"}:
        raise UserError(f"normalise must be null or {{mean: [...], std: [...]}}, got {node}")
    for key, values in node.items():
        if not isinstance(values, list) or len(values) != channels:
            raise UserError(f"normalise.{key} must list {channels} numbers, one per channel, got {values}")
    mean = [number("normalise.mean", value, -math.inf, math.inf) for value in node["mean"]]
    return mean, [number("normalise.std", value, 0, math.inf, open_low=True) for value in node["std"]]


def source(config: dict[str, Any], root: str | None = None) -> Source:
    """The data source of a config; `root` replaces the config's."""
    node = dict(config["data"])
    if "root" in node and root:
        node["root"] = root
    built: Source = build(node, "data")
    return built


def data_info(data: DataSet) -> DataInfo:
    """What a manifest says of a data set."""
    return DataInfo(
        name=data.name,
        shape=data.shape,
        class_names=data.class_names,
        samples=data.samples(),
        fingerprint=data.fingerprint,
    )


def run_data(folder: RunFolder, manifest: Manifest, root: str | None = None) -> DataSet:
    """The data set of a run, cut as the run cut it. Raises UserError if the images are not those it was made with."""
    try:
        check_archive(folder.splits)
        with np.load(folder.splits, allow_pickle=False) as stored:
            indices = {name: stored[name] for name in SPLITS if name in stored or name != "validation"}
    except (OSError, KeyError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"{folder.splits} is missing or damaged: restore it or train again") from error
    # RDI_DATA: the run may come from another machine
    return source(manifest.config, root or os.environ.get("RDI_DATA")).load(indices, expected=manifest.data.fingerprint)


def save_weights(path: Path, net: MultiExitNet) -> None:
    """Write the state dict as safetensors, atomically; the same weights give the same bytes."""
    save_tensors(path, net.state_dict())


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, atomically; the same tensors give the same bytes."""
    # one key of metadata at most: safetensors writes several in random order
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(plain, {"format": "pt"}))


def load_weights(path: Path, net: MultiExitNet) -> None:
    """Read a state dict into `net`. Raises UserError for a missing, truncated or foreign file."""
    try:
        net.load_state_dict(load_file(regular(path)))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error}): restore it or train again") from error
    except RuntimeError as error:
        raise UserError(f"{path} belongs to another network ({first_mismatch(error)})") from error


def first_mismatch(error: RuntimeError) -> str:
    """The first reason out of the many that load_state_dict lists."""
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[1] if len(lines) > 1 else lines[0]


def load_run(folder: RunFolder, where: torch.device) -> tuple[Manifest, MultiExitNet]:
    """Manifest and network (eval mode, on `where`) of a finished run."""
    manifest = folder.read_finished()
    return manifest, network(folder, manifest, where)


def network(folder: RunFolder, manifest: Manifest, where: torch.device) -> MultiExitNet:
    """The network (eval mode, on `where`) that the manifest describes, with the run's checkpoint.

    Raises UserError when the checkpoint is not the one that the manifest names.
    """
    net = model(manifest.config, manifest.data.shape, len(manifest.data.class_names), manifest.seed)
    narrow(net, manifest.widths)
    load_weights(folder.checkpoint, net)
    if sha256(folder.checkpoint) != manifest.checkpoint_sha256:
        raise UserError(f"{folder.checkpoint} is not the file that the run ended with: restore it or train again")
    return net.to(where).eval()


def narrow(net: MultiExitNet, widths: dict[str, int]) -> None:
    """Make `net`, in place, as narrow as a manifest says; which channels stay is left to the weights loaded next."""
    if widths:
        keep_channels(net, {name: torch.arange(left) for name, left in widths.items()})


def load(run: str | Path, device: str = "auto", *, trust: Sequence[str] = ()) -> MultiExitNet:
    """The network of a finished run, in eval mode.

    run: its folder. device: "auto" (CUDA where there is one), "cpu", "cuda", ... trust: modules whose classes and
    functions the run may name, for one that was made with backbones or exits of your own; a run folder can make
    nothing else run. Raises UserError if the run does not exist, is unfinished or damaged, or names anything else.
    """
    with trusted(trust):
        return load_run(RunFolder(run), _edge.device(device, None))[1]


def load_thresholds(run: str | Path, name: str | None = None, *, trust: Sequence[str] = ()) -> Policy:
    """The exit policy stored with a run.

    name: as `rdi evaluate threshold=NAME` called it; default: the one that the run was trained with. trust: as for
    `load`. Raises UserError when there is none of that name.
    """
    with trusted(trust):
        return _load_thresholds(RunFolder(run), name)


def _load_thresholds(folder: RunFolder, name: str | None) -> Policy:
    manifest = folder.read_finished()
    path = folder.thresholds(name or manifest.choices["threshold"])
    if not path.is_file():
        stored = sorted(file.stem for file in path.parent.glob("*.json"))
        raise UserError(f"{folder.path} has no thresholds {path.stem!r}; stored: {', '.join(stored) or 'none'}")
    return policy(read(path, Thresholds))


def policy(record: Thresholds) -> Policy:
    """The policy that a record describes."""
    if record.policy is None:
        return ThresholdPolicy(build(record.rule["score"], "threshold.score"), record.values)
    built: Policy = build(record.policy, "policy")
    return built
