"""The training loop: flat, resumable at every step, and silent about where its state and its log go."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch
from tqdm import tqdm

from rdi.averaging import WeightAverage, statistics_batches
from rdi.compression.base import Compression, NoCompression, Parts
from rdi.data.augment import draw
from rdi.data.base import Split
from rdi.data.batches import Shuffled, to_float
from rdi.data.streamed import fetch
from rdi.defenses.base import Defense, Origin
from rdi.errors import Interrupted, RankLost, UserError
from rdi.exits.net import MultiExitNet
from rdi.gates import NoGates
from rdi.held_out import calibrate, warn_of_overfitting
from rdi.optim import Recipe
from rdi.ranks import ALONE, Ranks, Share
from rdi.recomputing import recomputed
from rdi.records import Selection
from rdi.seeds import PartGenerator, generator
from rdi.shared_layers import shared
from rdi.training_settings import Settings, autocast, layout

CHECK_EVERY = 50
"""Steps between two checks that the losses are finite: on a GPU each check waits for all that is queued."""
MOST_EPOCHS = 200
"""Epochs of a training that are logged one by one; of more, as many at equal distances."""


class Store:
    """A place that keeps what must survive a training; this one keeps nothing."""

    def load_state(self, device: torch.device) -> dict[str, Any] | None:
        """Return the state of an interrupted training, or None."""
        return None

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the state, atomically."""

    def save_weights(self, which: str, model: MultiExitNet, parts: Parts) -> None:
        """Replace the weights `which` ("best" or "last"), atomically.

        parts: see Compression.deployed.
        """

    def log(self, line: dict[str, Any], step: int) -> None:
        """Append one line of progress; lines behind an earlier `step` are from a run that was cut off."""


def fit(
    model: MultiExitNet,
    defense: Defense,
    train: Split,
    calibration: Split,
    recipe: Recipe,
    settings: Settings,
    store: Store,
    *,
    compression: Compression | None = None,
    gates: NoGates | None = None,
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> Selection:
    """Train `model` (on its device) in place, from the stored state if there is one.

    train, calibration: splits on the model's device, images_NCHW uint8, in memory or streamed.
    compression: what is judged and saved is the network as it would be deployed.
    gates: how those of `model` are trained; None: it has none.
    stop: asked after every step and before every held-out batch; when True the state is saved and Interrupted raised.
    ranks: processes that share every batch, and call this with equal arguments apart from the store, which may write
        nothing on all but the first; how many changes rounding alone, unless settings.batchnorm is "local".
    Raises UserError when the loss is not finite, naming the step.
    """
    share = ranks.share(recipe.batch_size)
    with shared(model, share, settings.batchnorm), recomputed(model, settings.recompute):
        return _fit(model, defense, train, calibration, recipe, settings, store, compression, gates, stop, share)


def _fit(
    model: MultiExitNet,
    defense: Defense,
    train: Split,
    calibration: Split,
    recipe: Recipe,
    settings: Settings,
    store: Store,
    compression: Compression | None,
    gates: NoGates | None,
    stop: Callable[[], bool],
    share: Share,
) -> Selection:
    ranks = share.ranks
    compression = compression or NoCompression()
    gates = gates or NoGates()
    device = next(model.parameters()).device
    steps = recipe.steps(len(train))
    checkpoints = {round(steps * (i + 1) / settings.evaluations) for i in range(settings.evaluations)} | {steps}
    epochs = epoch_ends(steps, recipe.batch_size, len(train))
    calibration = calibration.sample(min(settings.calibration_samples, len(calibration)))
    memory_format = layout(settings)
    model.to(memory_format=memory_format)
    compression.begin(steps)
    optimizer = recipe.build_optimizer(compression.prepare(model))
    average = None
    refuse_average(recipe, compression)
    if recipe.average is not None:
        average = WeightAverage(model, recipe.average)
    pieces = share.parts(recipe.accumulate)
    defense.begin(steps, len(pieces))
    shuffled = Shuffled(len(train), recipe.batch_size, settings.seed)
    step, best_step, best_score, last_score, seconds = 0, 0, -1.0, -1.0, 0.0
    unjudged: dict[str, Any] | None = None
    if (state := store.load_state(device)) is None:
        defense.load_state({})
    else:
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            # absent from the files of versions whose defenses had no state
            defense.load_state(state.get("defense", {}))
            # the same of versions without compression
            compression.load_state(state.get("compression", {}))
            if average is not None:
                average.load_state(state["average"])
            restore_rng_state(state["chance"], device)
            step, best_step, best_score = state["step"], state["best_step"], state["best_score"]
            last_score, seconds = state["last_score"], state["seconds"]
            if state.get("unjudged") is not None:
                unjudged = dict(state["unjudged"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                "the saved state (resume.pt) is of another training: delete it to start this run from its first step"
            ) from error

    if len(set(ranks.collect(step))) > 1:
        raise UserError("the ranks do not see the same saved state: the run folder must be on a file system of all")
    # number of the first step whose loss was not finite; stays on the device between two looks
    failed = torch.zeros((), dtype=torch.long, device=device)
    began = time.perf_counter() - seconds
    bar = tqdm(total=steps, initial=step, unit="step", disable=True if ranks.rank else None, dynamic_ncols=True)
    whole = torch.Size((recipe.batch_size, *train.images.shape[1:]))
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    measured = [one for one in model.buffers() if one.is_floating_point()] if settings.batchnorm == "local" else []

    def state_now() -> dict[str, Any]:
        """Return what the next step depends on."""
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "defense": defense.state(),
            "compression": compression.state(),
            "average": {} if average is None else average.state(),
            "chance": rng_state(device),
            "step": step,
            "best_step": best_step,
            "best_score": best_score,
            "last_score": last_score,
            "seconds": time.perf_counter() - began,
        }

    def judge(line: dict[str, Any]) -> None:
        """Judge the weights of `step`, keep and log them. When told to stop, leave that for later and raise."""
        nonlocal best_step, best_score, last_score
        judged = model
        defense.origin = None  # what follows is not trained on
        # the statistics of averaged weights are measured from those before, with dropout
        before = {"chance": rng_state(device), "average": {} if average is None else copy.deepcopy(average.state())}
        try:
            if ranks.any(stop()):
                raise Interrupted
            if average is not None:
                judged = average.net
                average.refresh(
                    statistics_batches(judged, defense, train, share, settings),
                    lambda: autocast(device, settings.precision),
                )
                if settings.batchnorm == "local":
                    ranks.average([one for one in judged.buffers() if one.is_floating_point()])
            with compression.deployed() as parts:
                accuracy = calibrate(judged, defense, calibration, settings, recipe.batch_size, ranks, stop)
                if accuracy is None:
                    raise diverged("the logits are", step, steps, recipe)
                last_score = sum(accuracy.get("robust_accuracy", accuracy["clean_accuracy"])) / model.exits
                store.save_weights("last", judged, parts)
                if last_score > best_score:
                    best_step, best_score = step, last_score
                    store.save_weights("best", judged, parts)
        except RankLost:
            raise
        except Interrupted:
            store.save_state({**state_now(), **before, "unjudged": line})
            raise stopped(step, steps) from None
        line |= {f"calibration_{name}": values for name, values in accuracy.items()} | compression.logs()
        line["seconds"] = time.perf_counter() - began
        store.log(line, step)
        warn_of_overfitting(accuracy, step)
        bar.set_postfix_str(postfix(line))
        store.save_state(state_now())

    requests = shuffled.requests(range(step, steps), share.rows, settings.augment, train.indices)
    model.train()
    with bar, closing(fetch(train.images, requests)) as fetched:
        if unjudged is not None:
            judge(unjudged)
        while step < steps:
            rate = recipe.rate(*defense.schedule(model.exits, step, steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            stream = share.generator(generator(device, settings.seed, "step", step))
            placement = draw(whole, settings.augment, stream, device).part(share.rows)
            index = shuffled.indices(step)[share.rows].to(device)
            images = next(fetched)
            optimizer.zero_grad(set_to_none=True)
            epoch = step * recipe.batch_size // len(train)
            for rows, here in pieces:
                seen, where = index[rows], placement.part(rows)
                x = to_float(where.place(images[rows])).to(memory_format=memory_format)
                defense.origin = Origin(seen, where, len(train), epoch, here)
                own = stream if len(pieces) == 1 else PartGenerator.of(stream, share.total, rows)
                with autocast(device, settings.precision), gates.step(model, step / steps) as cost:
                    loss, logs = cost.added(*defense.loss(model, x, train.labels[seen], own), here)
                failed = torch.where((failed == 0) & ~loss.detach().isfinite(), step + 1, failed)
                (loss if len(pieces) == 1 else loss * (here.total / share.total)).backward()
                defense.after_backward()
            compression.before_step()  # may take gradients from what is no parameter of the optimiser
            ranks.average([weight.grad for weight in trained if weight.grad is not None])
            ranks.average(measured)
            optimizer.step()
            compression.after_step()
            if average is not None:
                average.update(model)
            step += 1
            bar.update()
            stopping = ranks.any(stop()) and step < steps
            logged = step in checkpoints or step in epochs
            due = logged or step % CHECK_EVERY == 0 or stopping
            if due and (bad := max(ranks.collect(int(failed)))):
                raise diverged("the loss is", bad, steps, recipe)
            if logged:
                line = {
                    "step": step,
                    "epoch": step * recipe.batch_size / len(train),
                    "lr": rate,
                    "seconds": time.perf_counter() - began,
                    **{name: value.float().cpu().tolist() for name, value in logs.items()},
                }
                if step in checkpoints:
                    judge(line)
                else:
                    store.log(line, step)
            elif bar.disable is False and step % 10 == 0:
                bar.set_postfix_str(postfix({name: value.float().cpu().tolist() for name, value in logs.items()}))
            if stopping:
                store.save_state(state_now())
                raise stopped(step, steps)
    return Selection(
        kept=settings.keep,
        best_step=best_step,
        best_score=best_score,
        last_step=step,
        last_score=last_score,
        samples=len(calibration),
    )


def refuse_average(recipe: Recipe, compression: Compression) -> None:
    """Raise UserError where averaged weights would be kept of a network that is compressed."""
    if recipe.average is not None and not isinstance(compression, NoCompression):
        raise UserError("optim.average keeps averaged weights, which no compression limits: set optim.average=null")


def stopped(step: int, steps: int) -> Interrupted:
    """Return what is said of a training that was told to stop."""
    return Interrupted(f"stopped at step {step} of {steps}; everything is saved")


def epoch_ends(steps: int, batch_size: int, images: int) -> set[int]:
    """Return the steps that end an epoch; of more than MOST_EPOCHS epochs, only some at equal distances."""
    count = steps * batch_size // images
    every = max(1, -(-count // MOST_EPOCHS))
    return {-(-epoch * images // batch_size) for epoch in range(every, count + 1, every)}


def diverged(what: str, step: int, steps: int, recipe: Recipe) -> UserError:
    """Return the error for a loss or logits that are not finite, on all ranks."""
    error = UserError(
        f"{what} not finite at step {step} of {steps}: stopped, what was saved before is kept. Start again with a "
        f"smaller optim.lr (now {recipe.lr:g}) or precision=float32, and overwrite=true or another run=..."
    )
    error.everywhere = True
    return error


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of torch's default generators, which dropout draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Undo what was drawn since `rng_state`."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def postfix(line: dict[str, Any]) -> str:
    """Format loss and accuracies per exit in percent, for the progress bar and the log."""
    parts = [f"loss {line['loss']:.3f}"]
    for name, label in (
        ("clean_accuracy", "clean"),
        ("robust_accuracy", "robust"),
        ("calibration_clean_accuracy", "held-out clean"),
        ("calibration_robust_accuracy", "held-out robust"),
    ):
        if name in line:
            parts.append(f"{label} " + "/".join(f"{100 * value:.0f}" for value in line[name]))
    if "executed_share" in line:
        parts.append(f"executed {100 * line['executed_share']:.0f} % of MACs")
    return "  ".join(parts)
