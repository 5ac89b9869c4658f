"""Weights of networks as safetensors with a checksum: the same weights give the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from rdi.confine import regular
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.storage import CHECKSUM, write_bytes


def save_weights(path: Path, net: MultiExitNet) -> None:
    """Write the state dict as safetensors, atomically; the same weights give the same bytes."""
    save_tensors(path, net.state_dict())


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, atomically; the same tensors give the same bytes."""
    # one key of metadata at most: safetensors writes several in random order
    plain: dict[str, torch.Tensor] = {}
    stored = set()
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        # of a module that several parts share, as the gates' LSTM, each gets its own: the format has no other tensors
        plain[name] = held.clone() if held.data_ptr() in stored else held
        stored.add(held.data_ptr())
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
    """Return the first reason out of the many that load_state_dict lists."""
    lines = [line.strip() for line in str(error).splitlines()]
    first, *others = (lines[1] if len(lines) > 1 else lines[0]).split('", "')
    return f'{first}" and {len(others)} more' if others else first
