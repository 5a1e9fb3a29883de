"""Who is trained on, validated on and tested on: drawn class by class, equal for equal seeds."""

from __future__ import annotations

import numpy as np

from steppe.config import Data
from steppe.data.images import DataSet, Source
from steppe.errors import InputError


def stratified(y: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the positions of ``count`` samples, classes in proportion as well as whole numbers allow.

    Each class gets the whole part of its share; what is left goes to the largest fractions.
    """
    labels, sizes = np.unique(y, return_counts=True)
    shares = sizes * (count / len(y))
    quota = np.floor(shares).astype(int)
    for i in np.argsort(-(shares - quota), kind="stable")[: count - quota.sum()]:
        quota[i] += 1
    picks = [rng.permutation(np.flatnonzero(y == label))[:q] for label, q in zip(labels, quota, strict=True)]
    return np.sort(np.concatenate(picks)) if picks else np.empty(0, int)


def apply(name: str, source: Source, options: Data) -> DataSet:
    """Split a source: validation images first, then training images from the rest, then test images.

    Raises InputError if there are not as many images as asked for, or a class would not be trained on.
    """
    rng = np.random.default_rng([options.split_seed, 1])
    y = source.train.y.numpy()
    base = options.train if options.train is not None else len(y)
    val = max(1, round(options.val * base)) if options.val < 1 else int(options.val)
    wanted = val + (options.train if options.train is not None else 1)
    if wanted > len(y):
        asked = f"data.train {options.train} and {val}" if options.train is not None else f"{val}"
        raise InputError(
            f"{asked} validation images are more than the {len(y)} training images of {name}; give fewer"
        )
    held = stratified(y, val, rng)
    rest = np.setdiff1d(np.arange(len(y)), held)
    train = rest if options.train is None else rest[stratified(y[rest], options.train, rng)]
    missing = sorted(set(range(len(source.classes))) - set(y[train].tolist()))
    if missing:
        raise InputError(
            f"class {source.classes[missing[0]]!r} of {name} has no training image; "
            "raise data.train or lower data.val"
        )
    test = source.test
    if options.test is not None:
        if options.test > len(test):
            raise InputError(f"data.test is {options.test}; {name} has {len(test)} test images, give at most that")
        rng = np.random.default_rng([options.split_seed, 2])
        test = test.take(stratified(test.y.numpy(), options.test, rng))
    images = source.train
    return DataSet(name, images.take(train), images.take(held), test, source.classes, source.skipped, source.note)
