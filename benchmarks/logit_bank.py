"""Cost of SAF's logit bank: memory, time, and the effect of compression on its KL divergence.

The outputs are synthetic, similar to a trained network's: Gaussian logits of standard deviation ``spread``, with
the sample's own class raised by ``peak``. From one visit to the next each logit moves by Gaussian noise of
standard deviation ``change``.
"""

import resource
import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from steppe.bench.timing import at_least_one
from steppe.core.numerics.outputs import Outputs
from steppe.core.state.logit_bank import FORMS, LogitBank, StoredLogits, size_in_bytes, top_k
from steppe.errors import InputError

READ_BATCHES = 8


@dataclass(frozen=True)
class StoreCost:
    """Cost of a logit bank.

    ``declared`` and ``allocated`` are its bytes as computed beforehand and after it is filled; ``peak`` is the
    growth of the process's peak memory. ``write`` and ``read`` are milliseconds per batch. ``kl`` is the mean KL
    of the new outputs from the exact old ones, ``kl_stored`` from the stored ones; ``cosine`` is the mean cosine
    between the two gradients with respect to the logits.
    """

    form: str
    declared: int
    allocated: int
    peak: int
    write: float
    read: float
    kl: float
    kl_stored: float
    cosine: float


def store_cost(
    form: str,
    *,
    samples: int,
    classes: int,
    past: int,
    batch: int = 1024,
    T: float = 5.0,
    spread: float = 2.5,
    peak: float = 12.0,
    change: float = 1.0,
) -> StoreCost:
    """Fill a bank of ``past`` slots per sample with one visit to each sample in random order, and read some of it.

    Raises InputError for a number below 1 and an unknown form.
    """
    at_least_one(samples=samples, classes=classes, past=past, batch=batch)
    if form not in FORMS[:2] and top_k(form) is None:
        raise InputError(f"form is {form!r}; give 'full', 'half' or 'top:K', such as 'top:32'")
    g = torch.Generator().manual_seed(0)
    order = torch.randperm(samples, generator=g)
    noise = torch.randn(batch, classes, generator=g)

    def logits_of(index: Tensor) -> Tensor:
        # one block of noise, shifted by the sample's number: generating logits is not what is measured
        z = spread * torch.roll(noise, int(index[0]) % classes, 1)[: len(index)]
        z[torch.arange(len(index)), index % classes] += peak
        return z

    memory_before = _peak_memory()
    bank = LogitBank(past, form, T)
    bank.allocate(samples, classes)
    batches, some = torch.split(order, batch), torch.split(order[: READ_BATCHES * batch], batch)
    write = 0.0
    for index in batches:
        z = logits_of(index)
        started = time.perf_counter()
        bank.write(index, z)
        write += time.perf_counter() - started
    memory = _peak_memory() - memory_before
    for _ in range(past - 1):  # a read returns the oldest slot
        for index in some:
            bank.write(index, logits_of(index))
    read, kls, stored_kls, cosines = 0.0, [], [], []
    for index in some:
        new = logits_of(index) + change * torch.randn(len(index), classes, generator=g)
        started = time.perf_counter()
        stored, _ = bank.read(index)
        read += time.perf_counter() - started
        kl, gradient = _divergence(StoredLogits(logits_of(index), None, T), new)
        stored_kl, stored_gradient = _divergence(stored, new)
        kls.append(kl)
        stored_kls.append(stored_kl)
        cosines.append(float(torch.cosine_similarity(gradient, stored_gradient, dim=1).mean()))
    return StoreCost(
        form=form,
        declared=size_in_bytes(samples, classes, past, form),
        allocated=sum(b.numel() * b.element_size() for b in bank.buffers()),
        peak=memory,
        write=1000 * write / len(batches),
        read=1000 * read / len(some),
        kl=sum(kls) / len(some),
        kl_stored=sum(stored_kls) / len(some),
        cosine=sum(cosines) / len(some),
    )


def _divergence(reference: StoredLogits, logits: Tensor) -> tuple[float, Tensor]:
    """Return the mean KL of the logits from the reference, and its gradient of each sample."""
    z = logits.clone().requires_grad_()
    per_sample = reference.divergence(z, Outputs("classes"))
    return float(per_sample.detach().mean()), torch.autograd.grad(per_sample.sum(), z)[0]


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * 1024 if sys.platform == "linux" else peak
