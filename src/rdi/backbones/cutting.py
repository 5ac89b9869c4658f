"""Cut a network that others wrote into a chain of blocks, by its traced forward pass."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from rdi.backbones.base import Backbone
from rdi.errors import UserError


class _Tracer(fx.Tracer):
    """Keeps every module whole but the network itself and what only runs modules one after the other."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).forward is not nn.Sequential.forward


class _Shapes(fx.Interpreter):
    """Runs a graph and remembers the shape of one sample behind every node; None: no tensor with a row per sample."""

    def __init__(self, module: nn.Module, graph: fx.Graph, samples: int) -> None:
        super().__init__(module, graph=graph)
        self.samples = samples
        self.found: dict[fx.Node, tuple[int, ...] | None] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        rows = isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == self.samples
        self.found[n] = tuple(value.shape[1:]) if rows else None
        return value


def cut(network: nn.Module, shape: Sequence[int], classes: int, name: str) -> Backbone:
    """Cut `network`, images_NCHW -> logits_NC, wherever all that is computed later depends on one tensor alone.

    Modules that are more than a sequence stay whole. The classifier is what follows the last features that have
    positions, as a map or tokens. The blocks are called by the modules in them, for taps by name.

    shape: CHW of an image.
    name: of the network, for messages.
    Raises UserError for a network that torch.fx cannot trace, that takes or returns more than one tensor, that runs a
        module with weights twice, that reads `self.training` in its own forward pass, or that has no place to be cut.
    """
    graph = _trace(network, name)
    size = "x".join(map(str, shape))
    runner = _Shapes(network, graph, samples=2)
    mode = network.training
    try:
        with torch.no_grad():
            logits = runner.run(torch.zeros(2, *shape)) if network.eval() else None
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"images of {size} do not fit {name}: {reason}") from error
    finally:
        network.train(mode)
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (2, classes):
        raise UserError(
            f"{name} returns no logits of {classes} classes alone: a network of several outputs is taken by "
            "rdi.as_multi_exit, from Python"
        )
    blocks, names, shapes = [], [], []
    for nodes in _segments(graph, runner.found):
        called = [str(node.target) for node in nodes if node.op == "call_module"]
        blocks.append(_block(network, nodes))
        names.append(called[-1] if called else "")
        shapes.append(runner.found[nodes[-1]] or ())
    if len(blocks) < 2:
        whole = max(network.named_children(), key=lambda one: sum(p.numel() for p in one[1].parameters()))[0]
        raise UserError(f"{name} is no chain of blocks and cannot be cut: its module {whole} does not stand alone")
    positions = [i for i, one in enumerate(shapes[:-1]) if len(one) > 1]
    last = positions[-1] if positions else len(blocks) - 2
    return Backbone(
        blocks=tuple(blocks[: last + 1]),
        shapes=tuple(shapes[: last + 1]),
        classifier=nn.Sequential(*blocks[last + 1 :]),
        paper_exits=(),
        input_shape=tuple(shape),
        classes=classes,
        names=tuple(names[: last + 1]),
    )


def _trace(network: nn.Module, name: str) -> fx.Graph:
    try:
        graph = fx.GraphModule(network, _Tracer().trace(network)).graph
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} cannot be cut into blocks: torch.fx does not follow its forward pass ({reason})"
        ) from error
    graph.eliminate_dead_code()
    if sum(bool(node.users) for node in graph.nodes if node.op == "placeholder") != 1:
        raise UserError(f"{name} cannot be cut into blocks: its forward pass takes more than images")
    called: set[str] = set()
    for node in graph.nodes:
        if node.op == "call_function" and "dropout" in getattr(node.target, "__name__", ""):
            raise UserError(f"{name} cannot be cut into blocks: {node} reads self.training in its own forward pass")
        if node.op == "call_module":
            target = str(node.target)
            if target in called and any(True for _ in network.get_submodule(target).parameters()):
                raise UserError(f"{name} cannot be cut into blocks: its module {target} is run twice")
            called.add(target)
    return graph


def _segments(graph: fx.Graph, shapes: dict[fx.Node, tuple[int, ...] | None]) -> list[list[fx.Node]]:
    """Nodes of each block: a block ends where its last value is the only one, of images too, that is read later."""
    nodes = list(graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    read = [max((place[user] for user in node.users), default=i) for i, node in enumerate(nodes)]
    segments: list[list[fx.Node]] = [[]]
    reach = 0
    for i, node in enumerate(nodes):
        if node.op == "output":
            break
        if node.op != "placeholder":
            segments[-1].append(node)
            if reach <= i < read[i] and shapes[node] is not None:
                segments.append([])
        reach = max(reach, read[i])
    return [one for one in segments if one]


def _block(network: nn.Module, nodes: Sequence[fx.Node]) -> nn.Module:
    """A module of these nodes, whose tensors keep the names that they have in the network."""
    graph = fx.Graph()
    given = graph.placeholder("x")
    made: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        made[node] = graph.node_copy(node, lambda one: made.get(one, given))
    graph.output(made[nodes[-1]])
    return fx.GraphModule(network, graph)


def tap_number(backbone: Backbone, tap: int | str) -> int:
    """Return the 0-based number of the block that `tap` says, by its number or by the name of a module.

    A name stands for the last block of that module.

    Raises UserError for a name that no block ends with.
    """
    if not isinstance(tap, str):
        return tap
    if not backbone.names:
        raise UserError(f"exits.taps: the blocks of this backbone have numbers, from 0 to {len(backbone.blocks) - 1}")
    found = [i for i, name in enumerate(backbone.names) if name == tap or name.startswith(f"{tap}.")]
    if found:
        return found[-1]
    known = ", ".join(dict.fromkeys(re.sub(r"(\.\d+)+$", "", name) for name in backbone.names if name))
    whole = next((name for name in backbone.names if name and tap.startswith(f"{name}.")), None)
    if whole is not None:
        raise UserError(f"exits.taps: {tap} lies inside {whole}, which runs as a whole: name {whole}")
    raise UserError(f"exits.taps: the network cannot be cut behind {tap}; there are {known}")
