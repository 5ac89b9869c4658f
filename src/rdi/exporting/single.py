"""The whole early-exit network as one ONNX file for one image: a stage, its decision, and the rest inside an If."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from rdi.exporting.stages import OPSET, to_onnx
from rdi.thresholds import Policy, ThresholdPolicy

FILE = "network.onnx"
INPUT, OUTPUTS = "image", ("label", "exit", "logits")


class _Leaves(nn.Module):
    """logits_1L of exits 0..K-1, one after the other -> bool_1, whether the image leaves."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *logits: torch.Tensor) -> torch.Tensor:
        """Decide as the policy does."""
        if type(self.policy) is ThresholdPolicy:  # looks at the last exit alone, and every operator counts
            return self.policy.beyond(logits[-1], len(logits) - 1)
        return self.policy.leaves(torch.stack(logits, dim=1))


class _Answer(nn.Module):
    """logits_1L of exits 0..K-1, one after the other -> (label, logits that the image is answered with)."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Answer as the policy does at exit K-1."""
        alone = type(self.policy).answers is Policy.answers
        answer = logits[-1] if alone else self.policy.answers(torch.stack(logits, dim=1))[:, -1]
        answer = answer.float()
        return answer.argmax(dim=1), answer + 0.0


def single_file(stages: Sequence[bytes], policy: Policy, classes: int) -> bytes:
    """Return one ONNX file that runs as far as the image needs.

    Input: image float32 (1, C, H, W) in [0, 1]. Outputs: label int64_1, exit int64_1, logits float32_1L that the image
    was answered with. Later stages and their decisions lie inside the else branches of nested Ifs.

    stages: ONNX files as of export_stages, in order.
    policy: of as many exits, without randomness.
    Raises UserError for a policy whose decision does not export.
    """
    import onnx
    from onnx import TensorProto, helper

    last = len(stages) - 1
    branch = _Graph(f"exit_{last}")
    for k in range(last, -1, -1):
        graph = _Graph(f"stage_{k}")
        graph.add(onnx.load_from_string(stages[k]).graph, f"stage_{k}", {"features": _features(k)})
        seen = {f"logits_{j}": f"stage_{j}/logits" for j in range(k + 1)}
        # label and logits are worked out where the image leaves
        answer = graph if k == last else _Graph(f"leave_{k}")
        answer.add(_decided(_Answer(policy), seen, ["label", "logits"], classes), f"answer_{k}", seen)
        answer.nodes += _exit_of(k, f"answer_{k}/exit")
        answer.outputs = [f"answer_{k}/{name}" for name in OUTPUTS]
        if k < last:
            graph.add(_decided(_Leaves(policy), seen, ["leaves"], classes), f"decision_{k}", seen)
            graph.outputs = [f"exit_{k}/{name}" for name in OUTPUTS]
            graph.nodes.append(
                helper.make_node(
                    "If",
                    [f"decision_{k}/leaves"],
                    graph.outputs,
                    name=f"exit_{k}",
                    then_branch=answer.proto(classes),
                    else_branch=branch.proto(classes),
                )
            )
        branch = graph
    branch.nodes += [helper.make_node("Identity", [a], [b]) for a, b in zip(branch.outputs, OUTPUTS, strict=True)]
    branch.outputs = list(OUTPUTS)
    shape = [entry.dim_value for entry in onnx.load_from_string(stages[0]).graph.input[0].type.tensor_type.shape.dim]
    image = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, *shape[1:]])
    model = helper.make_model(
        branch.proto(classes, [image]), opset_imports=[helper.make_opsetid("", OPSET)], producer_name="rdi"
    )
    model.ir_version = onnx.load_from_string(stages[0]).ir_version
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def _decided(part: nn.Module, seen: Collection[str], outputs: Sequence[str], classes: int) -> Any:
    """Return the graph of what is decided by the logits `seen`."""
    given = [torch.zeros(1, classes) for _ in seen]
    return to_onnx(part, given, list(seen), outputs, what=f"the decision at exit {len(seen) - 1}").graph


def _features(k: int) -> str:
    return INPUT if k == 0 else f"stage_{k - 1}/next_features"


def _exit_of(k: int, name: str) -> list[Any]:
    from onnx import TensorProto, helper

    number = helper.make_tensor(f"{name}/value", TensorProto.INT64, [1], [k])
    return [helper.make_node("Constant", [], [name], value=number)]


class _Graph:
    """Nodes and weights of a graph in the making. outputs: its names for OUTPUTS."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.outputs: list[str] = []

    def add(self, graph: Any, prefix: str, given: dict[str, str]) -> None:
        """Add the nodes of another graph; names get a prefix, but for its inputs, which are `given`."""

        def named(name: str) -> str:
            return name and given.get(name, f"{prefix}/{name}")

        for tensor in graph.initializer:
            tensor.name = named(tensor.name)
            self.weights.append(tensor)
        for node in graph.node:
            node.input[:] = [named(name) for name in node.input]
            node.output[:] = [named(name) for name in node.output]
            node.name = f"{prefix}/{node.name}"
            self.nodes.append(node)

    def proto(self, classes: int, inputs: Sequence[Any] = ()) -> Any:
        """Return the graph."""
        from onnx import TensorProto, helper

        kinds = [(TensorProto.INT64, [1]), (TensorProto.INT64, [1]), (TensorProto.FLOAT, [1, classes])]
        outputs = [helper.make_tensor_value_info(n, *kind) for n, kind in zip(self.outputs, kinds, strict=True)]
        return helper.make_graph(self.nodes, self.name, list(inputs), outputs, self.weights)
