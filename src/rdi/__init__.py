"""rdi: train, attack and judge robust dynamic (multi-exit) networks.

>>> import rdi
>>> run = rdi.Run("runs/demo")                                                # doctest: +SKIP
>>> model, frame = run.network, run.bank("average").to_pandas(run.policy())   # doctest: +SKIP
>>> x_adv = rdi.attacks.MaxAverage(eps=8/255, step_size=2/255, steps=20)(model, x, y)   # doctest: +SKIP
>>> out = rdi.AdaptivePredictor(model, run.policy())(x)                    # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdi import attacks, backbones, compression, data, defenses, exits, gates, thresholds
    from rdi.adaptive import AdaptivePredictor, Prediction
    from rdi.attacks.engine import Engine
    from rdi.certifying import Certified, certify
    from rdi.direct import Crafted, attack, calibrate, evaluate
    from rdi.errors import UserError
    from rdi.evaluation import Evaluation
    from rdi.exits.net import MultiExitNet
    from rdi.exits.whole import as_multi_exit
    from rdi.exporting.runner import Runner
    from rdi.exporting.write import export
    from rdi.optim import Recipe
    from rdi.runs.folder import Run
    from rdi.runs.options import Threat
    from rdi.runs.shortcuts import load, load_thresholds, save_thresholds
    from rdi.runs.values import train
    from rdi.training_settings import Settings

__all__ = [
    "AdaptivePredictor",
    "Certified",
    "Crafted",
    "Engine",
    "Evaluation",
    "MultiExitNet",
    "Prediction",
    "Recipe",
    "Run",
    "Runner",
    "Settings",
    "Threat",
    "UserError",
    "as_multi_exit",
    "attack",
    "attacks",
    "backbones",
    "calibrate",
    "certify",
    "compression",
    "data",
    "defenses",
    "evaluate",
    "exits",
    "export",
    "gates",
    "load",
    "load_thresholds",
    "save_thresholds",
    "thresholds",
    "train",
]

_MODULES = {
    "AdaptivePredictor": "rdi.adaptive",
    "Certified": "rdi.certifying",
    "Crafted": "rdi.direct",
    "Engine": "rdi.attacks.engine",
    "Evaluation": "rdi.evaluation",
    "MultiExitNet": "rdi.exits.net",
    "Prediction": "rdi.adaptive",
    "Recipe": "rdi.optim",
    "Run": "rdi.runs.folder",
    "Runner": "rdi.exporting.runner",
    "Settings": "rdi.training_settings",
    "Threat": "rdi.runs.options",
    "UserError": "rdi.errors",
    "as_multi_exit": "rdi.exits.whole",
    "attack": "rdi.direct",
    "calibrate": "rdi.direct",
    "certify": "rdi.certifying",
    "evaluate": "rdi.direct",
    "export": "rdi.exporting.write",
    "load": "rdi.runs.shortcuts",
    "load_thresholds": "rdi.runs.shortcuts",
    "save_thresholds": "rdi.runs.shortcuts",
    "train": "rdi.runs.values",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `rdi --help` does not wait for torch."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name in __all__:
        return importlib.import_module(f"rdi.{name}")
    raise AttributeError(f"module 'rdi' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Name what is imported on first use too, for help(rdi) and completion."""
    return sorted({*globals(), *__all__})
