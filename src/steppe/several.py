"""What is trained in the place of one network: several of them, or branches; and what its passes are worth."""

from __future__ import annotations

from torch import nn

from steppe.batch import Batch


class Several(nn.Module):
    """Base of the modules that methods of several networks build."""

    @property
    def size(self) -> int:
        """How many networks or branches there are."""
        raise NotImplementedError

    def worth(self, batch: Batch) -> float:
        """Return how many passes of one plain network one pass of this is worth on ``batch``."""
        return float(self.size)
