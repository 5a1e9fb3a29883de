"""Random weight perturbation: a weighted mean of the clean gradient and one at filter-wise noise.

    w <- U(w, alpha g_1 + (1 - alpha) g_2),   g_1 = grad L_{B1}(w),   g_2 = grad L_{B2}(w + n)
    n ~ N(0, (gamma |w_k|)^2) for every element of filter k

Paper    Li et al., TNNLS 2024, arXiv:2211.13489v1, algorithm 1
Code     nblt/RWP @ cb0acb0
Cost     2 forward, 2 backward, 1 update; batches = 2 halves its batch: 1 forward, 1 backward; half of the
         processes each: 1 forward, 1 backward
Limits   alpha = 1 with batches = 1 is Plain; alpha = 0 with batches = 1 is LPF-SGD with M = 1
Differs  1. alpha weighs the clean gradient (paper); the authors' code weighs the noisy one.
         2. the standard deviation is gamma |w_k| (authors' code); the paper writes N(0, gamma |w_k|).
         3. batches = 2, the paper's way, takes the step's batch as B1 and B2, one half each: give it twice the
            batch to have the paper's 2b samples. The noisy half draws dropout masks of its own.
         4. halves = True: even processes take the clean gradient and odd ones the noisy one, each on its own
            batch, as the authors' script. Weights are exact for any number of processes above one, theirs for an
            even number. Noise differs between processes, theirs has one seed. Replicas stay equal bit for bit.
         5. running statistics are those of the clean pass, or of the first process, which is a clean one.
Start    gamma 0.01, alpha 0.5 (CIFAR), gamma 0.005 (ImageNet), 0.001 (ViT) (paper, section 4.1, appendices D, E)
"""

from dataclasses import dataclass

from steppe.core.method import (
    Batch,
    Cost,
    Perturbing,
    Runtime,
    ScheduleValue,
    StepOutput,
    hyper,
    plain_step,
    require,
)
from steppe.core.method.numerics import ScaledVector, filters, vector


@dataclass(frozen=True)
class RWP(Perturbing):
    """Weigh the clean gradient by ``alpha`` and that at filter-wise noise of size ``gamma`` by the rest."""

    controls = ("plain", "two-step")

    gamma: ScheduleValue = hyper(0.01, "noise, relative to a filter's norm", minimum=0, plain_at=0)
    alpha: float = hyper(0.5, "weight of the clean gradient", minimum=0, maximum=1, plain_at=1)
    batches: int = hyper(1, "both gradients of one batch, or of a half each", choices=(1, 2), plain_only_at=1)
    halves: bool = hyper(False, "half of the processes take each gradient", plain_only_at=False)

    def check(self) -> None:
        require(self, "halves", not (self.halves and self.batches == 2), "False with batches = 2")

    @property
    def cost(self) -> Cost:
        both = 2 if self.batches == 1 and not self.halves and 0 < self.alpha < 1 else 1
        return Cost(both, both, 1)

    @property
    def local(self) -> str:
        cut = self.batches == 2 or self.halves
        return "the number of processes decides which samples get the noise" if cut else ""

    def step(self, batch: Batch, state: object, rt: Runtime) -> StepOutput:
        """Clean gradient at w, noisy gradient at w + n, restore w, update with their weighted mean."""
        if self.halves:
            return self._by_process(batch, rt)
        # BatchNorm refuses a half of a single sample
        cut = self.batches == 2 and len(batch) >= 4
        clean, other = batch.halves() if cut else (batch, batch)
        if self.alpha == 1:
            return plain_step(clean, rt)
        if self.alpha == 0:
            with rt.at(self._noise(rt), clean=True):
                out, g = rt.grad(clean)
            rt.apply(g)
            return out
        mask_seed = rt.draw_mask_seed() if self.batches == 2 else None
        out, g = rt.grad(clean)
        with rt.at(self._noise(rt), mask_seed=mask_seed):
            _, g_n = rt.grad(other)
        rt.apply(vector.lerp(g_n, g, self.alpha))
        return out

    def _by_process(self, batch: Batch, rt: Runtime) -> StepOutput:
        """Take the clean gradient on even processes and the noisy one on odd processes; update with the mean."""
        clean, noisy = rt.parallel.processes_per_part(2)
        if rt.parallel.rank % 2 == 0:
            out, g = rt.grad(batch)
            rt.apply(g, weight=self.alpha / clean)
        else:
            with rt.at(self._noise(rt), clean=True):
                out, g = rt.grad(batch)
            rt.apply(g, weight=(1 - self.alpha) / noisy)
        return out

    def _noise(self, rt: Runtime) -> ScaledVector:
        return filters.filter_noise(rt.params, rt.owners, self.radius(rt, "gamma"), rt.rng)
