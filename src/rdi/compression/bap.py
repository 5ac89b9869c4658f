"""Gradual magnitude pruning, of every layer alike: the pruning of blind adversarial pruning (BAP, ICME 2021)."""

from __future__ import annotations

from rdi.checks import integer, number
from rdi.compression.pruning import LayerPruning


class BAP(LayerPruning):
    """Prune the smallest weights of every layer, more and more of them: sparsity s_t = s * (1 - (1 - t/T)^3), with
    s = 1 - ratio, from the first step on (Zhu and Gupta 2017, eq. 1, which BAP takes over).

    until: share of the training, in (0, 1], at whose end all is pruned (T); 30 of 70 epochs as published.
    interval: steps between two looks at which weights are the smallest; 100 as published.
    ratio, start: see LayerPruning.
    What is pruned stays zero; in the authors' code it keeps its value behind the mask and may come back. The images
    that it is trained on are those of rdi.defenses.Blind. Raises UserError for values out of range.
    """

    def __init__(self, *, ratio: float, until: float = 3 / 7, interval: int = 100, start: str | None = None) -> None:
        super().__init__(ratio=ratio, start=start)
        self.until = number("compression.until", until, 0, 1, open_low=True)
        self.interval = integer("compression.interval", interval, 1)

    def ratio_at(self, step: int) -> float:
        """Return the share of the weights that stays after `step` steps."""
        progress = min(1.0, step / max(1, round(self.until * self.steps)))
        return 1 - (1 - self.ratio) * (1 - (1 - progress) ** 3)

    def before_step(self) -> None:
        """Leave what was pruned without a gradient."""
        self.mask_gradients()

    def after_step(self) -> None:
        """Prune further where it is time, and keep zero what was pruned."""
        self._step += 1
        last = max(1, round(self.until * self.steps))
        if self._step == last or (self._step < last and self._step % self.interval == 0):
            self.prune(self.ratio_at(self._step))
        else:
            self.apply_masks()

    def logs(self) -> dict[str, float]:
        """Return weights_left, the share of the weights of the pruned layers that are not zero now."""
        total = sum(weight.numel() for weight in self._layers.values())
        return {"weights_left": sum(int(weight.count_nonzero()) for weight in self._layers.values()) / total}
