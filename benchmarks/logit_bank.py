"""What it costs to remember a data set's outputs: memory, time, and what compression does to SAF's divergence.

The outputs are made up, in the manner of a trained network's: Gaussian logits of standard deviation ``spread``,
the sample's own class raised by ``peak``. One visit later the logits have moved by Gaussian noise of ``change``.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from steppe.core.state.logit_bank import FORMS, LogitBank, StoredLogits, size_in_bytes, top_k
from steppe.errors import InputError


@dataclass(frozen=True)
class StoreCost:
    """A store's price.

    ``declared`` and ``held`` are bytes, before and after it is filled; ``peak`` is what the process's memory grew
    by at most. ``write`` and ``read`` are milliseconds per batch. ``kl`` is the mean divergence of the outputs of
    now from those of before, ``kl_stored`` the same with the stored ones; ``angle`` is the mean cosine between the
    two gradients with respect to the logits.
    """

    form: str
    declared: int
    held: int
    peak: int
    write: float
    read: float
    kl: float
    kl_stored: float
    angle: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def store_cost(
    form: str = "top:32",
    *,
    samples: int = 1_281_167,
    classes: int = 1000,
    past: int = 4,
    batch: int = 1024,
    T: float = 5.0,
    spread: float = 2.5,
    peak: float = 12.0,
    change: float = 1.0,
) -> StoreCost:
    """Fill a store with one visit to each sample in random order, and read some of it back.

    Args:
        form: How outputs are kept: 'full', 'half' or 'top:K'.
        samples: Size of the data set; ImageNet's by default.
        classes: Number of classes.
        past: Slots per sample.
        batch: Samples per step.
        T: Temperature of the divergence.
        spread: Standard deviation of the logits.
        peak: What the sample's own class is raised by.
        change: Standard deviation of what a logit moves by between two visits.

    Raises:
        InputError: A number is below 1, or the form is unknown.
    """
    for name, value in {"samples": samples, "classes": classes, "past": past, "batch": batch}.items():
        if value < 1:
            raise InputError(f"{name} is {value}; give at least 1")
    if form not in FORMS[:2] and top_k(form) is None:
        raise InputError(f"form is {form!r}; give 'full', 'half' or 'top:K', such as 'top:32'")
    g = torch.Generator().manual_seed(0)
    order = torch.randperm(samples, generator=g)
    noise = torch.randn(batch, classes, generator=g)

    def said(index: Tensor) -> Tensor:
        # one block of noise, shifted by the sample's number: a network is not what is measured
        z = spread * torch.roll(noise, int(index[0]) % classes, 1)[: len(index)]
        z[torch.arange(len(index)), index % classes] += peak
        return z

    before = _peak_memory()
    store = LogitBank(past, form, T)
    store.allocate(samples, classes)
    started = time.perf_counter()
    idle = 0.0
    batches = torch.split(order, batch)
    for index in batches:
        pause = time.perf_counter()
        z = said(index)
        idle += time.perf_counter() - pause
        store.write(index, z)
    write = (time.perf_counter() - started - idle) / len(batches)
    grown = _peak_memory() - before
    held = sum(b.numel() * b.element_size() for b in store.buffers())
    kls: list[float] = []
    stored: list[float] = []
    angles: list[float] = []
    reading = 0.0
    for _ in range(past - 1):  # the slot that a read looks at is the oldest one
        for index in torch.split(order[: 8 * batch], batch):
            store.write(index, said(index))
    for index in torch.split(order[: 8 * batch], batch):
        now = said(index) + change * torch.randn(len(index), classes, generator=g)
        started = time.perf_counter()
        kept, _ = store.read(index)
        reading += time.perf_counter() - started
        gradients = []
        for reference, found in ((StoredLogits(said(index), None, T), kls), (kept, stored)):
            z = now.clone().requires_grad_()
            each = reference.divergence(z)
            found.append(float(each.detach().mean()))
            gradients.append(torch.autograd.grad(each.sum(), z)[0])
        angles.append(float(torch.cosine_similarity(gradients[0], gradients[1], dim=1).mean()))
    return StoreCost(
        form,
        size_in_bytes(samples, classes, past, form),
        held,
        grown,
        1000 * write,
        1000 * reading / len(kls),
        sum(kls) / len(kls),
        sum(stored) / len(stored),
        sum(angles) / len(angles),
    )


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * 1024 if sys.platform == "linux" else peak
