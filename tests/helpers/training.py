"""Trainings of a few steps whose store is memory, and that stop where a test says."""

import io
from functools import partial

import torch

from rdi.attacks import Average
from rdi.optim import Recipe
from rdi.training_settings import Settings

CPU = torch.device("cpu")

ATTACK = Average(eps=0.1, step_size=0.05, steps=2)


class Memory:
    """A Store that keeps everything as bytes, as a disk would."""

    def __init__(self, state=None):
        self.state, self.weights, self.lines = state, {}, []

    def load_state(self, device):
        return None if self.state is None else torch.load(io.BytesIO(self.state), weights_only=True)

    def save_state(self, state):
        stream = io.BytesIO()
        torch.save(state, stream)
        self.state = stream.getvalue()

    def save_weights(self, which, model, parts):
        self.weights[which] = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def log(self, line, step):
        self.lines.append((step, line))


class StopAfter:
    """Says stop once it was asked `times` times: after a step, or where held-out images are judged."""

    def __init__(self, times):
        self.left = times

    def __call__(self):
        self.left -= 1
        return self.left <= 0


def recipe(iterations=6, **settings):
    return Recipe(
        **{
            "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4),
            "batch_size": 8,
            "lr": 0.05,
            "iterations": iterations,
            "schedule": "one_cycle",
            "warmup": 0.3,
            **settings,
        }
    )


def assert_same_tensors(first, second):
    assert first.keys() == second.keys()
    assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []


SMALL = Settings(seed=3, evaluations=2, calibration_samples=8)
