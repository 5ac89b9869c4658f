"""Attack a run with a suite: a logits bank of the clean split and of every attack."""

from __future__ import annotations

import logging
from typing import Any

from rdi import signals
from rdi.attacks.base import Attack
from rdi.attacks.transfer import Transfer
from rdi.banks import CLEAN, LogitsBank
from rdi.checks import choice
from rdi.config import build
from rdi.errors import UserError
from rdi.runs import preflight
from rdi.runs.assistance import assisted
from rdi.runs.crafting import Crafting, accuracies, make_bank, refuse_other
from rdi.runs.folder import Run
from rdi.runs.options import Attack as Options
from rdi.threats import ThreatModel, bank_name, in_order, trained
from rdi.thresholds import Policy
from rdi.tracking import Wandb

logger = logging.getLogger("rdi")


def build_suite(nodes: dict[str, dict[str, object]], *, single: bool = False) -> dict[str, Attack]:
    """Name -> attack, under the name that the attack goes by; without those of a suite that know no such balls.

    single: nodes hold the option `attack`, not `suite`. Raises UserError for one that cannot be run.
    """
    built: dict[str, Attack] = {
        name: build(node, "attack" if single else f"suite.{name}") for name, node in nodes.items()
    }
    unable = {name: text for name, attack in built.items() if (text := attack.unable()) is not None}
    if unable and (single or len(unable) == len(built)):
        raise UserError(next(iter(unable.values())))
    for name, text in unable.items():
        logger.warning("%s is left out: %s", name, text)
    return {attack.label(name): attack for name, attack in built.items() if name not in unable}


def attack_run(run: Run, attacks: dict[str, Attack], options: Options) -> None:
    """Make the banks of `attacks` as the options say, and tell the tracking what came of them.

    Raises UserError, before the first attack, for options that do not fit the run.
    """
    split = choice("split", options.split, ("test", "validation", "calibration"))
    tracking: Wandb = build(options.tracking, "tracking")
    if run.load().data.memory is not None:
        logger.info(run.data.memory)
    how = Crafting(
        seed=run.manifest.seed if options.seed is None else options.seed,
        batch_size=options.batch_size,
        engine=build(options.engine, "engine"),
        overwrite=options.overwrite,
        label=options.label,
    )
    with tracking.start(run.path, "run", run.manifest.config) as log:
        run_suite(run, attacks, how, options.samples, options.thresholds, split)
        values: dict[str, Any] = {}
        for name, path in run.folder.banks(split).items():
            bank = LogitsBank.load(path)
            facts = {key: getattr(bank.manifest, key) for key in ("samples", "seconds", "linf")}
            facts["exit_accuracy"] = accuracies(bank)
            values |= {f"attack/{split}/{name}/{key}": value for key, value in facts.items()}
        log.summary(values)


def aimed(
    attacks: dict[str, Attack], policy: Policy, thresholds: str, exits: int, own: ThreatModel, label: str | None = None
) -> dict[str, Attack]:
    """Bind the attacks to a policy and take those on each exit one by one: name of the bank -> attack, in order.

    own: the run's threat model. label: see threats.bank_name.
    """
    found = {}
    for name, attack in attacks.items():
        bound = attack.for_policy(policy)
        aim = None if bound is attack else thresholds
        for suffix, one in bound.per_exit(exits).items():
            found[bank_name(name + suffix, ThreatModel(one.eps, one.norm), own, aim, label)] = one
    return {name: found[name] for name in in_order(found)}


def run_suite(
    run: Run,
    attacks: dict[str, Attack],
    how: Crafting,
    samples: int | None,
    thresholds: str | None = None,
    split: str = "test",
) -> None:
    """Make the banks of the clean split and of every attack on a sample of `samples` of its images (None: all).

    thresholds: name of those that adaptive attacks aim at; None: those that the run was trained with. Raises
    UserError before the first attack when an option does not fit the network or the data.
    """
    data, own = run.data, trained(run.manifest)
    name = thresholds or run.manifest.choices["threshold"]
    policy = run.policy(name)
    for one, attack in attacks.items():
        if isinstance(attack, Transfer) and attack.surrogate.checkpoint_sha256 == run.manifest.checkpoint_sha256:
            raise UserError(
                f"{one}: {attack.surrogate.name} is the attacked network itself: attack it without transfer, or give "
                "another run as attack.surrogate"
            )
    attacks = aimed(attacks, policy, name, run.network.exits, own, how.label)
    # tables leave out the name of the thresholds that they are of, and two banks would share a row
    if how.label is not None and (how.label == name or run.folder.thresholds(how.label).is_file()):
        raise UserError(f"label={how.label} is the name of thresholds of {run.folder.path}: choose another word")
    images = data.split(split)
    if samples is not None and samples > len(images):
        logger.info("samples=%d: all %d %s images are attacked, there are no more", samples, len(images), split)
    preflight.suite(run.network, attacks, images, samples=samples, batch_size=how.batch_size)
    chosen = images.sample(samples)
    for name, attack in attacks.items():
        refuse_other(run, chosen, name, attack, how)
    ranks = assisted(run)
    with signals.stop_on_signals(patient=not ranks.alone) as stop:
        if not run.folder.bank("calibration", CLEAN).is_dir():
            make_bank(run, data.calibration, CLEAN, None, how)
        make_bank(run, images, CLEAN, None, how, stop, ranks)
        for name, attack in attacks.items():
            make_bank(run, chosen, name, attack, how, stop, ranks)
