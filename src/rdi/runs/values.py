"""Train on values from Python: a network, images, a defense and an optimiser, into a run folder or without one."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdi.attacks import MaxAverage
from rdi.backbones.base import Backbone
from rdi.checks import LINF, instance
from rdi.compression import Compression, NoCompression
from rdi.config import describe, kind_of
from rdi.data import DataSet, Source, Split, to_float
from rdi.defenses import Defense
from rdi.errors import UserError
from rdi.exits import MultiExitNet, PaperExits
from rdi.exits.attach import Attach
from rdi.exits.net import checked, fitting
from rdi.folders import RunFolder
from rdi.gates import NoGates
from rdi.optim import Recipe
from rdi.runs import compressed, devices, networks, preflight
from rdi.runs import train as runs
from rdi.runs.folder import Run
from rdi.runs.options import MISSING, Threat, Train
from rdi.runs.store import MemoryStore
from rdi.seeds import generator
from rdi.text import snake_case
from rdi.thresholds import Entropy, Rule, ShareRule
from rdi.tracking import NoTracking
from rdi.training import fit
from rdi.training_settings import Settings
from rdi.trust import targets, trusted

Network = MultiExitNet | Callable[..., Backbone]
"""A network, or the backbone of one: a function (shape, classes) -> Backbone, as rdi.backbones.smallcnn."""
Images = DataSet | Source | tuple[torch.Tensor, torch.Tensor]
"""A data set, split or yet to be loaded; or images (N, C, H, W), uint8, and labels (N,), int64."""
HELD_OUT = 10
"""One of so many images of a plain pair of tensors is held out."""
TEST_STEPS = 20
"""Gradient steps of the attacks that judge, where nobody says how many."""


@torch.enable_grad()
def train(
    model: Network,
    data: Images,
    defense: Defense,
    recipe: Recipe,
    *,
    exits: Attach | None = None,
    gates: NoGates | None = None,
    compression: Compression | None = None,
    settings: Settings | None = None,
    run: str | Path | None = None,
    threshold: Rule | None = None,
    threat: Threat | None = None,
    device: str = "auto",
) -> MultiExitNet:
    """Train a network, and return it with the weights that did best on held-out images (or the last), in eval mode.

    model: a MultiExitNet, which is left as it is: training begins with a copy of it; or a function (shape, classes) ->
        Backbone, as rdi.backbones.smallcnn or functools.partial(rdi.backbones.resnet, depth=38), which gets `exits`.
    data: a Source, as rdi.data.Digits(...), a DataSet that one has loaded, or (images, labels): images (N, C, H, W),
        uint8, labels (N,), int64, of which a tenth is held out.
    defense: training loss, as rdi.defenses.Adversarial(attack=rdi.attacks.MaxAverage(...)).
    recipe: optimiser, batch size, length and learning rate.
    exits: what puts exits on a backbone; None: PaperExits().
    gates: as rdi.gates.Gates(channels=True, share=0.7), for a ResNet; None: none. A network that has gates already
        keeps them, and is trained to their share.
    compression: as rdi.compression.L0(ratio=0.1); None: none. One with a start needs `run`; without `run`,
        training starts from `model`.
    settings: seed, precision and the like; None: Settings(seed=0). A Source says itself how images are augmented.
    run: folder to train into, which needs a backbone and a Source, as both are made again from it; it is a run like
        those of the command line: a stopped one goes on, a finished one of these values is opened.
        None: everything stays in memory.
    threshold: rule of the run's exit policy; None: ShareRule(score=Entropy()).
    threat: what the run is attacked with from then on; None: the ball of the defense's attack, in 20 steps or more.
    device: "auto" (CUDA where there is one), "cpu", "cuda", ...
    Raises UserError for values that do not fit together, and for a run folder that holds something else.
    """
    if torch.is_inference_mode_enabled():
        raise UserError("training follows gradients, and torch.inference_mode() has none: call it outside of it")
    if not isinstance(model, torch.nn.Module):
        _check_backbone(model)
    instance("defense", defense, Defense, "rdi.defenses.Adversarial(attack=rdi.attacks.MaxAverage(...))")  # type: ignore[type-abstract]
    instance("recipe", recipe, Recipe, "rdi.Recipe(optimizer=..., batch_size=128, lr=0.1, epochs=10)")
    settings = instance("settings", settings or Settings(seed=0), Settings, "rdi.Settings(seed=0)")
    gates = instance("gates", gates or NoGates(), NoGates, "rdi.gates.Gates(channels=True, share=0.7)")
    compression = instance("compression", compression or NoCompression(), Compression, "rdi.compression.L0(ratio=0.1)")
    exits = exits or PaperExits()
    if isinstance(exits, type) or not callable(exits):
        raise UserError(f"exits must put exits on a backbone, as rdi.exits.PaperExits() does, got {exits!r}")
    if isinstance(data, Source):
        if settings.augment not in ("none", data.augment):
            raise UserError(
                f"data says augment={data.augment!r}, settings {settings.augment!r}: say it to the data alone"
            )
        settings = replace(settings, augment=data.augment)
    if run is None:
        return _in_memory(model, data, defense, recipe, exits, gates, compression, settings, device)
    if isinstance(model, torch.nn.Module) or not callable(model):
        raise UserError(
            f"run={run} keeps what makes its network again: give a function that returns a backbone, as "
            f"rdi.backbones.smallcnn, and exits=...; got {type(model).__name__}"
        )
    if not isinstance(data, Source):
        raise UserError(
            f"run={run} keeps where its images come from: give a Source, as rdi.data.ArrayFile(...) of a file that "
            f"numpy.savez(FILE, images=..., labels=...) wrote; got {type(data).__name__}"
        )
    rule = instance("threshold", threshold or ShareRule(score=Entropy()), Rule, "rdi.thresholds.ShareRule(...)")  # type: ignore[type-abstract]
    ball = instance("threat", threat or _threat(defense), Threat, "rdi.Threat(eps=0.1, step_size=0.02, steps=10, ...)")
    config = config_of(run, model, exits, gates, compression, data, defense, recipe, settings, rule, ball, device)
    choices = {
        "data": data.name,
        "backbone": (model.func if isinstance(model, partial) else model).__name__,
        "exits": snake_case(type(exits).__name__).removesuffix("_exits"),
        "defense": snake_case(type(defense).__name__),
        "attack": config["attack"]["_target_"].rpartition(".")[2],
        "threshold": snake_case(type(getattr(rule, "score", rule)).__name__),
        "optim": recipe.schedule,
        "compression": "none" if type(compression) is NoCompression else snake_case(type(compression).__name__),
        "gates": "none" if type(gates) is NoGates else snake_case(type(gates).__name__),
        "tracking": "none",
    }
    folder = RunFolder(run)
    with trusted(config=config), torch.random.fork_rng():
        with folder.hold():
            runs.train(folder, config, choices, changed=True, skip_finished=True, data_root=None)
        return Run.open(folder.path, device).network


def _in_memory(
    model: Network,
    given: Images,
    defense: Defense,
    recipe: Recipe,
    exits: Attach,
    gates: NoGates,
    compression: Compression,
    settings: Settings,
    device: str,
) -> MultiExitNet:
    """Train without files."""
    if compression.start is not None:
        raise UserError(f"compression.start={compression.start} is read with run=... only: without, model is the start")
    where = devices.select(device)
    data = given.load() if isinstance(given, Source) else given
    if not isinstance(data, DataSet):
        if not isinstance(data, tuple | list) or len(data) != 2:
            raise UserError(f"data must be a Source, a DataSet, or (images, labels), got {type(data).__name__}")
        data = _held_out(*data)
    if isinstance(model, torch.nn.Module):
        net = copy.deepcopy(checked(model))
    else:
        net = networks.fresh(model, exits, data.shape, data.classes, settings.seed)
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise UserError("nothing of the model can be trained: all of its parameters have requires_grad=False")
    like = next(net.parameters())
    with fitting(data.shape), torch.no_grad():
        net.eval()(to_float(data.train.images[:1].to(like.device)).to(like.dtype))
    if not net.gated:
        net = networks.with_gates(net, gates, data.shape, settings.seed)
    compressed.refuse_gates(compression, gated=net.gated)
    compression.budget(net)
    compression.shrink(net, data.shape)
    preflight.training(net, defense, recipe, settings, data, where, gates=gates)
    store = MemoryStore()
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # feeds dropout
        selection = fit(
            net.to(where),
            defense,
            data.train.to(where),
            data.calibration.to(where),
            recipe,
            settings,
            store,
            compression=compression,
            gates=gates,
        )
    net.load_state_dict(store.weights[selection.kept])
    return net.to(memory_format=torch.contiguous_format).eval()


def _check_backbone(model: object) -> None:
    """Raise UserError unless `model` can be called as the function of a backbone is."""
    try:
        if callable(model) and not isinstance(model, type):
            inspect.signature(model).bind(shape=(), classes=2)
            return
    except (TypeError, ValueError):
        pass
    raise UserError(
        "model must be a MultiExitNet, or a function (shape, classes) that returns a backbone, as "
        f"rdi.backbones.smallcnn; got {model!r}"
    )


def _held_out(images: torch.Tensor, labels: torch.Tensor) -> DataSet:
    """Split images into some to train on and some to judge by. Raises UserError for what is no pair of these."""
    if not (isinstance(images, torch.Tensor) and images.dtype == torch.uint8 and images.ndim == 4 and len(images) > 1):
        raise UserError("images must be a uint8 tensor of shape (N, C, H, W), of two images at least")
    if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise UserError(f"labels must be an int64 tensor of {len(images)} labels")
    if int(labels.min()) < 0:
        raise UserError(f"labels must be at least 0, got {int(labels.min())}")
    order = torch.randperm(len(images), generator=generator("cpu", 0, "held out")).numpy()
    count = -(-len(images) // HELD_OUT)
    images, labels = images.cpu(), labels.cpu()

    def split(name: str, rows: np.ndarray) -> Split:
        rows = np.sort(rows)
        return Split(name, images[rows], labels[rows], rows)

    return DataSet(
        "arrays",
        train=split("train", order[count:]),
        calibration=split("calibration", order[:count]),
        validation=split("validation", order[:0]),
        test=split("test", order[:0]),
        class_names=tuple(map(str, range(int(labels.max()) + 1))),
        fingerprint="",
    )


def config_of(
    run: str | Path,
    backbone: Callable[..., Backbone],
    exits: Attach,
    gates: NoGates,
    compression: Compression,
    data: Source,
    defense: Defense,
    recipe: Recipe,
    settings: Settings,
    rule: Rule,
    threat: Threat,
    device: str,
) -> dict[str, Any]:
    """Return the config of `rdi train` that makes these very objects.

    Raises UserError for an object that cannot be made again from the name of its class and its arguments.
    """
    ball = threat if threat.norm != MISSING else replace(threat, norm=LINF)
    judge = MaxAverage(eps=ball.eps, norm=ball.norm, step_size=ball.step_size, steps=ball.steps)
    values = {
        "backbone": backbone,
        "exits": exits,
        "gates": gates,
        "compression": compression,
        "attack": defense.attack or judge,
        "defense": defense,
        "threshold": rule,
        "data": data,
        "optim": recipe,
        "tracking": NoTracking(),
    }
    nodes = {key: describe(value) for key, value in values.items()}
    nodes["backbone"].pop("_partial_", None)
    base = asdict(Train(run=str(run), device=device, threat=ball))
    kept = {key: value for key, value in asdict(settings).items() if key in base}
    config = {**base, **nodes, **kept}
    for target in targets(config):
        _check_importable(target)
    return config


def _check_importable(target: str) -> None:
    """Raise UserError for a class or function that no other process could find."""
    module, _, name = target.rpartition(".")
    if module.startswith("rdi.") and kind_of(target) is None:
        raise UserError(f"{target} cannot be named by a run folder: train without run=..., or with another choice")
    if "<" in target or module == "__main__" or not hasattr(sys.modules.get(module), name):
        raise UserError(
            f"{name} is not part of a module that another process could import, so no run folder can name it: put it "
            "into a file of its own on PYTHONPATH and import it from there"
        )


def _threat(defense: Defense) -> Threat:
    """Return the ball of the defense's attack. Raises UserError where there is none."""
    attack = defense.attack
    step_size, steps = getattr(attack, "step_size", None), getattr(attack, "steps", None)
    if attack is None or step_size is None or steps is None:
        raise UserError(
            "threat=rdi.Threat(eps=..., step_size=..., steps=..., test_steps=...) is needed: this defense has no "
            "attack that says what the run should be attacked with"
        )
    return Threat(eps=attack.eps, norm=attack.norm, step_size=step_size, steps=steps, test_steps=max(TEST_STEPS, steps))
