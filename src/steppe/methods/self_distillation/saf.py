"""SAF: stay close to the network's own outputs of some epochs ago.

    w <- U(w, grad [L(w) + lam T^2 mean_i KL(softmax(z_i' / T) || softmax(z_i / T))]),   z_i = f(x_i; w)

z_i' are the network's logits of the same sample ``past`` visits ago.

Paper    Du et al., NeurIPS 2022, arXiv:2205.14083, equation 8
Code     AngusDujw/SAF @ 6e85600, SAF_train.py
Cost     1 forward, 1 backward, 1 update; memory: samples x past x classes numbers, less with store 'half', 'top:K'
Limits   lam = 0 is Plain
Differs  1. squared = True multiplies the KL by T^2 as the code does; the poster does not (its lam is then 25 times
            ours at T = 5).
         2. epochs are counted per sample, by its visits, and outputs are stored by its index in the data set,
            shared by all processes: the code reads them under the next batch's indices, and per process.
         3. a sample that has not been visited often enough is left out of the KL; the code reads zeros.
         4. past slots are stored; the code stores one more, because it writes before it reads.
         5. with mixed images (mixup, CutMix) the stored outputs are those of another mix of the same image: the
            code accepts that silently; mixed = 'skip' leaves the KL out for such batches.
Start    lam 0.3, T 5, past 3 (authors' README and script); they start after 6 epochs of 90
         (epoch > 5, counted from 0): start = 0.066666
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from steppe.core.method import Batch, Method, Runtime, StepOutput, require
from steppe.core.state.logit_bank import FORMS, LogitBank, size_in_bytes, top_k
from steppe.errors import InputError


@dataclass(frozen=True)
class SAF(Method):
    """Add ``lam`` times the divergence at temperature ``T`` from the outputs of ``past`` visits ago.

    From ``start`` on: a step number, or a share of the training below 1.
    """

    limit: ClassVar = {"lam": 0.0}
    cost: ClassVar = (1, 1, 1)
    amounts: ClassVar = ("start",)

    lam: float = 0.3
    T: float = 5.0
    past: int = 3
    start: float = 0
    squared: bool = True
    store: str = "full"
    mixed: str = "accept"

    def check(self) -> None:
        require(self, "lam", self.lam >= 0, "a number of at least 0 (0.3 is usual)")
        require(self, "T", self.T > 0, "a number above 0 (5 is usual)")
        require(self, "past", self.past >= 1, "at least 1 epoch (3 is usual)")
        require(self, "start", self.start >= 0, "a step number, or a share of the training below 1")
        valid = self.store in FORMS[:2] or top_k(self.store) is not None
        require(self, "store", valid, "'full', 'half' or 'top:K', such as 'top:32'")
        require(self, "mixed", self.mixed in ("accept", "skip"), "'accept' or 'skip'")

    def init(self, net: nn.Module) -> nn.Module:
        return LogitBank(self.past, self.store, self.T)

    def memory_bytes(self, samples: int, classes: int) -> int:
        return size_in_bytes(samples, classes, self.past, self.store) if self.lam else 0

    def allocate(self, state: nn.Module, samples: int, classes: int) -> None:
        assert isinstance(state, LogitBank)
        if self.lam:
            state.allocate(samples, classes)

    def objective(self, batch: Batch, state: nn.Module, rt: Runtime) -> StepOutput:
        """The loss plus the divergence from the past outputs."""
        assert isinstance(state, LogitBank)
        out = rt.supervised(batch)
        if self.lam == 0 or (self.mixed == "skip" and batch.y is not None and batch.y.is_floating_point()):
            return out
        past, visits = state.read(_index(batch), out.logits)
        old = visits >= self.past
        if not (old.any() and rt.now.reached(self.start, "start")):
            return out
        each = past.divergence(out.logits)
        weight = self.lam * (self.T**2 if self.squared else 1.0)
        return StepOutput(out.loss + weight * (each * old.to(each)).mean(), out.logits)

    def after(self, batch: Batch, out: StepOutput, state: nn.Module, rt: Runtime) -> None:
        """Store the outputs of all processes."""
        assert isinstance(state, LogitBank)
        if self.lam:
            # the clean pass of a combined method may have the first samples only
            state.write(*rt.parallel.gather(_index(batch)[: len(out.logits)], out.logits))


def _index(batch: Batch) -> Tensor:
    if batch.index is None:
        raise InputError("SAF stores outputs by sample; give batches with an index: steppe.Batch(x, y, index)")
    return batch.index
