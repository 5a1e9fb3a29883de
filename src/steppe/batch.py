"""A batch of samples: what one step consumes, and what travels with each sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Samples that go through the network together.

    ``x`` (B, ...) inputs; ``y`` (B,) class indices or (B, classes) probabilities; ``index`` (B,) the stable
    position of each sample in its data set, None where unknown; ``extra`` tensors of B rows that travel with
    the samples (the clean logits of an earlier pass, say) and are split and taken with them.
    """

    x: Tensor
    y: Tensor
    index: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def having(self, **extra: Tensor) -> Batch:
        """Return the same samples with these tensors (B, ...) travelling along."""
        return replace(self, extra={**self.extra, **extra})

    def take(self, rows: Tensor | slice) -> Batch:
        """Return the chosen rows (indices, a mask or a slice) of every part."""
        return Batch(
            self.x[rows],
            self.y[rows],
            None if self.index is None else self.index[rows],
            {k: v[rows] for k, v in self.extra.items()},
        )

    def split(self, size: int) -> Iterator[Batch]:
        """Yield consecutive batches of at most ``size`` samples."""
        if size < 1:
            raise ValueError(f"split size is {size}; give at least 1")
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))

    def halves(self) -> tuple[Batch, Batch]:
        """Return the first and the second half (the first is larger by one if the count is odd)."""
        middle = (len(self) + 1) // 2
        return self.take(slice(0, middle)), self.take(slice(middle, None))

    def to(self, device: torch.device) -> Batch:
        """Return the batch with every tensor on ``device``."""
        return Batch(
            self.x.to(device, non_blocking=True),
            self.y.to(device, non_blocking=True),
            None if self.index is None else self.index.to(device, non_blocking=True),
            {k: v.to(device, non_blocking=True) for k, v in self.extra.items()},
        )
