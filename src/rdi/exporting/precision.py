"""Stage files in fewer bits: weights in bfloat16, or weights and features in int8 by onnxruntime's static quantisation.

Either is another network than the one it was made of: its accuracy, clean and attacked, has to be measured again.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rdi.checks import choice
from rdi.errors import UserError

PRECISIONS = ("float32", "bf16", "int8")
BATCH = 50
"""Images that are calibrated on at a time."""


def converted(stages: Sequence[bytes], precision: str, images: np.ndarray) -> list[bytes]:
    """Return ONNX stage files in another precision; inputs and outputs stay float32, so that they chain as before.

    stages: as of export_stages, in order.
    precision: "bf16": weights are stored so, half as large, and cast to float32 when they are loaded, for onnxruntime
        has no kernels in bf16 for CPUs. "int8": quantised statically (QDQ, weights per channel, symmetric, in 7 bits,
        so that every processor gives the same answers), ranges by the smallest and largest value on `images`, every
        stage on what the quantised ones before it give.
    images: float32_NCHW in [0, 1] to calibrate on, of which "int8" needs at least one.
    Raises UserError for another precision, and where onnxruntime cannot quantise a stage.
    """
    choice("precision", precision, PRECISIONS)
    if precision == "float32":
        return list(stages)
    if precision == "bf16":
        return [_weights_in_bf16(content) for content in stages]
    if not len(images):
        raise UserError("precision=int8 needs calibration images, and there are none: hold some out of training")
    return list(_quantised(stages, images))


def _weights_in_bf16(content: bytes) -> bytes:
    """Return a stage whose float32 tensors of two or more axes are bfloat16, each behind a Cast."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_from_string(content)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        name = tensor.name
        rounded = bf16(numpy_helper.to_array(tensor))
        tensor.CopyFrom(helper.make_tensor(f"{name}_bf16", TensorProto.BFLOAT16, tensor.dims, rounded.tobytes(), True))
        casts.append(helper.make_node("Cast", [f"{name}_bf16"], [name], name=f"{name}_cast", to=TensorProto.FLOAT))
    for node in reversed(casts):
        model.graph.node.insert(0, node)
    onnx.checker.check_model(model, full_check=True)
    written: bytes = model.SerializeToString()
    return written


def bf16(values: np.ndarray) -> np.ndarray:
    """Round finite float32 values to the nearest bfloat16, ties to even -> their bits as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return rounded.astype(np.uint16)


class _Batches:
    """The images as onnxruntime's calibration reads them."""

    def __init__(self, features: np.ndarray) -> None:
        self._batches = iter(np.split(features, range(BATCH, len(features), BATCH)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch by the name of the input; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {"features": batch}


def _quantised(stages: Sequence[bytes], features: np.ndarray) -> Iterator[bytes]:
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    CalibrationDataReader.register(_Batches)
    with tempfile.TemporaryDirectory() as place:
        for k, content in enumerate(stages):
            given, made = Path(place) / f"given_{k}.onnx", Path(place) / f"made_{k}.onnx"
            given.write_bytes(content)
            try:
                with _quiet():
                    quantize_static(
                        given,
                        made,
                        _Batches(features),
                        quant_format=QuantFormat.QDQ,
                        per_channel=True,
                        # processors without VNNI saturate sums of two 8-bit products in 16 bits
                        reduce_range=True,
                        activation_type=QuantType.QInt8,
                        weight_type=QuantType.QInt8,
                    )
                session: Any = onnxruntime.InferenceSession(str(made), providers=["CPUExecutionProvider"])
            except Exception as error:  # its kinds share no class
                reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
                raise UserError(f"stage {k} cannot be quantised by onnxruntime: {reason[:200]}") from error
            yield made.read_bytes()
            if k < len(stages) - 1:
                parts = [features[at : at + BATCH] for at in range(0, len(features), BATCH)]
                features = np.concatenate([session.run(["next_features"], {"features": part})[0] for part in parts])


class _quiet:
    """Keep onnxruntime's advice about preprocessing off the terminal: what is exported is folded already."""

    def __enter__(self) -> None:
        self._level = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._level)
