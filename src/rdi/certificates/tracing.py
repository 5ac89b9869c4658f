"""Follow boxes through a network, whatever it is made of, by a symbolic trace of its parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from rdi.certificates.box import Box
from rdi.certificates.layers import FUNCTIONS, MODULES, Found, NoBound
from rdi.certificates.operations import Operation
from rdi.errors import UserError


@dataclass(frozen=True)
class Step:
    """One operation of a pass.

    operation: with the parameters of the pass.
    boxes: of its inputs.
    box: of its result.
    slack: of rounding, in the units of the result; None: exact.
    """

    operation: Operation
    boxes: list[Box]
    box: Box
    slack: torch.Tensor | None


class Traced:
    """A part of a network, traced once and then run on boxes with the parameters that it has at that time.

    part: a stage or a head, without hooks.
    name: where the part stands in the network, for errors.
    Raises UserError for what torch.fx cannot trace.
    """

    def __init__(self, part: nn.Module, name: str) -> None:
        self.part, self.name = part, name
        for inner, module in part.named_modules():
            if module._forward_hooks or module._forward_pre_hooks:
                raise UserError(f"no bound is known for a layer with hooks ({self._at(inner)}): remove them")
        tracer = _Tracer()
        try:
            # a leaf by itself has nothing to trace
            self.graph = None if tracer.is_leaf_module(part, "") else tracer.trace(part)
        except Exception as error:  # tracing runs the part's own code
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"no bound is known for {type(part).__name__} ({name}): its forward pass cannot be traced, {reason}"
            ) from error

    def _at(self, inner: str) -> str:
        return f"{self.name}.{inner}" if inner else self.name

    def run(self, box: Box, steps: list[Step], rounded: bool) -> Box:
        """Return the box of the part's outputs over the inputs in `box`.

        steps: the operations are appended to it.
        rounded: as of Operation.forward.
        Raises UserError for a layer without a bound, by its name.
        """
        if self.graph is None:
            return self._module("", self.part, [box], {}, steps, rounded)
        values: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            args = fx.node.map_arg(node.args, values.__getitem__)
            options: dict[str, Any] = dict(fx.node.map_arg(node.kwargs, values.__getitem__))
            if node.op == "placeholder":
                values[node] = box
            elif node.op == "get_attr":
                values[node] = _attribute(self.part, str(node.target))
            elif node.op == "call_module":
                module = self.part.get_submodule(str(node.target))
                values[node] = self._module(str(node.target), module, list(args), options, steps, rounded)
            elif node.op == "output":
                if not isinstance(args[0], Box):
                    raise UserError(
                        f"no bound is known for {type(self.part).__name__} ({self.name}): it returns a "
                        f"{type(args[0]).__name__}, not one tensor"
                    )
                return args[0]
            else:
                values[node] = self._function(node, list(args), options, steps, rounded)
        raise AssertionError("a traced graph ends with its output")

    def _module(
        self, name: str, module: nn.Module, args: list[Any], options: Any, steps: list[Step], rounded: bool
    ) -> Box:
        what = f"{type(module).__name__} ({self._at(name)})"
        rule = MODULES.get(type(module))
        if rule is None:
            raise UserError(f"no bound is known for {what}")
        return _done(lambda: rule(module, *args, **options), what, steps, rounded)

    def _function(self, node: fx.Node, args: list[Any], options: Any, steps: list[Step], rounded: bool) -> Any:
        if not any(isinstance(one, Box) for one in _flat([*args, *options.values()])):
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **options)
            return node.target(*args, **options)  # type: ignore[operator]
        word = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        if word == "size":
            return args[0].low.size(*args[1:], **options)
        if word == "dim" or (word == "getattr" and args[1] in ("shape", "ndim", "dtype", "device")):
            return args[0].low.dim() if word == "dim" else getattr(args[0].low, args[1])
        rule = FUNCTIONS.get(node.target)
        what = f"{word} in {type(self.part).__name__} ({self.name})"
        if rule is None:
            raise UserError(f"no bound is known for {what}")
        return _done(lambda: rule(*args, **options), what, steps, rounded)


class _Tracer(fx.Tracer):
    """Layers that have a rule are not looked into; other layers of torch are refused when they are run."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in MODULES or super().is_leaf_module(m, module_qualified_name)


def _done(rule: Any, what: str, steps: list[Step], rounded: bool) -> Box:
    try:
        operation, boxes = _bound(rule)
    except NoBound as reason:
        raise UserError(f"no bound is known for {what}: {reason}") from None
    box, slack = operation.forward(boxes, rounded)
    steps.append(Step(operation, boxes, box, slack))
    return box


def _bound(rule: Any) -> Found:
    try:
        found: Found = rule()
        return found
    except TypeError as error:  # an option that the rule does not take
        raise NoBound(str(error)) from error


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _attribute(module: nn.Module, name: str) -> Any:
    found: Any = module
    for word in name.split("."):
        found = getattr(found, word)
    return found
