"""Does an export answer as the network: labels, exits and logits of the same images, compared one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from rdi.data.streamed import Images, fetch, slices
from rdi.exits import MultiExitNet
from rdi.exporting.policies import first_exit
from rdi.exporting.runner import Runner, combined, load, score
from rdi.thresholds import Policy

NEAR = 1e-5
"""A score nearer to its threshold than this may fall on the other side by rounding; likewise two logits."""


@torch.no_grad()
def compare(model: MultiExitNet, policy: Policy, runner: Runner, images: Images, batch: int = 250) -> dict:
    """Compare an export with the network that it was made of, on uint8 images_NCHW -> the content of parity.json.

    near_threshold: images, by their place, with a score within NEAR of a threshold before or where they leave, or
    with their two largest logits that close. differ: those whose label or exit differs; unexplained: of these, the
    ones that are not near. labels, exits: of the export; network: the same of the network.
    """
    near, differ, labels, exits, network = [], [], [], [], []
    largest = 0.0
    device = next(model.parameters()).device
    starts = range(0, len(images), batch)
    for start, part in zip(starts, fetch(images, slices(len(images), starts, batch)), strict=True):
        logits = model(part.to(device) / 255).float()
        left = policy.choose(logits)
        label = policy.predict(logits, left).cpu().numpy()
        out = runner(part.cpu().numpy())
        logits_NEL, left_N = logits.cpu().numpy(), left.cpu().numpy()
        largest = max(largest, float(np.abs(runner.logits(part.cpu().numpy()) - logits_NEL).max(initial=0)))
        near += [start + int(n) for n in np.flatnonzero(near_threshold(logits_NEL, left_N, runner.policy))]
        differ += [start + int(n) for n in np.flatnonzero((out.labels != label) | (out.exits != left_N))]
        labels.append(out.labels)
        exits.append(out.exits)
        network.append(np.stack([label, left_N]))
    theirs = np.concatenate(network, axis=1) if network else np.zeros((2, 0), int)
    return {
        "images": len(images),
        "near": NEAR,
        "largest_logit_difference": largest,
        "labels_and_exits_equal": len(images) - len(differ),
        "near_threshold": near,
        "differ": differ,
        "unexplained": sorted(set(differ) - set(near)),
        "labels": np.concatenate(labels).tolist() if labels else [],
        "exits": np.concatenate(exits).tolist() if exits else [],
        "network": {"labels": theirs[0].tolist(), "exits": theirs[1].tolist()},
    }


def compare_single(graph: bytes, runner: Runner, images: np.ndarray) -> dict[str, int]:
    """Compare the one graph of an export with its stages, on uint8 images_NCHW, one by one."""
    session, stages = load(graph, None), runner(images)
    equal = 0
    for n in range(len(images)):
        label, exit = session.run(["label", "exit"], {"image": images[n : n + 1].astype(np.float32) / np.float32(255)})
        equal += int(label[0] == stages.labels[n] and exit[0] == stages.exits[n])
    return {"images": len(images), "labels_and_exits_equal": equal}


def near_threshold(logits_NEL: np.ndarray, exits_N: np.ndarray, policy: dict[str, Any]) -> np.ndarray:
    """Return bool_N: rounding may change the exit or the label."""
    near = np.zeros(len(logits_NEL), bool)
    answers = combined(logits_NEL, policy["combine"], logits_NEL.shape[1])
    for k, gap in enumerate(_gaps(answers, exits_N, policy)):
        near |= (gap <= NEAR) & (exits_N >= k)
    return near


def _gaps(answers_NEL: np.ndarray, exits_N: np.ndarray, policy: dict[str, Any]) -> Iterator[np.ndarray]:
    """Per exit, how far each image is from another decision there, or from another label where it leaves."""
    top = np.sort(answers_NEL, axis=2)
    ties = top[..., -1] - top[..., -2] if top.shape[2] > 1 else np.full(top.shape[:2], np.inf)
    decision, first = policy["decision"], first_exit(policy["combine"])
    for k in range(answers_NEL.shape[1]):
        gap = np.where((exits_N == k) | (decision["rule"] == "patience"), ties[:, k], np.inf)
        if decision["rule"] == "threshold" and first <= k < len(decision["thresholds"]):
            value = score(answers_NEL[:, k], decision["score"]).astype(np.float64)
            gap = np.minimum(gap, np.abs(value - decision["thresholds"][k]))
        yield gap
