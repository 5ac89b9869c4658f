"""Build models, data and thresholds from a resolved config or from a run folder that stores one."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from rdi import macs, sizing
from rdi.checks import number
from rdi.cli import _edge, _where
from rdi.compression import keep_channels
from rdi.compression.chains import chains, width
from rdi.config import build
from rdi.confine import regular
from rdi.data.base import SPLITS, DataSet, Source
from rdi.errors import UserError
from rdi.exits import MultiExitNet, normalised
from rdi.folders import RunFolder
from rdi.records import DataInfo, Manifest, Thresholds, read
from rdi.seeds import derive
from rdi.storage import CHECKSUM, arrays_digest, read_arrays, sha256, write_arrays, write_bytes
from rdi.text import is_visible, visible
from rdi.thresholds import Policy, ThresholdPolicy
from rdi.trust import trusted

logger = logging.getLogger("rdi")


def model(config: dict[str, Any], shape: Sequence[int], classes: int, seed: int) -> MultiExitNet:
    """Backbone + exits (+ normalisation) with fresh weights; torch's default generator is left as it was.

    Raises UserError for one that the memory does not hold, before it is allocated.
    """
    sizing.check_images(shape)
    with sizing.bounded(), torch.random.fork_rng(devices=[]):
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


def source(config: dict[str, Any]) -> Source:
    """The data source of a config."""
    built: Source = build(config["data"], "data")
    return built


def data_info(data: DataSet) -> DataInfo:
    """What a manifest says of a data set. Raises UserError for a class that no table could show."""
    for name in data.class_names:
        if not is_visible(name):
            raise UserError(f"the class '{visible(name)}' has control characters in its name: rename its folder")
    return DataInfo(
        name=data.name,
        shape=data.shape,
        class_names=data.class_names,
        samples=data.samples(),
        fingerprint=data.fingerprint,
    )


def run_data(folder: RunFolder, manifest: Manifest, root: str | None = None) -> DataSet:
    """The data set of a run, cut as the run cut it. Raises UserError if the images are not those it was made with."""
    expected = manifest.data.fingerprint
    if folder.splits.exists():
        return _where.load(manifest.config, expected, read_splits(folder, manifest), root)
    data = _where.load(manifest.config, expected, None, root)
    restore_splits(folder, manifest, data)
    return data


def read_splits(folder: RunFolder, manifest: Manifest) -> dict[str, np.ndarray]:
    """Read which image of the source is in which split. Raises UserError unless they are those of the manifest."""
    remedy = "delete it, and the next command makes it again from the seed"
    indices = read_arrays(folder.splits, remedy)
    samples = {name: len(rows) for name, rows in indices.items() if len(rows)}
    if not set(indices) <= set(SPLITS) or samples != manifest.data.samples or not _as_recorded(indices, manifest):
        raise UserError(f"{folder.splits} is damaged (these are not the splits that the manifest names): {remedy}")
    return indices


def restore_splits(folder: RunFolder, manifest: Manifest, data: DataSet) -> None:
    """Store the splits again if they are missing. data: cut by the seed. Raises UserError if they came out others."""
    if folder.splits.exists():
        return
    if data.samples() != manifest.data.samples or not _as_recorded(data.indices(), manifest):
        raise UserError(
            f"{folder.splits} is missing, and the seed gives other splits than the run had: restore it or train again"
        )
    save_splits(folder, data.indices())
    logger.info("%s was missing: made again from the seed", folder.splits)


def save_splits(folder: RunFolder, indices: Mapping[str, np.ndarray]) -> None:
    """Store which image of the source went into which split."""
    write_arrays(folder.splits, indices)


def _as_recorded(indices: Mapping[str, np.ndarray], manifest: Manifest) -> bool:
    return manifest.splits_sha256 in (None, arrays_digest(indices))


def save_weights(path: Path, net: MultiExitNet) -> None:
    """Write the state dict as safetensors, atomically; the same weights give the same bytes."""
    save_tensors(path, net.state_dict())


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, atomically; the same tensors give the same bytes."""
    # one key of metadata at most: safetensors writes several in random order
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(plain, {CHECKSUM: tensors_digest(plain)}))


def read_tensors(path: Path, remedy: str) -> dict[str, torch.Tensor]:
    """Read what save_tensors wrote. remedy: what to do about a damaged file.

    Raises UserError for a file that is missing, no safetensors file, or not what its checksum says; a file of others
    has none.
    """
    try:
        with safe_open(regular(path), "pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 not a dictionary
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: {remedy}") from error
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error}): {remedy}") from error
    if metadata.keys() - {"format"} and metadata.get(CHECKSUM) != tensors_digest(tensors):
        raise UserError(f"{path} is damaged (its checksum differs): {remedy}")
    return tensors


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of names, types, shapes and values of tensors; the order does not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_weights(path: Path, net: MultiExitNet) -> None:
    """Read a state dict into `net`. Raises UserError for a missing, damaged or foreign file."""
    tensors = read_tensors(path, "restore it or train again")
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path} belongs to another network ({first_mismatch(error)})") from error


def first_mismatch(error: RuntimeError) -> str:
    """The first reason out of the many that load_state_dict lists."""
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[1] if len(lines) > 1 else lines[0]


def load_run(folder: RunFolder, where: torch.device) -> tuple[Manifest, MultiExitNet]:
    """Manifest and network (eval mode, on `where`) of a finished run.

    Raises UserError when the manifest says of the network what is not so.
    """
    manifest = folder.read_finished()
    check_identity(folder, manifest)
    net = network(folder, manifest, where)
    costs = macs.count(net, manifest.data.shape)
    said = manifest.costs
    found = {
        "exits": (manifest.exits, net.exits),
        "parameters": (manifest.parameters, sum(parameter.numel() for parameter in net.parameters())),
        "costs.macs": (said.macs, costs.macs),
        "costs.macs_plain": (said.macs_plain, costs.macs_plain),
    }
    if not folder.size.is_file():  # of a compressed one the published rule counts non-zero weights only
        found["costs.macs_paper"] = (said.macs_paper, costs.macs_paper)
        found["costs.macs_plain_paper"] = (said.macs_plain_paper, costs.macs_plain_paper)
    for key, (stored, counted) in found.items():
        if stored != counted:
            raise UserError(
                f"{folder.manifest} is damaged: it says {key} {stored}, the network has {counted}; restore it or "
                "train again"
            )
    return manifest, net


def check_identity(folder: RunFolder, manifest: Manifest) -> None:
    """Raise UserError for a manifest whose identity or seed is not that of its own config."""
    try:
        same = manifest.identity == _edge.identity(manifest.config) and manifest.seed == manifest.config["seed"]
    except (LookupError, TypeError, AttributeError):
        same = False
    if not same:
        raise UserError(
            f"{folder.manifest} is damaged: its identity is not that of its config; restore it, or train again with "
            "overwrite=true"
        )


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
    """Make `net`, in place, as narrow as a manifest says; which channels stay is left to the weights loaded next.

    Raises UserError for widths of another network.
    """
    if not widths:
        return
    known = {chain.producer: width(net, chain) for chain in chains(net)}
    for name, left in widths.items():
        if not 1 <= left <= known.get(name, 0):
            raise UserError(
                f"widths.{name} of the manifest is {left}, and this network has {known.get(name, 'no')} channels to "
                "narrow there: restore the manifest or train again"
            )
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
    if tuple(built.values) != record.values:
        raise UserError(
            f"the thresholds {record.name} are damaged: values and policy differ; `rdi evaluate run=... "
            f"threshold=...` makes them again"
        )
    return built
