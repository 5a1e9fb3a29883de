"""The sizes of the classes."""

from typing import Any

import torch
from torch import Tensor, nn

from steppe.errors import InputError


class ClassCounts(nn.Module):
    """The number of training samples of each class: ``exact``, or of the batches so far."""

    content = "the sizes of the classes"
    counts: Tensor

    def __init__(self, net: nn.Module):
        super().__init__()
        self.exact = False
        self.register_buffer("counts", torch.zeros(0))

    def of(self, classes: int, like: Tensor) -> Tensor:
        """Return the counts (classes,) as ``like``, zero for classes without a sample."""
        if len(self.counts) < classes:
            self.counts = torch.cat([self.counts, self.counts.new_zeros(classes - len(self.counts))])
        return self.counts[:classes].to(like)

    def add(self, y: Tensor, classes: int, skipped: bool | Tensor = False) -> None:
        """Count a batch's targets: classes (B,), of which negative ones are ignored, or (B, classes) shares.

        Those of a ``skipped`` step are not counted.
        """
        total = self.of(classes, self.counts)
        counted = 1 - torch.as_tensor(skipped).to(total)
        if y.is_floating_point():
            total += y.to(total).sum(0) * counted
        else:
            total.scatter_add_(0, y.clamp(min=0).long(), (y >= 0).to(total) * counted)

    @staticmethod
    def has_classes(y: Any, logits: Any) -> bool:
        """Return whether targets are a class (B,), or shares of classes (B, classes), of each sample."""
        if not (isinstance(y, Tensor) and isinstance(logits, Tensor) and logits.ndim == 2):
            return False
        return y.shape == (logits.shape if y.is_floating_point() else logits.shape[:1])

    @classmethod
    def require_classes(cls, y: Any, logits: Any) -> None:
        """Raise InputError for targets without a class of each sample (`has_classes`)."""
        if not cls.has_classes(y, logits):
            of_y, of_z = (
                f"shape {tuple(t.shape)}" if isinstance(t, Tensor) else f"type {type(t).__name__}"
                for t in (y, logits)
            )
            raise InputError(
                f"y is of {of_y} and the logits of {of_z}, and a class per sample is needed; give y (B,) whole "
                "numbers, and logits (B, classes)"
            )

    def get_extra_state(self) -> Tensor:
        """Return whether the counts are exact, for checkpoints."""
        return torch.tensor(self.exact)

    def set_extra_state(self, state: Tensor) -> None:
        """Load whether the counts are exact."""
        self.exact = bool(state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(f"{prefix}counts", self.counts)
        self.counts = self.counts.new_zeros(len(saved))
        super()._load_from_state_dict(state_dict, prefix, *rest)
