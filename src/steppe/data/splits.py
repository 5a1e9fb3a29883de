"""Training, validation and test samples: drawn class by class, equal for equal seeds."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar, cast

import numpy as np
import torch

from steppe.config import Data
from steppe.data.dataset import DataSet, Fetched, Images, Samples, Source, Tensors
from steppe.errors import InputError, unknown


def stratified(y: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return sorted positions of ``count`` random samples, with the classes in proportion.

    Each class gets the whole part of its share; the rest goes to the classes with the largest fractions.
    """
    labels, sizes = np.unique(y, return_counts=True)
    shares = sizes * (count / len(y))
    quota = np.floor(shares).astype(int)
    for i in np.argsort(-(shares - quota), kind="stable")[: count - quota.sum()]:
        quota[i] += 1
    picks = [rng.permutation(np.flatnonzero(y == label))[:q] for label, q in zip(labels, quota, strict=True)]
    return np.sort(np.concatenate(picks)) if picks else np.empty(0, int)


def strata(samples: Samples) -> np.ndarray:
    """Return what is kept in proportion: the classes (N,), or zeros for targets that are no classes."""
    y = None if isinstance(samples, Fetched) else samples.y
    if y is None or y.ndim != 1 or y.is_floating_point() or y.is_complex():
        return np.zeros(len(samples), np.int64)
    return y.numpy()


S = TypeVar("S", bound=Samples)


def split_off_test(samples: S, share: float = 0.2) -> tuple[S, S]:
    """Return training and test samples; the latter are a fixed share, of every class if there are classes."""
    y = strata(samples)
    rows = stratified(y, round(share * len(y)), np.random.default_rng(0))
    return cast(S, samples.take(np.setdiff1d(np.arange(len(y)), rows))), cast(S, samples.take(rows))


def legacy_choice(y: np.ndarray, share: float) -> np.ndarray:
    """Return positions of ``share`` of each class as in the lists of OKDPH's code, with repetitions.

    Classes come in the order in which they first appear in ``y`` (N,); one RandomState(42) draws for all of them.
    Tenth and hundredth parts of CIFAR equal the published lists (tianlizhang/OKDPH @ a562089; Zhang et al., CVPR
    2023, arXiv:2303.14666, supplement, table 4).
    """
    rng = np.random.RandomState(42)
    _, first = np.unique(y, return_index=True)
    members = [np.flatnonzero(y == y[i]) for i in np.sort(first)]
    return np.concatenate([rng.choice(rows, round(len(rows) * share)) for rows in members])


def subset(samples: S, count: int) -> S:
    """Return ``count`` samples with the classes in proportion, always the same ones; all if there are no more."""
    if count >= len(samples):
        return samples
    return cast(S, samples.take(stratified(strata(samples), count, np.random.default_rng(0))))


def long_tailed(y: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Return sorted positions of random samples of classes whose sizes fall exponentially.

    Class c of C has floor(n ratio^(-c / (C - 1))) samples, n those of the smallest class of ``y`` (N,): the first
    has ``ratio`` times as many as the last (Cui et al., CVPR 2019, arXiv:1901.05555, section 5.1).

    Raises InputError if the last class would have none.
    """
    labels, sizes = np.unique(y, return_counts=True)
    # a share of an exact whole number may be a last digit below it
    shares = sizes.min() * ratio ** (-np.arange(len(labels)) / max(1, len(labels) - 1))
    counts = np.floor(shares + 1e-9).astype(int)
    if counts[-1] < 1:
        raise InputError(
            f"data.imbalance is {ratio:g} and the smallest class has {sizes.min()} training samples; give at most "
            f"{sizes.min()}"
        )
    picks = [rng.permutation(np.flatnonzero(y == label))[:n] for label, n in zip(labels, counts, strict=True)]
    return np.sort(np.concatenate(picks))


def noisy_labels(y: np.ndarray, share: float, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Return labels of which ``share``, at random, are another class, each equally likely (symmetric noise)."""
    rows = rng.permutation(len(y))[: round(share * len(y))]
    noisy = y.copy()
    noisy[rows] = (noisy[rows] + rng.integers(1, classes, len(rows))) % classes
    return noisy


def shot_groups(counts: Sequence[int]) -> dict[str, list[int]]:
    """Return the classes with many, a medium number of and few training samples.

    Many are more than 100, few fewer than 20 (Liu et al., CVPR 2019, arXiv:1904.05160); if no class has more than
    100 or none fewer than 20, thirds of the classes by their counts. Groups without a class are left out.
    """
    many, few = max(counts) > 100, min(counts) < 20
    if many and few:
        names = ["many" if n > 100 else "few" if n < 20 else "medium" for n in counts]
    else:
        order = sorted(range(len(counts)), key=lambda c: -counts[c])
        third = {c: ("many", "medium", "few")[3 * i // len(counts)] for i, c in enumerate(order)}
        names = [third[c] for c in range(len(counts))]
    groups = {name: [c for c, n in enumerate(names) if n == name] for name in ("many", "medium", "few")}
    return {name: classes for name, classes in groups.items() if classes}


def only_classes(name: str, source: Source, chosen: Sequence[str]) -> Source:
    """Return the samples of these classes, numbered anew in this order.

    Raises InputError for data without classes in memory, and for an unknown class.
    """
    parts = [part for part in (source.train, source.test, source.val) if part is not None]
    targets = [None if isinstance(part, Fetched) else part.y for part in parts]
    if source.task != "classification" or any(y is None or y.ndim != 1 or y.is_floating_point() for y in targets):
        raise InputError(f"data.classes is {' '.join(chosen)} and {name} has no classes in memory; leave it out")
    for one in chosen:
        if one not in source.classes:
            raise unknown(f"class of {name}", one, source.classes)
    numbers = torch.full((len(source.classes),), -1)
    numbers[[source.classes.index(one) for one in chosen]] = torch.arange(len(chosen))

    def part_of(samples: S) -> S:
        new = numbers[cast(Images | Tensors, samples).y]
        rows = np.flatnonzero(new.numpy() >= 0)
        return cast(S, replace(cast(Images | Tensors, samples.take(rows)), y=new[rows]))

    val = None if source.val is None else part_of(source.val)
    classes = tuple(chosen)
    return replace(
        source,
        train=part_of(source.train),
        test=part_of(source.test),
        val=val,
        classes=classes,
        outputs=len(classes),
    )


def _check_classes(name: str, source: Source, options: Data) -> None:
    """Raise InputError if the training samples have no classes that could be unbalanced or replaced."""
    y = None if isinstance(source.train, Fetched) else source.train.y
    if source.task != "classification" or y is None or y.ndim != 1 or y.is_floating_point():
        option = "imbalance" if options.imbalance is not None else "label_noise"
        problem = "has no classes in memory" if source.task == "classification" else f"is a {source.task}"
        raise InputError(f"data.{option} is {getattr(options, option)} and {name} {problem}; leave it out")


def apply(name: str, source: Source, options: Data) -> DataSet:
    """Split a source: validation samples first, then training samples from the rest, then test samples.

    A source with validation samples of its own keeps them all, and ``data.val`` is not used.

    Raises InputError if there are fewer samples than requested, or a class has no training image.
    """
    if options.split_seed < 0:
        raise InputError(f"data.split_seed is {options.split_seed}; give 0 or a positive whole number")
    pixels = {"noise": options.noise, "views": ", ".join(options.views), "tta": options.tta}
    option, value = next(((k, v) for k, v in pixels.items() if v), ("", ""))
    if option and not isinstance(source.train, Images):
        raise InputError(f"data.{option} is {value} and {name} has no images of whole numbers; leave it out")
    if options.tta and source.task == "segmentation":
        raise InputError(f"data.tta is {options.tta!r} and the outputs of {name} are images; leave it out")
    mixing = [step for step in options.augment if step in ("mixup", "cutmix")]
    if mixing and isinstance(source.train, Images) and source.task in ("regression", "ordinal"):
        raise InputError(
            f"data.augment is {mixing[0]}, which mixes classes, and {name} is a {source.task}; "
            "give --data.augment flip crop, or none"
        )
    if options.classes:
        source = only_classes(name, source, options.classes)
    rng = np.random.default_rng([options.split_seed, 1])
    y = strata(source.train)
    kind = "images" if isinstance(source.train, Images) else "samples"
    train = options.train
    if train is not None and train < 1:
        train = max(1, round(train * len(y)))
    base = train if train is not None else len(y)
    val = (
        0 if source.val is not None else max(1, round(options.val * base)) if options.val < 1 else int(options.val)
    )
    if val + (train if train is not None else 1) > len(y):
        train_part = f"data.train {options.train} and " if options.train is not None else ""
        raise InputError(
            f"{train_part}data.val {options.val:g} ({val} {kind}) need more than the {len(y)} training {kind} of "
            f"{name}, at least one of which is trained on; give fewer"
        )
    if options.legacy_share is not None:
        train_rows = legacy_choice(y, options.legacy_share)
        rest = np.setdiff1d(np.arange(len(y)), train_rows)
        val_rows = rest[stratified(y[rest], min(val, len(rest)), rng)]
    else:
        val_rows = np.arange(len(y) - val, len(y)) if source.contiguous else stratified(y, val, rng)
        rest = np.setdiff1d(np.arange(len(y)), val_rows)
        train_rows = rest if train is None else rest[stratified(y[rest], int(train), rng)]
    notes = [source.note] if source.note else []
    if options.imbalance is not None or options.label_noise:
        _check_classes(name, source, options)
    if options.imbalance is not None:
        rng = np.random.default_rng([options.split_seed, 3])
        train_rows = train_rows[long_tailed(y[train_rows], options.imbalance, rng)]
        sizes = np.bincount(y[train_rows])
        notes.append(f"long-tailed: classes of {sizes.max()} to {sizes.min()} training {kind}")
    classes = source.classes
    present = set(range(len(classes))) if isinstance(source.train, Images) else set(y.tolist())
    missing = sorted(present - set(y[train_rows].tolist())) if source.task == "classification" else []
    if missing:
        raise InputError(
            f"class {classes[missing[0]]!r} of {name} has no training {kind[:-1]}; "
            "raise data.train or lower data.val"
        )
    test = source.test
    test_rows = np.arange(len(test))
    if options.test is not None:
        if options.test > len(test):
            raise InputError(f"data.test is {options.test}; {name} has {len(test)} test {kind}, give at most that")
        rng = np.random.default_rng([options.split_seed, 2])
        test_rows = stratified(strata(test), options.test, rng)
    held_out = source.train.take(val_rows) if source.val is None else source.val
    trained = source.train.take(train_rows)
    clean_counts: tuple[int, ...] = ()
    if options.label_noise:
        rng = np.random.default_rng([options.split_seed, 4])
        noisy = noisy_labels(y[train_rows], options.label_noise, len(source.classes), rng)
        notes.append(f"{(noisy != y[train_rows]).sum()} of {len(noisy)} training labels replaced by another class")
        trained = replace(cast(Images | Tensors, trained), y=torch.from_numpy(noisy))
        clean_counts = tuple(np.bincount(y[train_rows], minlength=len(source.classes)).tolist())
    shared = {k: getattr(source, k) for k in ("skipped", "fingerprint", "task", "outputs", "unit")}
    parts = (trained, held_out, test.take(test_rows))
    data = DataSet(name, *parts, source.classes, note="; ".join(notes), clean_counts=clean_counts, **shared)
    return source.prepare(data) if source.prepare is not None else data
