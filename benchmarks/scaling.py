"""Scaling: time at sizes ten times apart, and the exponent of the power law through them.

parameters  SAM's work on parameters, 20 tensors of 5e3 to 5e5 elements each
tensors     the same on 1e6 elements in 30 to 3,000 tensors
data        training batches out of 2e3 to 2e5 images, with the shuffling of an epoch
classes     writing and reading SAF's logit bank for a batch, with 10 to 1,000 classes
runs        reading the records of 10 to 1,000 runs of five epochs
"""

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.augmentation import NONE, endless, random_images
from benchmarks.param_ops import bound_method
from steppe import hardware, records
from steppe.bench.timing import alternating, at_least_one, per_step, spread
from steppe.core.state.logit_bank import LogitBank
from steppe.errors import unknown

AXES = ("parameters", "tensors", "data", "classes", "runs")


@dataclass(frozen=True)
class Growth:
    """Times along one axis over that at its first size, and the exponent fitted to them."""

    axis: str
    sizes: tuple[int, ...]
    ratios: tuple[float, ...]
    exponent: float


def scaling(
    axes: Sequence[str],
    *,
    steps: int,
    repeats: int,
    largest: int = 3,
    progress: Callable[[str], None] = lambda axis: None,
) -> list[Growth]:
    """Return how cost grows along each axis of `AXES`, at ``largest`` sizes (2 or 3), each ten times the last one.

    ``progress`` is called with the name of each axis before it is measured. Raises InputError for a number below 1
    and an unknown axis.
    """
    at_least_one(steps=steps, repeats=repeats)
    growths = []
    with hardware.threads(1), tempfile.TemporaryDirectory() as folder:
        for axis in axes:
            if axis not in AXES:
                raise unknown("axis", axis, AXES)
            progress(axis)
            works = _WORKS[axis](Path(folder), largest)
            for work in works.values():
                work()
            timed = {str(size): partial(per_step, work, steps) for size, work in works.items()}
            times = alternating(timed, repeats)
            first = times[str(min(works))]
            ratios = tuple(spread(t, first).median for t in times.values())
            growths.append(Growth(axis, tuple(works), ratios, exponent(tuple(works), ratios)))
    return growths


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Return the slope of the least-squares line of log time over log size."""
    x, y = ([math.log(v) for v in values] for values in (sizes, times))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


Works = dict[int, Callable[[], object]]


def _parameters(folder: Path, count: int) -> Works:
    return {20 * each: bound_method("sam", _Tensors([each] * 20)).step for each in _tenfold(5_000, count)}


def _tensors(folder: Path, count: int) -> Works:
    return {n: bound_method("sam", _Tensors([1_000_000 // n] * n)).step for n in _tenfold(30, count)}


def _data(folder: Path, count: int) -> Works:
    def first_batches(batches: Any) -> None:
        for _ in range(15):  # an epoch of the smallest set
            next(batches)

    return {n: partial(first_batches, endless(random_images(n, 16), NONE, 128)) for n in _tenfold(2_000, count)}


def _classes(folder: Path, count: int) -> Works:
    index = torch.arange(256)

    def write_and_read(bank: LogitBank, logits: torch.Tensor) -> None:
        bank.write(index, logits)
        bank.read(index)

    works: Works = {}
    for n in _tenfold(10, count):
        bank = LogitBank(3, "full", 5.0)
        bank.allocate(2_000, n)
        works[n] = partial(write_and_read, bank, torch.randn(256, n))
    return works


def _runs(folder: Path, count: int) -> Works:
    return {n: partial(records.load, _comparison(folder / str(n), n)) for n in _tenfold(10, count)}


def _comparison(folder: Path, count: int) -> Path:
    """Write a comparison of ``count`` finished runs."""
    line = {"epoch": 1, "train_loss": 1.0, "val_accuracy": 0.5, "val_loss": 1.0, "steps": 10, "gradients": 10.0}
    test = {"test": {"last": {"accuracy": 0.5, "loss": 1.0}, "best": {"epoch": 5, "accuracy": 0.5, "loss": 1.0}}}
    runs = []
    for i in range(count):
        home = folder / "runs" / f"{i:012x}"
        home.mkdir(parents=True)
        for name in ("metrics", "timing"):
            lines = [json.dumps({**line, "epoch": e, "seconds": 1.0}) for e in range(1, 6)]
            (home / f"{name}.jsonl").write_text("".join(one + "\n" for one in lines))
        (home / "result.json").write_text(json.dumps({"status": "ok", "message": None, "epochs": 5, **test}))
        runs.append({"digest": home.name, "method": "plain", "model": "m", "dataset": "d", "seed": i})
    header = {"created": "", "command": "", "environment": {}, "study": {}, "data": {"d": {}}, "runs": runs}
    methods = {"plain": {"summary": "", "resolved": "", "controls": []}}
    (folder / "compare.json").write_text(json.dumps({"format": records.FORMAT, **header, "methods": methods}))
    return folder


class _Tensors(nn.Module):
    """A parameter for each size."""

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        self.params = nn.ParameterList([torch.zeros(size) for size in sizes])


def _tenfold(first: int, count: int) -> list[int]:
    return [first * 10**k for k in range(count)]


_WORKS: dict[str, Callable[[Path, int], Works]] = {
    "parameters": _parameters,
    "tensors": _tensors,
    "data": _data,
    "classes": _classes,
    "runs": _runs,
}
