"""Random numbers of the augmentation steps."""

import numpy as np
import torch
from torch import Tensor


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

    def _draw(self, size: int, name: str, *arguments: float) -> np.ndarray:
        numbers: np.ndarray = getattr(self.rng, name)(*arguments, size)
        return numbers


class RowDraws(Draws):
    """Draws for a batch of ``whole`` images and returns the numbers of ``rows`` only.

    The processes that share a batch so augment each image as a single process would.
    """

    def __init__(self, rng: np.random.Generator, rows: slice, whole: int):
        super().__init__(rng)
        self.rows, self.whole = rows, whole

    def _draw(self, size: int, name: str, *arguments: float) -> np.ndarray:
        return super()._draw(self.whole, name, *arguments)[self.rows]


class RecordedDraws(Draws):
    """Records each call: the method's name and its arguments before the size.

    No step's calls depend on the numbers drawn, so the calls for one image are those for any number of images.
    """

    def __init__(self, rng: np.random.Generator):
        super().__init__(rng)
        self.calls: list[tuple[str, tuple[float, ...]]] = []

    def _draw(self, size: int, name: str, *arguments: float) -> np.ndarray:
        self.calls.append((name, arguments))
        return super()._draw(size, name, *arguments)


def to_tensor(array: np.ndarray, x: Tensor) -> Tensor:
    """Return an array as a tensor on the device of ``x``."""
    return torch.from_numpy(array).to(x.device, non_blocking=True)
