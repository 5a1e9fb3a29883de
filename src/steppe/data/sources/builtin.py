"""Data sets without files: scikit-learn's handwritten digits, and noise for speed measurements."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from steppe.config import Data
from steppe.data.dataset import Images, Source, resized
from steppe.data.splits import stratified

_DIGITS_SIZE = 24  # a multiple of 8; three unpadded convolutions and two poolings need at least 18 pixels
_TEST_SHARE = 0.2


def digits(options: Data) -> Source:
    """Return 1,797 real handwritten digits (8x8, 17 grey levels) from scikit-learn, upscaled to 24x24.

    A fixed fifth of every class is the test set, because the data set has none.
    """
    spec = find_spec("sklearn")  # importing scikit-learn would take a second
    assert spec is not None
    table = np.loadtxt(Path(str(spec.origin)).parent / "datasets/data/digits.csv.gz", delimiter=",")
    pixels, y = table[:, :-1], table[:, -1].astype(np.int64)
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
