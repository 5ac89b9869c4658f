"""Config nodes <-> objects: the one registry of what a node may name, and the one place that builds it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import isclass, isroutine
from pathlib import Path
from typing import Any

from rdi.annotations import check_types, is_one, takes_list
from rdi.errors import UserError


@dataclass(frozen=True)
class Kind:
    """A config group's objects.

    names: canonical targets.
    inside: kinds of the nodes that they may hold.
    partial: targets that are built with `_partial_: true`, for the code that calls them to complete.
    has: the attribute that makes an object, a user's own too, one of the kind.
    """

    names: tuple[str, ...]
    inside: tuple[str, ...] = ()
    partial: bool = False
    has: str = "__call__"


def _of(module: str, names: str) -> tuple[str, ...]:
    return tuple(f"{module}.{name}" for name in names.split())


KINDS: dict[str, Kind] = {
    "backbone": Kind(
        _of("rdi.backbones", "mobilenetv2 msdnet resnet smallcnn timm_model torchvision_model"), has="blocks"
    ),
    "exits": Kind((*_of("rdi.exits", "CustomExits NoExits PaperExits"), "rdi.lean_exits.LeanExits"), ("head",)),
    "head": Kind(_of("rdi.exits", "ConvPool PoolLinear PoolMLP"), partial=True),
    "attack": Kind(
        (
            *_of(
                "rdi.attacks", "AutoAttack Average ConfidentWrong Ensemble HopSkipJump Joint MainExit MaxAverage MinMax"
            ),
            *_of("rdi.attacks", "Routed SingleExit Slowdown Soft Square Targeted"),
            "rdi.runs.surrogates.transfer",
        ),
        ("attack", "step rule"),
        has="unable",
    ),
    "corruption": Kind(_of("rdi.corruptions", "Generated Stored"), has="corrupt"),
    "step rule": Kind(_of("rdi.attacks", "APGD Sign Wasserstein"), has="walk"),
    "engine": Kind(("rdi.attacks.engine.Engine",), has="copy"),
    "defense": Kind(
        _of("rdi.defenses", "Adversarial Boosted Certified Composed Fast MinMaxAttacks Standard"),
        ("attack", "engine", "crafting", "loss term", "moving weights"),
        has="loss",
    ),
    "crafting": Kind(_of("rdi.defenses", "Blind Carried GradientSign")),
    "loss term": Kind(
        _of("rdi.defenses", "CrossEntropy DeployedDecision NeighbourDistillation OrthogonalDistillation Pairing"),
        ("score",),
    ),
    "moving weights": Kind(_of("rdi.defenses", "MinMaxWeights WeightPerturbation")),
    "compression": Kind(_of("rdi.compression", "ATMC BAP Channels L0 NoCompression Reweighted"), has="shrink"),
    "gates": Kind(_of("rdi.gates", "Gates NoGates"), has="attach"),
    "threshold": Kind(
        (
            *_of("rdi.thresholds", "AgreementRule BudgetRule EnsembleRule FixedRule PatienceRule RandomisedRule"),
            *_of("rdi.thresholds", "RiskRule ShareRule"),
            *_of("rdi.thresholds", "AgreementPolicy EnsemblePolicy PatiencePolicy RandomisedPolicy ThresholdPolicy"),
        ),
        ("threshold", "score"),
        has="fit",
    ),
    "score": Kind(_of("rdi.thresholds", "Confidence Entropy Margin"), has="higher_is_surer"),
    "data": Kind(_of("rdi.data", "ArrayFile Digits ImageFolder Shards Torchvision"), has="load"),
    "optim": Kind(("rdi.optim.Recipe",), ("optimizer",), has="steps"),
    "optimizer": Kind(
        _of("torch.optim", "ASGD Adadelta Adagrad Adam AdamW Adamax NAdam RAdam RMSprop Rprop SGD"), partial=True
    ),
    "tracking": Kind(_of("rdi.tracking", "NoTracking Wandb"), has="start"),
}
"""Kind of node -> what it may be. These names are canonical: they stand in configs, records and identities for ever."""
HOMES: dict[str, str] = {"rdi.defenses.MinMaxWeights": "rdi.attacks.simplex.MinMaxWeights"}
"""Canonical name -> dotted place of today, of what lies in another part of the package."""
_KIND_AT = {**{kind: kind for kind in KINDS}, "threshold.score": "score"}
"""Option at which a node is built -> its kind; attacks of a suite are at their own names."""
_KIND_OF = {name: kind for kind, entry in KINDS.items() for name in entry.names}


def kind_of(target: str) -> str | None:
    """Return the kind of the canonical name `target`; None for what is not ours."""
    return _KIND_OF.get(target)


def canonical(target: str) -> str:
    """Return the name that records and identities know `target` by; another one than ours as it is.

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
    """Return a plain config with every `_target_` in it under its canonical name."""
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

    node: of a composed config, or of a record that rdi.records has read and so checked.
    at: its option, for messages.
    Raises UserError for a target that cannot be imported, unknown or missing options and refused values.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise UserError(f"{at} must be a choice of its group, or a node with a _target_; got {node!r}")
    kind = _KIND_AT.get(at, "attack" if at.startswith("suite.") else None)
    _check_kinds(node, at, None if kind is None else (kind,))
    node = _renamed(node, lambda target: HOMES.get(canonical(target), target))
    check_options(node, at, set(arguments))
    try:
        built = instantiate(node, _convert_="object", **arguments)
    except UserError as error:
        raise UserError(_said(at, node, error)) from None
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise UserError(_said(at, node, cause)) from None
        _check_types(node, at)
        if isinstance(cause, REFUSALS):
            reason = (str(cause) or type(cause).__name__).splitlines()[0]
            raise UserError(f"{at}: {node['_target_']} refuses its options: {reason}") from error
        raise
    # afterwards: what a constructor says of a value says more than its type does
    _check_types(node, at)
    _check_kind(built, node, at, kind)
    _check_built(built, node, at)
    return built


def _check_kind(built: Any, node: Mapping[str, Any], at: str, kind: str | None) -> None:
    """Raise UserError where what a node made lacks what makes it one of the kind."""
    if kind is not None and not hasattr(built, has := KINDS[kind].has):
        lacks = f"{_shown(built)} has no {has}"
        raise UserError(f"{at} must be of the kind {kind}, and {node['_target_']} makes none: {lacks}")


def _check_kinds(tree: Any, at: str, kinds: tuple[str, ...] | None) -> None:
    """Raise UserError where a node is ours, and of a kind that has no place there. kinds: that have; None: any."""
    if isinstance(tree, list):
        for index, item in enumerate(tree):
            _check_kinds(item, f"{at}[{index}]", kinds)
    if not isinstance(tree, Mapping):
        return
    if isinstance(target := tree.get("_target_"), str):
        kind = kind_of(canonical(target))
        if kind is not None and kinds is not None and kind not in kinds:
            expected = f"of the kind {' or '.join(kinds)}" if kinds else "no node"
            raise UserError(f"{at} must be {expected}, and {target} is of the kind {kind}")
        if kind is not None and bool(tree.get("_partial_")) is not KINDS[kind].partial:
            remedy = "needs _partial_: true" if KINDS[kind].partial else "is built at once: leave out _partial_"
            raise UserError(f"{at}: {target} {remedy}")
        kinds = None if kind is None else KINDS[kind].inside
    for key, value in tree.items():
        _check_kinds(value, f"{at}.{key}", kinds)


def _check_built(built: Any, node: Mapping[str, Any], at: str) -> None:
    """Raise UserError where what a node in `node` made is not what the annotation of its parameter says."""
    from hydra.utils import get_object

    parameters = _parameters(get_object(node["_target_"]))
    for key, value in node.items():
        if isinstance(value, Mapping) and "_target_" in value and (inner := getattr(built, key, None)) is not None:
            if not is_one(inner, parameters[key].annotation):
                raise UserError(f"{at}.{key} cannot be what {value['_target_']} makes: {_shown(inner)}")
            _check_kind(inner, value, f"{at}.{key}", _KIND_AT.get(f"{at}.{key}"))
            _check_built(inner, value, f"{at}.{key}")


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"[:200]


REFUSALS = (TypeError, ValueError, OverflowError, ArithmeticError, LookupError)
"""Exceptions that constructors outside rdi raise for values that they cannot take."""


def _check_types(node: Any, at: str) -> None:
    """Raise UserError for an option, in a node or one inside it, that its annotation rules out."""
    for key, value in node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ():
        _check_types(value, f"{at}.{key}" if isinstance(node, Mapping) else f"{at}[{key}]")
    if isinstance(node, Mapping) and "_target_" in node:
        from hydra.utils import get_object

        options = {str(key): value for key, value in node.items() if not str(key).startswith("_")}
        check_types(options, _parameters(get_object(node["_target_"])), at)


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
        reason = " ".join((str(error) or type(error).__name__).split())
        raise UserError(f"{at}: {node['_target_']} cannot be imported and built: {reason}") from error
    options = {key for key in node if not str(key).startswith("_")}
    if unknown := sorted(map(str, options - set(parameters))):
        raise UserError(
            f"{at}: {node['_target_']} has no option {unknown[0]!r}; its options are {', '.join(sorted(parameters))}"
        )
    # a constructor would take a text for a list of its letters
    texts = [key for key in options if isinstance(node[key], str) and takes_list(parameters[key].annotation)]
    check_types({key: node[key] for key in texts}, parameters, at)
    required = {name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    if not node.get("_partial_") and (missing := sorted(required - options - given)):
        raise UserError(f"{at}: {node['_target_']} needs the option {missing[0]!r}: add {at}.{missing[0]}=...")


def _parameters(target: Any) -> dict[str, inspect.Parameter]:
    """Named parameters of a callable, those that its base classes take through **settings included."""
    parameters: dict[str, inspect.Parameter] = {}
    chain = target.__mro__ if inspect.isclass(target) else (target,)
    for function in chain:
        try:
            signature = inspect.signature(function, eval_str=True)
        except NameError:  # annotations that only a type checker can read
            signature = inspect.signature(function)
        for name, parameter in signature.parameters.items():
            if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
                parameters.setdefault(name, parameter)
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()):
            break
    return parameters


def describe(value: Any) -> Any:
    """Return the node that `build` makes an equal object from; a plain value as it is, a sequence as a list.

    value: an object that keeps every constructor argument in an attribute of the same name; a function or class, with
        or without arguments given by functools.partial, becomes the node that calls it.
    Raises UserError for an object that does not keep its arguments.
    """
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence):
        return [describe(item) for item in value]
    if isinstance(value, partial) or isroutine(value) or isclass(value):
        function = value.func if isinstance(value, partial) else value
        given = bound_arguments(value) if isinstance(value, partial) else {}
        return {"_target_": name_of(function), "_partial_": True, **{key: describe(one) for key, one in given.items()}}
    kind, arguments = type(value), {}
    for name in _parameters(kind):
        if not hasattr(value, name):
            raise UserError(f"{kind.__name__} does not keep its argument {name} in an attribute, so no record names it")
        arguments[name] = describe(getattr(value, name))
    return {"_target_": name_of(kind), **arguments}


def name_of(value: Any) -> str:
    """Return the canonical name of a class or function."""
    # an optimiser of torch lies a module deeper than it is called
    public = ".".join([*value.__module__.split(".")[:2], value.__qualname__])
    return public if public in _KIND_OF else canonical(f"{value.__module__}.{value.__qualname__}")


def bound_arguments(value: partial[Any]) -> dict[str, Any]:
    """Return the arguments that a partial function was given, by name."""
    return dict(inspect.signature(value.func).bind_partial(*value.args, **value.keywords).arguments)
