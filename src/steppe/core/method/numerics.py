"""What methods may compute with.

- vectors of parameter space: the types `Vec` and `Offset` (a `Vec` or a `ScaledVector`) and the module `vector`;
- perturbations: the functions of `steppe.core.numerics.perturbations`;
- `full_weights`: those below low-rank adapters, and their `full_gradients`;
- `filters`: output units, filter-wise noise, scopes of parameters;
- `losses`: ramps, the targets of distillation; of divergences see `Runtime.divergence`.
"""

from steppe.core.method._auxiliary_adapters import full_gradients
from steppe.core.numerics import filters, losses, perturbations, vector
from steppe.core.numerics._adapters import full_weights
from steppe.core.numerics.complex_params import leaf
from steppe.core.numerics.perturbations import (
    NORMS,
    Offset,
    adaptive_perturbation,
    asam_scale,
    at_length_of,
    ball_perturbation,
    layerwise_perturbation,
    orthogonal_part,
    project,
    sam_perturbation,
    scaled_perturbation,
    with_decay,
)
from steppe.core.numerics.vector import ScaledVector, Vec

__all__ = [
    "NORMS",
    "Offset",
    "ScaledVector",
    "Vec",
    "adaptive_perturbation",
    "asam_scale",
    "at_length_of",
    "ball_perturbation",
    "filters",
    "full_gradients",
    "full_weights",
    "layerwise_perturbation",
    "leaf",
    "losses",
    "orthogonal_part",
    "perturbations",
    "project",
    "sam_perturbation",
    "scaled_perturbation",
    "vector",
    "with_decay",
]
