"""Functions of vectors of parameter space, of gradients and of logits, which any method may use.

The modules `vector`, `filters` (output units, filter-wise noise, scopes of parameters) and `losses`, and the
functions of `perturbations`.
"""

from steppe.core.numerics import filters, losses, vector
from steppe.core.numerics.perturbations import (
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

__all__ = [
    "adaptive_perturbation",
    "asam_scale",
    "at_length_of",
    "ball_perturbation",
    "filters",
    "layerwise_perturbation",
    "losses",
    "orthogonal_part",
    "project",
    "sam_perturbation",
    "scaled_perturbation",
    "vector",
    "with_decay",
]
