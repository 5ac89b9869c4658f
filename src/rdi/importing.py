"""The authors' released ResNet weights (VITA-Group/triple-wins) as weights of our ResNet with the paper's exits."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from rdi.errors import UserError
from rdi.exits import MultiExitNet

STATE_KEYS = ("state_dict", "model_state_dict", "model")
"""Under which of these a training script keeps the state dict in a file that holds more."""


def official_state(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a released checkpoint, without unpickling code.

    Raises UserError for a file that is missing, truncated, no checkpoint, or that holds anything but plain data.
    """
    if not path.is_file():
        raise UserError(f"{path} {'is no file' if path.exists() else 'does not exist'}: give checkpoint=FILE")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = "it wants to run code and was refused" if "Unsupported" in str(error) else "truncated or no checkpoint"
        raise UserError(f"{path} cannot be loaded safely: {reason}") from error
    state = content
    for key in STATE_KEYS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not all(map(_plain, state.values())):
        raise UserError(
            f"{path} holds no state_dict of plain tensors: write one with torch.save(model.state_dict(), FILE)"
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def _plain(value: object) -> bool:
    """Return whether a value is a tensor that holds its numbers one by one: no sparse, quantised or meta one."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not (value.is_meta or getattr(value, "is_quantized", False))
    )


def our_names(net: MultiExitNet, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the released tensors under the names that they have in `net` (a ResNet with exits=paper).

    Raises UserError for another number of blocks and for names that the release does not have.
    """
    blocks = sorted({(int(m[1]), int(m[2])) for name in state if (m := re.match(r"group(\d+)_layer(\d+)\.", name))})
    position = {block: index + 1 for index, block in enumerate(blocks)}
    ours = _block_prefixes(net)
    if len(ours) != len(blocks) + 1:
        raise UserError(
            f"the checkpoint has {len(blocks)} residual blocks, this network {len(ours) - 1}: choose the backbone it "
            "belongs to (the released one is backbone=resnet38)"
        )
    return {_our_name(name, ours, position, net.exits): tensor for name, tensor in state.items()}


def _block_prefixes(net: MultiExitNet) -> list[str]:
    """State-dict prefix of every block in order: stages.0.0, stages.0.1, ..."""
    return [f"stages.{s}.{b}" for s, stage in enumerate(net.stages) for b, _ in enumerate(stage.children())]


def _our_name(name: str, ours: list[str], position: dict[tuple[int, int], int], exits: int) -> str:
    if match := re.match(r"(conv1|bn1)\.(.+)", name):
        return f"{ours[0]}.{0 if match[1] == 'conv1' else 1}.{match[2]}"
    if match := re.match(r"group(\d+)_layer(\d+)\.(.+)", name):
        rest = match[3].replace("downsample.", "shortcut.")
        return f"{ours[position[int(match[1]), int(match[2])]]}.{rest}"
    if match := re.match(r"branch_layer(\d+)\.(\d+)\.(.+)", name):
        # their heads 5 and 6 count a leading ReLU-free average pooling and a flatten, as ours do
        return f"heads.{int(match[1]) - 1}.{match[2]}.{match[3]}"
    if match := re.match(r"fc\.(.+)", name):
        return f"heads.{exits - 1}.2.{match[1]}"
    raise UserError(f"the checkpoint has a tensor {name!r} that no released RDI-ResNet has")
