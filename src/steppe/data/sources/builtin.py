"""Data sets without files: scikit-learn's handwritten digits, and noise for speed measurements."""

from __future__ import annotations

from importlib.metadata import distribution

import numpy as np
import torch
from numpy.typing import NDArray

from steppe.config import Data
from steppe.data.dataset import Images, Source, resized
from steppe.data.splits import stratified

_DIGITS_SIZE = 24  # a multiple of 8; three unpadded convolutions and two poolings need at least 18 pixels
_TEST_SHARE = 0.2


def digits(options: Data) -> Source:
    """Return 1,797 real handwritten digits (8x8, 17 grey levels) from scikit-learn, upscaled to 24x24.

    A fixed fifth of every class is the test set, because the data set has none.
    """
    pixels, y = _read_table()
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


def _read_table() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return pixels (N, 64) and digits (N,)."""
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    try:
        table = np.loadtxt(str(path), delimiter=",")
    except OSError:
        # the file is elsewhere; load_digits finds it, but importing scikit-learn takes a second
        from sklearn.datasets import load_digits

        table = np.column_stack(load_digits(return_X_y=True))
    return table[:, :-1], table[:, -1].astype(np.int64)


def synthetic(options: Data) -> Source:
    """Return noise with random labels of 10 classes, 5,000 training and 1,000 test images, to measure speed."""
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
