"""HopSkipJump by the Adversarial Robustness Toolbox, on nothing but the label that the deployed policy answers."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rdi.attacks.base import Attack, Plain
from rdi.attacks.norms import project
from rdi.attacks.views import ViewAttack
from rdi.checks import LINF, NORMS, integer
from rdi.errors import extra
from rdi.exits.net import MultiExitNet
from rdi.seeds import numpy_stream

PACKAGE = "adversarial-robustness-toolbox"
STARTS = 100
"""Most images of noise that are tried as a start: the attack walks from a wrong image to the given one."""


@dataclass(kw_only=True)
class HopSkipJump(ViewAttack):
    """HopSkipJump (Chen, Jordan and Wainwright, S&P 2020, L-infinity), an attack that sees labels only.

    By the package `adversarial-robustness-toolbox` (MIT). Per image it stops at the first wrong answer well within the
    ball, or when the queries are spent; then the nearest wrong image is projected into the ball.

    queries: labels asked for, per image, at most; the paper reports 1,000 to 20,000.
    target, policy: as of ViewAttack.
    Raises UserError without the package, and for values out of range.
    """

    queries: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("attack.queries", self.queries, 1)
        _package()

    def unable(self) -> str | None:
        """Say that it walks towards the surface of L-infinity balls only."""
        if self.norm == LINF:
            return None
        return f"attack=decision searches L-infinity balls only, the threat model is {NORMS[self.norm]}"

    def brief(self) -> Attack:
        """Return the attack with one query."""
        return replace(self, queries=1)

    def identity(self) -> dict[str, Plain]:
        """Return name, settings and the package's version."""
        return {**super().identity(), "package": f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"}

    @torch.no_grad()
    def run(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Craft x_adv_NCHW, image by image."""
        view = self.view(model)
        classes = view(x[:1]).shape[1]
        seeds = torch.randint(2**32, (len(x),), generator=generator, device=generator.device).tolist()
        found = []
        for image, label, seed in zip(x, y.tolist(), seeds, strict=True):
            asked = _Asked(view, image, label, classes, self.queries, self.eps)
            with numpy_stream(seed), contextlib.suppress(_Spent):
                _walk(asked)
            found.append(asked.nearest)
        return torch.stack(found)


class _Spent(Exception):
    """Nothing is left to ask, or to win."""


class _Asked:
    """The labels of one image and its neighbours, counted.

    nearest: the wrong image nearest to the given one so far; that one while there is none.
    """

    def __init__(
        self, view: torch.nn.Module, image: torch.Tensor, label: int, classes: int, queries: int, eps: float
    ) -> None:
        self.view, self.image, self.label, self.classes = view, image, label, classes
        self.left, self.eps = queries, eps
        self.nearest, self.distance = image, math.inf

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the answers as one-hot rows. Raises _Spent."""
        x = torch.as_tensor(images).to(self.image)[: self.left]
        self.left -= len(x)
        answers = self.view(x.clamp(0, 1)).argmax(dim=1) if len(x) else self.image.new_zeros(0)
        distance = (x - self.image).flatten(1).abs().amax(dim=1)
        distance = torch.where(answers == self.label, math.inf, distance)
        if len(x) and float(distance.min()) < self.distance:
            best = int(distance.argmin())
            self.nearest, self.distance = x[best], float(distance[best])
        # on the boundary itself the network that is judged may round to the other side
        if self.distance <= 0.9 * self.eps:
            self._push()
        if self.left <= 0 or self.distance <= 0.9 * self.eps:
            raise _Spent
        return np.eye(self.classes, dtype=np.float32)[answers.cpu().numpy()]

    def _push(self) -> None:
        """Move the nearest wrong image on to the ball's surface, if it stays wrong there."""
        if self.distance > 0 and self.left > 0:
            self.left -= 1
            far = self.image + (self.nearest - self.image) * (self.eps / self.distance)
            far = project(far[None], self.image[None], self.eps)
            if int(self.view(far).argmax()) != self.label:
                self.nearest = far[0]


def _walk(asked: _Asked) -> None:
    """Ask for labels until nothing is left. Raises _Spent."""
    asked(asked.image[None].cpu().numpy())
    shape = tuple(asked.image.shape)
    for _ in range(STARTS):
        # the package would draw it from a generator that nobody can seed
        start = np.random.uniform(0, 1, (1, *shape)).astype(np.float32)
        if int(asked(start).argmax()) != asked.label:
            break
    else:
        # nothing wrong was found: noise is as good as any image of the ball
        asked.nearest = torch.as_tensor(start[0]).to(asked.image)
        return
    classifier = _package().estimators.classification.BlackBoxClassifier(
        asked, input_shape=shape, nb_classes=asked.classes, clip_values=(0.0, 1.0)
    )
    attack = _package().attacks.evasion.HopSkipJump(
        classifier, norm=np.inf, max_iter=asked.left, init_eval=100, verbose=False
    )
    attack.generate(asked.image[None].cpu().numpy(), x_adv_init=start)


def _package() -> Any:
    with extra("decision", f"{PACKAGE} is not installed"):
        import art.attacks.evasion
        import art.estimators.classification
    return art
