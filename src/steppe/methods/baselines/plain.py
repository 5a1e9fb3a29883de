"""Plain training, the baseline of every comparison.

    w <- U(w, g),   g = grad L(w)

Paper    none: empirical risk minimisation with the optimizer U as it stands
Code     none
Cost     1 forward, 1 backward, 1 update
Limits   none: it is the limit of other methods
Differs  none known
Start    nothing to set
"""

from dataclasses import dataclass
from typing import ClassVar

from steppe.core.method import Cost, Method


@dataclass(frozen=True)
class Plain(Method):
    """Train with the gradient of the loss, one update per batch."""

    limit: ClassVar = {}
    cost = Cost(1, 1, 1)
