"""SAF: stay close to the network's own outputs of some epochs ago.

    w <- U(w, grad [L(w) + lam T^2 mean_i KL(softmax(z_i' / T) || softmax(z_i / T))]),   z_i = f(x_i; w)

z_i' are the network's logits of the same sample ``past`` visits ago.

Paper    Du et al., NeurIPS 2022, arXiv:2205.14083, equation 8
Code     AngusDujw/SAF @ 6e85600, SAF_train.py
Cost     1 forward, 1 backward, 1 update; memory: samples x past x classes numbers, less with store 'half', 'top:K'
Limits   lam = 0 is Plain
Outputs  classes, labels or numbers of samples; not of positions, whose outputs would be stored for each sample
Differs  1. squared = True multiplies the KL by T^2 as the code does; the poster does not (its lam is then 25 times
            ours at T = 5).
         2. epochs are counted per sample, by its visits, and outputs are stored by its index in the data set,
            shared by all processes: the code reads them under the next batch's indices, and per process.
         3. a sample that has not been visited often enough is left out of the KL; the code reads zeros.
         4. past slots are stored; the code stores one more, because it writes before it reads.
         5. with mixed images (mixup, CutMix) the stored outputs are those of another mix of the same image: the
            code accepts that silently; mixed = 'skip' leaves the KL out for batches whose targets are
            probabilities of classes. It is refused for labels and numbers, which do not show what is mixed.
Start    lam 0.3, T 5, past 3 (authors' README and script); they start after 6 epochs of 90
         (epoch > 5, counted from 0): start = 0.066666
"""

from dataclasses import dataclass

from torch import Tensor, nn

from steppe.core.method import Batch, Cost, InputError, LogitBank, Method, Runtime, StepOutput, hyper, logit_bank


@dataclass(frozen=True)
class SAF(Method[LogitBank]):
    """Add ``lam`` times the divergence at temperature ``T`` from the outputs of ``past`` visits ago."""

    cost = Cost(1, 1, 1)

    lam: float = hyper(0.3, "weight of the divergence", minimum=0, plain_at=0)
    T: float = hyper(5.0, "temperature", above=0)
    past: int = hyper(3, "visits", minimum=1, remedy="at least 1 epoch (3 is usual)")
    start: float = hyper(0, "when the divergence begins", amount=True)
    squared: bool = hyper(True, "multiply the divergence by T^2")
    store: str = hyper(
        "full", "their form", valid=logit_bank.is_form, remedy="'full', 'half' or 'top:K', such as 'top:32'"
    )
    mixed: str = hyper("accept", "batches of mixed images", choices=("accept", "skip"))

    on_host = "its logit bank is in the host's memory"

    def init(self, net: nn.Module) -> LogitBank:
        return LogitBank(self.past, self.store, self.T)

    def memory_bytes(self, samples: int, classes: int) -> int:
        return logit_bank.size_in_bytes(samples, classes, self.past, self.store) if self.lam else 0

    def allocate(self, state: LogitBank, samples: int, classes: int) -> None:
        if self.lam:
            state.allocate(samples, classes)

    def objective(self, batch: Batch, state: LogitBank, rt: Runtime) -> StepOutput:
        """The loss plus the divergence from the past outputs."""
        out = rt.supervised(batch)
        logits, form = self._rows(out.logits, batch), rt.form_of(out.logits, batch)
        if self.mixed == "skip":
            if form.form != "classes":
                raise InputError(f"SAF: mixed is 'skip' and the outputs are {form.form}; give mixed='accept'")
            if isinstance(batch.y, Tensor) and batch.y.is_floating_point():
                return out
        if self.store != "full" and form.form != "classes":
            raise InputError(f"SAF: store is {self.store!r} and the outputs are {form.form}; give store='full'")
        past, visits = state.read(_index(batch), logits)
        old = visits >= self.past
        if not (old.any() and rt.now.reached(self.start, "start")):
            return out
        each = past.divergence(logits, form)
        weight = self.lam * (self.T**2 if self.squared else 1.0)
        return StepOutput(out.loss + weight * (each * old.to(each)).mean(), out.logits)

    def after(self, batch: Batch, out: StepOutput, state: LogitBank, rt: Runtime) -> None:
        """Store the outputs of all processes."""
        if self.lam and not out.skipped:
            # the clean pass of a combined method may have the first samples only
            state.write(*rt.parallel.gather(_index(batch)[: len(out.logits)], self._rows(out.logits, batch)))

    def _rows(self, logits: Tensor, batch: Batch) -> Tensor:
        if len(logits) > len(batch):
            raise InputError(
                f"SAF stores the outputs of each sample, and {len(batch)} samples have {len(logits)} rows of "
                "outputs; return one row per sample"
            )
        if logits.ndim > 2:
            raise InputError(
                f"SAF stores the outputs of each sample, and they are {tuple(logits.shape[1:])} numbers here; "
                "use mesa, which stores none"
            )
        return logits if logits.ndim == 2 else logits[:, None]


def _index(batch: Batch) -> Tensor:
    if batch.index is None:
        raise InputError("SAF stores outputs by sample; give batches with an index: steppe.Batch(x, y, index)")
    return batch.index
