"""Weights that were trained elsewhere, as a safetensors file or a torch file, for any network of ours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from rdi.errors import UserError
from rdi.exits import MultiExitNet, Normalise
from rdi.importing import official_state
from rdi.runs.weights import read_tensors

COUNTER = "num_batches_tracked"
"""Entry of BatchNorm that some files leave out, and nothing here reads."""
MEAN, STD = "stages.0.0.mean", "stages.0.0.std"


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file, whichever of the two kinds it is. Nothing in it is run.

    Raises UserError for a file that is missing, damaged, or holds anything but a state dict.
    """
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}: give weights=FILE, a safetensors file or a torch file of a state_dict")
    with path.open("rb") as stream:
        safetensors = stream.read(9)[8:] == b"{"  # behind the length of its header
    state = read_tensors(path, "give another file") if safetensors else official_state(path)
    if not state:
        raise UserError(f"{path} holds no tensors: give weights=FILE, a file of a state_dict")
    return state


def import_state(net: MultiExitNet, state: Mapping[str, torch.Tensor]) -> None:
    """Load tensors into `net` by their names; a first word that all of them share and the network lacks is dropped.

    A network that normalises its images also takes the weights of the same one that does not. Raises UserError,
    naming the first tensor that is missing, not known, of another shape, or no number.
    """
    expected = net.state_dict()
    found = dict(_placed(_stripped(state, expected), expected))
    first = net.stages[0]
    if isinstance(first, torch.nn.Sequential) and isinstance(first[0], Normalise) and MEAN not in found:
        found = {re.sub(r"^stages\.0\.", "stages.0.1.", name): tensor for name, tensor in found.items()}
        found |= {name: expected[name] for name in (MEAN, STD)}
    found |= {
        name: torch.zeros_like(tensor)
        for name, tensor in expected.items()
        if name.rpartition(".")[2] == COUNTER and name not in found
    }
    flaws = [
        _listed("missing in the file", [name for name in expected if name not in found]),
        _listed("not known to the network", [name for name in found if name not in expected]),
        *[
            f"{name} is {_size(tensor)} in the file, {_size(expected[name])} in the network"
            for name, tensor in found.items()
            if name in expected and tensor.shape != expected[name].shape
        ][:1],
    ]
    if any(flaws):
        raise UserError(
            f"the weights belong to another network ({'; '.join(flaw for flaw in flaws if flaw)}): choose the backbone "
            "and the exits that they were trained with"
        )
    for name, tensor in found.items():
        if expected[name].is_floating_point() and not tensor.is_floating_point():
            raise UserError(
                f"{name} is of {tensor.dtype} in the file, and weights are real numbers: where they were quantised, "
                "multiply them by their scales first"
            )
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            raise UserError(f"{name} holds NaN or infinity: the training that made these weights diverged")
    try:
        net.load_state_dict(found)
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(f"the weights cannot be taken over: {str(error).strip().splitlines()[-1].strip()}") from error


def _stripped(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Without what wrappers put before every name: module. (DataParallel), _orig_mod. (compile), model., ..."""
    while len(words := {name.partition(".")[0] for name in state}) == 1:
        (word,) = words
        if any(name.startswith(f"{word}.") for name in expected) or not all("." in name for name in state):
            break
        state = {name.partition(".")[2]: tensor for name, tensor in state.items()}
    return state


def _placed(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Under the names of ours, where the file has those of the library whose network was cut into blocks."""
    short = {name: re.sub(r"^(stages|heads)\.(\d+\.)+", "", name) for name in expected}
    times = Counter(short.values())
    ours = {theirs: name for name, theirs in short.items() if times[theirs] == 1}
    if any(name in expected for name in state):
        return state
    return {ours.get(name, name): tensor for name, tensor in state.items()}


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{what}: {names[0]}{more}" if names else ""


def _size(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "one number"
