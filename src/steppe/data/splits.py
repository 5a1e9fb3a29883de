"""Who is trained on, validated on and tested on: drawn class by class, equal for equal seeds."""

from __future__ import annotations

import numpy as np

from steppe.config import Data
from steppe.data.dataset import DataSet, Images, Source
from steppe.data.limited import published
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


def subset(images: Images, count: int) -> Images:
    """Return ``count`` images, classes in proportion, the same every time; all if there are no more."""
    if count >= len(images):
        return images
    return images.take(stratified(images.y.numpy(), count, np.random.default_rng(0)))


def apply(name: str, source: Source, options: Data) -> DataSet:
    """Split a source: validation images first, then training images from the rest, then test images.

    Raises InputError if there are not as many images as asked for, or a class would not be trained on.
    """
    if options.split_seed < 0:
        raise InputError(f"data.split_seed is {options.split_seed}; give 0 or a positive whole number")
    rng = np.random.default_rng([options.split_seed, 1])
    y = source.train.y.numpy()
    base = options.train if options.train is not None else len(y)
    val = max(1, round(options.val * base)) if options.val < 1 else int(options.val)
    wanted = val + (options.train if options.train is not None else 1)
    if wanted > len(y):
        train_part = f"data.train {options.train} and " if options.train is not None else ""
        raise InputError(
            f"{train_part}data.val {options.val:g} ({val} images) ask for more than the {len(y)} training images "
            f"of {name}, one of them at least to train on; give fewer"
        )
    if options.legacy_share is not None:
        train = published(y, options.legacy_share)
        rest = np.setdiff1d(np.arange(len(y)), train)
        held = rest[stratified(y[rest], min(val, len(rest)), rng)]
    else:
        held = stratified(y, val, rng)
        rest = np.setdiff1d(np.arange(len(y)), held)
        train = rest if options.train is None else rest[stratified(y[rest], options.train, rng)]
    missing = sorted(set(range(len(source.classes))) - set(y[train].tolist()))
    if missing:
        raise InputError(
            f"class {source.classes[missing[0]]!r} of {name} has no training image; "
            "raise data.train or lower data.val"
        )
    images, test = source.train, source.test
    tested = np.arange(len(test))
    if options.test is not None:
        if options.test > len(test):
            raise InputError(f"data.test is {options.test}; {name} has {len(test)} test images, give at most that")
        rng = np.random.default_rng([options.split_seed, 2])
        tested = stratified(test.y.numpy(), options.test, rng)
    parts = (images.take(train), images.take(held), test.take(tested))
    return DataSet(name, *parts, source.classes, source.skipped, source.note)
