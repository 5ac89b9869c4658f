"""One image on a CPU: heads with few operators, and numpy's where they cost less than torch's.

A stage takes some milliseconds, an operator of torch between two stages 10 to 50 microseconds, one of numpy a few.
Heads of five modules and the decisions behind them would cost what early exits save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d

from rdi.exits.net import MultiExitNet
from rdi.thresholds.in_numpy import decision
from rdi.thresholds.policy import Policy

WIDE = 8192
"""Weights of a layer from which on torch's product is faster; numpy's would start threads of its own."""
IDLE = (nn.Identity, nn.Dropout)
"""Modules that do nothing in eval mode."""


class FewOperators:
    """A head for the features of one image: its last linear layers one by one, whatever is before them as it is.

    head: in eval mode. Its weights may change.
    """

    def __init__(self, head: nn.Module) -> None:
        modules = [module for module in _flat(head) if type(module) not in IDLE]
        start = len(modules)
        while start and type(modules[start - 1]) in (nn.Linear, nn.ReLU):
            start -= 1
        layers = modules[start:]
        self.pool = 0
        flatten = modules[start - 1] if start else None
        if type(flatten) is nn.Flatten and (flatten.start_dim, flatten.end_dim) == (1, -1):
            start -= 1
            pool = modules[start - 1] if start else None
            if type(pool) is nn.AdaptiveAvgPool2d and isinstance(pool.output_size, int):
                self.pool, start = pool.output_size, start - 1
        else:  # not a head of one row per image
            layers, start = [], len(modules)
        self.head, self.before = head, modules[:start]
        # a module finds its parameters in ten times the time of a dict
        self.layers = [module._parameters if type(module) is nn.Linear else None for module in layers]
        self._heard = [hooks for one in head.modules() for hooks in (one._forward_hooks, one._forward_pre_hooks)]

    def __call__(self, features: torch.Tensor) -> np.ndarray:
        """Compute logits_L of features_1CHW."""
        if not self.layers or features.dtype != torch.float32 or any(self._heard):
            return self.head(features)[0].float().numpy()
        for module in self.before:
            features = module(features)
        if self.pool:
            features = adaptive_avg_pool2d(features, self.pool)
        row = features.detach().reshape(-1).numpy()  # a stage may hand on the image itself
        for layer in self.layers:
            row = np.maximum(row, 0) if layer is None else _linear(layer, row)
        return row


def _linear(layer: Mapping[str, torch.Tensor | None], row: np.ndarray) -> np.ndarray:
    weight, bias = layer["weight"], layer["bias"]
    assert weight is not None, "of every linear layer"
    if weight.numel() > WIDE:
        found = torch.mv(weight, torch.from_numpy(row)).float().numpy()  # under autocast not float32
    else:
        found = weight.detach().numpy().dot(row)
    return found if bias is None else found + bias.detach().numpy()


def _flat(module: nn.Module) -> list[nn.Module]:
    """The modules that a head runs one after the other."""
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return [part for child in module for part in _flat(child)]
    return [module]


class SingleImage:
    """Runs one image through a network until it leaves.

    net: in eval mode, without gates; plain or compiled.
    policy: of as many exits.
    """

    def __init__(self, net: MultiExitNet, policy: Policy) -> None:
        self.net = net
        # a network with a way of its own from stage to head is left to it
        plain = type(net).step is MultiExitNet.step
        self.heads = [FewOperators(head) for head in net.heads] if plain else []
        self.policy = policy
        self.decide = decision(policy) or self._by_torch

    def __call__(self, x: torch.Tensor) -> tuple[int, np.ndarray]:
        """Return the exit of x_1CHW on the CPU, and the logits_L of the answer there. Gradients must be off."""
        rows: list[np.ndarray] = []
        for k in range(self.net.exits):
            if self.heads:
                x = self.net.stages[k](x)
                rows.append(self.heads[k](x))
            else:
                x, out = self.net.step(x, k)
                rows.append(out[0].float().numpy())
            answer, leaves = self.decide(rows)
            if leaves:
                break
        return k, answer

    def _by_torch(self, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, bool]:
        logits = torch.from_numpy(np.stack(rows))[None]
        leaves = len(rows) < self.policy.exits and bool(self.policy.leaves(logits))
        return self.policy.answers(logits)[0, -1].numpy(), leaves
