"""Norms of a network's filters."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from steppe.core import param_groups
from steppe.core.model_call import unwrap_model
from steppe.core.numerics.complex_params import real_views
from steppe.core.numerics.filters import EMBEDDINGS, norms_of_units, units_of
from steppe.errors import InputError


@dataclass(frozen=True)
class FilterNorms:
    """The L2 norms of all filters (and rows of matrices) in order of registration, and each one's layer.

    PyTorch initialises weights uniformly in +-1/sqrt(fan-in), so the expected squared norm of every filter is 1/3
    at the start, whatever its size.
    """

    norms: np.ndarray
    layers: list[str]

    @property
    def variation(self) -> float:
        """Return the coefficient of variation: standard deviation over mean; 0 if all norms are equal."""
        return float(self.norms.std() / self.norms.mean())


def filter_norms(model: nn.Module) -> FilterNorms:
    """Return the norm of every filter: of each output unit of a convolution or linear layer.

    The RWP paper's figure 4 shows their distribution; section 3.4 takes a narrower one for more balanced filters.

    Raises InputError if the network has no filter.
    """
    net, _ = unwrap_model(model)
    names, params = [name for name, _ in net.named_parameters()], real_views(list(net.parameters()))
    norms: list[np.ndarray] = []
    layers: list[str] = []
    for name, p, owner in zip(names, params, param_groups.owners(net, params), strict=True):
        units = None if isinstance(owner, EMBEDDINGS) else units_of(p, owner)
        if units is None:
            continue
        with torch.no_grad():
            norms.append(norms_of_units(p.detach().double(), units).cpu().numpy())
        layers += [name] * len(norms[-1])
    if not norms:
        raise InputError("the model has no convolution or linear layer; there is no filter to measure")
    return FilterNorms(np.concatenate(norms), layers)
