"""Images that need no files: scikit-learn's handwritten digits, and noise for speed measurements."""

from __future__ import annotations

from importlib.metadata import distribution

import numpy as np
import torch
from numpy.typing import NDArray

from steppe.config import Data
from steppe.data.dataset import Images, Source, resized
from steppe.data.splits import stratified

_DIGITS_SIZE = 24  # three unpadded convolutions and two poolings need 18 pixels; 24 is a whole multiple of 8
_TEST_SHARE = 0.2


def digits(options: Data) -> Source:
    """Return 1,797 real handwritten digits (8x8, 17 grey levels) from scikit-learn, upscaled to 24x24.

    A fixed fifth of every class is the test set, because the data set comes without one.
    """
    pixels, y = _table()
    x = (pixels.reshape(-1, 1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    x = resized(x, options.size or _DIGITS_SIZE)
    chosen = stratified(y, round(_TEST_SHARE * len(y)), np.random.default_rng(0))
    everything = Images(torch.from_numpy(x), torch.from_numpy(y))
    return Source(
        everything.take(np.setdiff1d(np.arange(len(y)), chosen)),
        everything.take(chosen),
        tuple(str(i) for i in range(10)),
        note="test images: a fixed fifth of every class, as the data set comes without a test set",
    )


def _table() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the pixels, 64 of each image, and the digits that they show."""
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    try:
        table = np.loadtxt(str(path), delimiter=",")
    except OSError:
        # kept elsewhere; asking the package itself takes a process a second longer, spent on importing it
        from sklearn.datasets import load_digits

        table = np.column_stack(load_digits(return_X_y=True))
    return table[:, :-1], table[:, -1].astype(np.int64)


def synthetic(options: Data) -> Source:
    """Return noise with random labels, 5,000 training and 1,000 test images, 10 classes: for speed only."""
    rng = np.random.default_rng(0)
    size = options.size or 32

    def images(count: int) -> Images:
        x = rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8)
        return Images(torch.from_numpy(x), torch.from_numpy(rng.integers(0, 10, count)))

    return Source(
        images(5000),
        images(1000),
        tuple(str(i) for i in range(10)),
        note="noise with random labels: accuracies mean nothing",
    )
