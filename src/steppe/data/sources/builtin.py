"""Data sets without files: scikit-learn's handwritten digits, and noise for speed measurements."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from steppe.config import Data
from steppe.data.dataset import Images, Source, resized
from steppe.data.splits import split_off_fifth

_DIGITS_SIZE = 24  # a multiple of 8; three unpadded convolutions and two poolings need at least 18 pixels


def digits(options: Data) -> Source:
    """Return 1,797 real handwritten digits (8x8, 17 grey levels) from scikit-learn, upscaled to 24x24.

    A fixed fifth of every class is the test set, because the data set has none.
    """
    spec = find_spec("sklearn")  # importing scikit-learn would take a second
    assert spec is not None
    try:
        table = np.loadtxt(Path(str(spec.origin)).parent / "datasets/data/digits.csv.gz", delimiter=",")
    except OSError:  # this version keeps the file elsewhere
        from sklearn.datasets import load_digits

        table = np.column_stack(load_digits(return_X_y=True))
    pixels, y = table[:, :-1], table[:, -1].astype(np.int64)
    x = (pixels.reshape(-1, 1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    x = resized(x, options.size or _DIGITS_SIZE)
    train, test = split_off_fifth(Images(torch.from_numpy(x), torch.from_numpy(y)))
    note = "test images: a fixed fifth of every class, as the data set comes without a test set"
    return Source(train, test, tuple("0123456789"), note=note)


def synthetic(options: Data) -> Source:
    """Return noise with random labels of 10 classes, 5,000 training and 1,000 test images, to measure speed."""
    rng = np.random.default_rng(0)
    size = options.size or 32

    def images(count: int) -> Images:
        x = rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8)
        return Images(torch.from_numpy(x), torch.from_numpy(rng.integers(0, 10, count)))

    note = "noise with random labels: accuracies mean nothing"
    return Source(images(5000), images(1000), tuple("0123456789"), note=note)
