"""Random numbers of the augmentation steps, and what the steps draw for a batch.

A step draws for a batch before it has the images: it returns a plan, a dictionary of arrays, most of them with a
row per image, and of plain values. So the plans of a whole epoch are sent to a GPU at once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Plan = dict[str, Any]


class Draws:
    """Random numbers for a batch, with the methods of a ``numpy.random.Generator`` that the steps use."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def random(self, size: int) -> np.ndarray:
        """Return uniform numbers in [0, 1)."""
        return self._draw(size, "random")

    def integers(self, low: int, high: int, size: int) -> np.ndarray:
        """Return whole numbers from ``low`` to below ``high``."""
        return self._draw(size, "integers", low, high)

    def beta(self, a: float, b: float, size: int) -> np.ndarray:
        """Return numbers from Beta(a, b)."""
        return self._draw(size, "beta", a, b)

    def alternate(self, size: int) -> np.ndarray:
        """Return for each image a truth value that changes with each epoch; random where epochs are unknown."""
        return self.random(size) < 0.5

    def _draw(self, size: int, name: str, *arguments: float) -> np.ndarray:
        numbers: np.ndarray = getattr(self.rng, name)(*arguments, size)
        return numbers


class RowDraws(Draws):
    """Draws for a batch of ``whole`` images and returns the numbers of ``rows`` only.

    The processes that share a batch so augment each image as a single process would. ``turn`` is `alternate` of
    these rows.
    """

    def __init__(self, rng: np.random.Generator, rows: slice, whole: int, turn: np.ndarray | None = None):
        super().__init__(rng)
        self.rows, self.whole, self.turn = rows, whole, turn

    def alternate(self, size: int) -> np.ndarray:
        """Return the ``turn`` of the rows."""
        return super().alternate(size) if self.turn is None else self.turn

    def _draw(self, size: int, name: str, *arguments: float) -> np.ndarray:
        return super()._draw(self.whole, name, *arguments)[self.rows]


def to_tensor(array: np.ndarray, x: Tensor) -> Tensor:
    """Return an array as a tensor on the device of ``x``."""
    return torch.from_numpy(array).to(x.device, non_blocking=True)


def map_arrays(f: Callable[[np.ndarray], Any], plan: Any) -> Any:
    """Return a plan with ``f`` applied to its arrays; other values stay as they are."""
    if isinstance(plan, np.ndarray):
        return f(plan)
    if isinstance(plan, dict):
        return {key: map_arrays(f, value) for key, value in plan.items()}
    return [map_arrays(f, value) for value in plan] if isinstance(plan, list) else plan
