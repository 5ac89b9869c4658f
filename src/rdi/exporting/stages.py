"""Stages of a network as files: ONNX, or torch.export's own format. BatchNorm is folded into the convolutions."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from rdi.attacks.engine import Engine
from rdi.checks import choice
from rdi.errors import UserError, extra
from rdi.exits import MultiExitNet

FORMATS = {"onnx": "onnx", "torch": "pt2"}
"""Format -> ending of its files."""
OPSET = 18
"""ONNX opset that torch's operators are written in, so that nothing is converted; in onnxruntime since 1.14."""
TRACED = 2
"""Images that a stage is traced with; any number but 0 and 1, which torch.export takes for constants."""


class StageWithHead(nn.Module):
    """features -> (features of the next stage, logits_NC); of the last stage (logits_NC,)."""

    def __init__(self, stage: nn.Module, head: nn.Module, last: bool) -> None:
        super().__init__()
        self.stage, self.head, self.last = stage, head, last

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run stage and head on features_N...."""
        features = self.stage(features)
        logits = self.head(features)
        return (logits,) if self.last else (features, logits)


@torch.no_grad()
def export_stages(model: MultiExitNet, shape: Sequence[int], format: str = "onnx") -> Iterator[bytes]:
    """Yield the file of every stage with its head, in order; the batch axis is dynamic.

    model: on any device, left as it is.
    shape: CHW of an image.
    format: "onnx" (inputs "features", outputs "next_features" and "logits", opset OPSET) or "torch" (what
        torch.export.load reads).
    Raises UserError without the extra `deploy` and for a stage that does not export.
    """
    choice("format", format, tuple(FORMATS))
    if format == "onnx":
        require("onnx", "onnxscript")
    net = Engine(channels_last=False).copy(model).net.cpu()
    features = torch.zeros(TRACED, *shape)
    for k, (stage, head) in enumerate(zip(net.stages, net.heads, strict=True)):
        part = StageWithHead(stage, head, last=k == net.exits - 1).eval()
        try:
            with _quiet():
                content = (_onnx if format == "onnx" else _program)(part, features)
        except Exception as error:  # what a tracer meets in others' modules shares no class
            raise UserError(f"stage {k} does not export to {format}: {_reason(error)}") from error
        yield content
        features = part(features)[0]


def require(*packages: str) -> None:
    """Raise UserError unless the packages of the extra `deploy` are installed."""
    for package in packages:
        with extra("deploy", f"{package} is not installed"):
            __import__(package)


def _program(part: nn.Module, features: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(part, (features,), dynamic_shapes=_batch()), buffer)
    return buffer.getvalue()


def _onnx(part: StageWithHead, features: torch.Tensor) -> bytes:
    names = ["logits"] if part.last else ["next_features", "logits"]
    content: bytes = _exported(part, (features,), ["features"], names, _batch()).SerializeToString()
    return content


def _exported(
    part: nn.Module, given: tuple[torch.Tensor, ...], inputs: list[str], outputs: list[str], shapes: Any
) -> Any:
    import onnx

    _keep_operators()
    program = torch.onnx.export(
        part,
        given,
        dynamo=True,
        opset_version=OPSET,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=shapes,
        verbose=False,
    )
    assert program is not None, "dynamo=True returns the program"
    onnx.checker.check_model(program.model_proto, full_check=True)
    return program.model_proto


@torch.no_grad()
def to_onnx(
    part: nn.Module, given: Sequence[torch.Tensor], inputs: Sequence[str], outputs: Sequence[str], *, what: str
) -> Any:
    """Return the ONNX model of a module of fixed shapes.

    part: in eval mode. given: its arguments. inputs, outputs: names.
    what: it is, for the message.
    Raises UserError where it does not export.
    """
    try:
        with _quiet():
            return _exported(part.eval(), tuple(given), list(inputs), list(outputs), None)
    except Exception as error:  # as for stages
        raise UserError(f"{what} does not export to onnx: {_reason(error)}") from error


@cache
def _keep_operators() -> None:
    """Have torch read onnxscript's operators once, which is two thirds of an export, and not for every stage anew."""
    with contextlib.suppress(ImportError, AttributeError):  # torch's own place for them, which may move
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        # only an export with translations of its own would change what is kept
        kept = staticmethod(cache(ONNXRegistry.from_torchlib))
        ONNXRegistry.from_torchlib = kept  # type: ignore[method-assign]


def _batch() -> tuple[dict[int, object], ...]:
    return ({0: torch.export.Dim("batch")},)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' own chatter off the terminal: what goes wrong is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [one.level for one in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for one in loggers:
            one.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)


def _reason(error: Exception) -> str:
    """Return the first line of the innermost cause: exporters wrap it in reports of many lines."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
