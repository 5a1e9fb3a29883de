"""Samples of any kind in batches: from memory, or from a user's data set by index."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from steppe.core.batch import Batch
from steppe.data.dataset import Fetched, Tensors
from steppe.errors import InputError

AnySamples = Tensors | Fetched
_ORDER, _FETCH = 1, 5
_ELEMENTS = 2**20  # inputs of an evaluated batch, at most


def batch_of(samples: AnySamples, index: Tensor) -> Batch:
    """Return the samples at these positions (B,)."""
    if isinstance(samples, Fetched):
        return samples.batch(index)
    return Batch(samples.at(index), None if samples.y is None else samples.y[index], index)


class SampleLoader:
    """Shuffled training batches of any samples; ``epoch(k)`` yields the same bits whenever it is called.

    A data set that draws random numbers draws them from generators that are seeded for each batch, so that all
    methods and a resumed run get the same ones. With several processes each yields its rows of the same batches.
    The last batch is left out if a process would get a single sample of it, because BatchNorm needs two.

    Raises InputError if the batch is below 1, below 2 per process of several, or larger than the training set.
    """

    def __init__(self, samples: AnySamples, *, batch: int, seed: int, rank: int = 0, size: int = 1):
        if size > 1 and batch < 2 * size:
            raise InputError(
                f"batch is {batch} on {size} processes; give at least {2 * size}, or start fewer processes"
            )
        if batch > len(samples):
            raise InputError(
                f"batch is {batch} and only {len(samples)} samples are trained on; give a smaller batch"
            )
        self.samples, self.batch, self.seed, self.rank, self.size = samples, batch, seed, rank, size

    def __len__(self) -> int:
        whole, rest = divmod(len(self.samples), self.batch)
        return whole + (rest >= 2 * self.size or (self.batch == 1 and rest > 0))

    def epoch(self, number: int, first: int = 0, stride: int = 1) -> Iterator[Batch]:
        """Yield the batches of one epoch; only every ``stride``-th one from ``first`` on."""
        order = self._order(number)
        for i in range(first, len(self), stride):
            index = order[i * self.batch : (i + 1) * self.batch]
            count = len(index)
            index = index[self.rank * count // self.size : (self.rank + 1) * count // self.size]
            if isinstance(self.samples, Fetched):
                with seeded(self.seed, _FETCH, number, i):
                    batch = batch_of(self.samples, index)
            else:
                batch = batch_of(self.samples, index)
            yield batch

    def _order(self, number: int) -> Tensor:
        sampler = getattr(self.samples, "sampler", None)
        if sampler is None:
            order = np.random.default_rng([self.seed, _ORDER, number]).permutation(len(self.samples))
            return torch.from_numpy(order)
        with seeded(self.seed, _ORDER, number):
            return torch.tensor(list(sampler))


@contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Seed the generators of torch, NumPy and Python within the context; then restore their states."""
    numbers = np.random.default_rng([s % 2**63 for s in seed]).integers(2**31, size=3).tolist()
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(numbers[0])
        random.seed(numbers[1])
        np.random.seed(numbers[2])
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def sample_batches(samples: AnySamples, batch: int) -> Iterator[Batch]:
    """Yield all samples in order, in batches of about ``batch`` or, of small samples, up to 500."""
    if isinstance(samples, Tensors) and len(samples):
        named = samples.x.values() if isinstance(samples.x, Mapping) else [samples.x]
        each = max(1, sum(t[0].numel() for t in named), samples.y[0].numel() if samples.y is not None else 1)
        batch = max(batch, min(500, _ELEMENTS // (64 * each)))
    for start in range(0, len(samples), batch):
        index = torch.arange(start, min(start + batch, len(samples)))
        with seeded(0, _FETCH, start):
            yield batch_of(samples, index)
