"""Config nodes <-> objects: the one registry of what a node may name, and the one place that builds it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rdi.errors import UserError


@dataclass(frozen=True)
class Kind:
    """What one config group builds. names: canonical targets; inside: kinds of the nodes that they may hold.

    partial: targets that are built with `_partial_: true`, for the code that calls them to complete.
    """

    names: tuple[str, ...]
    inside: tuple[str, ...] = ()
    partial: bool = False


def _of(module: str, names: str) -> tuple[str, ...]:
    return tuple(f"{module}.{name}" for name in names.split())


KINDS: dict[str, Kind] = {
    "backbone": Kind(_of("rdi.backbones", "mobilenetv2 resnet smallcnn")),
    "exits": Kind((*_of("rdi.exits", "CustomExits NoExits PaperExits"), "rdi.lean_exits.LeanExits"), ("head",)),
    "head": Kind(_of("rdi.exits", "ConvPool PoolLinear PoolMLP"), partial=True),
    "attack": Kind(
        (
            *_of("rdi.attacks", "AutoAttack Average ConfidentWrong Joint MainExit MaxAverage Routed SingleExit"),
            *_of("rdi.attacks", "Slowdown Soft Square"),
            "rdi.cli._transfer.transfer",
        ),
        ("attack", "step rule"),
    ),
    "step rule": Kind(_of("rdi.attacks", "APGD Sign Wasserstein")),
    "engine": Kind(("rdi.attacks.engine.Engine",)),
    "defense": Kind(
        _of("rdi.defenses", "Adversarial Composed Fast Standard"),
        ("attack", "engine", "crafting", "loss term", "moving weights"),
    ),
    "crafting": Kind(_of("rdi.defenses", "Carried OneStep")),
    "loss term": Kind(
        _of("rdi.defenses", "CrossEntropy DeployedDecision NeighbourDistillation OrthogonalDistillation Pairing"),
        ("score",),
    ),
    "moving weights": Kind(_of("rdi.defenses", "MinMaxWeights WeightPerturbation")),
    "compression": Kind(_of("rdi.compression", "ATMC Channels L0 NoCompression")),
    "threshold": Kind(
        (
            *_of("rdi.thresholds", "BudgetRule EnsembleRule FixedRule PatienceRule RandomisedRule RiskRule ShareRule"),
            *_of("rdi.thresholds", "EnsemblePolicy PatiencePolicy RandomisedPolicy ThresholdPolicy"),
        ),
        ("threshold", "score"),
    ),
    "score": Kind(_of("rdi.thresholds", "Confidence Entropy Margin")),
    "data": Kind(_of("rdi.data", "Digits ImageFolder Torchvision")),
    "optim": Kind(("rdi.optim.Recipe",), ("optimizer",)),
    "optimizer": Kind(
        _of("torch.optim", "ASGD Adadelta Adagrad Adam AdamW Adamax NAdam RAdam RMSprop Rprop SGD"), partial=True
    ),
    "tracking": Kind(_of("rdi.tracking", "NoTracking Wandb")),
}
"""Kind of node -> what it may be. These names are canonical: they stand in configs, records and identities for ever."""
HOMES: dict[str, str] = {}
"""Canonical name -> dotted place of today, of what can no longer be imported under its canonical name."""
_KIND_OF = {name: kind for kind, entry in KINDS.items() for name in entry.names}


def kind_of(target: str) -> str | None:
    """The kind of the canonical name `target`; None for what is not ours."""
    return _KIND_OF.get(target)


def canonical(target: str) -> str:
    """The name that records and identities know `target` by; another one than ours as it is.

    Wherever in its part of the package something lies, and wherever HOMES says that it has gone, its name is the same.
    """
    if target in _KIND_OF:
        return target
    if moved := next((name for name, home in HOMES.items() if home == target), None):
        return moved
    words = target.split(".")
    public = ".".join([*words[:2], words[-1]])
    return public if words[0] == "rdi" and public in _KIND_OF else target


def canonised(tree: Any) -> Any:
    """A plain config with every `_target_` in it under its canonical name."""
    return _renamed(tree, canonical)


def _renamed(tree: Any, rename: Any) -> Any:
    if isinstance(tree, Mapping):
        return {
            key: rename(value) if key == "_target_" and isinstance(value, str) else _renamed(value, rename)
            for key, value in tree.items()
        }
    return [_renamed(item, rename) for item in tree] if isinstance(tree, list | tuple) else tree


def build(node: Any, at: str, **arguments: Any) -> Any:
    """Build what the node's `_target_` names, with further keyword arguments.

    node: of a composed config, or of a record that rdi.records has read and so checked; at: its option, for messages.
    Raises UserError for a target that cannot be imported, unknown or missing options and refused values.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise UserError(f"{at} must be a choice of its group, or a node with a _target_; got {node!r}")
    node = _renamed(node, lambda target: HOMES.get(canonical(target), target))
    check_options(node, at, set(arguments))
    try:
        return instantiate(node, _convert_="object", **arguments)
    except UserError as error:
        raise UserError(_said(at, node, error)) from None
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise UserError(_said(at, node, cause)) from None
            cause = cause.__cause__
        raise


def _said(at: str, node: Mapping[str, Any], error: UserError) -> str:
    """The text of an error of the library, which calls options by their group, with the place where they stand."""
    kind = kind_of(canonical(node["_target_"]))
    return str(error) if kind is None or kind == at else re.sub(rf"\b{kind}\.(?=\w)", f"{at}.", str(error))


def check_options(node: Any, at: str, given: set[str]) -> None:
    """Bind the options of a node, and of the nodes in it, to the signature of its target. Raises UserError."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            check_options(item, f"{at}[{index}]", set())
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        check_options(value, f"{at}.{key}", set())
    if "_target_" not in node:
        return
    from hydra.utils import get_object

    try:
        parameters = _parameters(get_object(node["_target_"]))
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{at}: {node['_target_']} cannot be imported: {reason}") from error
    options = {key for key in node if not str(key).startswith("_")}
    if unknown := sorted(map(str, options - set(parameters))):
        raise UserError(
            f"{at}: {node['_target_']} has no option {unknown[0]!r}; its options are {', '.join(sorted(parameters))}"
        )
    required = {name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    if not node.get("_partial_") and (missing := sorted(required - options - given)):
        raise UserError(f"{at}: {node['_target_']} needs the option {missing[0]!r}: add {at}.{missing[0]}=...")


def _parameters(target: Any) -> dict[str, inspect.Parameter]:
    """Named parameters of a callable, those that its base classes take through **settings included."""
    parameters: dict[str, inspect.Parameter] = {}
    chain = target.__mro__ if inspect.isclass(target) else (target,)
    for function in chain:
        signature = inspect.signature(function)
        for name, parameter in signature.parameters.items():
            if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
                parameters.setdefault(name, parameter)
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()):
            break
    return parameters


def describe(value: Any) -> Any:
    """The node that `build` makes an equal object from; a plain value as it is, a sequence as a list.

    An object must keep every constructor argument in an attribute of the same name.
    """
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, Sequence):
        return [describe(item) for item in value]
    kind = type(value)
    arguments = {name: describe(getattr(value, name)) for name in inspect.signature(kind).parameters}
    return {"_target_": canonical(f"{kind.__module__}.{kind.__qualname__}"), **arguments}
