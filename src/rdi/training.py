"""The training loop: flat, resumable at every step, and silent about where its state and its log go."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tqdm import tqdm

from rdi.averaging import WeightAverage
from rdi.checks import choice, integer
from rdi.compression.base import Compression, NoCompression, Parts
from rdi.data.augment import augment, draw
from rdi.data.base import Split
from rdi.data.batches import Shuffled, to_float
from rdi.defenses.base import Defense, Origin
from rdi.errors import Interrupted, UserError
from rdi.exits.net import MultiExitNet
from rdi.optim import Recipe
from rdi.records import Selection
from rdi.seeds import generator

logger = logging.getLogger("rdi")
PRECISIONS = ("float32", "bf16")
LOOK_EVERY = 50
"""Steps between two looks at whether the losses were finite: on a GPU each look waits for all that is queued."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a training runs, apart from its loss and schedule.

    seed: of all streams. precision: "float32" or "bf16" (autocast). channels_last: memory format of model and images.
    augment: one of data.augment.AUGMENTATIONS. evaluations: how often, evenly spaced, the calibration split is judged
    and the state saved. calibration_samples: on how many of its images. keep: which weights become the checkpoint,
    "best" (by Selection.best_score) or "last". Raises UserError for values out of range.
    """

    seed: int
    precision: str = "float32"
    channels_last: bool = False
    augment: str = "none"
    evaluations: int = 10
    calibration_samples: int = 1000
    keep: str = "best"

    def __post_init__(self) -> None:
        integer("seed", self.seed, 0)
        choice("precision", self.precision, PRECISIONS)
        choice("keep", self.keep, ("best", "last"))
        integer("evaluations", self.evaluations, 1)
        integer("calibration_samples", self.calibration_samples, 1)


OVERFITTED = 0.15
"""One-step minus multi-step accuracy from which an exit counts as overfitted to the one step."""
STATISTICS_BATCHES = 40
"""Batches from which BatchNorm statistics of averaged weights are measured."""


class Store(Protocol):
    """Where a training keeps what must survive it."""

    def load_state(self, device: torch.device) -> dict[str, Any] | None:
        """The state of an interrupted training, or None."""

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the state, atomically."""

    def save_weights(self, which: str, model: MultiExitNet, parts: Parts) -> None:
        """Replace the weights `which` ("best" or "last"), atomically. parts: see Compression.deployed."""

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
    stop: Callable[[], bool] = lambda: False,
) -> Selection:
    """Train `model` (on its device) in place, from the stored state if there is one.

    train, calibration: splits on the model's device, images_NCHW uint8. compression: what is judged and saved is the
    network as it would be deployed. stop: asked after every step; when True the state is saved and Interrupted raised.
    Raises UserError when the loss is not finite, naming the step.
    """
    compression = compression or NoCompression()
    device = next(model.parameters()).device
    steps = recipe.steps(len(train))
    checkpoints = {round(steps * (i + 1) / settings.evaluations) for i in range(settings.evaluations)} | {steps}
    calibration = calibration.sample(min(settings.calibration_samples, len(calibration)))
    memory_format = layout(settings)
    model.to(memory_format=memory_format)
    optimizer = recipe.build_optimizer(compression.prepare(model))
    average = None
    if recipe.average is not None:
        if not isinstance(compression, NoCompression):
            raise UserError("optim.average keeps averaged weights, which no compression limits: set optim.average=null")
        average = WeightAverage(model, recipe.average)
    defense.begin(steps)
    shuffled = Shuffled(len(train), recipe.batch_size, settings.seed)
    step, best_step, best_score, last_score, seconds = 0, 0, -1.0, -1.0, 0.0
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
            restore_chance(state["chance"], device)
            step, best_step, best_score = state["step"], state["best_step"], state["best_score"]
            last_score, seconds = state["last_score"], state["seconds"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                "the saved state (resume.pt) is of another training: delete it to start this run from its first step"
            ) from error

    # number of the first step whose loss was not finite; stays on the device between two looks
    failed = torch.zeros((), dtype=torch.long, device=device)
    began = time.perf_counter() - seconds
    bar = tqdm(total=steps, initial=step, unit="step", disable=None, dynamic_ncols=True)

    def save() -> None:
        store.save_state(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "defense": defense.state(),
                "compression": compression.state(),
                "average": {} if average is None else average.state(),
                "chance": chance(device),
                "step": step,
                "best_step": best_step,
                "best_score": best_score,
                "last_score": last_score,
                "seconds": time.perf_counter() - began,
            }
        )

    model.train()
    with bar:
        while step < steps:
            rate = recipe.rate(step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            stream = generator(device, settings.seed, "step", step)
            index = shuffled.indices(step).to(device)
            placement = draw(train.images[index].shape, settings.augment, stream, device)
            x = to_float(placement.place(train.images[index])).to(memory_format=memory_format)
            defense.origin = Origin(index, placement, len(train), step * recipe.batch_size // len(train))
            with autocast(device, settings.precision):
                loss, logs = defense.loss(model, x, train.labels[index], stream)
            failed = torch.where((failed == 0) & ~loss.detach().isfinite(), step + 1, failed)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            defense.after_backward()
            compression.before_step()
            optimizer.step()
            compression.after_step()
            if average is not None:
                average.update(model)
            step += 1
            bar.update()
            stopping = stop() and step < steps
            if (step in checkpoints or step % LOOK_EVERY == 0 or stopping) and failed:
                raise diverged("the loss is", int(failed), steps, recipe)
            if step in checkpoints:
                judged = model
                defense.origin = None  # what follows is not trained on
                if average is not None:
                    judged = average.net
                    average.refresh(
                        statistics_batches(judged, defense, train, recipe, settings),
                        lambda: autocast(device, settings.precision),
                    )
                with compression.deployed() as parts:
                    accuracy = calibrate(judged, defense, calibration, settings, recipe.batch_size)
                    if accuracy is None:
                        raise diverged("the logits are", step, steps, recipe)
                    last_score = sum(accuracy.get("robust_accuracy", accuracy["clean_accuracy"])) / model.exits
                    store.save_weights("last", judged, parts)
                    if last_score > best_score:
                        best_step, best_score = step, last_score
                        store.save_weights("best", judged, parts)
                line = {
                    "step": step,
                    "epoch": step * recipe.batch_size / len(train),
                    "lr": rate,
                    "seconds": time.perf_counter() - began,
                    **{name: value.float().cpu().tolist() for name, value in logs.items()},
                    **{f"calibration_{name}": values for name, values in accuracy.items()},
                    **compression.logs(),
                }
                store.log(line, step)
                warn_of_overfitting(accuracy, step)
                bar.set_postfix_str(postfix(line))
                save()
            elif bar.disable is False and step % 10 == 0:
                bar.set_postfix_str(postfix({name: value.float().cpu().tolist() for name, value in logs.items()}))
            if stopping:
                save()
                raise Interrupted(f"stopped at step {step} of {steps}; everything is saved")
    return Selection(
        kept=settings.keep,
        best_step=best_step,
        best_score=best_score,
        last_step=step,
        last_score=last_score,
        samples=len(calibration),
    )


def statistics_batches(
    net: MultiExitNet, defense: Defense, train: Split, recipe: Recipe, settings: Settings
) -> Iterator[torch.Tensor]:
    """Return STATISTICS_BATCHES batches of what `net` would be trained on, the same ones at every call.

    Each is crafted when it is asked for, on a copy of the network as it is now, in eval mode.
    """
    device = train.images.device
    shuffled = Shuffled(len(train), recipe.batch_size, settings.seed)
    frozen = copy.deepcopy(net).eval()

    def batch(number: int) -> torch.Tensor:
        stream = generator(device, settings.seed, "statistics", number)
        index = shuffled.indices(number).to(device)
        x = to_float(augment(train.images[index], settings.augment, stream)).to(memory_format=layout(settings))
        return defense.images(frozen, x, train.labels[index], stream)

    return map(batch, range(STATISTICS_BATCHES))


def warn_of_overfitting(accuracy: dict[str, list[float]], step: int) -> None:
    """Warn of exits that withstand the one step they are trained on and not the many steps of the attack."""
    one, many = accuracy.get("one_step_accuracy"), accuracy.get("robust_accuracy")
    if one is None or many is None:
        return
    if fallen := [k for k, (easy, hard) in enumerate(zip(one, many, strict=True)) if easy - hard > OVERFITTED]:
        logger.warning(
            "step %d: exits %s withstand one step on %s %% of the held-out images and the attack on %s %%: "
            "catastrophic overfitting. Train with defense=fast, whose guard mends it, or a smaller crafting.step",
            step,
            "/".join(map(str, fallen)),
            "/".join(f"{100 * one[k]:.0f}" for k in fallen),
            "/".join(f"{100 * many[k]:.0f}" for k in fallen),
        )


def diverged(what: str, step: int, steps: int, recipe: Recipe) -> UserError:
    """The error for a loss or logits that are not finite."""
    return UserError(
        f"{what} not finite at step {step} of {steps}: stopped, what was saved before is kept. Start again with a "
        f"smaller optim.lr (now {recipe.lr:g}) or precision=float32, and overwrite=true or another run=..."
    )


@torch.no_grad()
def calibrate(
    model: MultiExitNet, defense: Defense, split: Split, settings: Settings, batch_size: int
) -> dict[str, list[float]] | None:
    """Accuracy per exit on `split`, in [0, 1]: clean, under the defense's attack and under its one step, if any.

    The mode of the network is kept.

    None when logits are not finite: such weights have no accuracy.
    """
    device = split.images.device
    hits: dict[str, torch.Tensor] = {}
    finite = torch.ones((), dtype=torch.bool, device=device)
    mode = model.training
    model.eval()
    for begin in range(0, len(split), batch_size):
        part = slice(begin, begin + batch_size)
        x, y = to_float(split.images[part]).to(memory_format=layout(settings)), split.labels[part]
        versions = {"clean_accuracy": x}
        if defense.attack is not None:
            with autocast(device, settings.precision):
                stream = generator(device, settings.seed, "calibrate", begin)
                versions["robust_accuracy"] = defense.craft(defense.attack, model, x, y, stream)
                stream = generator(device, settings.seed, "one step", begin)
                if (one_step := defense.one_step(model, x, y, stream)) is not None:
                    versions["one_step_accuracy"] = one_step
        for name, images in versions.items():
            logits = model(images)
            finite &= logits.isfinite().all()
            count = (logits.argmax(dim=2) == y[:, None]).sum(dim=0)
            hits[name] = hits.get(name, torch.zeros_like(count)) + count
    model.train(mode)
    if not finite:
        return None
    return {name: (count.double() / len(split)).tolist() for name, count in hits.items()}


def layout(settings: Settings) -> torch.memory_format:
    """The memory format of model and images."""
    return torch.channels_last if settings.channels_last else torch.contiguous_format


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """bf16 autocast where asked for, nothing for float32."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


def chance(device: torch.device) -> dict[str, torch.Tensor]:
    """State of torch's default generators, which dropout draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_chance(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Undo what was drawn since `chance`."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def postfix(line: dict[str, Any]) -> str:
    """Loss and accuracies per exit in percent, for the progress bar and the log."""
    parts = [f"loss {line['loss']:.3f}"]
    for name, label in (
        ("clean_accuracy", "clean"),
        ("robust_accuracy", "robust"),
        ("calibration_clean_accuracy", "held-out clean"),
        ("calibration_robust_accuracy", "held-out robust"),
    ):
        if name in line:
            parts.append(f"{label} " + "/".join(f"{100 * value:.0f}" for value in line[name]))
    return "  ".join(parts)
