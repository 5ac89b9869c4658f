"""AutoAttack by its published package, on views of a multi-exit network."""

from __future__ import annotations

import copy
import importlib.metadata
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from rdi.attacks.base import Attack, Plain
from rdi.attacks.views import ViewAttack
from rdi.checks import LINF, choice
from rdi.errors import UserError, extra
from rdi.exits.net import MultiExitNet

PACKAGE = "pyautoattack"
VERSIONS = ("standard", "plus")
"""Versions of the package; its "rand" is for networks with random outputs."""
THEIRS = {LINF: "Linf", "l2": "L2", "l1": "L1"}
"""Norms as the package names them."""
PARTS = {"apgd-ce": 2, "apgd-dlr": 3, "apgd-t": 10, "fab": 2, "fab-t": 10, "square": 2}
"""Component attacks -> least number of classes; the targeted ones aim at nine wrong classes."""

logger = logging.getLogger("rdi")


@dataclass(kw_only=True)
class AutoAttack(ViewAttack):
    """AutoAttack (Croce and Hein, ICML 2020) at its published settings, unchanged, by the package `pyautoattack`.

    As published, a sample that the view gets wrong from the start keeps its image; the verdict is the deployed policy's
    as always.

    version: "standard" (APGD-CE, APGD-T, FAB-T, Square with 5000 queries) or "plus".
    attacks: run only these of its parts, at the settings of the version; such a set is not AutoAttack and is named by
        its parts.
    target, policy: as of ViewAttack.
    Raises UserError without the package, for an unknown part, and when the network has too few classes.
    """

    version: str = "standard"
    attacks: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("attack.version", self.version, VERSIONS)
        if self.attacks is not None:
            if not self.attacks or len(set(self.attacks)) < len(self.attacks):
                raise UserError(f"attack.attacks must list one or more different parts, got {self.attacks}")
            for part in self.attacks:
                choice("attack.attacks", part, tuple(PARTS))
        _package()
        self._dry = False
        self._warned: set[str] = set()

    def brief(self) -> Attack:
        """Return a copy that checks network and images, and crafts nothing."""
        short = copy.copy(self)
        short._dry = True
        return short

    def label(self, name: str) -> str:
        """Return the name for banks: a shortened set is never called AutoAttack."""
        return name if self.attacks is None else re.sub("auto[-_]?attack", "+".join(self.attacks), name, flags=re.I)

    def identity(self) -> dict[str, Plain]:
        """Return name, settings and the package's version."""
        settings = super().identity()
        package = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
        if self.attacks is None:
            del settings["attacks"]
            return {**settings, "package": package}
        parts = "+".join(self.attacks)
        return {**settings, "attack": parts, "attacks": parts, "package": package}

    def run(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Craft x_adv_NCHW on the view of the network."""
        view = self.view(model)
        # the package flattens with view(), which channels-last images do not allow
        images = x.float().contiguous()
        seed = int(torch.randint(2**31 - 1, (), generator=generator, device=generator.device))
        with _alone(self._warned):
            package = _package().AutoAttack(
                view, norm=THEIRS[self.norm], eps=self.eps, seed=seed, version=self.version, device=x.device
            )
            package.verbose = False
            if self.attacks is not None:
                package.attacks_to_run = list(self.attacks)
            self._check_classes(view, images, package.attacks_to_run)
            if self._dry:
                return x
            x_adv, _ = package.run_standard_evaluation(images, y, batch_size=max(1, len(x)))
        return torch.as_tensor(x_adv).to(x)

    def _check_classes(self, view: torch.nn.Module, x: torch.Tensor, parts: list[str]) -> None:
        with torch.no_grad():
            classes = view(x[:1]).shape[1]
        if lacking := [part for part in parts if PARTS[part] > classes]:
            able = ",".join(part for part, least in PARTS.items() if least <= classes)
            raise UserError(
                f"{lacking[0]} needs at least {PARTS[lacking[0]]} classes, this network has {classes}: "
                f"take attack.attacks=[{able}]"
            )


def _package() -> Any:
    with extra("autoattack", "AutoAttack is not installed"):
        import pyautoattack
    return pyautoattack


@contextmanager
def _alone(warned: set[str]) -> Iterator[None]:
    """Keep to itself what the package does to the process: torch's global generators, its log, the trace function.

    Its warnings (of its checks of the network) go to our log, each kind once per set `told`.
    """
    theirs = logging.getLogger("auto-attack")
    before = theirs.level, theirs.propagate, theirs.handlers[:]
    trace = sys.gettrace()
    # it seeds the CPU and every GPU
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    theirs.setLevel(logging.WARNING)
    theirs.propagate, theirs.handlers = False, [_Forward(warned)]
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        theirs.setLevel(before[0])
        theirs.propagate, theirs.handlers = before[1:]
        sys.settrace(trace)


class _Forward(logging.Handler):
    def __init__(self, warned: set[str]) -> None:
        super().__init__()
        self.warned = warned

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().partition(" See flags_doc")[0]
        kind = re.sub(r"[\d.]+", "", text)
        if kind not in self.warned:
            self.warned.add(kind)
            logger.warning("%s: %s", PACKAGE, text)
