"""Run an exported early-exit network with numpy and onnxruntime: images that leave are taken out of the batch.

A file on its own, written into every export; it needs nothing else of rdi, and no torch:

    import numpy as np
    from runner import Runner
    out = Runner(".")(np.load("examples.npz")["images"])
    print(out.labels, out.exits, out.macs)

`python runner.py` checks the export against the answers that are stored beside it.
Shapes: N images, C channels, H x W pixels, E exits, K of them seen so far, L classes.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FLOOR = np.float32(-1e30)  # replaces the log of a probability of zero
SMALLEST = np.float32(1e-30)  # replaces a probability of zero that is spread over the classes
VERSION = 2  # of the layout of policy.json; another one is refused
LARGEST = 2**62
NAME = re.compile(r"[A-Za-z0-9_]+\.(onnx|pt2)")  # of the file of a stage
Stage = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
SCORES = ("entropy", "confidence", "margin")
MEANS = ("geometric", "arithmetic")


class ExportError(ValueError):
    """An export that is damaged, or images that it does not take; one line that says what to do."""


AT_ONCE = 2048
"""Images that stages run on at most: more need their features' memory and are no faster."""
THREADS = 1024
"""Most that may be asked for."""


@dataclass(frozen=True)
class Prediction:
    """The answers for N images.

    labels, exits: int64_N, the predicted class, and where each image left, 0-based.
    macs: int64_N, multiply-adds up to that exit, stages and every head on the way.
    """

    labels: np.ndarray
    exits: np.ndarray
    macs: np.ndarray


class Runner:
    """Runs the stages one by one on the images that are still undecided.

    folder: an export, with policy.json and the stage files that it names.
    threads: of onnxruntime; None = all.
    trust: whoever made an export with format=torch; its stages are programs, which may do anything.
    Raises ExportError for a folder that is no export, or whose files are not those that policy.json names.
    """

    def __init__(self, folder: str | Path = ".", threads: int | None = None, *, trust: bool = False) -> None:
        if not isinstance(folder, str | Path):
            raise ExportError(f"folder must be the path of an export, got {type(folder).__name__}")
        if threads is not None and not (_numbers([threads], (int, np.integer), 1) and threads <= THREADS):
            raise ExportError(f"threads must be 1 to {THREADS}, or None for all, got {threads!r}")
        threads = None if threads is None else int(threads)
        self.folder = Path(folder)
        self.policy = read_policy(self.folder)
        self.exits = len(self.policy["stages"])
        self.shape = tuple(self.policy["image"]["shape"])
        self.macs = np.cumsum([stage["macs"] for stage in self.policy["stages"]])
        self.stages = [_stage(self.folder, stage, threads, trust) for stage in self.policy["stages"]]

    def __call__(self, images: np.ndarray) -> Prediction:
        """Predict images_NCHW, float in [0, 1] or uint8, AT_ONCE of them at a time. Raises ExportError for others."""
        images = _array(images)
        if images.shape[1:] != self.shape or len(images) <= AT_ONCE:
            return self._predict(images)
        parts = [self._predict(images[first : first + AT_ONCE]) for first in range(0, len(images), AT_ONCE)]
        labels, exits, macs = zip(*((one.labels, one.exits, one.macs) for one in parts), strict=True)
        return Prediction(np.concatenate(labels), np.concatenate(exits), np.concatenate(macs))

    def _predict(self, images: np.ndarray) -> Prediction:
        """Predict images that are held in memory together."""
        features = self.checked(images)
        rows = np.arange(len(features))  # of the images, that the batch still holds
        labels, exits = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        outputs = np.zeros((len(rows), 0, len(self.policy["classes"])), np.float32)
        for k, stage in enumerate(self.stages):
            if not len(rows):
                break
            features, logits = self._run(stage, features)
            outputs = np.concatenate([outputs, logits[:, None]], axis=1)
            answers = combined(outputs, self.policy["combine"], self.exits)
            leave = leaves(answers, self.policy, self.exits)
            labels[rows[leave]], exits[rows[leave]] = answers[leave, -1].argmax(axis=1), k
            if leave.any():
                order, moved = closed_up(leave)
                rows, outputs, features = rows[order], outputs[order], without_gaps(features, order, moved, images)
        return Prediction(labels, exits, self.macs[exits])

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Compute float32_NEL, the logits of all exits without early exit; to compare with another machine's."""
        features, found = self.checked(images), []
        for stage in self.stages:
            features, logits = self._run(stage, features)
            found.append(logits)
        return np.stack(found, axis=1)

    def _run(self, stage: Stage, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run a stage. Raises ExportError for one that fails, or gives no logits of the classes."""
        try:
            following, logits = stage(features)
            if logits.shape == (len(features), len(self.policy["classes"])) and np.isfinite(logits.max(axis=1)).all():
                return following, logits
            reason = f"it gives no logits of {len(self.policy['classes'])} classes"
        except Exception as error:
            reason = _line(error)
        raise ExportError(f"{self.folder}: a stage does not do what policy.json says ({reason}): export again")

    def checked(self, images: np.ndarray) -> np.ndarray:
        """Return images_NCHW as float32 in [0, 1]. Raises ExportError for another type, shape or range."""
        images = _array(images)
        if images.ndim != 4 or images.shape[1:] != self.shape:
            size = "x".join(map(str, self.shape))
            raise ExportError(f"images must be (N, {size}), channels first, got an array of shape {images.shape}")
        if images.dtype == np.uint8:
            return images.astype(np.float32) / np.float32(255)
        if not np.issubdtype(images.dtype, np.floating):
            raise ExportError(f"images must be float in [0, 1] or uint8, got {images.dtype}")
        if len(images) and not (images.min() >= 0 and images.max() <= 1):  # NaN, too
            raise ExportError(
                f"images of floats must lie in [0, 1], got {images.min():g} to {images.max():g}: divide grey levels "
                "by 255, or give uint8"
            )
        return images.astype(np.float32, copy=False)


def _array(images: Any) -> np.ndarray:
    """Return images as an array. Raises ExportError."""
    try:
        return np.asarray(images)
    except Exception as error:  # rows of different lengths, or a tensor that tracks its gradient
        raise ExportError(f"images must be an array: {_line(error)}") from None


def closed_up(leave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that stay in a batch in their new order, and which of the new rows were moved.

    leave: bool_N, of the rows. The last that stay fill the gaps: as few rows move as can be.
    """
    stay = np.flatnonzero(~leave)
    gaps = np.flatnonzero(leave[: len(stay)])
    order = np.arange(len(stay))
    order[gaps] = stay[len(stay) - len(gaps) :]
    return order, gaps


def without_gaps(features: np.ndarray, order: np.ndarray, moved: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Return features[order], written in place where they are no part of the caller's images."""
    if not features.flags.writeable or np.may_share_memory(features, images):
        return features[order]
    features[moved] = features[order[moved]]
    return features[: len(order)]


def combined(logits_NKL: np.ndarray, combine: Sequence[Mapping[str, Any]], exits: int) -> np.ndarray:
    """Return the answers at the exits seen so far, _NKL: the logits, or what the exits make of them together."""
    for step in combine:
        logits_NKL = running_mean(logits_NKL, step) if step["kind"] == "mean" else common(logits_NKL, step, exits)
    return logits_NKL


def running_mean(logits_NKL: np.ndarray, step: Mapping[str, Any]) -> np.ndarray:
    """Return the log of the weighted mean of the probabilities up to each exit, _NKL."""
    log_p = log_softmax(logits_NKL)
    weights = np.asarray(step["weights"], np.float32)[: log_p.shape[1], None]
    total = np.cumsum(weights, axis=0)
    if step["mean"] == "geometric":
        return np.cumsum(log_p * weights, axis=1) / total
    return np.logaddexp.accumulate(log_p + np.log(weights), axis=1) - np.log(total)


def common(logits_NKL: np.ndarray, step: Mapping[str, Any], exits: int) -> np.ndarray:
    """Return the log of what each exit has in common with those before it, _NKL; the last of all answers alone."""
    agreeing, seen = step["agreeing"], logits_NKL.shape[1]
    together = log_softmax(logits_NKL)
    if seen >= agreeing:
        windows = [together[:, back : seen - agreeing + 1 + back] for back in range(agreeing)]
        least = np.minimum.reduce(windows)
        missing = (np.exp(windows[-1]) - np.exp(least)).sum(axis=2, keepdims=True) / np.float32(least.shape[2])
        shared = np.logaddexp(least, np.log(np.maximum(missing, SMALLEST)))
        together = np.concatenate([together[:, : agreeing - 1], shared], axis=1)
    if seen == exits:
        together[:, -1] = logits_NKL[:, -1]
    return together


def leaves(answers_NKL: np.ndarray, policy: Mapping[str, Any], exits: int) -> np.ndarray:
    """Return bool_N: the image leaves at exit K-1, by the answers at exits 0..K-1; at the last one all do."""
    seen, decision = answers_NKL.shape[1], policy["decision"]
    if seen == exits:
        return np.ones(len(answers_NKL), bool)
    first = max((step["agreeing"] for step in policy["combine"] if step["kind"] == "agreement"), default=1)
    if seen < first or (decision["rule"] == "patience" and seen <= decision["patience"]):
        return np.zeros(len(answers_NKL), bool)
    if decision["rule"] == "patience":
        recent = answers_NKL[:, -decision["patience"] - 1 :].argmax(axis=2)
        return (recent == recent[:, :1]).all(axis=1)
    threshold = np.float64(decision["thresholds"][seen - 1])
    value = score(answers_NKL[:, -1], decision["score"]).astype(np.float64)
    return value < threshold if decision["score"] == "entropy" else value > threshold


def score(logits: np.ndarray, name: str) -> np.ndarray:
    """Compute the entropy in nats, the largest probability, or the difference of the two largest, of logits_..L."""
    log_p = log_softmax(logits)
    if name == "entropy":
        return (np.exp(log_p) * -log_p).sum(axis=-1)
    top = np.sort(np.exp(log_p), axis=-1)
    return top[..., -1] if name == "confidence" else top[..., -1] - top[..., -2]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Compute the log of the softmax of logits_..L in float32, at least FLOOR."""
    shifted = logits.astype(np.float32) - logits.max(axis=-1, keepdims=True)
    return np.maximum(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), FLOOR)


def read_policy(folder: Path) -> dict[str, Any]:
    """Read policy.json and check it. Raises ExportError."""
    path = folder / "policy.json"
    if not path.is_file():
        raise ExportError(f"{folder} is no export, it has no policy.json: make one with `rdi export`")
    try:
        policy = json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise ExportError(f"{path} is damaged ({_line(error)}): export again") from None
    try:
        checksum = policy.pop("checksum", None)
        text = json.dumps(policy, sort_keys=True).encode()
        if checksum is not None and checksum != hashlib.sha256(text).hexdigest():
            raise ExportError(f"{path} was edited: export again, or set its 'checksum' to null after a wanted edit")
        if policy["format"] != "rdi-export" or policy["version"] != VERSION:
            raise ExportError(f"{path} is of another program or version: use the runner.py beside it")
        _check_policy(path, policy)
    except (KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path} is damaged ({type(error).__name__}: {_line(error)}): export again") from None
    return dict(policy)


def _check_policy(path: Path, policy: Mapping[str, Any]) -> None:
    """Raise ExportError for what no export holds, and for a decision that does not fit the stages."""
    stages, decision = policy["stages"], policy["decision"]
    exits, shape = len(stages), policy["image"]["shape"]
    if any(NAME.fullmatch(stage["file"]) is None or not stage["sha256"] for stage in stages):
        raise ExportError(f"{path} names files that no export has: it was not made by rdi")
    fits = [len(shape) == 3, _numbers([*shape, exits, len(policy["classes"])], int, 1)]
    fits += [_numbers([stage["macs"] for stage in stages], int, 0)]
    if decision["rule"] == "threshold":
        values = decision["thresholds"]
        fits += [len(values) == exits - 1, _numbers(values), decision["score"] in SCORES]
    else:
        patience = decision["patience"]
        fits += [decision["rule"] == "patience", _numbers([patience, exits - 1 - patience], int, 1)]
    for step in policy["combine"]:
        if step["kind"] == "mean":
            fits += [len(step["weights"]) == exits, _numbers(step["weights"], least=1e-30), step["mean"] in MEANS]
        else:
            fits += [step["kind"] == "agreement", _numbers([step["agreeing"] - 1, exits - step["agreeing"]], int, 1)]
    if not all(fits):
        raise ExportError(f"{path} holds no policy for {exits} exits: it is of another export, or edited")


def _numbers(values: Sequence[Any], kind: Any = (int, float), least: float = -LARGEST) -> bool:
    """Return whether these are numbers from `least` to LARGEST."""
    return all(isinstance(one, kind) and not isinstance(one, bool) and least <= one <= LARGEST for one in values)


def _line(error: Exception) -> str:
    """Return the first line of what an error says, without codes that a terminal acts upon."""
    return "".join(c if c.isprintable() else "?" for c in (str(error).splitlines() or [""])[0][:300])


def load(model: bytes, threads: int | None) -> Any:
    """Load what is in an ONNX file in onnxruntime, on the CPU. threads: None = all."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    # every stage has threads of its own: those of the one before must not keep spinning
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _stage(folder: Path, stage: Mapping[str, Any], threads: int | None, trust: bool) -> Stage:
    """Load a stage of policy.json: features_N... -> (features of the next, logits_NL)."""
    path = folder / stage["file"]
    if not path.is_file():
        raise ExportError(f"{path} is missing: export again, or copy the whole folder")
    content = path.read_bytes()  # once: what is loaded is what was checked, and refers to no other file
    if hashlib.sha256(content).hexdigest() != stage["sha256"]:
        raise ExportError(f"{path} is not the file that policy.json names: copy or export the whole folder again")
    if path.suffix == ".pt2":
        if not trust:
            raise ExportError(
                f"{path} is a program, which may do anything: if you trust it, Runner(folder, trust=True)"
            )
        return _torch_stage(path, content)
    try:
        session = load(content, threads)
    except Exception as error:  # not installed, or onnxruntime's own kinds, which share no class
        raise ExportError(f"{path} does not load in onnxruntime: {_line(error)}") from None

    def run(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        *following, logits = session.run(None, {"features": features})
        return (following or [features])[0], logits

    return run


def _torch_stage(path: Path, content: bytes) -> Stage:
    """Load a stage of an export with format=torch, which torch runs."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about what it will drop
        try:
            module = torch.export.load(io.BytesIO(content)).module()
        except Exception as error:
            raise ExportError(f"{path} does not load in torch {torch.__version__}: {_line(error)}") from None

    def run(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            # torch takes no array that is reversed, and warns of one that is read-only
            *following, logits = module(torch.from_numpy(np.require(features, requirements=["C", "W"])))
        return following[0].numpy() if following else features, logits.numpy()

    return run


def main() -> int:
    """Run the export that this file lies in on its examples and compare; 0 where all answers are the stored ones."""
    folder = Path(__file__).resolve().parent
    try:
        with np.load(folder / "examples.npz", allow_pickle=False) as stored:
            images, labels, exits = (stored[name] for name in ("images", "labels", "exits"))
        if not labels.shape == exits.shape == images.shape[:1]:
            raise ExportError("examples.npz: it holds not one label and exit for each image: export again")
        out = Runner(folder, trust=True)(images)  # this file is of the same export
    except Exception as error:  # of a damaged archive numpy raises what it runs into
        known = isinstance(error, ExportError)
        print(f"runner.py: error: {error if known else f'examples.npz: {_line(error)}: export again'}", file=sys.stderr)
        return 2
    same = (out.labels == labels) & (out.exits == exits)
    print(f"{same.sum()} of {len(same)} examples leave at the stored exit with the stored label; exits {out.exits}")
    return 0 if same.all() else 1


if __name__ == "__main__":
    raise SystemExit(main())
