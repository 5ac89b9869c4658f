"""ATMC: pruning, low rank and quantisation under one budget while training adversarially (Gui et al., NeurIPS 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rdi.checks import integer, number
from rdi.compression.base import Budgeted, Parts, layer_weights, project
from rdi.compression.quantise import quantise
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet

MOST_BITS = 16
FLOAT_BITS = 32


@dataclass(frozen=True)
class Factors:
    """The matrices that one layer's weight (kernels flattened to out x in*k*k) is made of.

    effective = (B + I) A + C if A is as tall as the weight, else B (A + I) + C; the identities cost nothing.

    weight: of the layer.
    a, b, c: the matrices A, B and C.
    """

    weight: nn.Parameter
    a: nn.Parameter
    b: nn.Parameter
    c: nn.Parameter

    @classmethod
    def of(cls, weight: nn.Parameter) -> Factors:
        """Return factors whose effective weight is `weight`: it goes into A (or B), the other factor and C are zero."""
        matrix = weight.detach().flatten(1).contiguous().clone()
        rows, columns = matrix.shape
        square = matrix.new_zeros(min(rows, columns), min(rows, columns))
        a, b = (matrix, square) if rows <= columns else (square, matrix)
        return cls(weight, nn.Parameter(a), nn.Parameter(b), nn.Parameter(torch.zeros_like(matrix)))

    def effective(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Return the weight matrix, out x in*k*k, that A, B and C stand for."""
        return b @ a + (a if len(a) == len(self.weight) else b) + c

    @torch.no_grad()
    def write(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> None:
        """Give the layer the weight that A, B and C stand for."""
        self.weight.copy_(self.effective(a, b, c).view(self.weight.shape))

    def pull_back(self) -> None:
        """Turn the gradient of the layer's weight into those of A, B and C."""
        if self.weight.grad is not None:
            self.effective(self.a, self.b, self.c).backward(self.weight.grad.flatten(1))
            self.weight.grad = None


class ATMC(Budgeted):
    """Every weight is (B+I)A+C or B(A+I)+C; one l0 budget over all A, B and C, projected after every step.

    The network itself always has the effective weights: attacks craft on an ordinary network. The optimiser trains A,
    B, C, and the network's biases and BatchNorm. With quantisation, ADMM: copies W' on at most 2**bits values (per
    tensor) and zero, scaled duals u, the loss has rho/2 * sum ||W + u - W'||^2 over W = A, B, C; deployed is W' where W
    is not zero, so both limits hold.

    ratio: non-zeros of A, B and C together over the dense weights, in (0, 1].
    bits: 1 to 16, of every non-zero; None or 32: no quantisation.
    quant_interval: steps between two updates W' = quantised(W + u), u = u + W - W'.
    quantise_after: steps before the first update.
    rho: weight of the distance to W', >= 0.
    start: run folder whose weights the training starts from; None: from scratch.
    Raises UserError for values out of range.
    Source: Gui et al., NeurIPS 2019.
    """

    def __init__(
        self,
        *,
        ratio: float,
        bits: int | None = None,
        quant_interval: int = 10,
        quantise_after: int = 0,
        rho: float = 0.1,
        start: str | None = None,
    ) -> None:
        super().__init__(ratio=ratio, start=start)
        if bits is not None and integer("compression.bits", bits, 1, FLOAT_BITS) > MOST_BITS and bits != FLOAT_BITS:
            raise UserError(f"compression.bits must be 1 to {MOST_BITS}, or 32 or null for float32, got {bits}")
        self.bits = None if bits == FLOAT_BITS else bits
        self.quant_interval = integer("compression.quant_interval", quant_interval, 1)
        self.quantise_after = integer("compression.quantise_after", quantise_after, 0)
        self.rho = number("compression.rho", rho, 0, math.inf)

    def prepare(self, net: MultiExitNet) -> list[nn.Parameter]:
        """Cut the weights into factors and learn the budget; return what to optimise."""
        self._budget, self._step = self.budget(net), 0
        self._layers = {name: Factors.of(weight) for name, weight in layer_weights(net).items()}
        self._factors = {
            f"{name}.{letter}": factor
            for name, layer in self._layers.items()
            for letter, factor in (("A", layer.a), ("B", layer.b), ("C", layer.c))
        }
        self._copies: Parts = {}
        self._duals: Parts = {}
        made = {layer.weight for layer in self._layers.values()}
        return [*self._factors.values(), *(one for one in net.parameters() if one not in made)]

    def before_step(self) -> None:
        """Add the gradient of the distance to the quantised copies."""
        for layer in self._layers.values():
            layer.pull_back()
        for name, copy in self._copies.items():
            factor = self._factors[name]
            if factor.grad is not None:
                factor.grad.add_(factor.detach() + self._duals[name] - copy, alpha=self.rho)

    def after_step(self) -> None:
        """Project onto the budget, and from time to time quantise the copies and move the duals."""
        project(list(self._factors.values()), self._budget)
        for layer in self._layers.values():
            layer.write(layer.a, layer.b, layer.c)
        self._step += 1
        since = self._step - self.quantise_after
        if self.bits is not None and since > 0 and since % self.quant_interval == 0:
            self._follow(self.bits)

    @torch.no_grad()
    def _follow(self, bits: int) -> None:
        """One update of the quantised copies and of the duals."""
        for name, factor in self._factors.items():
            wanted = factor + self._duals[name] if self._duals else factor
            self._copies[name] = quantise(wanted, bits)
        self._duals = {
            name: factor.detach() - self._copies[name] + self._duals.get(name, 0)
            for name, factor in self._factors.items()
        }

    @contextmanager
    def deployed(self) -> Iterator[Parts]:
        """Give the network the quantised weights inside; yield the stored factors."""
        parts = self._stored()
        if self.bits is None:
            yield parts
            return
        for name, layer in self._layers.items():
            layer.write(*(parts[f"{name}.{letter}"] for letter in "ABC"))
        try:
            yield parts
        finally:
            for layer in self._layers.values():
                layer.write(layer.a, layer.b, layer.c)

    @torch.no_grad()
    def _stored(self) -> Parts:
        """The deployed factors."""
        if self.bits is None:
            return {name: factor.detach() for name, factor in self._factors.items()}
        copies = self._copies or {name: quantise(factor, self.bits) for name, factor in self._factors.items()}
        # a copy may have values where the budget left none
        return {name: copies[name].masked_fill(factor == 0, 0) for name, factor in self._factors.items()}

    def logs(self) -> dict[str, float]:
        """Return quantisation_gap: ||W - W'|| / ||W|| over all factors, what ADMM drives to zero."""
        if not self._copies:
            return {}
        gap = sum(
            float((factor.detach() - self._copies[name]).square().sum()) for name, factor in self._factors.items()
        )
        size = sum(float(factor.detach().square().sum()) for factor in self._factors.values())
        return {"quantisation_gap": math.sqrt(gap / size) if size else 0.0}

    def state(self) -> dict[str, Any]:
        """Return step, factors, quantised copies and duals."""
        factors = {name: factor.detach() for name, factor in self._factors.items()}
        return {"step": self._step, "factors": factors, "copies": self._copies, "duals": self._duals}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Take over step, factors, quantised copies and duals."""
        if not state:
            return
        if state["factors"].keys() != self._factors.keys():
            raise ValueError("these factors are of another network")
        # in place: the optimiser holds them
        for name, factor in self._factors.items():
            factor.copy_(state["factors"][name])
        self._step, self._copies, self._duals = state["step"], dict(state["copies"]), dict(state["duals"])
