"""What a network said about each training sample some visits ago, in as little memory as asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from steppe.precision import widened

FORMS = ("full", "half", "top:K")


class PastOutputs(nn.Module):
    """Logits (N, C) of the last ``past`` visits to each sample, by its stable index, in the host's memory.

    A sample's visits count themselves, so epochs, their order, and who shuffles them need not be known. The form
    'full' keeps the logits as they are (float32 at least), 'half' float16, 'top:K' the K largest probabilities at temperature
    ``T`` in float16 and their classes in 16 bits, the rest of the probability spread evenly over the other classes.

    Buffers grow with the largest index seen; a checkpoint holds them.
    """

    def __init__(self, past: int, form: str, T: float):
        super().__init__()
        self.past, self.form, self.T = past, form, T
        self.top = top_of(form)
        self.register_buffer("visits", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(0))
        self.register_buffer("classes", torch.zeros(0, dtype=torch.int16))
        self.total = 0  # classes, known from the first outputs

    def read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return what was said ``past`` visits ago as logits (B, C), and the visits so far (B,).

        Rows of samples with fewer visits than that mean nothing.
        """
        index = index.cpu()
        self._grow(int(index.max()) + 1)
        visits = self.get_buffer("visits")[index]
        if not self.total:
            return torch.zeros(len(index), 0), visits
        slot = visits.long() % self.past
        values = widened(self.get_buffer("values")[index, slot])
        if self.top is None:
            return values, visits
        left = (1 - values.sum(1, keepdim=True)).clamp(min=1e-6) / max(self.total - self.top, 1)
        dense = left.expand(-1, self.total).clone()
        classes = self.get_buffer("classes")[index, slot].long() & 0xFFFF
        dense.scatter_(1, classes, values.clamp(min=1e-8))
        return self.T * dense.log(), visits

    def write(self, index: Tensor, logits: Tensor) -> None:
        """Take in a visit to each sample: ``logits`` (B, C)."""
        index, logits = index.cpu(), widened(logits.detach()).cpu()
        self._grow(int(index.max()) + 1, logits)
        visits = self.get_buffer("visits")
        slot = visits[index].long() % self.past
        values = self.get_buffer("values")
        if self.top is None:
            values[index, slot] = logits.to(values.dtype)
        else:
            most = torch.softmax(logits / self.T, 1).topk(self.top, dim=1)
            values[index, slot] = most.values.to(values.dtype)
            self.get_buffer("classes")[index, slot] = most.indices.to(torch.int16)
        visits[index] += 1

    def _grow(self, count: int, logits: Tensor | None = None) -> None:
        held = len(self.get_buffer("visits"))
        if logits is not None and not self.total:
            self.total = logits.shape[1]
            self.top = None if self.top is None else min(self.top, self.total)
            width = self.top or self.total
            dtype = logits.dtype if self.form == "full" else torch.float16
            self.values = torch.zeros(held, self.past, width, dtype=dtype)
            if self.top is not None:
                self.classes = torch.zeros(held, self.past, width, dtype=torch.int16)
        if count > held:
            more = max(count, held + held // 2) - held
            for name in ("visits", "values", "classes"):
                t = self.get_buffer(name)
                if t.ndim > 1 or name == "visits":
                    setattr(self, name, torch.cat([t, t.new_zeros(more, *t.shape[1:])]))

    def get_extra_state(self) -> Tensor:
        """Return the number of classes as a tensor: checkpoints hold nothing else."""
        return torch.tensor(self.total)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on with so many classes."""
        self.total = int(state)
        self.top = None if self.top is None else min(self.top, self.total)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("visits", "values", "classes"):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, torch.zeros_like(saved, device="cpu"))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PastOutputs:
        """Stay in the host's memory, whatever moves the rest."""
        return self


def top_of(form: str) -> int | None:
    """Return K of 'top:K', None for another form."""
    match = re.fullmatch(r"top:([1-9]\d*)", form)
    return int(match[1]) if match else None


def size_in_bytes(samples: int, classes: int, past: int, form: str) -> int:
    """Return the memory that past outputs of so many samples take."""
    top = top_of(form)
    entry = min(top, classes) * 4 if top else classes * (4 if form == "full" else 2)
    return samples * (past * entry + 4)
