"""Check the evaluation of a run itself: attack it in ways whose outcome is known if the attacks work."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rdi import health
from rdi.attacks import Average, ConfidentWrong, Soft
from rdi.checks import LINF, distance, integer, number
from rdi.config import build
from rdi.errors import Interrupted, UserError
from rdi.folders import RunFolder
from rdi.records import BankManifest, Check, HealthRecord, Plain, read, write
from rdi.runs import provenance
from rdi.runs.certify import certified
from rdi.runs.folder import Run
from rdi.runs.options import Health
from rdi.threats import configured, trained

logger = logging.getLogger("rdi")
QUICK = {"samples": 32, "restarts": 2, "queries": 50, "draws": 24, "test_steps": 10}


def check_run(run: Run, options: Health) -> HealthRecord:
    """Check a run as the options say and store the record; what is said on the way is a line per check.

    Raises UserError for a policy without thresholds to climb through, and for values out of range.
    """
    folder, manifest = run.folder, run.manifest
    name = options.thresholds or manifest.choices["threshold"]
    stored = run.policy(name)
    policy = stored.deterministic()
    if policy.thresholds() is None:
        raise UserError(
            f"rdi health climbs through the thresholds of a policy, and {name} has none ({stored}): choose others "
            "with thresholds=..."
        )
    if policy.draws != stored.draws:
        logger.info("%s: %s is checked at its middle thresholds: %s", folder.path, name, policy)
    device, net, data = run.device, run.network, run.data
    seed = manifest.seed if options.seed is None else options.seed
    static, adaptive = attacks(options)
    evaluation = health.Evaluation(
        net=net,
        policy=policy,
        split=data.test.sample(options.samples).to(device),
        static=static,
        adaptive=adaptive,
        seed=integer("seed", seed, 0),
        batch_size=integer("batch_size", options.batch_size, 1),
        engine=build(options.engine, "engine"),
    )
    # before the checks: the checkout may change while they run
    began, started, environment = time.perf_counter(), provenance.now(), provenance.environment(device)
    claims, trials = certified(run, policy)
    checks = examine(
        evaluation, extent(options), stored_banks(folder), lambda: health.certified(evaluation, claims, trials)
    )
    record = HealthRecord(
        run=folder.name,
        data=data.name,
        split=data.test.name,
        samples=len(evaluation.split),
        seed=evaluation.seed,
        threshold=name,
        values=policy.values,
        settings=settings(options, evaluation),
        checkpoint_sha256=manifest.checkpoint_sha256 or "",
        environment=environment,
        started=started,
        seconds=time.perf_counter() - began,
        checks=tuple(checks),
    )
    write(record_file(run, record), record)
    return record


def record_file(run: Run, record: HealthRecord) -> Path:
    """Return the file of a record of a run; that of another threat model than its own lies beside it."""
    threat = configured(record.settings)
    return run.folder.health(record.threshold, None if threat == trained(run.manifest) else threat)


def hurry(options: Health, typed: set[str]) -> None:
    """With quick=true, lower what was not typed; fewer steps are larger ones, or they would not cross the ball.

    options: with the whole threat model.
    """
    if not options.quick:
        return
    threat: Any = options.threat
    for key, value in QUICK.items():
        node, name = (threat, f"threat.{key}") if key == "test_steps" else (options, key)
        if name not in typed:
            setattr(node, key, min(getattr(node, key), value))
    if not {"threat.test_steps", "threat.step_size"} & typed and threat.step_size is not None:
        threat.step_size = min(max(threat.step_size, 2.5 * threat.eps / threat.test_steps), threat.eps)


def attacks(options: Health) -> tuple[Average, list[Soft | ConfidentWrong]]:
    """Return the static attack, and the adaptive ones. Raises UserError for an empty ball."""
    threat: Any = options.threat
    if distance("threat.eps", threat.eps, threat.norm, open_low=True) and threat.step_size is None:
        raise UserError("threat.step_size is missing: give it in pixel units")
    ball = {"eps": threat.eps, "norm": threat.norm, "step_size": threat.step_size, "steps": threat.test_steps}
    adaptive: list[Soft | ConfidentWrong] = [Soft(**ball)]
    if not options.quick:
        adaptive.append(ConfidentWrong(**ball))
    return Average(**ball), adaptive


def extent(options: Health) -> health.Extent:
    """Build how thorough the checks are. Raises UserError for values out of range."""
    return health.Extent(
        steps=options.threat.test_steps or 1,
        restarts=integer("restarts", options.restarts, 2),
        queries=integer("queries", options.queries, 1),
        draws=integer("draws", options.draws, 8),
        large_eps=number("large_eps", options.large_eps, 0.5, 1),
    )


def examine(
    evaluation: health.Evaluation,
    how: health.Extent,
    stored: dict[str, tuple[float, float]],
    certificates: Callable[[], Check],
) -> list[Check]:
    """Run all checks; each is logged in a line."""
    parts: tuple[Callable[[], Check | list[Check]], ...] = (
        lambda: health.repeatable(evaluation),
        lambda: health.enough(evaluation),
        lambda: health.zero_gradients(evaluation),
        lambda: health.order(evaluation),
        lambda: health.steps(evaluation, how),
        lambda: health.restarts(evaluation, how),
        lambda: health.eps_sweep(evaluation, how),
        lambda: health.black_box(evaluation, how),
        lambda: health.planted_weakness(evaluation, how),
        lambda: health.silent_successes(evaluation),
        lambda: health.rejudged(evaluation),
        lambda: health.gates(evaluation),
        # last: these look at the images of all the others
        lambda: health.ball_and_range(evaluation, stored),
        certificates,
    )
    checks: list[Check] = []
    try:
        for part in parts:
            found = part()
            for check in found if isinstance(found, list) else [found]:
                checks.append(check)
                logger.info("%s: %s: %s", check.name, "ok" if check.passed else "RED", check.figure)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped after {len(checks)} checks; the same command starts again") from None
    return checks


def stored_banks(folder: RunFolder) -> dict[str, tuple[float, float]]:
    """Name -> (largest perturbation, eps) of the attacks whose logits the run holds."""
    manifests = {name: read(path / "manifest.json", BankManifest) for name, path in folder.banks("test").items()}
    return {
        name: (manifest.linf if manifest.length is None else manifest.length, float(manifest.settings["eps"] or 0))
        for name, manifest in manifests.items()
        if "eps" in manifest.settings
    }


def settings(options: Health, evaluation: health.Evaluation) -> dict[str, Plain]:
    """Return what determines the figures, for the record."""
    return {
        "eps": options.threat.eps,
        **({} if options.threat.norm == LINF else {"norm": options.threat.norm}),
        "step_size": options.threat.step_size,
        "steps": options.threat.test_steps,
        "batch_size": evaluation.batch_size,
        "adaptive": ", ".join(type(attack).__name__ for attack in evaluation.adaptive),
        **{key: getattr(options, key) for key in ("restarts", "queries", "draws", "large_eps", "quick")},
        **{f"engine.{key}": value for key, value in asdict(evaluation.engine).items()},
    }
