"""The network's outputs on each training sample some visits ago, compressed if requested."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steppe.core.amp import upcast_to_float32
from steppe.core.numerics.outputs import Outputs
from steppe.errors import InputError

FORMS = ("full", "half", "top:K")
_HALF = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class StoredLogits:
    """Past outputs for samples: logits (B, C), or the probabilities of ``classes``, both (B, K)."""

    values: Tensor
    classes: Tensor | None
    T: float

    def divergence(self, logits: Tensor, form: Outputs) -> Tensor:
        r"""Return the divergence of each sample (B,) from present ``logits`` (B, C), both at temperature T.

        With K stored classes, the others count as one: :math:`\sum_k p_k\log(p_k/q_k) + p_r\log(p_r/q_r)`,
        :math:`p_r = 1-\sum_k p_k`. Lumping makes a divergence smaller, never larger (the data-processing
        inequality), and leaves the ratios between the other classes free.
        """
        values = self.values.to(logits.device)
        if self.classes is None:
            return form.per_sample(values, logits, None, self.T)
        classes = self.classes.to(logits.device)
        log_q = torch.log_softmax(upcast_to_float32(logits) / self.T, 1)
        stored = (torch.xlogy(values, values) - values * log_q.gather(1, classes)).sum(1)
        if classes.shape[1] == logits.shape[1]:
            return stored
        rest = (1 - values.sum(1)).clamp(min=0)
        log_rest = log_q.scatter(1, classes, float("-inf")).logsumexp(1)
        return stored + torch.xlogy(rest, rest) - rest * log_rest


class LogitBank(nn.Module):
    """Outputs of the last ``past`` visits to each sample, by its stable index, in the host's memory.

    Visits are counted per sample, so epochs, their order and their shuffling do not matter. The form 'full' keeps
    logits in float32 (float64 if the first ones are and nothing was allocated), 'half' in float16, 'top:K' the K
    largest probabilities at temperature ``T`` in float16, and their classes in 16 bits. In float16, logits beyond
    its range (65504) are stored less their maximum, which has the same probabilities.

    Buffers grow with the largest index; checkpoints save them.

    Raises InputError for an index that is not a whole number of at least 0, or needs more memory than there is.
    """

    content = "outputs of each sample"

    def __init__(self, past: int, form: str, T: float):
        super().__init__()
        self.past, self.form, self.T = past, form, T
        self.top = top_k(form)
        self.register_buffer("visits", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(0))
        self.register_buffer("classes", torch.zeros(0, dtype=torch.int16))
        self.total = 0  # classes, 0 before the first outputs

    def allocate(self, samples: int, classes: int) -> None:
        """Allocate for so many samples at once, instead of as their indices come."""
        self._set_form(torch.zeros(0, classes))
        self._grow(samples, exactly=True)

    def read(self, index: Tensor, logits: Tensor | None = None) -> tuple[StoredLogits, Tensor]:
        """Return the outputs of ``past`` visits ago for samples (B,), and their visits so far (B,).

        The outputs of samples with fewer visits than that are meaningless. The bank starts anew if the present
        ``logits`` (B, C) have another number of classes.
        """
        if self.total and logits is not None:
            self._set_form(logits.detach())
        index = self._checked(index)
        visits = self.get_buffer("visits")[index]
        if not self.total:
            return StoredLogits(torch.zeros(len(index), 0), None, self.T), visits
        slot = visits.long() % self.past
        values = upcast_to_float32(self.get_buffer("values")[index, slot])
        classes = None if self.top is None else self.get_buffer("classes")[index, slot].long() & 0xFFFF
        return StoredLogits(values, classes, self.T), visits

    def write(self, index: Tensor, logits: Tensor) -> None:
        """Store a visit to each sample: ``logits`` (B, C)."""
        logits = upcast_to_float32(logits.detach()).cpu()
        self._set_form(logits)
        index = self._checked(index)
        visits = self.get_buffer("visits")
        slot = visits[index].long() % self.past
        values = self.get_buffer("values")
        if self.top is None:
            if values.dtype == torch.float16:
                large = logits.abs().amax(1, keepdim=True) > _HALF
                shifted = (logits - logits.amax(1, keepdim=True)).clamp(min=-_HALF)
                logits = torch.where(large, shifted, logits)
            values[index, slot] = logits.to(values.dtype)
        else:
            most = torch.softmax(logits / self.T, 1).topk(self.top, dim=1)
            values[index, slot] = most.values.to(values.dtype)
            self.get_buffer("classes")[index, slot] = most.indices.to(torch.int16)
        visits[index] += 1

    def _set_form(self, logits: Tensor) -> None:
        """Take number of classes and precision from the first outputs; start anew if the number changes."""
        if self.total != logits.shape[1]:
            samples, self.total = len(self.get_buffer("visits")), logits.shape[1]
            self.visits = torch.zeros(samples, dtype=torch.int32)
            top = top_k(self.form)
            self.top = None if top is None else min(top, self.total)
            width = self.top or self.total
            dtype = logits.dtype if self.form == "full" else torch.float16
            self.values = torch.zeros(samples, self.past, width, dtype=dtype)
            if self.top is not None:
                self.classes = torch.zeros(samples, self.past, width, dtype=torch.int16)

    def _checked(self, index: Tensor) -> Tensor:
        """Return sample indices on the CPU, for which there is room."""
        index = index.cpu()  # a GPU is waited for here, and not for the smallest and the largest one
        whole = not index.is_floating_point() and index.dtype != torch.bool
        if not whole or index.ndim != 1 or index.numpy().min() < 0:
            raise InputError(
                f"the batch's index is {index.dtype} of shape {tuple(index.shape)}, from {index.min().item()}; "
                "give each sample's position in the data set, whole numbers from 0"
            )
        self._grow(int(index.numpy().max()) + 1)
        return index

    def _grow(self, count: int, exactly: bool = False) -> None:
        size = len(self.get_buffer("visits"))
        if count > size:
            need, memory = size_in_bytes(count, self.total, self.past, self.form), _memory()
            if need > memory:
                raise InputError(
                    f"the batch's index goes up to {count - 1}, whose past outputs take {need / 2**30:.0f} GiB of "
                    f"{memory / 2**30:.0f}; give each sample's position in the data set, from 0"
                )
            more = max(count, 0 if exactly else size + size // 2) - size
            for name in ("visits", "values", "classes"):
                t = self.get_buffer(name)
                if t.ndim > 1 or name == "visits":
                    setattr(self, name, torch.cat([t, t.new_zeros(more, *t.shape[1:])]))

    def get_extra_state(self) -> Tensor:
        """Return the number of classes as a tensor, for checkpoints."""
        return torch.tensor(self.total)

    def set_extra_state(self, state: Tensor) -> None:
        """Load the number of classes."""
        self.total = int(state)
        self.top = None if self.top is None else min(self.top, self.total)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("visits", "values", "classes"):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, torch.zeros_like(saved, device="cpu"))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LogitBank:
        """Stay in the host's memory when the rest is moved."""
        return self


def _memory() -> float:
    """Return the machine's memory in bytes, infinity if unknown."""
    if not hasattr(os, "sysconf"):
        return float("inf")
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def top_k(form: str) -> int | None:
    """Return K of 'top:K', None for another form."""
    match = re.fullmatch(r"top:([1-9]\d*)", form)
    return int(match[1]) if match else None


def is_form(text: str) -> bool:
    """Return whether a text is 'full', 'half' or 'top:K'."""
    return text in FORMS[:2] or top_k(text) is not None


def size_in_bytes(samples: int, classes: int, past: int, form: str) -> int:
    """Return the memory of the past outputs of so many samples, in bytes."""
    top = top_k(form)
    entry = min(top, classes) * 4 if top else classes * (4 if form == "full" else 2)
    return samples * (past * entry + 4)
