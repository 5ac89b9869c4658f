"""Augmentation of a whole batch on its device: random crop after zero padding, random horizontal flip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

RESIZED_CROP = "resized_crop"
"""Random-resized crops and flips; cut out of the files as they are decoded, not out of a batch."""
AUGMENTATIONS = ("none", "crop", "crop_flip", RESIZED_CROP)
PADDING = 4


@dataclass(frozen=True)
class Placement:
    """For each pixel of augmented images, the pixel of the padded image that it is.

    rows_NH, columns_NW: int64, in the image padded by PADDING on every side; None: the image as it is.
    """

    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None

    def place(self, images: torch.Tensor) -> torch.Tensor:
        """Return the augmented images_NCHW (any dtype); what lies outside of an image is 0."""
        if self.rows is None or self.columns is None:
            return images
        padded = F.pad(images, (PADDING,) * 4)
        sample = torch.arange(len(images), device=images.device)[:, None, None]
        # advanced indices around the channel slice put it last: N H W C
        placed = padded[sample, :, self.rows[:, :, None], self.columns[:, None, :]]
        return placed.permute(0, 3, 1, 2).contiguous()

    def part(self, rows: slice) -> Placement:
        """Return the placement of some of the images."""
        return self.gathered(lambda whole: whole[rows])

    def gathered(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> Placement:
        """Return the placement of other images, out of what `gather` makes of each tensor of it."""
        if self.rows is None or self.columns is None:
            return self
        return Placement(gather(self.rows), gather(self.columns))

    def store(self, stored: torch.Tensor, index: torch.Tensor, augmented: torch.Tensor) -> None:
        """Write augmented_NCHW back, in place, to where `place` took it from: stored_MCHW at rows index_N.

        Pixels of an image that the crop left out keep what is stored; where a sample stands twice in the batch, its
        last place counts.
        """
        last = sorted({row: place for place, row in enumerate(index.tolist())}.values())
        index, augmented = index[last], augmented[last]
        if self.rows is None or self.columns is None:
            stored[index] = augmented
            return
        rows, columns = self.rows[last], self.columns[last]
        height, width = stored.shape[2:]
        padded = F.pad(stored[index], (PADDING,) * 4)
        sample = torch.arange(len(index), device=index.device)[:, None, None]
        padded[sample, :, rows[:, :, None], columns[:, None, :]] = augmented.permute(0, 2, 3, 1)
        stored[index] = padded[:, :, PADDING : PADDING + height, PADDING : PADDING + width]


def draw(shape: torch.Size, kind: str, generator: torch.Generator, device: torch.device) -> Placement:
    """Draw a placement for a batch.

    shape: NCHW.
    kind: one of AUGMENTATIONS; crop pads by PADDING pixels of zero, resized_crop is done already.
    generator: of crops and flips.
    device: of the placement.
    """
    if kind in ("none", RESIZED_CROP):
        return Placement()
    count, _, height, width = shape

    def below(high: int) -> torch.Tensor:
        return torch.randint(high, (count,), generator=generator, device=device)

    rows = below(2 * PADDING + 1)[:, None] + torch.arange(height, device=device)
    columns = below(2 * PADDING + 1)[:, None] + torch.arange(width, device=device)
    if kind == "crop_flip":
        columns = torch.where(below(2).bool()[:, None], columns.flip(1), columns)
    return Placement(rows, columns)


def augment(images: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """Augment images to the same shape.

    images: NCHW, any dtype.
    kind: one of AUGMENTATIONS.
    generator: of crops and flips.
    """
    return draw(images.shape, kind, generator, images.device).place(images)
